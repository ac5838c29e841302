"""`EmbeddingBag`: a Keras layer that looks rows of a table up and pools them."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import BagLayer
from tfrec_efficient.ops.gather_reduce import Combiner
from tfrec_efficient.ops.gather_reduce import gather_reduce


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class EmbeddingBag(BagLayer):
    """Looks rows of an embedding table up, and pools each bag of them into one vector.

    With a combiner, ids of shape `(..., hotness)` become vectors of shape `(..., output_dim)`:
    the sum, mean or square-root-n mean of the rows, weighted if `weights` are given at call time.
    With `combiner=None` the layer is a drop-in for `keras.layers.Embedding`: ids of shape `(...)`
    become `(..., output_dim)`, and `set_weights` takes what `get_weights` of the other gives.

    The table is read in place. `keras.layers.Embedding` copies the whole table at each step once
    an optimizer has updated it sparsely. The gradient of a call has each row once.

    Ids are never wrapped or clipped: one outside `[0, input_dim)` is an error, where
    `keras.layers.Embedding` counts negative ids from the end. `quantize("int8")`, or that of a
    model, turns a trained table into int8 rows with a scale each; LoRA is not offered. A
    regularizer or constraint is applied to the whole table at each step, as in Keras, and makes the
    step as slow as the table is large.

    Args:
        input_dim: int. Rows of the table; ids are in `[0, input_dim)`.
        output_dim: int. Width of a row.
        combiner: `"sum"`, `"mean"`, `"sqrtn"`, or None to look up without pooling.
            Defaults to `"sum"`.
        embeddings_initializer: Initializer of the table. Defaults to `"uniform"`.
        embeddings_regularizer: Regularizer of the table. Defaults to None.
        embeddings_constraint: Constraint of the table. Defaults to None.
        padding_id: int or None. Lookups of this id count as absent; without a combiner they give
            zeros. Defaults to None.
        mask_zero: bool. Without a combiner only: id 0 is masked for the layers that follow, as in
            `keras.layers.Embedding`. Defaults to False.
        weights: Array of shape `(input_dim, output_dim)` to start from, or None. Becomes the
            table, and is not part of the config.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        ids: Tensor of integers, or a `tf.RaggedTensor` of rank 2, or (with a combiner) a
            `tf.sparse.SparseTensor` of rank 2. Whole numbers in a floating point dtype, which is
            what `keras.Sequential` passes on, are accepted where that dtype is exact up to
            `input_dim`.
        weights: Floating point tensor like `ids`, or None. Needs a combiner.
        casting: `tfrec_efficient.ops.cast_indices(ids, padding_id)`, computed ahead, or None.

    Raises:
        tf.errors.InvalidArgumentError: An id is out of range or a weight is not finite. The
            position it names is that in the ids as `(bags, hotness)`, which is `(ids, 1)` without
            a combiner.
        ValueError: An argument breaks a rule above.

    Example:
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> layer = tfrec.EmbeddingBag(input_dim=100, output_dim=8, combiner="mean")
    >>> layer(np.array([[1, 2, 3], [4, 4, 4]])).shape
    TensorShape([2, 8])
    >>> tfrec.EmbeddingBag(100, 8, combiner=None)(np.array([1, 2])).shape
    TensorShape([2, 8])

    References:
        - See `tfrec_efficient.ops.gather_reduce` for the formula and the paper.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        combiner: Combiner | None = "sum",
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        padding_id: int | None = None,
        mask_zero: bool = False,
        weights: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_dim, output_dim, combiner, padding_id, mask_zero, **kwargs)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = keras.constraints.get(embeddings_constraint)
        if weights is not None:
            self.build()
            self.set_weights(weights if isinstance(weights, list) else [weights])

    def build(
        self, ids_shape: Any = None, weights_shape: Any = None, casting_shape: Any = None
    ) -> None:
        if self.built:
            return
        if self.quantization_mode == "int8":
            self._build_int8()
            self.built = True
            return
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.input_dim, self.output_dim),
            initializer=self.embeddings_initializer,
            regularizer=self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
            autocast=False,  # casting the table to the compute dtype would read all of it
        )
        self.built = True

    def call(self, ids: Any, weights: Any = None, casting: Any = None) -> Any:
        return self._pool_or_look_up(ids, weights, casting)

    def _pool(self, ids: Any, weights: Any, casting: Any) -> tf.Tensor:
        return gather_reduce(
            self.embeddings,
            ids,
            weights,
            self.combiner or "sum",
            self.padding_id,
            casting,
            self.scales if self.quantization_mode == "int8" else None,
        )

    def quantize(self, mode: str, type_check: bool = True, config: Any = None) -> None:
        """Turns the table into int8 rows, each with a float32 scale, for serving.

        Row i becomes `round(row / scales[i])` with `scales[i] = max(abs(row)) / 127`. It takes a
        quarter of the memory and is not trainable any more. `keras.Model.quantize` calls this.

        Args:
            mode: `"int8"`.
            type_check: Not used; Keras passes it. Defaults to True.
            config: What Keras makes of `mode`. Defaults to None.

        Raises:
            ValueError: The layer is not built, or quantized already; the mode or a quantizer is
                another one; the policy is `float16` or `mixed_float16`, from which Keras does
                not quantize; or a row is not finite.
        """
        self._check_quantize_args(mode, self.compute_dtype)
        quantizer = getattr(config, "weight_quantizer", None)
        if mode != "int8" or quantizer is not None:
            raise ValueError(
                '`quantize` takes `mode="int8"` and no quantizer of its own. '
                f"Received: mode={mode!r}, weight_quantizer={quantizer!r}"
            )
        # Everything that can fail comes before the layer changes.
        source: str = (
            self._dtype_policy.default_policy.name
            if isinstance(self._dtype_policy, keras.dtype_policies.DTypePolicyMap)
            else self.dtype_policy.name
        )
        policy = keras.dtype_policies.get(f"int8_from_{source}")
        rows, scales = _quantized(self.embeddings.value)
        self._tracker.unlock()
        self._untrack_variable(self.embeddings)
        self._build_int8()
        self._tracker.lock()
        self.embeddings.assign(rows)
        self.scales.assign(scales)
        self._is_quantized = True
        self.dtype_policy = policy

    def _build_int8(self) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.input_dim, self.output_dim),
            initializer="zeros",
            dtype="int8",
            trainable=False,
            autocast=False,
        )
        self.scales = self.add_weight(
            name="scales",
            shape=(self.input_dim,),
            initializer="ones",
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        self._is_quantized = True

    def _int8_call(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            embeddings_initializer=keras.initializers.serialize(self.embeddings_initializer),
            embeddings_regularizer=keras.regularizers.serialize(self.embeddings_regularizer),
            embeddings_constraint=keras.constraints.serialize(self.embeddings_constraint),
        )
        return config


def _quantized(table: tf.Variable) -> tuple[np.ndarray, np.ndarray]:
    """The rows in int8, and what to multiply each by; in parts, so that no copy of all is made."""
    input_dim, output_dim = table.shape
    rows = np.empty((input_dim, output_dim), np.int8)
    scales = np.empty(input_dim, np.float32)
    part = max(1, 2**20 // output_dim)
    for start in range(0, input_dim, part):
        ids = tf.range(start, min(start + part, input_dim))
        values = gather_reduce(table, ids[:, tf.newaxis]).numpy().astype(np.float32)
        largest = np.abs(values).max(axis=1)
        if not np.isfinite(largest).all():
            row = start + int(np.argmin(np.isfinite(largest)))
            raise ValueError(f"A table must be finite to be quantized. Received: row {row} is not")
        # A row of zeros keeps them at any scale.
        scales[start : start + part] = np.where(largest > 0, largest / 127, 1)
        rows[start : start + part] = np.rint(
            values / scales[start : start + part, np.newaxis]
        ).astype(np.int8)
    return rows, scales
