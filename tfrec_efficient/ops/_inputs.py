"""What ops take: bags of ids, which may be dense, ragged or sparse, and tables; and their rules."""

import dataclasses
import numbers
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.variables import AutocastScope

# How the native ops write "no padding id": see TFREC_BAG_ATTRS in custom_ops/gather_reduce/op.cc.
NO_PADDING = -(2**63)


@dataclasses.dataclass(frozen=True)
class Bags:
    """The one layout behind dense, ragged and sparse input.

    `ids` is `(batch, hotness)` and `row_splits` empty, or `ids` is `(lookups,)` and `row_splits`
    is `(batch + 1,)`. `weights` has the shape of `ids`, or is None.
    """

    ids: tf.Tensor
    row_splits: tf.Tensor
    weights: tf.Tensor | None


def check_padding_id(padding_id: Any) -> None:
    """Raises ValueError unless `padding_id` is None or a whole number that an id can hold."""
    if padding_id is None:
        return
    is_integer = isinstance(padding_id, numbers.Integral) and not isinstance(padding_id, bool)
    if not is_integer or not NO_PADDING < padding_id < 2**63:
        raise ValueError(
            "`padding_id` must be None or an integer of 64 bits. "
            f"Received: padding_id={padding_id!r}"
        )


def as_bags(ids: Any, weights: Any, weight_dtype: tf.DType) -> Bags:
    if isinstance(ids, tf.SparseTensor):
        return _sparse_bags(ids, weights, weight_dtype)
    if isinstance(ids, tf.RaggedTensor):
        return _ragged_bags(ids, weights, weight_dtype)
    ids = tf.convert_to_tensor(ids)
    check_ids_dtype(ids)
    if ids.shape.rank not in (None, 2):
        raise ValueError(f"`ids` must have rank 2, `(batch, hotness)`. Received: shape {ids.shape}")
    if weights is not None:
        if isinstance(weights, tf.RaggedTensor | tf.SparseTensor):
            raise ValueError(_kind_message("a dense tensor", weights))
        weights = _as_weights(tf.convert_to_tensor(weights), weight_dtype)
        if not ids.shape.is_compatible_with(weights.shape):
            raise ValueError(
                f"`weights` must have the shape of `ids`, {ids.shape}. "
                f"Received: shape {weights.shape}"
            )
    if ids.shape.rank is None:  # the ops also take flat ids, which are not meant here
        ids = checked(
            ids,
            tf.rank(ids) == 2,
            lambda: text("`ids` must have rank 2. Received: rank ", tf.rank(ids)),
        )
        ids.set_shape([None, None])
    return Bags(ids, tf.zeros([0], tf.int64), weights)


def _ragged_bags(ids: tf.RaggedTensor, weights: Any, weight_dtype: tf.DType) -> Bags:
    check_ids_dtype(ids)
    if ids.shape.rank != 2 or ids.ragged_rank != 1:
        raise ValueError(
            "Ragged `ids` must have rank 2 and ragged rank 1. "
            f"Received: shape {ids.shape}, ragged rank {ids.ragged_rank}"
        )
    row_splits = tf.cast(ids.row_splits, tf.int64)
    if weights is None:
        return Bags(ids.values, row_splits, None)
    if not isinstance(weights, tf.RaggedTensor):
        raise ValueError(_kind_message("a tf.RaggedTensor", weights))
    if weights.ragged_rank != 1 or weights.shape.rank != 2:
        raise ValueError(
            "Ragged `weights` must have rank 2 and ragged rank 1. "
            f"Received: shape {weights.shape}, ragged rank {weights.ragged_rank}"
        )
    values = _as_weights(weights.values, weight_dtype)
    if weights.row_splits is not ids.row_splits:
        values = checked(
            values,
            equal(tf.cast(weights.row_splits, tf.int64), row_splits),
            lambda: text(
                "`weights` must have the row splits of `ids`. Received: ",
                tf.strings.format("{} for {}", (weights.row_splits, row_splits)),
            ),
        )
    return Bags(ids.values, row_splits, values)


def _sparse_bags(ids: tf.SparseTensor, weights: Any, weight_dtype: tf.DType) -> Bags:
    check_ids_dtype(ids)
    if ids.shape.rank not in (None, 2):
        raise ValueError(f"Sparse `ids` must have rank 2. Received: shape {ids.shape}")
    batch = ids.dense_shape[0]
    rows = ids.indices[:, 0]
    in_order = tf.reduce_all(rows[1:] >= rows[:-1]) & tf.reduce_all((rows >= 0) & (rows < batch))
    rows = checked(
        rows,
        in_order,
        lambda: text(
            "Sparse `ids` must be sorted by row, in rows `[0, batch)`: use `tf.sparse.reorder`. ",
            tf.strings.format("Received: rows {}", rows),
        ),
    )
    row_splits = tf.searchsorted(rows, tf.range(batch + 1))
    if weights is None:
        return Bags(ids.values, tf.cast(row_splits, tf.int64), None)
    if not isinstance(weights, tf.SparseTensor):
        raise ValueError(_kind_message("a tf.sparse.SparseTensor", weights))
    values = checked(
        _as_weights(weights.values, weight_dtype),
        equal(weights.indices, ids.indices) & equal(weights.dense_shape, ids.dense_shape),
        lambda: text(
            "`weights` must have the indices and the dense shape of `ids`. Received: ",
            tf.strings.format("{} for {}", (weights.indices, ids.indices)),
            tf.strings.format(" in {} for {}", (weights.dense_shape, ids.dense_shape)),
        ),
    )
    return Bags(ids.values, tf.cast(row_splits, tf.int64), values)


