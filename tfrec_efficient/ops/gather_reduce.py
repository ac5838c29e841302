"""Gather-reduce: pools rows of tables into bags, with a coalesced gradient."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Literal

import tensorflow as tf

# The tape must hear that a variable was read, and reading its handle alone does not tell it.
# TensorFlow has no public name for this; its own gather does the same.
from tensorflow.python.ops.resource_variable_ops import variable_accessed

from tfrec_efficient.ops import _loader
from tfrec_efficient.ops._inputs import Bags
from tfrec_efficient.ops._inputs import as_bags
from tfrec_efficient.ops._inputs import as_scales
from tfrec_efficient.ops._inputs import as_table
from tfrec_efficient.ops._inputs import bag_attributes
from tfrec_efficient.ops._inputs import check_padding_id
from tfrec_efficient.ops._inputs import checked
from tfrec_efficient.ops._inputs import checked_row_splits
from tfrec_efficient.ops._inputs import equal
from tfrec_efficient.ops._inputs import first_entry
from tfrec_efficient.ops._inputs import handle_on_cpu
from tfrec_efficient.ops._inputs import is_variable
from tfrec_efficient.ops._inputs import of_one_dtype
from tfrec_efficient.ops._inputs import static_batch
from tfrec_efficient.ops._inputs import text
from tfrec_efficient.ops._inputs import weight_dtype
from tfrec_efficient.ops.casting import cast_tables

COMBINERS = ("sum", "mean", "sqrtn")
Combiner = Literal["sum", "mean", "sqrtn"]


def gather_reduce(
    table: Any,
    ids: Any,
    weights: Any = None,
    combiner: Combiner = "sum",
    padding_id: int | None = None,
    casting: Any = None,
    scales: Any = None,
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
        casting: `cast_indices(ids, padding_id)`, computed ahead, or None. Defaults to None.
        scales: float32 variable of shape `(rows,)`, which the rows of an int8 variable are
            multiplied by, or None. With them there are no gradients. Defaults to None.

    Returns:
        A tensor of shape `(batch, dim)` and the dtype of `table`, or float32 for int8.

    Raises:
        ValueError: An argument has a wrong rank, dtype, kind or static shape.
        tf.errors.InvalidArgumentError: An id is out of range, a weight is not finite, row splits
            do not start at 0 or decrease, a shape that was not known before does not fit, or
            `casting` is not that of `ids` (found when the gradient is taken).

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
    castings = None if casting is None else [casting]
    of_tables = None if scales is None else [scales]
    return gather_reduce_many(
        [table], [ids], [0], [weights], [combiner], [padding_id], castings, of_tables
    )


def gather_reduce_many(
    tables: Sequence[Any],
    ids: Sequence[Any],
    table_of: Sequence[int],
    weights: Sequence[Any] | None = None,
    combiners: Sequence[Combiner] | None = None,
    padding_ids: Sequence[int | None] | None = None,
    castings: Sequence[Any] | None = None,
    scales: Sequence[Any] | None = None,
) -> tf.Tensor:
    """`gather_reduce` of several features from several tables, in one op.

    Feature i pools rows of `tables[table_of[i]]`. The results stand side by side. The gradient of
    all tables is one op too, and a table of several features gets one coalesced gradient.

    Args:
        tables: Tables as in `gather_reduce`, all variables or all tensors, of one dtype.
        ids: The ids of each feature, as in `gather_reduce`, of one integer dtype and batch size.
        table_of: For each feature, the position of its table.
        weights: Weights or None for each feature. Defaults to None for all.
        combiners: The combiner of each feature. Defaults to `"sum"` for all.
        padding_ids: The padding id of each feature, or None. Defaults to None for all.
        castings: For each table the casting of the ids of its features, or None. With one feature
            to a table that is `cast_indices(ids)`. Defaults to None.
        scales: For each table its scales, where all are int8, or None. Defaults to None.

    Returns:
        A tensor of shape `(batch, sum of dims of the features)`.

    Raises:
        ValueError: As in `gather_reduce`, or lists that do not fit each other.
        tf.errors.InvalidArgumentError: As in `gather_reduce`.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> users, items = tf.constant([[1.0], [2.0]]), tf.constant([[10.0, 20.0]])
    >>> tfrec.ops.gather_reduce_many(
    ...     [users, items], [[[1]], [[0, 0]], [[0]]], table_of=[0, 1, 0]
    ... ).numpy().tolist()
    [[2.0, 20.0, 40.0, 1.0]]
    """
    features = len(ids)
    weights = [None] * features if weights is None else list(weights)
    combiners = ["sum"] * features if combiners is None else list(combiners)
    padding_ids = [None] * features if padding_ids is None else list(padding_ids)
    _check_lists(tables, ids, table_of, weights, combiners, padding_ids, castings, scales)
    tables = _as_tables(tables, scales is not None)
    scales = [
        as_scales(of_table, table) for of_table, table in zip(scales or (), tables, strict=False)
    ]
    bags = [
        as_bags(of_feature, weights[i], weight_dtype(tables[0])) for i, of_feature in enumerate(ids)
    ]
    bags = of_one_dtype(bags)
    _check_batches(bags)
    castings = [tf.convert_to_tensor(casting, tf.int64) for casting in castings or ()]

    module = _loader.native()
    variables = [*tables, *scales] if is_variable(tables[0]) else []
    handles = [handle_on_cpu(variable) for variable in variables]
    if module is None or None in handles:
        return _reference_many(tables, scales, bags, table_of, combiners, padding_ids, castings)
    common = {
        **bag_attributes(bags, combiners, padding_ids, weight_dtype(tables[0])),
        "table_of": list(table_of),
    }
    if scales:
        return module.tfrec_efficient_resource_quantized_gather_reduce(
            tables=handles[: len(tables)], scales=handles[len(tables) :], **common
        )
    common["castings"] = castings
    common["dims"] = _dims(tables, features)
    if handles:
        for table in tables:
            variable_accessed(table)
        return module.tfrec_efficient_resource_gather_reduce(
            tables=handles, dtype=tables[0].dtype, **common
        )
    return module.tfrec_efficient_gather_reduce(tables=tables, **common)


def coalesce(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Sums the values of equal indices.

    Args:
        gradient: With indices of shape `(n,)`, not negative, and values of shape `(n, ...)`.

    Returns:
        A `tf.IndexedSlices` whose indices rise, each once.

    Raises:
        tf.errors.InvalidArgumentError: An index is negative.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> gradient = tf.IndexedSlices(tf.constant([1.0, 2.0, 3.0]), tf.constant([7, 2, 7]))
    >>> tfrec.ops.coalesce(gradient).values.numpy().tolist()
    [2.0, 4.0]
    """
    values, indices = gradient.values, gradient.indices
    bags = Bags(tf.reshape(indices, [-1, 1]), tf.zeros([0], tf.int64), None)
    casting = cast_tables([bags], [None], [0], 1)
    module = _loader.native()
    if module is None:
        wide = weight_dtype(values)
        unique_ids = tf.sort(tf.unique(indices).y)
        positions = tf.searchsorted(unique_ids, indices)
        with tf.control_dependencies(casting):  # where the rule on indices is checked
            sums = tf.math.unsorted_segment_sum(
                tf.cast(values, wide), positions, tf.size(unique_ids)
            )
        return tf.IndexedSlices(tf.cast(sums, values.dtype), unique_ids, gradient.dense_shape)
    unique, sums = module.tfrec_efficient_gather_reduce_grad(
        grads=tf.reshape(values, [tf.size(indices), values.shape[1:].num_elements()]),
        castings=casting,
        dims=[-1],
        table_of=[0],
        **bag_attributes([bags], ["sum"], [None], weight_dtype(values)),
    )
    sums = tf.reshape(sums[0], tf.concat([[-1], values.shape[1:]], 0))
    return tf.IndexedSlices(sums, unique[0], gradient.dense_shape)


