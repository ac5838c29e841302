"""How much memory steps take for a while: the peak of a process of its own.

Started by itself, with a cell and the name of a rival as JSON; prints JSON.
"""

import dataclasses
import json
import resource
import sys
from pathlib import Path

import _harness

from _embedding import children
from _embedding import rivals
from _embedding.cells import Cell
from _embedding.cells import Inputs
from _embedding.cells import write_json

_STEPS = 8

# The allocator that TensorFlow uses with oneDNN never gives memory back: whatever a step needs for
# a while would be resident between steps too.
_ENVIRONMENT = {"TF_ENABLE_ONEDNN_OPTS": "0"}


def cell_of(sizes: dict[str, int]) -> Cell:
    """The cell whose steps are watched."""
    return Cell(1_000_000, "uniform", "adagrad", **sizes)


def path_of(folder: Path, cell: Cell) -> Path:
    """Where the memory of a cell is recorded."""
    return folder / f"memory-{cell.name}.json"


def record(folder: Path, cell: Cell) -> None:
    """Measures ours and Keras, each in a process of its own, and writes what it found."""
    found = {name: measure(cell, name) for name in (rivals.OURS, rivals.KERAS)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path_of(folder, cell), found)


def measure(cell: Cell, name: str) -> dict[str, object]:
    """The resident bytes of a process between the steps of a rival, and at their peak."""
    asked = {"cell": dataclasses.asdict(cell), "rival": name}
    return children.call("_embedding.memory", asked, _ENVIRONMENT)


def print_memory(folder: Path, cell: Cell) -> None:
    """Prints what is recorded, if anything is."""
    path = path_of(folder, cell)
    if not path.exists():
        print("\nPeak memory of a step: not measured")
        return
    table = cell.rows * cell.dim * 4 / 1e6
    print(f"\nPeak memory of steps, {cell.title}; the table has {table:.0f} MB")
    for name, found in json.loads(path.read_text()).items():
        added = (found["peak"] - found["before"]) / 1e6
        print(f"{name:40}{added:9.0f} MB on top of {found['before'] / 1e6:.0f} MB between steps")
        if found["peak_since"] != "the steps":
            print(f"{'':40}at most: the peak is that since {found['peak_since']}")


def _measure_here(cell: Cell, name: str) -> dict[str, object]:
    with rivals.RIVALS[name].open(cell, Inputs(cell)) as opened:
        for batch in range(_harness.WARM_UP):
            opened.measure(batch)
        since = _forget_peak()
        before = _harness.kilobytes("/proc/self/status", "VmRSS")
        for step in range(_STEPS):
            opened.measure(step % _harness.BATCHES)
    if since == "the steps":
        peak = _harness.kilobytes("/proc/self/status", "VmHWM")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"before": before, "peak": peak, "peak_since": since}


def _forget_peak() -> str:
    """Has the kernel count the peak anew; where it may not, the peak counts from the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return "the start"
    return "the steps"


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(_measure_here(Cell(**asked["cell"]), asked["rival"])))
