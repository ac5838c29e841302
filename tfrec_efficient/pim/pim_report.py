"""`PimReport`: what a processing-in-memory device did, and what its model says it would take."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec_efficient.ops._pim.counts import COUNTERS

TERMS = ("dram", "alu", "instructions", "link", "combine", "launch", "total")
ENERGIES = ("dram", "alu", "link", "idle")


class PimReport(tf.experimental.ExtensionType):
    """Counts of each rank, and seconds and joules that follow from them by the device model.

    `a + b` is the report of `a`, and then `b`. A report is a composite tensor, so that it may be
    what a `tf.function` takes or returns.

    Attributes:
        counts: int64, `(ranks, counters)`. Each counter is an attribute too, of shape `(ranks,)`.
            They are, in this order: `bytes_read`, `bytes_written`, `bursts`,
            `activations` (pages opened), `alu_operations`, `instructions`, `link_bytes_in`,
            `link_bytes_out`, `cache_hits`, `lookups`.
        seconds: float64, `(terms,)`: `"dram"`, `"alu"` and `"instructions"` are those of the
            busiest rank, which overlap; `"link"`, `"combine"` (the host reads what comes back) and
            `"launch"` follow; `"total"` is `max(dram, alu, instructions) + link + combine +
            launch`, added up over the reports of a sum.
        joules: float64, `(energies,)`: `"dram"`, `"alu"`, `"link"`, and `"idle"` of the memory.
        host_seconds: float64. The same work on the host, by its bytes.
        host_joules: float64. The same.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> device = tfrec.PimDevice.tensor_casting()
    >>> forward, backward, _ = tfrec.ops.pim_reports((100, 64), "float32", [[1, 2]], device=device)
    >>> both = forward + backward
    >>> int(tf.reduce_sum(both.bytes_read)), both.term("launch") == 2 * forward.term("launch")
    (1024, True)
    """

    counts: tf.Tensor
    seconds: tf.Tensor
    joules: tf.Tensor
    host_seconds: tf.Tensor
    host_joules: tf.Tensor

    def __add__(self, other: "PimReport") -> "PimReport":
        return PimReport(*(a + b for a, b in zip(fields_of(self), fields_of(other), strict=True)))

    def __getattr__(self, name: str) -> Any:
        if name in COUNTERS:
            return self.counts[:, COUNTERS.index(name)]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def term(self, name: str) -> float:
        """Seconds of one of the terms, as a number."""
        return float(self.seconds[TERMS.index(name)])

    @property
    def total_seconds(self) -> tf.Tensor:
        """Seconds in the device and on the way to it and back."""
        return self.seconds[TERMS.index("total")]

    @property
    def total_joules(self) -> tf.Tensor:
        """Joules of all kinds."""
        return tf.reduce_sum(self.joules)

    @property
    def speedup(self) -> tf.Tensor:
        """Seconds on the host for each in the device; 1 where nothing was done."""
        device = self.total_seconds
        return tf.where(device > 0, self.host_seconds / tf.where(device > 0, device, 1.0), 1.0)

    @property
    def imbalance(self) -> tf.Tensor:
        """Bytes of the busiest rank over those of the mean one; 1 where nothing was done."""
        moved = tf.cast(self.bytes_read + self.bytes_written, tf.float64)
        mean = tf.reduce_mean(moved)
        return tf.where(mean > 0, tf.reduce_max(moved) / tf.where(mean > 0, mean, 1.0), 1.0)

    def as_dict(self) -> dict[str, Any]:
        """Numbers for JSON: sums of the counts over ranks, seconds and joules by name."""
        return {
            "counts": dict(zip(COUNTERS, np.sum(self.counts, 0).tolist(), strict=True)),
            "seconds": dict(zip(TERMS, self.seconds.numpy().tolist(), strict=True)),
            "joules": dict(zip(ENERGIES, self.joules.numpy().tolist(), strict=True)),
            "host_seconds": float(self.host_seconds),
            "host_joules": float(self.host_joules),
            "imbalance": float(self.imbalance),
        }


def fields_of(report: PimReport) -> tuple[tf.Tensor, ...]:
    """The tensors of a report, in the order of its attributes."""
    return (
        report.counts,
        report.seconds,
        report.joules,
        report.host_seconds,
        report.host_joules,
    )


def summary_table(reports: dict[str, PimReport]) -> str:
    """A line for each report: bytes, times, speed-up, energy, imbalance."""
    width = max([24, *(len(name) + 1 for name in reports)])
    lines = [
        f"{'':{width}}{'MB moved':>10}{'opened':>11}{'device ms':>11}{'host ms':>9}{'speed-up':>10}"
        f"{'device mJ':>11}{'host mJ':>9}{'imbalance':>11}"
    ]
    for name, report in reports.items():
        moved = int(tf.reduce_sum(report.bytes_read + report.bytes_written))
        lines.append(
            f"{name:{width}}{moved / 1e6:10.1f}{int(tf.reduce_sum(report.activations)):11,}"
            f"{float(report.total_seconds) * 1e3:11.3f}{float(report.host_seconds) * 1e3:9.3f}"
            f"{float(report.speedup):9.1f}x{float(report.total_joules) * 1e3:11.2f}"
            f"{float(report.host_joules) * 1e3:9.1f}{float(report.imbalance):11.2f}"
        )
    return "\n".join(lines)


def plot_roofline(device: Any, reports: dict[str, PimReport], path: Any = None) -> Any:
    """Draws where reports lie under the roofs of a device and of its host.

    Args:
        device: The `PimDevice` that made them.
        reports: Reports by name.
        path: Where to save the picture, or None. Defaults to None.

    Returns:
        The figure of Matplotlib.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    intensity = np.logspace(-3, 2, 100)
    peak = device.ranks * device.alu_lanes * device.alu_hz
    axes.plot(intensity, np.minimum(peak, intensity * device.bandwidth), label=device.name)
    axes.plot(intensity, intensity * device.host_bandwidth, "--", label="random rows on the host")
    for name, report in reports.items():
        operations = float(tf.reduce_sum(report.alu_operations))
        moved = float(tf.reduce_sum(report.bytes_read + report.bytes_written))
        if operations and moved:
            done = operations / float(report.total_seconds)
            axes.plot(operations / moved, done, "o", label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations for each byte of memory moved",
        ylabel="operations a second",
        title=f"{device.name}: the model, not a measurement",
    )
    axes.grid(True, alpha=0.3)
    axes.legend()
    if path is not None:
        figure.savefig(Path(path))
    return figure
