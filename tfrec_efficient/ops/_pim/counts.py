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
    groups: int
    slices: int
    first_group: int
    by_table: bool
    columns: int  # of a slice
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


def check_table_number(table_number: Any) -> None:
    """Raises ValueError unless it is an integer, 0 or more."""
    if not isinstance(table_number, int) or table_number < 0:
        raise ValueError(
            f"`table_number` must be an integer, 0 or more. Received: table_number={table_number!r}"
        )


def layout_of(device: Device, shape: Sequence[int], dtype: Any, table_number: int = 0) -> Layout:
    """The layout of a table of `shape` and `dtype` in `device`; ValueError if it has none."""
    dtype = tf.as_dtype(dtype)
    rows, dim = (None if size is None else int(size) for size in tuple(shape))
    if rows is None or dim is None:
        raise ValueError(
            f"`table` must have a static shape to be counted. Received: shape {tuple(shape)}"
        )
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


def _counts(layout: Layout, **of_groups: tf.Tensor) -> tf.Tensor:
    """Counts of each rank, from those of one rank of each group."""
    zeros = tf.zeros([layout.groups], tf.int64)
    of_groups["bursts"] = (of_groups["bytes_read"] + of_groups["bytes_written"]) // (
        layout.burst_bytes
    )
    columns = [of_groups.get(name, zeros) for name in COUNTERS]
    return tf.repeat(tf.stack(columns, 1), layout.slices, axis=0)


def _streamed_pages(layout: Layout, rows: tf.Tensor) -> tf.Tensor:
    """Pages that so many rows take, one behind the other."""
    return -(-rows // layout.rows_per_page) * layout.pages_per_row


def _dim_bytes(layout: Layout, dim: Any) -> tf.Tensor:
    return tf.cast(dim, tf.int64) * layout.item_bytes


def forward_counts(
    layout: Layout, events: dict[str, tf.Tensor], weighted: bool, shape: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    lookups, bags = events["lookups"], events["bags"]
    counts = _counts(
        layout,
        bytes_read=(lookups - events["cache_hits"]) * layout.row_bytes,
        bytes_written=tf.zeros_like(lookups),
        activations=events["activations"],
        alu_operations=lookups * layout.columns * (1 + weighted),
        instructions=lookups + bags,
        link_bytes_in=lookups * (2 * _ID_BYTES + weighted * layout.sum_bytes),
        link_bytes_out=bags * layout.columns * layout.sum_bytes,
        cache_hits=events["cache_hits"],
        lookups=lookups,
    )
    row_bytes = _dim_bytes(layout, shape[1])
    return counts, (tf.reduce_sum(lookups) + tf.cast(shape[0], tf.int64)) * row_bytes


def backward_counts(
    layout: Layout, events: dict[str, tf.Tensor], weighted: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    lookups, bags, rows = (events[name] for name in ("gradient_lookups", "gradient_bags", "rows"))
    hits = events["gradient_cache_hits"]
    streamed = _streamed_pages(layout, bags) + _streamed_pages(layout, rows)
    values = bags * layout.columns * layout.item_bytes
    counts = _counts(
        layout,
        bytes_read=(lookups - hits) * layout.row_bytes,
        bytes_written=(bags + rows) * layout.row_bytes,
        activations=events["gradient_activations"] + streamed,
        alu_operations=lookups * layout.columns * (1 + weighted),
        instructions=lookups + rows,
        link_bytes_in=values + lookups * (2 * _ID_BYTES + weighted * layout.sum_bytes),
        cache_hits=hits,
        lookups=lookups,
    )
    row_bytes = layout.columns * layout.slices * layout.item_bytes
    return counts, (tf.reduce_sum(events["lookups"]) + tf.reduce_sum(rows)) * row_bytes


def update_counts(
    layout: Layout, events: dict[str, tf.Tensor], rule: str, is_on_device: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    rows, pages = events["rows"], events["row_activations"]
    slots = RULES[rule][0]
    if rule == "rowwise_adagrad":  # one number to a row
        state_bytes, host_bytes, state_pages = layout.burst_bytes, layout.sum_bytes, rows
    else:
        values = layout.columns * layout.sum_bytes
        state_bytes = slots * -(-values // layout.burst_bytes) * layout.burst_bytes
        host_bytes, state_pages = slots * values * layout.slices, slots * pages
    arrived = tf.zeros_like(rows) if is_on_device else rows
    counts = _counts(
        layout,
        bytes_read=rows * (2 * layout.row_bytes + state_bytes),
        bytes_written=rows * (layout.row_bytes + state_bytes) + arrived * layout.row_bytes,
        activations=pages
        + state_pages
        + _streamed_pages(layout, rows)
        + _streamed_pages(layout, arrived),
        alu_operations=rows * layout.columns * _RULE_OPERATIONS[rule],
        instructions=rows,
        link_bytes_in=arrived * (layout.columns * layout.item_bytes + _ID_BYTES),
        lookups=rows,
    )
    row_bytes = layout.columns * layout.slices * layout.item_bytes
    return counts, tf.reduce_sum(rows) * (3 * row_bytes + 2 * host_bytes)
