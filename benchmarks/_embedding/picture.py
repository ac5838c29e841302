"""The picture of `embedding.py`: the time of a step against the rows of the table."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from _embedding import rivals
from _embedding.cells import Record
from _embedding.cells import format_rows


def draw(records: Sequence[Record], path: Path) -> None:
    """Writes an SVG with a line for each rival; both axes are logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text: smaller, and it can be searched. The salt makes the file reproducible.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tfrec_efficient"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for name in rivals.RIVALS:
        points = [(r.cell.rows, group[name]) for r in records if (group := r.group_of(name))]
        if points:
            is_ours, is_ceiling = name == rivals.OURS, "ceiling" in name
            axes.plot(
                [rows for rows, _ in points],
                [statistics.median(timing.wall) for _, timing in points],
                marker="o",
                linewidth=3 if is_ours else 1.5,
                linestyle=":" if is_ceiling else "-",
                label=f"{name} (update only)" if is_ceiling else name,
            )
    rows = [record.cell.rows for record in records]
    axes.set(xscale="log", yscale="log", xlabel="rows of the table", ylabel="ms per step")
    axes.set_xticks(rows, [format_rows(count) for count in rows])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    cell = records[0].cell
    axes.set_title(
        f"{cell.what}, {cell.batch} x {cell.hotness} ids, {cell.skew}, {cell.threads} threads",
        fontsize=10,
    )
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
