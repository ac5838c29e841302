"""Where a table lies in a device, and what the device counts when something happens to it."""

import dataclasses
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import Protocol

import tensorflow as tf

from tfrec_efficient.ops.row_update import RULES

COUNTERS = (
    "bytes_read",
    "bytes_written",
    "bursts",
    "activations",
    "alu_operations",
    "instructions",
    "link_bytes_in",
    "link_bytes_out",
    "cache_hits",
    "lookups",
)

# Arithmetic operations for one value of a row, in the formulas of `row_update`.
_RULE_OPERATIONS = {
    "sgd": 2,
    "momentum": 4,
    "nesterov": 6,
    "adagrad": 7,
    "rowwise_adagrad": 4,
    "adam": 12,
    "amsgrad": 13,
    "ftrl": 18,
}
_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)
_ID_BYTES = 4  # of an id, and of the number of its bag, on their way to a rank


class Device(Protocol):
    """What the ops need to know of a device; `tfrec_efficient.PimDevice` is one."""

    @property
    def ranks(self) -> int: ...
    @property
    def slices(self) -> int: ...
    @property
    def placement(self) -> Literal["row_interleave", "table_aware"]: ...
    @property
    def pads_slices(self) -> bool: ...
    @property
    def burst_bytes(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def banks(self) -> int: ...
    @property
    def cache_bytes(self) -> int: ...
    def report(self, counts: tf.Tensor, host_bytes: tf.Tensor) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a table lies in a device: the figures that all counts follow from."""

    rows: int
    dim: int
    groups: int
    slices: int
    first_group: int
    by_table: bool
    columns: int  # of a slice; the last ones of a row may have fewer, or none
    item_bytes: int
    sum_bytes: int  # of a value of a sum
    row_bytes: int  # of a slice as it is stored, in whole bursts
    burst_bytes: int
    rows_per_page: int
    pages_per_row: int
    banks: int
    cached_rows: int

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "groups": self.groups,
            "first_group": self.first_group,
            "by_table": self.by_table,
        }

    @property
    def row_size(self) -> int:
        """Bytes of a row, without what fills up bursts."""
        return self.dim * self.item_bytes

    def columns_of_slices(self) -> tf.Tensor:
        before = [slice_ * self.columns for slice_ in range(self.slices)]
        columns = [min(self.columns, max(0, self.dim - skipped)) for skipped in before]
        return tf.constant(columns, tf.int64)

    def stored(self, size: Any) -> Any:
        """Bytes of the whole bursts that so many bytes take."""
        return -(-size // self.burst_bytes) * self.burst_bytes


def check_table_number(table_number: Any) -> None:
    """Raises ValueError unless it is an integer, 0 or more."""
    if not isinstance(table_number, int) or table_number < 0:
        raise ValueError(
            f"`table_number` must be an integer, 0 or more. Received: table_number={table_number!r}"
        )


def layout_of(device: Device, shape: Sequence[int], dtype: Any, table_number: int = 0) -> Layout:
    """The layout of a table of `shape` and `dtype` in `device`; ValueError if it has none."""
    dtype = tf.as_dtype(dtype)
    if dtype not in _DTYPES:
        raise ValueError(
            f"`table` must be float16, bfloat16, float32 or float64. Received: dtype={dtype.name!r}"
        )
    static = tf.TensorShape(shape)
    if static.rank is None or None in static.as_list():
        raise ValueError(
            f"`table` must have a static shape to be counted. Received: shape {static}"
        )
    if static.rank != 2:
        raise ValueError(f"`table` must have rank 2. Received: shape {static}")
    rows, dim = static.as_list()
    check_table_number(table_number)
    columns = max(1, -(-dim // device.slices))
    if columns * dtype.size < device.burst_bytes and device.slices > 1 and not device.pads_slices:
        raise ValueError(
            f"`device` must cut rows into slices of {device.burst_bytes} bytes or more. "
            f"Received: rows of {dim * dtype.size} bytes, slices={device.slices}"
        )
    row_bytes = -(-columns * dtype.size // device.burst_bytes) * device.burst_bytes
    groups = device.ranks // device.slices
    return Layout(
        rows=rows,
        dim=dim,
        groups=groups,
        slices=device.slices,
        first_group=table_number % groups,
        by_table=device.placement == "table_aware",
        columns=columns,
        item_bytes=dtype.size,
        sum_bytes=8 if dtype == tf.float64 else 4,
        row_bytes=row_bytes,
        burst_bytes=device.burst_bytes,
        rows_per_page=max(1, device.page_bytes // row_bytes),
        pages_per_row=-(-row_bytes // device.page_bytes),
        banks=device.banks,
        cached_rows=device.cache_bytes // row_bytes,
    )


def _of_ranks(layout: Layout, of_groups: tf.Tensor) -> tf.Tensor:
    """What a group does, in each of its ranks; those without a column do nothing."""
    works = tf.cast(layout.columns_of_slices() > 0, tf.int64)
    return of_groups[:, tf.newaxis] * works


def _counts(layout: Layout, **of_ranks: tf.Tensor) -> tf.Tensor:
    """Counts of each rank, from figures of shape `(groups, slices)`."""
    of_ranks["bursts"] = (of_ranks["bytes_read"] + of_ranks["bytes_written"]) // layout.burst_bytes
    zeros = tf.zeros_like(of_ranks["bytes_read"])
    columns = [of_ranks.get(name, zeros) for name in COUNTERS]
    return tf.reshape(tf.stack(columns, 2), [-1, len(COUNTERS)])


def _streamed_pages(layout: Layout, rows: tf.Tensor) -> tf.Tensor:
    """Pages that so many rows take, one behind the other."""
    return -(-rows // layout.rows_per_page) * layout.pages_per_row


def forward_counts(
    layout: Layout, events: dict[str, tf.Tensor], weighted: bool, bags_in_all: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    columns = layout.columns_of_slices()
    lookups, bags, hits, activations = (
        _of_ranks(layout, events[name]) for name in ("lookups", "bags", "cache_hits", "activations")
    )
    counts = _counts(
        layout,
        bytes_read=(lookups - hits) * layout.stored(columns * layout.item_bytes),
        bytes_written=tf.zeros_like(lookups),
        activations=activations,
        alu_operations=lookups * columns * (1 + weighted),
        instructions=lookups + bags,
        link_bytes_in=lookups * (2 * _ID_BYTES + weighted * layout.sum_bytes),
        link_bytes_out=bags * columns * layout.sum_bytes,
        cache_hits=hits,
        lookups=lookups,
    )
    return counts, (tf.reduce_sum(events["lookups"]) + bags_in_all) * layout.row_size


def backward_counts(
    layout: Layout, events: dict[str, tf.Tensor], weighted: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    columns = layout.columns_of_slices()
    lookups, bags, rows, hits, activations = (
        _of_ranks(layout, events[name])
        for name in (
            "gradient_lookups",
            "gradient_bags",
            "rows",
            "gradient_cache_hits",
            "gradient_activations",
        )
    )
    streamed = _streamed_pages(layout, bags) + _streamed_pages(layout, rows)
    row_bytes = layout.stored(columns * layout.item_bytes)
    values = bags * columns * layout.item_bytes
    counts = _counts(
        layout,
        bytes_read=(lookups - hits) * row_bytes,
        bytes_written=(bags + rows) * row_bytes,
        activations=activations + streamed,
        alu_operations=lookups * columns * (1 + weighted),
        instructions=lookups + rows,
        link_bytes_in=values + lookups * (2 * _ID_BYTES + weighted * layout.sum_bytes),
        cache_hits=hits,
        lookups=lookups,
    )
    # The host has no copies of hot rows.
    in_all = tf.reduce_sum(events["lookups"]) + tf.reduce_sum(events["home_rows"])
    return counts, in_all * layout.row_size


def update_counts(
    layout: Layout, events: dict[str, tf.Tensor], rule: str, is_on_device: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    columns = layout.columns_of_slices()
    rows, pages = (_of_ranks(layout, events[name]) for name in ("rows", "row_activations"))
    slots = RULES[rule][0]
    row_bytes = layout.stored(columns * layout.item_bytes)
    if rule == "rowwise_adagrad":  # one number to a row
        state_bytes, host_bytes, state_pages = layout.burst_bytes, layout.sum_bytes, rows
    else:
        state_bytes = slots * layout.stored(columns * layout.sum_bytes)
        host_bytes, state_pages = slots * layout.dim * layout.sum_bytes, slots * pages
    arrived = tf.zeros_like(rows) if is_on_device else rows
    counts = _counts(
        layout,
        bytes_read=rows * (2 * row_bytes + state_bytes),
        bytes_written=rows * (row_bytes + state_bytes) + arrived * row_bytes,
        activations=pages
        + state_pages
        + _streamed_pages(layout, rows)
        + _streamed_pages(layout, arrived),
        alu_operations=rows * columns * _RULE_OPERATIONS[rule],
        instructions=rows,
        link_bytes_in=arrived * (columns * layout.item_bytes + _ID_BYTES),
        lookups=rows,
    )
    return counts, tf.reduce_sum(events["home_rows"]) * (3 * layout.row_size + 2 * host_bytes)
