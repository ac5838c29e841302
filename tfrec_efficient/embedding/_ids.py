"""What the layers of this room make of the ids that they are called with."""

from typing import Any

import keras
import tensorflow as tf

# Whole numbers up to here are exact in a floating point dtype, and beyond it ids would collide.
_EXACT_UP_TO = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24, "float64": 2**53}
_STRING_HASHES = 2**63 - 1
_SMALL_INTEGERS = (tf.int8, tf.int16, tf.uint8, tf.uint16, tf.uint32)


def check_dtype(ids: Any, input_dim: int) -> None:
    """Raises ValueError for ids that cannot tell `input_dim` rows apart."""
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if dtype in ("string", "bool"):
        raise ValueError(
            "`ids` must be integers; for strings, put `keras.layers.StringLookup` or "
            f"`keras.layers.Hashing` before this layer. Received: dtype {dtype}"
        )
    if input_dim > _EXACT_UP_TO.get(dtype, input_dim):
        raise ValueError(
            f"`ids` of dtype {dtype} cannot tell the {input_dim} rows apart. "
            'Pass integers: declare the input as `keras.Input(shape, dtype="int64")`.'
        )


def whole_numbers(ids: Any, input_dim: int) -> Any:
    """Returns ids as int32 or int64, and checks that float ids are whole."""
    if not isinstance(ids, tf.RaggedTensor | tf.SparseTensor):
        ids = tf.convert_to_tensor(ids)
    check_dtype(ids, input_dim)
    if not ids.dtype.is_floating:
        return tf.cast(ids, tf.int64) if ids.dtype in _SMALL_INTEGERS else ids
    values = ids if isinstance(ids, tf.Tensor) else ids.values
    with tf.control_dependencies(
        [tf.debugging.assert_equal(values, tf.floor(values), "`ids` must be whole numbers.")]
    ):
        return tf.cast(ids, tf.int64)


def as_keys(ids: tf.Tensor) -> tf.Tensor:
    """Integers as they are, and hashes of strings."""
    if ids.dtype == tf.string:
        return tf.strings.to_hash_bucket_fast(ids, _STRING_HASHES)
    return tf.cast(ids, tf.int64)


def check_keys(ids: Any, padding_id: int | None) -> None:
    """Raises ValueError for what is no key."""
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if dtype == "string" and padding_id is not None:
        raise ValueError(
            "`padding_id` is a number, and strings have none: use ragged `ids` instead. "
            f"Received: padding_id={padding_id} and strings"
        )
    if dtype != "string" and "int" not in dtype:
        raise ValueError(
            "`ids` of a layer with a vocabulary must be integers or strings. "
            f"Received: dtype {dtype}"
        )
