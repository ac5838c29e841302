"""What the re-labelling learners share: the classifier, the batches with an index, the step."""

import abc
from typing import Any
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.coreset._samples import check_integer


class Learner(keras.Model, abc.ABC):
    """A model around one classifier or two that remembers something of each training sample.

    It is trained by batches `(x, y, index)`. To predict and to evaluate, it is a classifier: its
    output is that of the classifier, or the mean of the two; and it is evaluated on `(x, y)` or
    `(x, y, sample_weight)`.

    A subclass is two methods, `_make_weights` and `_training_loss`, and builds itself at the end of
    its constructor, for what is built can be saved and resumed from the first step on.

    Args:
        classifier: A built `keras.Model` with outputs of shape `(batch, classes)`.
        second_classifier: Another one that shares no weights with it, or None.
        samples: int. How many samples there are to train on.
        classes: int.
        from_logits: bool. Whether outputs are before the softmax.
        seed: int that decides all draws.
        **kwargs: `name`, `trainable` and `dtype` of the model.
    """

    # Arguments of the constructor that are models, layers or functions.
    _objects: ClassVar[tuple[str, ...]]

    built: bool

    def __init__(
        self,
        classifier: keras.Model,
        second_classifier: keras.Model | None,
        samples: int,
        classes: int,
        from_logits: bool,
        seed: int,
        **kwargs: Any,
    ) -> None:
        _check_classifiers(classifier, second_classifier)
        samples = check_integer("samples", samples, 1)
        classes = check_integer("classes", classes, 2)
        seed = check_integer("seed", seed, 0)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                "The strategy must have one replica, which remembers all samples. "
                f"Received: {replicas} replicas"
            )
        kwargs.setdefault("dtype", classifier.dtype_policy)
        super().__init__(**kwargs)
        self.supports_jit = False  # XLA drops the checks of `index` and `y`
        self.classifier = classifier
        self.second_classifier = second_classifier
        self.samples = samples
        self.classes = classes
        self.from_logits = from_logits
        self.seed = seed

    @abc.abstractmethod
    def _make_weights(self) -> None:
        """Makes the variables that are not of the classifiers."""

    @abc.abstractmethod
    def _training_loss(
        self, x: Any, labels: tf.Tensor, index: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of a batch, and the outputs from which to compute the metrics.

        It runs once a step, under a tape. In it, each classifier's last call is in training mode.
        """

    def _networks(self) -> list[keras.Model]:
        return [n for n in (self.classifier, self.second_classifier) if n is not None]

    # ---- A classifier.

    def build(self, input_shape: Any) -> None:
        del input_shape  # the classifiers are built
        if not self.built:
            self._steps = self.add_weight(
                shape=(), initializer="zeros", dtype="int64", trainable=False, name="steps"
            )
            self._make_weights()
            self.built = True

    def call(self, x: Any, training: bool | None = None) -> tf.Tensor:
        return mean([self._outputs(network, x, training) for network in self._networks()])

    def _outputs(self, network: keras.Model, x: Any, training: bool | None) -> tf.Tensor:
        outputs = network(x, training=training)
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] != self.classes:
            raise ValueError(
                f"`classifier` must have outputs of shape `(batch, {self.classes})`. "
                f"Received: {keras.tree.map_structure(lambda t: tuple(t.shape), outputs)}"
            )
        return outputs

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of `evaluate`: that of `compile`, or else the cross-entropy."""
        if self.loss is not None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(self.from_logits)
        return cross_entropy(y, y_pred, sample_weight)

    def test_step(self, data: Any) -> Any:
        *_, weights = keras.utils.unpack_x_y_sample_weight(data)
        dtype = None if weights is None else tf.convert_to_tensor(weights).dtype
        # Integers may be an index, and as weights it would give figures that mean nothing.
        if dtype is not None and dtype.is_integer:
            raise ValueError(
                "`sample_weight` must be floating in what is evaluated; cast weights, and leave an "
                "index out by `dataset.map(lambda x, y, index: (x, y))`. "
                f"Received: dtype {dtype.name}"
            )
        return super().test_step(data)

    # ---- Training.

    def train_step(self, data: Any) -> Any:
        x, labels, index = self._unpack(data)
        # Nothing that the loss remembers changes by a batch that is refused.
        with tf.control_dependencies([labels, index]), tf.GradientTape() as tape:
            loss, outputs = self._training_loss(x, labels, index)
            loss = tf.add_n([loss, *(tf.cast(extra, tf.float32) for extra in self.losses)])
            scaled = self.optimizer.scale_loss(loss)
            self._steps.assign_add(1)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=tf.shape(labels)[0])
        return self.compute_metrics(x, labels, outputs)

    def make_train_function(self, force: bool = False) -> Any:
        # A function that makes classifiers may well set the same seed each time.
        both = [network.weights for network in self._networks()]
        if len(both) == 2 and all(np.array_equal(a, b) for a, b in zip(*both, strict=False)):
            raise ValueError(
                "`second_classifier` must begin with other weights than `classifier`. "
                "Received: the same, of which two would learn the same"
            )
        return super().make_train_function(force)

    def _seed_of_step(self, place: int) -> tf.Tensor:
        """For draws of a classifier. Keras does not save the state of its generators."""
        return tf.stack([tf.constant(self.seed, tf.int64), 2 * self._steps.value + place])

    def _unpack(self, data: Any) -> tuple[Any, tf.Tensor, tf.Tensor]:
        """Returns the inputs, and classes and index as int64 of shape `(batch,)`, checked."""
        if not isinstance(data, (tuple, list)) or len(data) != 3:
            parts = len(data) if isinstance(data, (tuple, list)) else 1
            raise ValueError(
                "Batches must be `(x, y, index)`, as `dataset.apply(with_index())` makes them of "
                f"`(x, y)`. Received: {parts} parts"
            )
        x, y, index = data
        return x, _in_range("y", y, self.classes), _in_range("index", index, self.samples)

    def _log_probabilities(self, outputs: tf.Tensor) -> tf.Tensor:
        """Of outputs of a classifier, as float32."""
        outputs = tf.cast(outputs, tf.float32)
        if self.from_logits:
            return tf.nn.log_softmax(outputs)
        total = tf.reduce_sum(tf.abs(outputs), axis=1)
        # NaN passes. It is no mistake of kind, and in float16 a step that overflows is skipped.
        is_wrong = tf.abs(total - 1) > 0.01
        message = (
            "`from_logits` must be True of a classifier whose outputs are no probabilities. "
            "Received: from_logits=False, and absolute outputs that sum to ",
            total,
        )
        return tf.math.log(tf.maximum(refuse(outputs, is_wrong, *message), keras.config.epsilon()))

    # ---- Saving.

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in self._objects:
            config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        config.update(
            samples=self.samples,
            classes=self.classes,
            from_logits=self.from_logits,
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        objects = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in cls._objects
        }
        return cls(**{**config, **objects})


