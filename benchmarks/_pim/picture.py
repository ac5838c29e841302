"""The pictures of `pim.py`."""

import matplotlib.figure

from _pim import cells

_LABELS = {
    "baseline_cpu": "baseline, CPU (measured)",
    "baseline_nmp": "baseline, device",
    "casted_cpu": "casted, CPU (measured)",
    "casted_nmp": "casted, device",
}


def draw_designs(found, path):
    """Speed-ups over the baseline on the CPU, for each model and batch size."""
    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    names = [name for name in cells.DESIGN_CELLS if name in found]
    for offset, design in enumerate(cells.DESIGNS):
        axes.bar(
            [place + 0.2 * offset for place in range(len(names))],
            [found[name]["speedup"][design][0] for name in names],
            0.2,
            label=_LABELS[design],
        )
    axes.set_xticks(
        [place + 0.3 for place in range(len(names))], [name.replace("_", "\n") for name in names]
    )
    axes.set(
        ylabel="times as fast as the baseline on the CPU",
        title="training steps: host parts measured, device parts modelled",
    )
    axes.grid(True, axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg")


def draw_validation(record, path):
    """The bandwidth of one channel: recorded points of a simulator, and the model."""
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    names = [f"{point['order']}\n{point['row_bytes']} B" for point in record["points"]]
    for offset, (key, label) in enumerate(
        (("gigabytes_per_second", "simulator, recorded"),
         ("modelled_gigabytes_per_second", "closed form"))
    ):  # fmt: skip
        axes.bar(
            [place + 0.4 * offset for place in range(len(names))],
            [point[key] for point in record["points"]],
            0.4,
            label=label,
        )
    axes.set_xticks([place + 0.2 for place in range(len(names))], names)
    axes.set(ylabel="GB/s", title="rows of DDR4-3200, one channel of two ranks")
    axes.legend(loc="lower left")
    figure.savefig(path, format="svg")