def _check_lists(
    tables: Sequence[Any],
    ids: Sequence[Any],
    table_of: Sequence[int],
    weights: Sequence[Any],
    combiners: Sequence[str],
    padding_ids: Sequence[int | None],
    castings: Sequence[Any] | None,
    scales: Sequence[Any] | None,
) -> None:
    if not tables or not ids:
        raise ValueError(
            "`tables` and `ids` must not be empty. "
            f"Received: {len(tables)} tables, ids of {len(ids)} features"
        )
    for name, values in (
        ("table_of", table_of),
        ("weights", weights),
        ("combiners", combiners),
        ("padding_ids", padding_ids),
    ):
        if len(values) != len(ids):
            raise ValueError(
                f"`{name}` must have an entry for each of the {len(ids)} features. "
                f"Received: {len(values)} entries"
            )
    for name, of_tables in (("castings", castings), ("scales", scales)):
        if of_tables is not None and len(of_tables) != len(tables):
            raise ValueError(
                f"`{name}` must have an entry for each of the {len(tables)} tables. "
                f"Received: {len(of_tables)} entries"
            )
    if set(table_of) != set(range(len(tables))):
        raise ValueError(
            f"`table_of` must be in `[0, {len(tables)})` and name every table. "
            f"Received: table_of={list(table_of)}"
        )
    for combiner in combiners:
        if combiner not in COMBINERS:
            raise ValueError(
                f'`combiner` must be "sum", "mean" or "sqrtn". Received: combiner={combiner!r}'
            )
    for padding_id in padding_ids:
        check_padding_id(padding_id)