def check(name: str, value: Any, is_right: bool, rule: str) -> None:
    """Raises the error of an argument that breaks its rule."""
    if not is_right:
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises the error of an argument that is below `least`, or not finite."""
    check(name, value, least <= value < np.inf, f"at least {least} and finite")


def are_finite(values: tf.Tensor) -> tf.Tensor:
    """Whether all values of a tensor are."""
    return tf.reduce_all(tf.math.is_finite(values))


def mean(values: list[tf.Tensor]) -> tf.Tensor:
    """The mean of tensors of one shape."""
    return sum(values[1:], values[0]) / len(values)


def refuse(value: tf.Tensor, is_wrong: tf.Tensor, *message: Any) -> tf.Tensor:
    """Returns `value`, or fails with `InvalidArgumentError` when it is computed.

    Args:
        value: A tensor.
        is_wrong: bool of shape `(batch,)`.
        *message: Parts of the error: text; and tensors of shape `(batch,)`, of which the first
            wrong entry is told.
    """
    first = tf.argmax(is_wrong)  # 0 where none is

    def text() -> tf.Tensor:
        parts = [p if isinstance(p, str) else tf.strings.as_string(p[first]) for p in message]
        return tf.strings.join(parts)

    if tf.executing_eagerly():  # where Assert would wrap the message in words of its own
        if bool(tf.reduce_any(is_wrong)):
            raise tf.errors.InvalidArgumentError(None, None, text().numpy().decode())
        return value
    failing = tf.cond(
        tf.reduce_any(is_wrong),
        lambda: tf.debugging.Assert(False, [text()], summarize=1),
        tf.no_op,
    )
    with tf.control_dependencies([failing]):
        return tf.identity(value)


def _in_range(name: str, values: Any, size: int) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    if not values.dtype.is_integer:
        raise ValueError(f"`{name}` must be integers. Received: dtype {values.dtype.name}")
    if values.shape.rank == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape.rank != 1:
        raise ValueError(f"`{name}` must have the shape `(batch,)`. Received: {values.shape}")
    values = tf.cast(values, tf.int64)
    positions = tf.range(tf.size(values))
    rule = f"`{name}` must be in `[0, {size})`. Received: `{name}["
    is_wrong = (values < 0) | (values >= size)
    return refuse(values, is_wrong, rule, positions, "]=", values, "`")


def _check_classifiers(first: Any, second: Any) -> None:
    for name, network in (("classifier", first), ("second_classifier", second)):
        if not isinstance(network, keras.Model) and (network is not None or name == "classifier"):
            raise ValueError(f"`{name}` must be a `keras.Model`. Received: {name}={network}")
        if network is not None and not network.built:
            raise ValueError(
                f"`{name}` must be built: begin it with `keras.Input`, or call it on a batch. "
                f"Received: {name}={network}"
            )
    if second is None:
        return
    shared = {id(variable) for variable in first.weights} & {id(v) for v in second.weights}
    if first is second or shared:
        raise ValueError(
            "`second_classifier` must share no weights with `classifier`. "
            f"Received: {len(shared)} shared weights"
        )
