"""The planner: which tables of a model a device should hold, how, and what that would gain."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import BagLayer
from tfrec_efficient.ops.pim import pim_reports
from tfrec_efficient.ops.row_update import RULES
from tfrec_efficient.pim._dram import check_number
from tfrec_efficient.pim.pim_device import PimDevice
from tfrec_efficient.pim.pim_embedding_bag import bags_of

_ENOUGH = 0.9  # of the largest gain: more ranks than that takes are not recommended


@dataclasses.dataclass(frozen=True)
class PlannedTable:
    """A table of a plan, and what a step spends on it on the host.

    Attributes:
        name: Of the layer.
        shape: `(rows, dim)`.
        megabytes: Of the table and the state of its optimizer.
        lookups: Of the batch.
        host_seconds: Of forward, backward and update on the host, by their bytes.
        is_offloaded: Whether the plan puts it into the device.
        reason: Why, or why not.
    """

    name: str
    shape: tuple[int, int]
    megabytes: float
    lookups: int
    host_seconds: float
    is_offloaded: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class PimPlan:
    """Which tables to offload, where they lie, what a step gains, and what to buy.

    All seconds are modelled, but for `dense_seconds`, which is what `plan` was given.

    Attributes:
        device: The device, with the best placement that was found.
        tables: All tables of the model.
        host_seconds: Of a step, with all tables on the host.
        device_seconds: Of a step, with the offloaded tables in the device.
        dense_seconds: Of all else in a step, in both.
        ranks: Numbers of ranks that were tried, rising.
        seconds_by_ranks: Of a step with so many ranks, each with its best placement.
        ranks_to_buy: The fewest ranks that give nine tenths of what the device saves; 0 where
            nothing is worth offloading.
    """

    device: PimDevice
    tables: tuple[PlannedTable, ...]
    host_seconds: float
    device_seconds: float
    dense_seconds: float
    ranks: tuple[int, ...]
    seconds_by_ranks: tuple[float, ...]
    ranks_to_buy: int

    @property
    def speedup(self) -> float:
        """Steps with the device for each without; 1 where there is nothing to do."""
        return self.host_seconds / self.device_seconds if self.device_seconds else 1.0

    def __str__(self) -> str:
        width = max([24, *(len(table.name) + 1 for table in self.tables)])
        title = f"{'table':{width}}{'rows':>13}{'dim':>6}{'MB':>10}{'lookups':>10}{'host ms':>10}"
        lines = [f"{title}  place"]
        for table in self.tables:
            lines.append(
                f"{table.name:{width}}{table.shape[0]:13,}{table.shape[1]:6}{table.megabytes:10.1f}"
                f"{table.lookups:10,}{table.host_seconds * 1e3:10.3f}  {table.reason}"
            )
        lines.append(
            f"A step takes {self.host_seconds * 1e3:.3f} ms on the host and "
            f"{self.device_seconds * 1e3:.3f} ms with {self.device.name}: {self.speedup:.2f} times "
            f"as fast (modelled; {self.dense_seconds * 1e3:.3f} ms of both are other work)."
        )
        if self.ranks_to_buy:
            memory = self.ranks_to_buy * self.device.rank_bytes / 2**30
            lines.append(
                f"Placement: {self.device.placement}, slices={self.device.slices}. "
                f"Buy {self.ranks_to_buy} ranks ({memory:,.1f} GiB) for nine tenths of the gain."
            )
        else:
            lines.append("Nothing is worth offloading: buy nothing.")
        return "\n".join(lines)

    def plot(self, path: Any = None) -> Any:
        """Draws time on the host by table, and the time of a step by the number of ranks.

        Args:
            path: Where to save the picture, or None. Defaults to None.

        Returns:
            The figure of Matplotlib.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for is_offloaded, label in ((True, "offloaded"), (False, "on the host")):
            chosen = [table for table in self.tables if table.is_offloaded == is_offloaded]
            names = [table.name for table in chosen]
            left.barh(names, [table.host_seconds * 1e3 for table in chosen], label=label)
        left.set(xlabel="milliseconds on the host, modelled", title="tables")
        left.legend()
        right.plot(self.ranks, [1e3 * seconds for seconds in self.seconds_by_ranks], "o-")
        right.axhline(1e3 * self.host_seconds, color="black", linestyle="--", label="host alone")
        if self.ranks_to_buy:
            right.axvline(self.ranks_to_buy, color="black", linestyle=":", label="to buy")
        right.set(
            xscale="log", xlabel="ranks", ylabel="milliseconds a step", title=self.device.name
        )
        right.legend()
        if path is not None:
            figure.savefig(Path(path))
        return figure