def _check_batches(bags: Sequence[Bags]) -> None:
    batches = [static_batch(feature) for feature in bags]
    for i, batch in enumerate(batches):
        if None not in (batch, batches[0]) and batch != batches[0]:
            raise ValueError(
                f"`ids` must all have as many bags, {batches[0]}. Received: `ids[{i}]` with {batch}"
            )


def _as_tables(tables: Sequence[Any], are_quantized: bool) -> list[Any]:
    tables = [as_table(table, are_quantized) for table in tables]
    kinds = {(is_variable(table), table.dtype) for table in tables}
    if len(kinds) > 1:
        raise ValueError(
            "`tables` must be all variables or all tensors, of one dtype. "
            f"Received: {[(type(table).__name__, table.dtype.name) for table in tables]}"
        )
    return tables


def _dims(tables: Sequence[Any], features: int) -> list[int]:
    dims = [-1 if table.shape.rank is None else table.shape[1] or -1 for table in tables]
    if -1 in dims and features > 1:
        raise ValueError(
            "The widths of `tables` must be known where there are several features. "
            f"Received: shapes {[table.shape for table in tables]}"
        )
    return dims


# ---- Gradients of the native ops -----------------------------------------------------------------


def features_of(op: tf.Operation, first: int) -> dict[str, Any]:
    """The inputs from number `first` on, and attributes, by which a native op has features."""
    features = op.get_attr("num_features")
    inputs = list(op.inputs)[first:]
    ids, row_splits, weights = (inputs[i * features : (i + 1) * features] for i in range(3))
    return {
        "ids": ids,
        "row_splits": row_splits,
        "weights": weights,
        **{
            name: op.get_attr(name) for name in ("weighted", "combiners", "padding_ids", "table_of")
        },
    }


def gradients_of(
    op: tf.Operation, grads: tf.Tensor, shape_of: Callable[[Any], tf.Tensor], weight_grad: Any
) -> Any:
    """The gradients of all inputs of an op that pools; behind the weights it has castings first."""
    module = _loader.load()
    num_tables = op.get_attr("num_tables")
    num_castings = op.get_attr("num_castings")
    common = features_of(op, num_tables)
    tables = list(op.inputs)[:num_tables]
    # Here it depends on ids only, so a graph runs it beside the forward pass.
    rest = list(op.inputs)[num_tables + 3 * op.get_attr("num_features") :]
    castings = rest[:num_castings] or module.tfrec_efficient_cast_indices(
        ids=common["ids"],
        table_of=common["table_of"],
        padding_ids=common["padding_ids"],
        num_tables=num_tables,
    )
    shapes = [shape_of(table) for table in tables]
    unique_ids, values = module.tfrec_efficient_gather_reduce_grad(
        grads=grads, castings=castings, dims=op.get_attr("dims"), **common
    )
    table_grads = [
        tf.IndexedSlices(*gradient) for gradient in zip(values, unique_ids, shapes, strict=True)
    ]
    features = op.get_attr("num_features")
    first_weights = num_tables + 2 * features
    unasked = getattr(op, "skip_input_indices", None) or ()
    weight_grads: list[Any] = [None] * features
    if any(common["weighted"]) and not all(
        first_weights + i in unasked for i in range(features) if common["weighted"][i]
    ):
        weight_grads = [
            gradient if weighted else None
            for gradient, weighted in zip(
                weight_grad(tables=tables, grads=grads, **common), common["weighted"], strict=True
            )
        ]
    return [*table_grads, *[None] * (2 * features), *weight_grads, *[None] * len(rest)]


