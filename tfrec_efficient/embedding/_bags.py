"""Ids of any layout as flat ones, and back."""

from typing import Any

import tensorflow as tf


def values_of(ids: Any) -> tf.Tensor:
    """The values of dense, ragged or sparse ids."""
    if isinstance(ids, tf.RaggedTensor):
        return ids.flat_values
    return ids.values if isinstance(ids, tf.SparseTensor) else tf.convert_to_tensor(ids)


def flat_ids(ids: Any) -> tf.Tensor:
    """The values of ids as int64 of rank 1."""
    return tf.cast(tf.reshape(values_of(ids), [-1]), tf.int64)


def with_values(ids: Any, values: tf.Tensor) -> Any:
    """Bags of the layout of `ids` with other values, which may be flat."""
    if isinstance(ids, tf.RaggedTensor):
        return ids.with_flat_values(values)
    if isinstance(ids, tf.SparseTensor):
        return ids.with_values(values)
    return tf.reshape(values, tf.shape(ids))