def plan(
    model: keras.Model,
    batch: Any,
    device: PimDevice,
    rule: str = "adagrad",
    dense_seconds: float = 0.0,
    host_cache_bytes: int = 32 << 20,
    host_cache_bandwidth: float = 60e9,
) -> PimPlan:
    """Plans a model on a device, by the model of the device and the lookups of one batch.

    All placements of rows and tables are tried, with all numbers of slices that fill a burst, on
    the whole device and on halves, quarters and so on of it. A table is offloaded where that
    shortens the step: one launch of each op serves all tables, and the busiest rank is waited for.
    The host is charged for the bytes it moves, at the bandwidth of its cache for tables that the
    cache holds. Weights of lookups and copies of hot rows are not planned.

    Args:
        model: A model with `EmbeddingBag` or `PimEmbeddingBag` layers. It is called once, without
            training.
        batch: What to call it with; the lookups of a typical step.
        device: A `PimDevice`. Its placement and slices are not kept.
        rule: The rule of `tfrec_efficient.ops.row_update` that trains the tables.
            Defaults to `"adagrad"`.
        dense_seconds: Seconds of a step that are not spent on tables; measure them.
            Defaults to 0.
        host_cache_bytes: int. The cache of the host. Defaults to 32 MiB.
        host_cache_bandwidth: Bytes a second out of it, assumed. Defaults to 60e9.

    Returns:
        The plan.

    Raises:
        ValueError: An argument breaks a rule above, or the model has no such layer.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> ids = keras.Input((20,), dtype="int64")
    >>> model = keras.Model(ids, tfrec.EmbeddingBag(2_000_000, 32, name="items")(ids))
    >>> batch = np.random.default_rng(0).integers(0, 2_000_000, (1024, 20))
    >>> plan = tfrec.pim.plan(model, batch, tfrec.PimDevice.recnmp())
    >>> plan.tables[0].is_offloaded, plan.speedup > 1
    (True, True)
    """
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {sorted(RULES)}. Received: rule={rule!r}")
    check_number("dense_seconds", dense_seconds, "0 or more")
    check_number("host_cache_bytes", host_cache_bytes, "0 or more", whole=True)
    check_number("host_cache_bandwidth", host_cache_bandwidth, "positive")
    lookups = _lookups_of(model, batch)
    tables = [
        _Table(
            number, layer, [ids for of, ids in lookups if of is layer], rule, device,
            host_cache_bandwidth if _bytes_of(layer, rule) <= host_cache_bytes else None,
        )
        for number, layer in enumerate(dict.fromkeys(layer for layer, _ in lookups))
    ]  # fmt: skip
    host_seconds = dense_seconds + sum(table.host_seconds for table in tables)
    # Halves, down to one rank.
    sizes = sorted({max(1, device.ranks >> halved) for halved in range(device.ranks.bit_length())})
    best = [
        min(_choices(tables, device, ranks), key=lambda choice: (choice[0], len(choice[3])))
        for ranks in sizes
    ]
    seconds = tuple(dense_seconds + choice[0] for choice in best)
    _, chosen, held, dropped = best[-1]
    saved = host_seconds - seconds[-1]
    to_buy = next(
        (n for n, s in zip(sizes, seconds, strict=True) if host_seconds - s >= _ENOUGH * saved), 0
    )
    return PimPlan(
        device=chosen,
        tables=tuple(table.planned(held, dropped) for table in tables),
        host_seconds=host_seconds,
        device_seconds=seconds[-1],
        dense_seconds=float(dense_seconds),
        ranks=tuple(sizes),
        seconds_by_ranks=seconds,
        ranks_to_buy=to_buy if held else 0,
    )


