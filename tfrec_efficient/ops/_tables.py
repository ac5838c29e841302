"""Tables: what may be one, and how native ops reach it."""

from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.variables import AutocastScope


def weight_dtype(table: Any) -> tf.DType:
    """The dtype of the weights of lookups, and of sums of rows, of `table`."""
    return tf.float64 if table.dtype == tf.float64 else tf.float32


def is_variable(table: Any) -> bool:
    """Whether `table` has a handle, after `as_table`."""
    return isinstance(table, tf.Variable)


def handle_on_cpu(variable: tf.Variable) -> tf.Tensor | None:
    """The handle that the native op can use, or None where only stock ops can read `variable`."""
    if "GPU" in variable.device or "TPU" in variable.device:
        return None
    if variable.synchronization == tf.VariableSynchronization.ON_READ:  # a sum over replicas
        return None
    try:
        return variable.handle
    except ValueError:  # a tf.function inside a replica of tf.distribute does not know which it is
        return None


def as_tf(variable: Any) -> Any:
    """Returns the `tf.Variable` behind a `keras.Variable`, or what it was given."""
    if not isinstance(variable, keras.Variable):
        return variable
    # A layer in mixed precision casts the variables that it touches: here, a whole table.
    with AutocastScope(None):
        return variable.value


def as_table(table: Any, is_quantized: bool = False) -> Any:
    """Returns a `tf.Variable` or tensor of rank 2 and a dtype that ops take; else ValueError."""
    table = as_tf(table)
    if not is_variable(table):
        table = tf.convert_to_tensor(table)
    if is_quantized:
        if table.dtype != tf.int8 or not is_variable(table):
            raise ValueError(
                "A table with `scales` must be an int8 variable. "
                f"Received: {type(table).__name__} of dtype {table.dtype.name}"
            )
    elif table.dtype not in (tf.float32, tf.float16, tf.bfloat16, tf.float64):
        raise ValueError(
            "`table` must have dtype float32, float16, bfloat16 or float64. "
            f"Received: dtype {table.dtype.name}"
        )
    if table.shape.rank not in (None, 2):
        raise ValueError(f"`table` must have rank 2. Received: shape {table.shape}")
    return table


def as_scales(scales: Any, table: tf.Variable) -> tf.Variable:
    """Returns the scales of the rows of `table` as a `tf.Variable`, or raises ValueError."""
    scales = as_tf(scales)
    if not is_variable(scales) or scales.dtype != tf.float32 or scales.shape != table.shape[:1]:
        raise ValueError(
            f"`scales` must be a float32 variable of shape {table.shape[:1]}. Received: {scales!r}"
        )
    return scales