def check_ids_dtype(ids: Any) -> None:
    if ids.dtype not in (tf.int32, tf.int64):
        raise ValueError(f"`ids` must have dtype int32 or int64. Received: dtype {ids.dtype.name}")


def _as_weights(weights: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if not weights.dtype.is_floating:
        raise ValueError(
            f"`weights` must have a floating point dtype. Received: dtype {weights.dtype.name}"
        )
    return tf.cast(weights, dtype)


def _kind_message(kind: str, weights: Any) -> str:
    return f"`weights` must be {kind}, as `ids` is. Received: {type(weights).__name__}"


def equal(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    if not a.shape.is_compatible_with(b.shape):  # which TensorFlow refuses while it traces
        return tf.constant(False)
    return tf.cond(
        tf.reduce_all(tf.equal(tf.shape(a), tf.shape(b))),
        lambda: tf.reduce_all(tf.equal(a, b)),
        lambda: tf.constant(False),
    )


def checked(value: tf.Tensor, condition: tf.Tensor, message: Callable[[], Any]) -> tf.Tensor:
    """Returns `value`, or fails with `InvalidArgumentError` when it is computed."""
    check = tf.cond(
        condition,
        lambda: True,
        lambda: _fail(message()),
    )
    with tf.control_dependencies([check]):
        return tf.identity(value)


def _fail(message: Any) -> tf.Tensor:
    if tf.executing_eagerly():  # where Assert would wrap the message in words of its own
        raise tf.errors.InvalidArgumentError(None, None, message.numpy().decode())
    with tf.control_dependencies([tf.debugging.Assert(False, [message], summarize=1)]):
        return tf.constant(False)


def static_batch(bags: Bags) -> int | None:
    """The number of bags, where it is known before running."""
    if bags.ids.shape.rank == 2:
        return bags.ids.shape[0]
    return None if bags.row_splits.shape[0] is None else bags.row_splits.shape[0] - 1


def of_one_dtype(bags: Sequence[Bags]) -> list[Bags]:
    """The same features, with int64 ids where their dtypes differ."""
    if len({feature.ids.dtype for feature in bags}) == 1:
        return list(bags)
    return [dataclasses.replace(feature, ids=tf.cast(feature.ids, tf.int64)) for feature in bags]


def bag_attributes(
    bags: Sequence[Bags],
    combiners: Sequence[str],
    padding_ids: Sequence[int | None],
    dtype: tf.DType,
) -> dict[str, Any]:
    """The inputs and attributes by which native ops describe features; weights are `dtype`."""
    return {
        "ids": [feature.ids for feature in bags],
        "row_splits": [feature.row_splits for feature in bags],
        "weights": [
            tf.zeros([0], dtype) if feature.weights is None else feature.weights for feature in bags
        ],
        "weighted": [feature.weights is not None for feature in bags],
        "combiners": list(combiners),
        "padding_ids": [NO_PADDING if p is None else int(p) for p in padding_ids],
    }


def checked_row_splits(ids: tf.Tensor, row_splits: tf.Tensor, index: str) -> tf.Tensor:
    lookups = tf.size(ids, out_type=tf.int64)
    # The rules in the order in which the native op looks at them.
    fits = tf.concat(
        [row_splits[:1] == 0, row_splits[1:] >= row_splits[:-1], row_splits[-1:] == lookups], 0
    )
    culprit = tf.minimum(tf.argmin(tf.cast(fits, tf.int32)), tf.size(row_splits, tf.int64) - 1)
    return checked(
        row_splits,
        tf.reduce_all(fits),
        lambda: text(
            f"`row_splits{index}` must start at 0, never decrease and end at the number of ids, ",
            lookups,
            f". Received: `row_splits{index}[",
            culprit,
            "]=",
            row_splits[culprit],
            "`",
        ),
    )


def first_entry(name: str, values: tf.Tensor, good: tf.Tensor, hotness: Any) -> tf.Tensor:
    position = tf.argmin(tf.cast(good, tf.int32), output_type=tf.int32)
    value = values[position]
    if hotness is None:
        return text(f"`{name}.values[", position, "]=", value, "`")
    return text(f"`{name}[", position // hotness, ", ", position % hotness, "]=", value, "`")


def text(*parts: Any) -> tf.Tensor:
    return tf.strings.join(
        [
            part if isinstance(part, str) or part.dtype == tf.string else tf.strings.as_string(part)
            for part in parts
        ]
    )


# ---- Tables --------------------------------------------------------------------------------------


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
