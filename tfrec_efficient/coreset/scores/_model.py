"""The forward pass of a model, and the probabilities and embeddings that it makes."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.coreset.scores._examples import to_classes

# How far probabilities may be from what they should be; those of bfloat16 are off by 0.004.
_TOLERANCE = 1e-2


def to_probabilities(output: Any, from_logits: bool) -> tf.Tensor:
    """Probabilities of shape `(batch, classes)`, float32, of a model's output.

    Raises:
        ValueError: The output has another form.
    """
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) not in (1, 2) or shape[1:] in ((0,), (None,)):
        raise ValueError(
            "The model must have one output, of shape `(batch, classes)`, or for two classes "
            "`(batch, 1)` or `(batch,)`, of single examples that are batched here. Received: "
            f"{keras.tree.map_structure(lambda tensor: tensor.shape, output)}"
        )
    output = tf.cast(tf.convert_to_tensor(output), tf.float32)
    if shape[1:] not in ((), (1,)):
        return tf.nn.softmax(output) if from_logits else output
    output = tf.reshape(output, [-1, 1])
    second = tf.sigmoid(output) if from_logits else output
    return tf.concat([1.0 - second, second], axis=1)


def check_probabilities(probabilities: np.ndarray, first: int) -> np.ndarray:
    """Returns probabilities within `[0, 1]`.

    Args:
        probabilities: Of shape `(batch, classes)`.
        first: Row of the first one, for errors.

    Raises:
        ValueError: They are not finite, or no probabilities.
    """
    _check_finite("The model's output", probabilities, first)
    is_right = (np.abs(probabilities - 0.5) <= 0.5 + _TOLERANCE).all(axis=1)
    is_right &= np.abs(probabilities.sum(axis=1) - 1) <= _TOLERANCE
    if not is_right.all():
        at = int(np.argmin(is_right))
        raise ValueError(
            "The model's output must be probabilities that sum to 1, unless `from_logits=True`. "
            f"Received: {probabilities[at].tolist()} in row {first + at}"
        )
    return probabilities.clip(0, 1)


def _check_finite(what: str, values: np.ndarray, first: int) -> None:
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        at = first + int(np.argmin(is_finite))
        raise ValueError(f"{what} must be finite. Received: NaN or infinity in row {at}")


@contextlib.contextmanager
def _listen(layers: list[keras.Layer]) -> Iterator[list[tuple[keras.Layer, Any, Any]]]:
    """Notes each call of some layers: the layer, its first input, and what it returns."""
    heard: list[tuple[keras.Layer, Any, Any]] = []

    def listening(layer: keras.Layer) -> Callable[..., Any]:
        original = layer.call

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            heard.append((layer, next(iter(keras.tree.flatten((args, kwargs))), None), made))
            return made

        return call

    # Past __setattr__, with which Keras tracks what belongs to a layer.
    before = [vars(layer).get("call") for layer in layers]
    for layer in layers:
        vars(layer)["call"] = listening(layer)
    try:
        yield heard
    finally:
        for layer, call in zip(layers, before, strict=True):
            del vars(layer)["call"]
            if call is not None:
                vars(layer)["call"] = call


class Forward:
    """The forward pass of a model, and what is kept of it."""

    def __init__(
        self,
        model: keras.Model,
        viewed: tf.data.Dataset,
        embedding_layer: keras.Layer | str | None,
        from_logits: bool,
    ) -> None:
        self._model = model
        self._from_logits = from_logits
        if not model.built:
            with model.distribute_strategy.scope():
                for _, x, _ in viewed.batch(1).take(1):
                    model(x, training=False)
        self._layers = model._flatten_layers(include_self=False)
        self._place: int | None = None
        # Those that hold weights themselves; models and wrappers run them.
        self._heard = [layer for layer in self._layers if _has_own_weights(layer)]
        if embedding_layer is not None:
            self._place = self._find(embedding_layer)
            self._heard = [self._layers[self._place]]
        if model.run_eagerly:
            self._step = self._call
        else:
            spec = viewed.batch(1).element_spec[1]
            # As in Keras, which does not let AutoGraph convert models either.
            step = tf.function(self._call, input_signature=[spec], autograph=False)
            self._step = step.get_concrete_function()

    def identity(self) -> dict[str, Any]:
        """What scores of this pass have in common."""
        digest = hashlib.sha256()
        for weight in self._model.weights:
            array = keras.ops.convert_to_numpy(weight)
            digest.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
        return {
            "model": digest.hexdigest(),
            # Not its name, because Keras makes up another one when the model is made again.
            "embedding_layer": self._place,
            "from_logits": bool(self._from_logits),
        }

    def run(self, x: Any, y: tf.Tensor, first: int) -> dict[str, np.ndarray]:
        """Returns the rows of a batch, of which the first will be row `first`."""
        probabilities, embeddings = (tensor.numpy() for tensor in self._step(x))
        probabilities = check_probabilities(probabilities, first)
        if len(embeddings) != len(probabilities):
            raise ValueError(
                "`embedding_layer` must give a row for each example. "
                f"Received: {len(embeddings)} rows for {len(probabilities)} examples"
            )
        _check_finite("Embeddings", embeddings, first)
        return {
            "embeddings": embeddings,
            "probabilities": probabilities,
            "confidences": probabilities.max(axis=1),
            "labels": to_classes(y.numpy(), probabilities.shape[1], first),
        }

    def _find(self, wanted: keras.Layer | str) -> int:
        found = [i for i, x in enumerate(self._layers) if x is wanted or x.name == wanted]
        if len(found) != 1:
            names = ", ".join(layer.name for layer in self._layers)
            raise ValueError(
                f"`embedding_layer` must be one of the model's layers, which are {names}. "
                f"Received: embedding_layer={wanted}, which {len(found)} of them are"
            )
        return found[0]

    def _call(self, x: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with _listen(self._heard) as heard:
            output = self._model(x, training=False)
        probabilities = to_probabilities(output, self._from_logits)
        layer, features, made = heard[-1] if heard else (None, None, None)
        if self._place is not None:
            features = made
        elif tuple(getattr(made, "shape", ()))[-1:] != (tuple(output.shape)[1:] or (1,)):
            features = None
        if not _is_embedding(features):
            asked = None if self._place is None else self._heard[0].name
            raise ValueError(
                "`embedding_layer` must be a layer that runs when the model does, outside of loops "
                "and of a `tf.function`, and gives a tensor of real numbers of one shape; it can "
                "be left out where the last layer with weights has such an input, and makes the "
                f"output. Received: embedding_layer={asked}, and the last such layer that ran is "
                f"{getattr(layer, 'name', None)}"
            )
        features = tf.cast(features, tf.float32)
        return probabilities, tf.reshape(features, [tf.shape(features)[0], -1])


def _has_own_weights(layer: keras.Layer) -> bool:
    inner = layer._flatten_layers(include_self=False)
    return bool(layer.weights) and not any(x.weights for x in inner)


def _is_embedding(tensor: Any) -> bool:
    """Whether it is a tensor of rows of real numbers, and not one of an inner graph."""
    if not isinstance(tensor, tf.Tensor) or not tensor.dtype.is_floating or not tensor.shape.rank:
        return False
    if tf.executing_eagerly():
        return not tf.is_symbolic_tensor(tensor)
    is_here = tensor.graph is tf.compat.v1.get_default_graph()
    return is_here and tensor.shape[1:].is_fully_defined()