@tf.RegisterGradient("TfrecEfficient>GatherReduce")
def _gather_reduce_gradient(op: tf.Operation, grads: tf.Tensor) -> Any:
    return gradients_of(
        op,
        grads,
        lambda table: tf.shape(table, out_type=tf.int64),
        _loader.load().tfrec_efficient_gather_reduce_weight_grad,
    )


@tf.RegisterGradient("TfrecEfficient>ResourceGatherReduce")
def _resource_gather_reduce_gradient(op: tf.Operation, grads: tf.Tensor) -> Any:
    return gradients_of(
        op,
        grads,
        lambda table: tf.raw_ops.VariableShape(input=table, out_type=tf.int64),
        _loader.load().tfrec_efficient_resource_gather_reduce_weight_grad,
    )


@tf.RegisterGradient("TfrecEfficient>ResourceQuantizedGatherReduce")
def _no_gradient(op: tf.Operation, grads: tf.Tensor) -> Any:
    raise LookupError(
        "`gather_reduce` of an int8 table has no gradient, not of `weights` either. Set "
        "TFREC_OPS=python to use the reference, which has that of `weights`."
    )


@tf.RegisterGradient("TfrecEfficient>GatherReduceGrad")
def _no_second_gradient(op: tf.Operation, *grads: tf.Tensor) -> Any:
    raise LookupError(
        "`gather_reduce` can be differentiated once. Set TFREC_OPS=python to use the reference, "
        "which can be differentiated any number of times."
    )


# ---- Reference -----------------------------------------------------------------------------------


def _reference_many(
    tables: Sequence[Any],
    scales: Sequence[Any],
    bags: Sequence[Bags],
    table_of: Sequence[int],
    combiners: Sequence[str],
    padding_ids: Sequence[int | None],
    castings: Sequence[tf.Tensor],
) -> tf.Tensor:
    """The same result, rules and gradient in plain TensorFlow."""
    tables = [_of_rank_2(table) for table in tables]
    lookups: list[_Lookups] = []
    for i, of_feature in enumerate(bags):
        index = f"[{i}]" if len(bags) > 1 else ""
        found = checked_lookups(tables[table_of[i]], of_feature, padding_ids[i], index)
        lookups.append(_with_batch_of(lookups[0], found, i) if lookups else found)
    outputs = [tf.zeros([])] * len(bags)
    for number, table in enumerate(tables):
        features = [i for i, of in enumerate(table_of) if of == number]
        # Reading each row once is what makes the gradient of `table` arrive coalesced.
        all_ids = tf.concat([lookups[i].ids for i in features], 0)
        unique_ids = tf.sort(tf.unique(all_ids).y)
        rows = tf.cast(tf.gather(table, unique_ids), weight_dtype(table))
        if scales:
            rows *= tf.gather(scales[number], unique_ids)[:, tf.newaxis]
        for i in features:
            pooled = _pool(expand_ids(rows, unique_ids, lookups[i]), lookups[i], combiners[i])
            outputs[i] = pooled if scales else tf.cast(pooled, table.dtype)
    output = outputs[0] if len(outputs) == 1 else tf.concat(outputs, axis=1)
    if not castings:
        return output
    expected = cast_tables(bags, padding_ids, table_of, len(tables))
    return with_checked_castings(output, expected, castings)


def _of_rank_2(table: Any) -> Any:
    if table.shape.rank is not None:
        return table
    return checked(
        table,
        tf.rank(table) == 2,
        lambda: text("`table` must have rank 2. Received: rank ", tf.rank(table)),
    )


