"""Gather-reduce: pools rows of a table into bags, with a coalesced gradient."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any
from typing import Literal

import keras
import tensorflow as tf
from keras.src.backend.common.variables import AutocastScope

# The tape must hear that a variable was read, and reading its handle alone does not tell it.
# TensorFlow has no public name for this; its own gather does the same.
from tensorflow.python.ops.resource_variable_ops import variable_accessed

from tfrec_efficient.ops import _loader

COMBINERS = ("sum", "mean", "sqrtn")
Combiner = Literal["sum", "mean", "sqrtn"]

# How the native ops write "no padding id": see kPaddingAttr in custom_ops/gather_reduce/op.cc.
_NO_PADDING = -(2**63)


@dataclasses.dataclass(frozen=True)
class _Bags:
    """The one layout behind dense, ragged and sparse input.

    `ids` is `(batch, hotness)` and `row_splits` empty, or `ids` is `(lookups,)` and `row_splits`
    is `(batch + 1,)`. `weights` has the shape of `ids`, or is None.
    """

    ids: tf.Tensor
    row_splits: tf.Tensor
    weights: tf.Tensor | None


def gather_reduce(
    table: Any,
    ids: Any,
    weights: Any = None,
    combiner: Combiner = "sum",
    padding_id: int | None = None,
) -> tf.Tensor:
    """Pools rows of a table into one vector for each bag of ids.

    `output[b] = sum_k weights[b, k] * table[ids[b, k]] / divisor[b]`, where the divisor is 1 for
    `"sum"`, `sum_k weights[b, k]` for `"mean"` and `sqrt(sum_k weights[b, k]**2)` for `"sqrtn"`.
    A bag that is empty, or whose divisor is 0, gives a row of zeros. Narrow tables are summed in
    float32 and rounded once.

    A variable is read in place through its handle; the table is never copied. The gradient of the
    table is a `tf.IndexedSlices` whose indices rise and are unique: contributions to one row are
    summed before an optimizer sees them. Differentiable once, in `table` and `weights`.

    Args:
        table: `tf.Variable`, `keras.Variable` or tensor of shape `(rows, dim)` and dtype float32,
            float16, bfloat16 or float64.
        ids: int32 or int64 row numbers in `[0, rows)`: a tensor of shape `(batch, hotness)`, a
            `tf.RaggedTensor` of shape `(batch, None)`, or a `tf.sparse.SparseTensor` of shape
            `(batch, any)` sorted by row, whose values are the ids.
        weights: Floating point tensor of the same kind and shape as `ids`, finite, or None for
            ones. Defaults to None.
        combiner: `"sum"`, `"mean"` or `"sqrtn"`. Defaults to `"sum"`.
        padding_id: int or None. Lookups of this id count as absent, and their weights are not
            read. It may lie outside `[0, rows)`. Defaults to None.

    Returns:
        A tensor of shape `(batch, dim)` and the dtype of `table`.

    Raises:
        ValueError: An argument has a wrong rank, dtype, kind or static shape.
        tf.errors.InvalidArgumentError: An id is out of range, a weight is not finite, row splits
            do not start at 0 or decrease, or a shape that was not known before does not fit.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> table = tf.constant([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    >>> tfrec.ops.gather_reduce(table, [[0, 1], [2, 2]]).numpy().tolist()
    [[3.0, 30.0], [8.0, 80.0]]
    >>> bags = tf.ragged.constant([[0, 1, 2], []], dtype=tf.int64)
    >>> tfrec.ops.gather_reduce(table, bags, combiner="mean")[1].numpy().tolist()
    [0.0, 0.0]

    References:
        - Kwon, Lee and Rhu, "Tensor Casting: Co-Designing Algorithm-Architecture for Personalized
          Recommendation Training", HPCA 2021, section IV-A. Weights, `"mean"`, `"sqrtn"` and
          padding are ours.
        - `tf.nn.embedding_lookup_sparse` defines the combiners. Like it, and unlike
          `tf.nn.safe_embedding_lookup_sparse`, we keep lookups whose weight is not positive.
    """
    if combiner not in COMBINERS:
        raise ValueError(
            f'`combiner` must be "sum", "mean" or "sqrtn". Received: combiner={combiner!r}'
        )
    check_padding_id(padding_id)
    table = _as_table(table)
    bags = _as_bags(ids, weights, _weight_dtype(table))
    module = _loader.native()
    handle = _handle_on_cpu(table) if _is_variable(table) else None
    if module is None or (_is_variable(table) and handle is None):
        return _reference(table, bags, combiner, padding_id)

    common = {
        "ids": bags.ids,
        "row_splits": bags.row_splits,
        "weights": tf.zeros([0], _weight_dtype(table)) if bags.weights is None else bags.weights,
        "weighted": bags.weights is not None,
        "combiner": combiner,
        "padding_id": _NO_PADDING if padding_id is None else int(padding_id),
    }
    if handle is not None:
        variable_accessed(table)
        return module.tfrec_efficient_resource_gather_reduce(
            table=handle, dtype=table.dtype, **common
        )
    return module.tfrec_efficient_gather_reduce(table=table, **common)


def check_padding_id(padding_id: Any) -> None:
    """Raises ValueError unless `padding_id` is None or a whole number that an id can hold."""
    if padding_id is None:
        return
    is_integer = isinstance(padding_id, numbers.Integral) and not isinstance(padding_id, bool)
    if not is_integer or not _NO_PADDING < padding_id < 2**63:
        raise ValueError(
            "`padding_id` must be None or an integer of 64 bits. "
            f"Received: padding_id={padding_id!r}"
        )


# ---- Input ---------------------------------------------------------------------------------------


def _weight_dtype(table: Any) -> tf.DType:
    return tf.float64 if table.dtype == tf.float64 else tf.float32


def _is_variable(table: Any) -> bool:
    return isinstance(table, tf.Variable)


def _handle_on_cpu(variable: tf.Variable) -> tf.Tensor | None:
    """The handle that the native op can use, or None where only stock ops can read `variable`."""
    if "GPU" in variable.device or "TPU" in variable.device:
        return None
    if variable.synchronization == tf.VariableSynchronization.ON_READ:  # a sum over replicas
        return None
    try:
        return variable.handle
    except ValueError:  # a tf.function inside a replica of tf.distribute does not know which it is
        return None


def _as_table(table: Any) -> Any:
    if isinstance(table, keras.Variable):
        # A layer in mixed precision casts the variables that it touches: here, a whole table.
        with AutocastScope(None):
            table = table.value
    if not _is_variable(table):
        table = tf.convert_to_tensor(table)
    if table.dtype not in (tf.float32, tf.float16, tf.bfloat16, tf.float64):
        raise ValueError(
            "`table` must have dtype float32, float16, bfloat16 or float64. "
            f"Received: dtype {table.dtype.name}"
        )
    if table.shape.rank not in (None, 2):
        raise ValueError(f"`table` must have rank 2. Received: shape {table.shape}")
    return table


def _as_bags(ids: Any, weights: Any, weight_dtype: tf.DType) -> _Bags:
    if isinstance(ids, tf.SparseTensor):
        return _sparse_bags(ids, weights, weight_dtype)
    if isinstance(ids, tf.RaggedTensor):
        return _ragged_bags(ids, weights, weight_dtype)
    ids = tf.convert_to_tensor(ids)
    _check_ids_dtype(ids)
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
        ids = _checked(
            ids,
            tf.rank(ids) == 2,
            lambda: _text("`ids` must have rank 2. Received: rank ", tf.rank(ids)),
        )
        ids.set_shape([None, None])
    return _Bags(ids, tf.zeros([0], tf.int64), weights)


def _ragged_bags(ids: tf.RaggedTensor, weights: Any, weight_dtype: tf.DType) -> _Bags:
    _check_ids_dtype(ids)
    if ids.shape.rank != 2 or ids.ragged_rank != 1:
        raise ValueError(
            "Ragged `ids` must have rank 2 and ragged rank 1. "
            f"Received: shape {ids.shape}, ragged rank {ids.ragged_rank}"
        )
    row_splits = tf.cast(ids.row_splits, tf.int64)
    if weights is None:
        return _Bags(ids.values, row_splits, None)
    if not isinstance(weights, tf.RaggedTensor):
        raise ValueError(_kind_message("a tf.RaggedTensor", weights))
    if weights.ragged_rank != 1 or weights.shape.rank != 2:
        raise ValueError(
            "Ragged `weights` must have rank 2 and ragged rank 1. "
            f"Received: shape {weights.shape}, ragged rank {weights.ragged_rank}"
        )
    values = _as_weights(weights.values, weight_dtype)
    if weights.row_splits is not ids.row_splits:
        values = _checked(
            values,
            _equal(tf.cast(weights.row_splits, tf.int64), row_splits),
            lambda: _text(
                "`weights` must have the row splits of `ids`. Received: ",
                tf.strings.format("{} for {}", (weights.row_splits, row_splits)),
            ),
        )
    return _Bags(ids.values, row_splits, values)


def _sparse_bags(ids: tf.SparseTensor, weights: Any, weight_dtype: tf.DType) -> _Bags:
    _check_ids_dtype(ids)
    if ids.shape.rank not in (None, 2):
        raise ValueError(f"Sparse `ids` must have rank 2. Received: shape {ids.shape}")
    batch = ids.dense_shape[0]
    rows = ids.indices[:, 0]
    in_order = tf.reduce_all(rows[1:] >= rows[:-1]) & tf.reduce_all((rows >= 0) & (rows < batch))
    rows = _checked(
        rows,
        in_order,
        lambda: _text(
            "Sparse `ids` must be sorted by row, in rows `[0, batch)`: use `tf.sparse.reorder`. ",
            tf.strings.format("Received: rows {}", rows),
        ),
    )
    row_splits = tf.searchsorted(rows, tf.range(batch + 1))
    if weights is None:
        return _Bags(ids.values, tf.cast(row_splits, tf.int64), None)
    if not isinstance(weights, tf.SparseTensor):
        raise ValueError(_kind_message("a tf.sparse.SparseTensor", weights))
    values = _checked(
        _as_weights(weights.values, weight_dtype),
        _equal(weights.indices, ids.indices) & _equal(weights.dense_shape, ids.dense_shape),
        lambda: _text(
            "`weights` must have the indices and the dense shape of `ids`. Received: ",
            tf.strings.format("{} for {}", (weights.indices, ids.indices)),
            tf.strings.format(" in {} for {}", (weights.dense_shape, ids.dense_shape)),
        ),
    )
    return _Bags(ids.values, tf.cast(row_splits, tf.int64), values)


def _check_ids_dtype(ids: Any) -> None:
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


def _equal(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.cond(
        tf.reduce_all(tf.equal(tf.shape(a), tf.shape(b))),
        lambda: tf.reduce_all(tf.equal(a, b)),
        lambda: tf.constant(False),
    )


def _checked(value: tf.Tensor, condition: tf.Tensor, message: Callable[[], Any]) -> tf.Tensor:
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


# ---- Gradients of the native ops -----------------------------------------------------------------


def _bag_arguments(op: tf.Operation) -> dict[str, Any]:
    return {
        "ids": op.inputs[1],
        "row_splits": op.inputs[2],
        "weights": op.inputs[3],
        "combiner": op.get_attr("combiner"),
        "padding_id": op.get_attr("padding_id"),
    }


def _gradients(op: tf.Operation, grads: tf.Tensor, table_shape: tf.Tensor, weight_grad: Any) -> Any:
    bags = _bag_arguments(op)
    weighted = op.get_attr("weighted")
    unique_ids, values = _loader.load().tfrec_efficient_gather_reduce_grad(
        grads=grads, weighted=weighted, **bags
    )
    table_grad = tf.IndexedSlices(values, unique_ids, table_shape)
    if not weighted or 3 in (getattr(op, "skip_input_indices", None) or ()):  # nobody asks for it
        return table_grad, None, None, None
    return table_grad, None, None, weight_grad(table=op.inputs[0], grads=grads, **bags)


@tf.RegisterGradient("TfrecEfficient>GatherReduce")
def _gather_reduce_gradient(op: tf.Operation, grads: tf.Tensor) -> Any:
    return _gradients(
        op,
        grads,
        tf.shape(op.inputs[0], out_type=tf.int64),
        _loader.load().tfrec_efficient_gather_reduce_weight_grad,
    )


@tf.RegisterGradient("TfrecEfficient>ResourceGatherReduce")
def _resource_gather_reduce_gradient(op: tf.Operation, grads: tf.Tensor) -> Any:
    return _gradients(
        op,
        grads,
        tf.raw_ops.VariableShape(input=op.inputs[0], out_type=tf.int64),
        _loader.load().tfrec_efficient_resource_gather_reduce_weight_grad,
    )


@tf.RegisterGradient("TfrecEfficient>GatherReduceGrad")
def _no_second_gradient(op: tf.Operation, *grads: tf.Tensor) -> Any:
    raise LookupError(
        "`gather_reduce` can be differentiated once. Set TFREC_OPS=python to use the reference, "
        "which can be differentiated any number of times."
    )


# ---- Reference -----------------------------------------------------------------------------------


def _reference(table: Any, bags: _Bags, combiner: str, padding_id: int | None) -> tf.Tensor:
    """The same result, rules and gradient in plain TensorFlow."""
    if table.shape.rank is None:
        table = _checked(
            table,
            tf.rank(table) == 2,
            lambda: _text("`table` must have rank 2. Received: rank ", tf.rank(table)),
        )
    ids, segments, batch, weights = _checked_lookups(table, bags, padding_id)

    # Reading each row once is what makes the gradient of `table` arrive coalesced.
    unique_ids = tf.sort(tf.unique(ids).y)
    rows = tf.gather(table, unique_ids)
    wide = _weight_dtype(table)
    lookups = _expand(tf.cast(rows, wide), tf.searchsorted(unique_ids, ids))

    if weights is not None:
        lookups *= weights[:, tf.newaxis]
    sums = tf.math.unsorted_segment_sum(lookups, segments, batch)
    if combiner != "sum":
        counted = tf.ones_like(ids, wide) if weights is None else weights
        if combiner == "mean":
            divisors = tf.math.unsorted_segment_sum(counted, segments, batch)
        else:
            squares = tf.math.unsorted_segment_sum(counted**2, segments, batch)
            safe = tf.where(squares > 0, squares, 1.0)  # the slope of sqrt(0) is infinite
            divisors = tf.where(squares > 0, tf.sqrt(safe), 0.0)
        sums = tf.math.divide_no_nan(sums, divisors[:, tf.newaxis])
    return tf.cast(sums, table.dtype)


@tf.custom_gradient
def _expand(rows: tf.Tensor, positions: tf.Tensor) -> Any:
    """`rows[positions]`, whose gradient is summed at once instead of as `tf.IndexedSlices`."""

    def gradient(upstream: tf.Tensor) -> Any:
        return tf.math.unsorted_segment_sum(upstream, positions, tf.shape(rows)[0]), None

    return tf.gather(rows, positions), gradient


def _checked_lookups(table: Any, bags: _Bags, padding_id: int | None) -> Any:
    """Flat ids, their bags, the number of bags, and flat weights; padding and faults are gone."""
    ids, weights = bags.ids, bags.weights
    row_splits = bags.row_splits
    if weights is not None:
        weights = _checked(
            weights,
            tf.reduce_all(tf.equal(tf.shape(weights), tf.shape(ids))),
            lambda: _text(
                "`weights` must have the shape of `ids`, ",
                tf.strings.format("{}. Received: shape {}", (tf.shape(ids), tf.shape(weights))),
            ),
        )
    if ids.shape.rank == 1:
        row_splits = _checked_row_splits(ids, row_splits)
        batch = tf.size(row_splits, out_type=tf.int64) - 1
        segments = tf.searchsorted(
            row_splits[1:], tf.range(tf.size(ids, out_type=tf.int64)), side="right"
        )
    else:
        batch = tf.shape(ids, out_type=tf.int64)[0]
        segments = tf.repeat(tf.range(batch), tf.shape(ids)[1])
    hotness = None if ids.shape.rank == 1 else tf.shape(ids)[1]
    ids = tf.reshape(ids, [-1])
    is_padding = (
        tf.zeros_like(ids, tf.bool)
        if padding_id is None
        else tf.cast(ids, tf.int64) == tf.constant(padding_id, tf.int64)
    )

    # Where it can be helped, not tf.shape(), which would read, and so copy, a variable.
    is_static = table.shape.is_fully_defined()
    rows = tf.cast(table.shape[0] if is_static else tf.shape(table)[0], tf.int64)
    is_row = is_padding | ((ids >= 0) & (tf.cast(ids, tf.int64) < rows))
    unless = "" if padding_id is None else f" or `padding_id={padding_id}`"
    ids = _checked(
        ids,
        tf.reduce_all(is_row),
        lambda: _text(
            "`ids` must be in `[0, ",
            rows,
            f")`{unless}. Received: ",
            _first_entry("ids", ids, is_row, hotness),
        ),
    )
    if weights is not None:
        weights = tf.reshape(weights, [-1])
        is_finite = is_padding | tf.math.is_finite(weights)
        weights = _checked(
            weights,
            tf.reduce_all(is_finite),
            lambda: _text(
                "`weights` must be finite. Received: ",
                _first_entry("weights", weights, is_finite, hotness),
            ),
        )
    if padding_id is not None:
        ids, segments = ids[~is_padding], segments[~is_padding]
        weights = None if weights is None else weights[~is_padding]
    return ids, segments, batch, weights


def _checked_row_splits(ids: tf.Tensor, row_splits: tf.Tensor) -> tf.Tensor:
    lookups = tf.size(ids, out_type=tf.int64)
    # The rules in the order in which the native op looks at them.
    fits = tf.concat(
        [row_splits[:1] == 0, row_splits[1:] >= row_splits[:-1], row_splits[-1:] == lookups], 0
    )
    culprit = tf.minimum(tf.argmin(tf.cast(fits, tf.int32)), tf.size(row_splits, tf.int64) - 1)
    return _checked(
        row_splits,
        tf.reduce_all(fits),
        lambda: _text(
            "`row_splits` must start at 0, never decrease and end at the number of ids, ",
            lookups,
            ". Received: `row_splits[",
            culprit,
            "]=",
            row_splits[culprit],
            "`",
        ),
    )


def _first_entry(name: str, values: tf.Tensor, good: tf.Tensor, hotness: Any) -> tf.Tensor:
    position = tf.argmin(tf.cast(good, tf.int32), output_type=tf.int32)
    value = values[position]
    if hotness is None:
        return _text(f"`{name}.values[", position, "]=", value, "`")
    return _text(f"`{name}[", position // hotness, ", ", position % hotness, "]=", value, "`")


def _text(*parts: Any) -> tf.Tensor:
    return tf.strings.join(
        [
            part if isinstance(part, str) or part.dtype == tf.string else tf.strings.as_string(part)
            for part in parts
        ]
    )
