"""Processing in memory, emulated: a device's results, and counts of what it did for them."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import variable_accessed

from tfrec_efficient.ops import _loader
from tfrec_efficient.ops._inputs import Bags
from tfrec_efficient.ops._inputs import as_bags
from tfrec_efficient.ops._inputs import as_table
from tfrec_efficient.ops._inputs import as_tf
from tfrec_efficient.ops._inputs import bag_attributes
from tfrec_efficient.ops._inputs import check_padding_id
from tfrec_efficient.ops._inputs import handle_on_cpu
from tfrec_efficient.ops._inputs import is_variable
from tfrec_efficient.ops._inputs import weight_dtype
from tfrec_efficient.ops._pim import reference
from tfrec_efficient.ops._pim.counts import Device
from tfrec_efficient.ops._pim.counts import Layout
from tfrec_efficient.ops._pim.counts import backward_counts
from tfrec_efficient.ops._pim.counts import check_table_number
from tfrec_efficient.ops._pim.counts import forward_counts
from tfrec_efficient.ops._pim.counts import layout_of
from tfrec_efficient.ops._pim.counts import update_counts
from tfrec_efficient.ops.casting import cast_tables
from tfrec_efficient.ops.gather_reduce import COMBINERS
from tfrec_efficient.ops.gather_reduce import Combiner
from tfrec_efficient.ops.gather_reduce import gather_reduce
from tfrec_efficient.ops.gather_reduce import gradients_of
from tfrec_efficient.ops.row_update import RULES
from tfrec_efficient.ops.row_update import row_update


def pim_gather_reduce(
    table: Any,
    ids: Any,
    weights: Any = None,
    combiner: Combiner = "sum",
    padding_id: int | None = None,
    casting: Any = None,
    *,
    device: Device,
    table_number: int = 0,
    hot_ids: Any = None,
    with_report: bool = True,
) -> tuple[tf.Tensor, Any]:
    """`gather_reduce` as a processing-in-memory device computes it, and a report of what it did.

    The ranks of the device form `ranks / slices` groups. Each group sums the rows that it holds,
    `partial[g, b] = sum of weights[b, k] * table[ids[b, k]] over the k whose row is in g`, and the
    host adds the partial sums of a bag, in the order in which the bag first looks something up in
    each group, and divides. With one group, and with tables that lie in one group each, that is
    the order of `gather_reduce`, and the result is the same to the bit; else it differs by no more
    than the additions of a bag may: one unit in the last place of the largest partial sum each.

    The gradient is that of `gather_reduce`, to the bit: a row is summed where it lies.

    Nothing sleeps. The report says what the device model makes of the counts.

    Args:
        table: As in `gather_reduce`, of known shape where there is to be a report.
        ids: As in `gather_reduce`.
        weights: As in `gather_reduce`. Defaults to None.
        combiner: As in `gather_reduce`. Defaults to `"sum"`.
        padding_id: As in `gather_reduce`. Defaults to None.
        casting: As in `gather_reduce`. Defaults to None.
        device: A `tfrec_efficient.PimDevice`.
        table_number: int. Tables begin in group `table_number % groups`. Defaults to 0.
        hot_ids: Rising int64 ids of rows that each group has a copy of, or None. Their lookups go
            to group `position % groups`. Defaults to None.
        with_report: bool. Whether to count. Defaults to True.

    Returns:
        The pooled rows, and `device.report(counts, host_bytes)`, or None. Counts are int64 of shape
        `(ranks, len(COUNTERS))`.

    Raises:
        ValueError: As in `gather_reduce`; or rows are too narrow for the slices of the device.
        tf.errors.InvalidArgumentError: As in `gather_reduce`; or `hot_ids` do not rise.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> device = tfrec.PimDevice.recnmp()
    >>> pooled, report = tfrec.ops.pim_gather_reduce(tf.ones((9, 16)), [[0, 1, 8]], device=device)
    >>> pooled[0, :2].numpy().tolist(), report.bytes_read.numpy().tolist()
    ([3.0, 3.0], [128, 64, 0, 0, 0, 0, 0, 0])

    References:
        - Kwon, Lee and Rhu, "Tensor Casting", HPCA 2021, section IV-C: a core for each rank, and
          one primitive for both passes. The placements are those of TensorDIMM (MICRO 2019:
          columns), RecNMP (ISCA 2020: rows, tables) and TRiM (MICRO 2021: hot rows everywhere).
    """
    if combiner not in COMBINERS:
        raise ValueError(
            f'`combiner` must be "sum", "mean" or "sqrtn". Received: combiner={combiner!r}'
        )
    check_padding_id(padding_id)
    check_table_number(table_number)
    table = as_table(table)
    hot_ids = _as_hot_ids(hot_ids)
    groups = device.ranks // device.slices
    placed = {
        "groups": groups,
        "first_group": table_number % groups,
        "by_table": device.placement == "table_aware",
    }
    if groups == 1 or (placed["by_table"] and hot_ids.shape[0] == 0):
        with tf.control_dependencies(_checks_of(hot_ids)):
            output = gather_reduce(table, ids, weights, combiner, padding_id, casting)
    else:
        bags = as_bags(ids, weights, weight_dtype(table))
        castings = [] if casting is None else [tf.convert_to_tensor(casting, tf.int64)]
        output = _sum_by_groups(table, bags, combiner, padding_id, castings, placed, hot_ids)
    if not with_report:
        return output, None
    layout = layout_of(device, table.shape, table.dtype, table_number)
    events = _events(layout, ids, padding_id, hot_ids, None)
    bags_in_all = tf.shape(output, tf.int64)[0]
    return output, device.report(*forward_counts(layout, events, weights is not None, bags_in_all))


def pim_scatter_update(
    table: Any,
    gradient: tf.IndexedSlices,
    rule: str,
    learning_rate: Any,
    slots: Sequence[Any] = (),
    *,
    device: Device,
    table_number: int = 0,
    hot_ids: Any = None,
    is_on_device: bool = False,
    with_report: bool = True,
    **others: Any,
) -> Any:
    """`row_update` as a processing-in-memory device computes it; returns a report of what it did.

    The ranks that hold a row read it, its coalesced gradient and its optimizer state, and write
    row and state. The values are those of `row_update`, to the bit.

    Args:
        table: As in `row_update`, of rank 2.
        gradient: As in `row_update`.
        rule: As in `row_update`.
        learning_rate: As in `row_update`.
        slots: As in `row_update`. Defaults to none.
        device: A `tfrec_efficient.PimDevice`.
        table_number: As in `pim_gather_reduce`. Defaults to 0.
        hot_ids: As in `pim_gather_reduce`; each copy is updated. Defaults to None.
        is_on_device: bool. Whether the coalesced gradient is already there, as it is after a casted
            gather-reduce; else it comes over the link and is written first. Defaults to False.
        with_report: bool. Whether to count. Defaults to True.
        **others: The other arguments of `row_update`.

    Returns:
        The report, or None.

    Raises:
        ValueError: As in `row_update`; or rows are too narrow for the slices of the device.
        tf.errors.InvalidArgumentError: As in `row_update`; or `hot_ids` do not rise.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> table = tf.Variable(tf.ones((9, 16)))
    >>> gradient = tf.IndexedSlices(tf.ones((2, 16)), tf.constant([8, 8]))
    >>> report = tfrec.ops.pim_scatter_update(
    ...     table, gradient, "sgd", 0.25, device=tfrec.PimDevice.recnmp(), is_on_device=True
    ... )
    >>> table[8, :2].numpy().tolist(), int(report.bytes_read[0]), int(report.bytes_written[0])
    ([0.5, 0.5], 128, 64)

    References:
        - Kwon, Lee and Rhu, "Tensor Casting", HPCA 2021, section IV-C: the scatter instruction.
    """
    check_table_number(table_number)
    hot_ids = _as_hot_ids(hot_ids)
    shape, dtype = as_tf(table).shape, as_tf(table).dtype
    # What cannot be counted is refused before the table has changed.
    layout = layout_of(device, shape, dtype, table_number) if with_report else None
    with tf.control_dependencies(_checks_of(hot_ids)):
        row_update(table, gradient, rule, learning_rate, slots, **others)
    if layout is None:
        return None
    ids = tf.reshape(gradient.indices, [-1, 1])
    casting = cast_tables([as_bags(ids, None, tf.float32)], [None], [0], 1)[0]
    events = _events(layout, ids, None, hot_ids, casting)
    return device.report(*update_counts(layout, events, rule, is_on_device))


def pim_reports(
    shape: Sequence[int],
    dtype: Any,
    ids: Any,
    *,
    device: Device,
    weighted: bool = False,
    padding_id: int | None = None,
    casting: Any = None,
    table_number: int = 0,
    hot_ids: Any = None,
    rule: str = "sgd",
) -> tuple[Any, Any, Any]:
    """What a training step on these ids would do in a device: it depends on ids only.

    Args:
        shape: `(rows, dim)` of the table.
        dtype: Its dtype.
        ids: As in `gather_reduce`.
        device: A `tfrec_efficient.PimDevice`.
        weighted: bool. Whether lookups have weights. Defaults to False.
        padding_id: As in `gather_reduce`. Defaults to None.
        casting: As in `gather_reduce`. Defaults to None.
        table_number: As in `pim_gather_reduce`. Defaults to 0.
        hot_ids: As in `pim_gather_reduce`. Defaults to None.
        rule: One of `row_update`. Defaults to `"sgd"`.

    Returns:
        The reports of the forward gather-reduce; of the casted gather-reduce, which brings the
        gradients of bags to the device and leaves those of rows there; and of the update.

    Raises:
        ValueError: As in `pim_gather_reduce`; or `rule` is unknown.
        tf.errors.InvalidArgumentError: As in `pim_gather_reduce`.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> forward, backward, update = tfrec.ops.pim_reports(
    ...     (9, 16), "float32", [[0, 1, 8]], device=tfrec.PimDevice.recnmp()
    ... )
    >>> [int(sum(report.bytes_read)) for report in (forward, backward, update)]  # one from a cache
    [192, 128, 384]
    """
    check_padding_id(padding_id)
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {sorted(RULES)}. Received: rule={rule!r}")
    layout = layout_of(device, shape, dtype, table_number)
    bags = as_bags(ids, None, tf.float32)
    if casting is None:
        casting = cast_tables([bags], [padding_id], [0], 1)[0]
    events = _events(layout, ids, padding_id, _as_hot_ids(hot_ids), casting)
    return (
        device.report(*forward_counts(layout, events, weighted, _batch(bags))),
        device.report(*backward_counts(layout, events, weighted)),
        device.report(*update_counts(layout, events, rule, is_on_device=True)),
    )


def _as_hot_ids(hot_ids: Any) -> tf.Tensor:
    hot_ids = tf.convert_to_tensor([] if hot_ids is None else hot_ids, tf.int64)
    if hot_ids.shape.rank != 1:
        raise ValueError(f"`hot_ids` must have rank 1. Received: shape {hot_ids.shape}")
    return hot_ids


def _checks_of(hot_ids: tf.Tensor) -> list[tf.Tensor]:
    """What fails unless they rise; no op to run where there are none."""
    return [] if hot_ids.shape[0] == 0 else [reference.checked_hot_ids(hot_ids)]


def _batch(bags: Bags) -> tf.Tensor:
    if bags.ids.shape.rank == 2:
        return tf.shape(bags.ids, tf.int64)[0]
    return tf.size(bags.row_splits, tf.int64) - 1


# ---- Native ops ----------------------------------------------------------------------------------

# The columns of the op `PimEvents`: see custom_ops/pim/rank_events.h.
_EVENTS = (
    "lookups",
    "bags",
    "cache_hits",
    "activations",
    "gradient_lookups",
    "gradient_bags",
    "gradient_cache_hits",
    "gradient_activations",
    "rows",
    "row_activations",
    "home_rows",
)


def _events(
    layout: Layout, ids: Any, padding_id: int | None, hot_ids: tf.Tensor, casting: Any
) -> dict[str, tf.Tensor]:
    """Events of each group; those of the backward pass need a casting."""
    bags = as_bags(ids, None, tf.float32)
    module = _loader.native()
    if module is None:
        events = reference.rank_events(layout, bags, padding_id, hot_ids, casting is not None)
    else:
        events = module.tfrec_efficient_pim_events(
            **bag_attributes([bags], ["sum"], [padding_id], tf.float32),
            castings=[] if casting is None else [casting],
            hot_ids=hot_ids,
            rows=tf.constant(layout.rows, tf.int64),
            rows_per_page=layout.rows_per_page,
            pages_per_row=layout.pages_per_row,
            banks=layout.banks,
            cached_rows=layout.cached_rows,
            **layout.attributes,
        )
    return dict(zip(_EVENTS, tf.unstack(events, axis=1), strict=True))


def _sum_by_groups(
    table: Any,
    bags: Bags,
    combiner: str,
    padding_id: int | None,
    castings: Sequence[tf.Tensor],
    placed: dict[str, Any],
    hot_ids: tf.Tensor,
) -> tf.Tensor:
    module = _loader.native()
    handle = handle_on_cpu(table) if is_variable(table) else table
    if module is None or handle is None:
        return reference.sums_by_groups(
            table, bags, combiner, padding_id, castings, placed, hot_ids
        )
    common = {
        **bag_attributes([bags], [combiner], [padding_id], weight_dtype(table)),
        **placed,
        "castings": castings,
        "hot_ids": hot_ids,
        "table_of": [0],
        "dims": [-1 if table.shape.rank is None else table.shape[1] or -1],
    }
    if not is_variable(table):
        return module.tfrec_efficient_pim_gather_reduce(tables=[table], **common)
    variable_accessed(table)
    return module.tfrec_efficient_resource_pim_gather_reduce(
        tables=[handle], dtype=table.dtype, **common
    )


@tf.RegisterGradient("TfrecEfficient>PimGatherReduce")
def _pim_gather_reduce_gradient(op: tf.Operation, grads: tf.Tensor) -> Any:
    return gradients_of(
        op,
        grads,
        lambda table: tf.shape(table, out_type=tf.int64),
        _loader.load().tfrec_efficient_gather_reduce_weight_grad,
    )


@tf.RegisterGradient("TfrecEfficient>ResourcePimGatherReduce")
def _resource_pim_gather_reduce_gradient(op: tf.Operation, grads: tf.Tensor) -> Any:
    return gradients_of(
        op,
        grads,
        lambda table: tf.raw_ops.VariableShape(input=table, out_type=tf.int64),
        _loader.load().tfrec_efficient_resource_gather_reduce_weight_grad,
    )