def with_checked_castings(
    output: tf.Tensor, expected: Sequence[tf.Tensor], castings: Sequence[tf.Tensor]
) -> tf.Tensor:
    """Compares castings when the gradient is taken, which is when the native op uses them."""

    @tf.custom_gradient
    def unchanged(output: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            for theirs, ours in zip(castings, expected, strict=True):
                upstream = _checked_casting(
                    upstream, tf.reshape(theirs, [-1]), tf.reshape(ours, [-1])
                )
            return upstream

        return tf.identity(output), gradient

    return unchanged(output)


def _checked_casting(upstream: tf.Tensor, casting: tf.Tensor, expected: tf.Tensor) -> tf.Tensor:
    return checked(
        upstream,
        equal(casting, expected),
        lambda: text(
            "`casting` must be what `cast_indices` returns for these `ids`. Received: ",
            tf.strings.format("{}", casting),
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Lookups:
    """The lookups of a feature, flat and without padding; `weights` may be None."""

    ids: tf.Tensor
    segments: tf.Tensor
    batch: tf.Tensor
    weights: tf.Tensor | None


def _with_batch_of(first: _Lookups, other: _Lookups, index: int) -> _Lookups:
    ids = checked(
        other.ids,
        other.batch == first.batch,
        lambda: text(
            "`ids` must all have as many bags, ",
            first.batch,
            f". Received: `ids[{index}]` with ",
            other.batch,
        ),
    )
    return dataclasses.replace(other, ids=ids)


def expand_ids(rows: tf.Tensor, unique_ids: tf.Tensor, lookups: _Lookups) -> tf.Tensor:
    """The row of each lookup, of those that belong to `unique_ids`."""
    return _expand(rows, tf.searchsorted(unique_ids, lookups.ids))


def _pool(rows: tf.Tensor, lookups: _Lookups, combiner: str) -> tf.Tensor:
    if lookups.weights is not None:
        rows *= lookups.weights[:, tf.newaxis]
    sums = tf.math.unsorted_segment_sum(rows, lookups.segments, lookups.batch)
    return divided(sums, lookups, combiner)


def divided(sums: tf.Tensor, lookups: _Lookups, combiner: str) -> tf.Tensor:
    """The sums of bags, each divided as the combiner says."""
    if combiner == "sum":
        return sums
    segments, batch, counted = lookups.segments, lookups.batch, lookups.weights
    if counted is None:
        counted = tf.ones_like(lookups.ids, sums.dtype)
    if combiner == "mean":
        divisors = tf.math.unsorted_segment_sum(counted, segments, batch)
    else:
        squares = tf.math.unsorted_segment_sum(counted**2, segments, batch)
        safe = tf.where(squares > 0, squares, 1.0)  # the slope of sqrt(0) is infinite
        divisors = tf.where(squares > 0, tf.sqrt(safe), 0.0)
    return tf.math.divide_no_nan(sums, divisors[:, tf.newaxis])


@tf.custom_gradient
def _expand(rows: tf.Tensor, positions: tf.Tensor) -> Any:
    """`rows[positions]`, whose gradient is summed at once instead of as `tf.IndexedSlices`."""

    def gradient(upstream: tf.Tensor) -> Any:
        return tf.math.unsorted_segment_sum(upstream, positions, tf.shape(rows)[0]), None

    return tf.gather(rows, positions), gradient


def checked_lookups(table: Any, bags: Bags, padding_id: int | None, index: str) -> _Lookups:
    """Padding and faults are gone; `index` tells features apart in messages."""
    ids, weights = bags.ids, bags.weights
    row_splits = bags.row_splits
    if weights is not None:
        weights = checked(
            weights,
            tf.reduce_all(tf.equal(tf.shape(weights), tf.shape(ids))),
            lambda: text(
                f"`weights{index}` must have the shape of `ids{index}`, ",
                tf.strings.format("{}. Received: shape {}", (tf.shape(ids), tf.shape(weights))),
            ),
        )
    if ids.shape.rank == 1:
        row_splits = checked_row_splits(ids, row_splits, index)
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
    ids = checked(
        ids,
        tf.reduce_all(is_row),
        lambda: text(
            f"`ids{index}` must be in `[0, ",
            rows,
            f")`{unless}. Received: ",
            first_entry(f"ids{index}", ids, is_row, hotness),
        ),
    )
    if weights is not None:
        weights = tf.reshape(weights, [-1])
        is_finite = is_padding | tf.math.is_finite(weights)
        weights = checked(
            weights,
            tf.reduce_all(is_finite),
            lambda: text(
                "`weights` must be finite. Received: ",
                first_entry(f"weights{index}", weights, is_finite, hotness),
            ),
        )
    if padding_id is not None:
        ids, segments = ids[~is_padding], segments[~is_padding]
        weights = None if weights is None else weights[~is_padding]
    return _Lookups(ids, segments, batch, weights)