def _lookups_of(model: keras.Model, batch: Any) -> list[tuple[BagLayer, Any]]:
    """The bags that each layer is called with."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, BagLayer)]
    layers = [layer for layer in layers if layer.input_dim is not None]
    if not layers:
        raise ValueError(
            "`model` must have `EmbeddingBag` or `PimEmbeddingBag` layers. "
            f"Received: {model.name!r}, which has none"
        )
    found: list[tuple[BagLayer, Any]] = []
    calls = {layer: layer.call for layer in layers}

    def recording(layer: BagLayer) -> Any:
        def call(ids: Any, *others: Any, **named: Any) -> Any:
            found.append((layer, bags_of(layer, ids)))
            return calls[layer](ids, *others, **named)

        return call

    try:
        for layer in layers:
            layer.call = recording(layer)
        model(batch, training=False)
    finally:
        for layer in layers:
            del layer.call  # what the class has is back
    return found


def _bytes_of(layer: BagLayer, rule: str) -> int:
    rows, dim = layer.embeddings.shape
    return rows * dim * tf.as_dtype(layer.variable_dtype).size * (1 + RULES[rule][0])


class _Table:
    """A table with what a step does to it, counted on a device as it is needed."""

    def __init__(
        self,
        number: int,
        layer: BagLayer,
        ids: Sequence[Any],
        rule: str,
        device: PimDevice,
        cache_bandwidth: float | None,
    ) -> None:
        self.number, self.layer, self.ids, self.rule = number, layer, ids, rule
        self.shape = tuple(layer.embeddings.shape)
        self.is_cached = cache_bandwidth is not None
        reports = self.reports(dataclasses.replace(device, slices=1))
        self.lookups = sum(int(tf.reduce_sum(of_call[0].lookups)) for of_call in reports)
        self.host_bytes = [
            sum(float(of_call[kind].host_seconds) for of_call in reports) * device.host_bandwidth
            for kind in range(3)
        ]
        self.host_seconds = sum(self.host_bytes) / (cache_bandwidth or device.host_bandwidth)

    def reports(self, device: PimDevice) -> list[Any]:
        return [
            pim_reports(
                self.shape, self.layer.variable_dtype, ids, device=device,
                padding_id=self.layer.padding_id, table_number=self.number, rule=self.rule,
            )
            for ids in self.ids
        ]  # fmt: skip

    def counts(self, device: PimDevice) -> list[tf.Tensor]:
        """Counts of forward, backward and update, with all calls in one launch."""
        reports = self.reports(device)
        return [tf.add_n([of_call[kind].counts for of_call in reports]) for kind in range(3)]

    def rank_bytes(self, device: PimDevice) -> int:
        each = device.bytes_of_table(self.shape, self.layer.variable_dtype)
        return each * (1 + RULES[self.rule][0])

    def planned(self, held: Sequence["_Table"], dropped: Sequence["_Table"]) -> PlannedTable:
        if self in held:
            reason = "device"
        elif self in dropped:
            reason = "host: does not fit the device"
        else:
            reason = "host: " + ("in its cache" if self.is_cached else "the device is no faster")
        megabytes = _bytes_of(self.layer, self.rule) / 1e6
        return PlannedTable(
            self.layer.name, self.shape, megabytes, self.lookups, self.host_seconds,
            self in held, reason,
        )  # fmt: skip


_Choice = tuple[float, PimDevice, list[_Table], list[_Table]]


def _choices(tables: Sequence[_Table], device: PimDevice, ranks: int) -> Iterator[_Choice]:
    """For each placement: seconds, the device, the tables it holds, and those that do not fit."""
    for slices in (count for count in range(1, ranks + 1) if ranks % count == 0):
        for placement in ("row_interleave", "table_aware"):
            candidate = dataclasses.replace(device, ranks=ranks, slices=slices, placement=placement)
            try:
                counts = {table: table.counts(candidate) for table in tables}
            except ValueError:  # slices narrower than a burst
                continue
            yield _best_subset(tables, candidate, counts)


def _best_subset(
    tables: Sequence[_Table], device: PimDevice, counts: dict[_Table, list[tf.Tensor]]
) -> _Choice:
    fitting = [table for table in tables if _fit([table], device)]
    dropped = [table for table in tables if table not in fitting]
    # Tables share launches, so one alone may not be worth what several are.
    launches = 3 * device.launch_seconds
    gains = {
        table: table.host_seconds + launches - _seconds([], [table], device, counts)
        for table in fitting
    }
    while fitting and not _fit(fitting, device):  # what gains least for its size goes first
        worst = min(fitting, key=lambda table: gains[table] / table.rank_bytes(device))
        fitting.remove(worst)
        dropped.append(worst)
    fitting.sort(key=lambda table: -gains[table])
    subsets = [fitting[:count] for count in range(len(fitting) + 1)]
    seconds = [_seconds(tables, held, device, counts) for held in subsets]
    least = min(seconds)
    return least, device, subsets[seconds.index(least)], dropped


def _fit(held: Sequence[_Table], device: PimDevice) -> bool:
    filled = [0] * device.groups
    for table in held:
        everywhere = device.placement == "row_interleave"
        for group in range(device.groups) if everywhere else [table.number % device.groups]:
            filled[group] += table.rank_bytes(device)
    return max(filled) <= device.rank_bytes


def _seconds(
    tables: Sequence[_Table],
    held: Sequence[_Table],
    device: PimDevice,
    counts: dict[_Table, list[tf.Tensor]],
) -> float:
    """Of a step: the device and then the host."""
    seconds = sum(table.host_seconds for table in tables if table not in held)
    for kind in range(3 if held else 0):
        together = tf.add_n([counts[table][kind] for table in held])
        seconds += float(device.report(together, 0).total_seconds)
    return seconds
