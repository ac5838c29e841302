"""What the layers over one table share: from ids of any shape to bags and back."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bags import values_of
from tfrec_efficient.embedding._bags import with_values
from tfrec_efficient.embedding._ids import as_keys
from tfrec_efficient.embedding._ids import check_dtype
from tfrec_efficient.embedding._ids import check_keys
from tfrec_efficient.embedding._ids import whole_numbers
from tfrec_efficient.ops._inputs import check_padding_id
from tfrec_efficient.ops.gather_reduce import COMBINERS
from tfrec_efficient.ops.gather_reduce import Combiner

_SPARSE_NEEDS_COMBINER = "Sparse `ids` need a combiner. Received: combiner=None"


def check_sizes(**sizes: Any) -> None:
    """Raises ValueError unless all are positive integers."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={size!r}")


class BagLayer(keras.layers.Layer):
    """A layer that pools bags of rows, or looks single rows up; `_pool` says where they lie.

    Without an `input_dim`, ids are keys: strings or any integers.
    """

    built: bool
    dtype_policy: Any

    def __init__(
        self,
        input_dim: int | None,
        output_dim: int,
        combiner: Combiner | None,
        padding_id: int | None,
        mask_zero: bool,
        **kwargs: Any,
    ) -> None:
        check_sizes(output_dim=output_dim)
        if input_dim is not None:
            check_sizes(input_dim=input_dim)
        if combiner is not None and combiner not in COMBINERS:
            raise ValueError(
                '`combiner` must be "sum", "mean", "sqrtn" or None. '
                f"Received: combiner={combiner!r}"
            )
        if mask_zero and combiner is not None:
            raise ValueError(
                "`mask_zero` needs `combiner=None`; with a combiner, use `padding_id=0`. "
                f"Received: mask_zero={mask_zero}, combiner={combiner!r}"
            )
        check_padding_id(padding_id)
        super().__init__(**kwargs)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.combiner = combiner
        self.padding_id = None if padding_id is None else int(padding_id)
        self.mask_zero = mask_zero
        self.supports_masking = mask_zero
        self.supports_jit = False  # XLA cannot compile custom ops
        self.autocast = False  # half precision would merge ids

    def _pool(self, ids: Any, weights: Any, casting: Any) -> tf.Tensor:
        raise NotImplementedError

    def _as_ids(self, ids: Any) -> Any:
        if self.input_dim is not None:
            return whole_numbers(ids, self.input_dim)
        if not isinstance(ids, tf.RaggedTensor | tf.SparseTensor):
            ids = tf.convert_to_tensor(ids)
        self._check_ids(ids)
        return with_values(ids, as_keys(values_of(ids)))

    def _check_ids(self, ids: Any) -> None:
        if self.input_dim is None:
            check_keys(ids, self.padding_id)
        else:
            check_dtype(ids, self.input_dim)

    def _pool_or_look_up(self, ids: Any, weights: Any, casting: Any) -> Any:
        ids = self._as_ids(ids)
        if self.combiner is None:
            if weights is not None:
                raise ValueError("`weights` need a combiner. Received: combiner=None")
            pooled = self._look_up(ids, casting)
        elif isinstance(ids, tf.RaggedTensor | tf.SparseTensor) or ids.shape.rank == 2:
            pooled = self._pool(ids, weights, casting)
        else:
            pooled = self._pool_last_axis(ids, weights, casting)
        return keras.ops.cast(pooled, self.compute_dtype)

    def _pool_last_axis(self, ids: tf.Tensor, weights: Any, casting: Any) -> tf.Tensor:
        self._check_rank(ids)
        shape = tf.shape(ids)
        checks = []
        if weights is not None:
            weights = tf.convert_to_tensor(weights)
            message = "`weights` must have the shape of `ids`"
            if not weights.shape.is_compatible_with(ids.shape):
                raise ValueError(f"{message}, {ids.shape}. Received: shape {weights.shape}")
            checks.append(tf.debugging.assert_equal(tf.shape(weights), shape, message))
        with tf.control_dependencies(checks):
            bags = tf.concat([[tf.reduce_prod(shape[:-1])], shape[-1:]], 0)
        weights = None if weights is None else tf.reshape(weights, bags)
        pooled = self._pool(tf.reshape(ids, bags), weights, casting)
        pooled = tf.reshape(pooled, tf.concat([shape[:-1], [self.output_dim]], 0))
        return tf.ensure_shape(pooled, ids.shape[:-1].concatenate(self.output_dim))

    def _look_up(self, ids: Any, casting: Any) -> Any:
        if isinstance(ids, tf.SparseTensor):
            raise ValueError(_SPARSE_NEEDS_COMBINER)
        if isinstance(ids, tf.RaggedTensor):
            return ids.with_flat_values(self._look_up(ids.flat_values, casting))
        rows = self._pool(tf.reshape(ids, [-1, 1]), None, casting)
        rows = tf.reshape(rows, tf.concat([tf.shape(ids), [self.output_dim]], 0))
        return tf.ensure_shape(rows, ids.shape.concatenate(self.output_dim))

    def _check_rank(self, ids: Any) -> None:
        if len(ids.shape) < 2:
            raise ValueError(
                "`ids` must have rank 2 or more, `(..., hotness)`, with a combiner. "
                f"Received: shape {tuple(ids.shape)}"
            )

    def compute_mask(self, ids: Any, mask: Any = None) -> Any:
        return keras.ops.not_equal(ids, 0) if self.mask_zero else None

    def compute_output_shape(self, ids_shape: Any, **of_others: Any) -> Any:
        kept = ids_shape if self.combiner is None else ids_shape[:-1]
        return (*kept, self.output_dim)

    def compute_output_spec(self, ids: Any, *others: Any, **named: Any) -> Any:
        self._check_ids(ids)
        if self.combiner is not None:
            self._check_rank(ids)
        elif getattr(ids, "sparse", False):
            raise ValueError(_SPARSE_NEEDS_COMBINER)
        return keras.KerasTensor(
            self.compute_output_shape(ids.shape),
            dtype=self.compute_dtype,
            ragged=self.combiner is None and getattr(ids, "ragged", False),
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            input_dim=self.input_dim,
            output_dim=self.output_dim,
            combiner=self.combiner,
            padding_id=self.padding_id,
            mask_zero=self.mask_zero,
        )
        return config
