"""Measures a cell: which rivals take part, who fits into memory with whom, and their turns.

Started by itself, with a cell and the names of rivals as JSON, it measures those and prints JSON.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence

import _harness
import tensorflow as tf

from _embedding import children
from _embedding import collection
from _embedding import rivals
from _embedding.cells import Cell
from _embedding.cells import Inputs
from _embedding.cells import Record
from _embedding.cells import format_rows
from _embedding.rivals import Rival

# For the libraries of a rival in a process of its own, without its table.
_PROCESS_BYTES = 500_000_000


def ours(cell: Cell) -> str:
    """The name of the rival that the others of a cell are compared with."""
    if cell.against_rows:
        return _name_at_size(cell.against_rows)
    return collection.OURS if cell.tables > 1 else rivals.OURS


def measure(cell: Cell, peers: Sequence[str], rounds: int) -> Record:
    """Has all rivals of a cell take turns, `rounds` times or, if they are slow, fewer."""
    machine = _harness.machine()
    taking_part, left_out = _rivals_of(cell, peers)
    groups, too_large = fit_into_memory(cell, taking_part, _harness.meminfo("MemAvailable"))
    timings, about, others = [], {}, []
    for names in groups:
        asked = {"cell": dataclasses.asdict(cell), "rivals": names, "rounds": rounds}
        found = children.call("_embedding.measure", asked)
        timings.append({name: _harness.Timing(**t) for name, t in found["timings"].items()})
        about.update(found["about"])
        others.append(found["others_cores"])
    for entry in about.values():
        machine["versions"].update(entry.pop("versions", {}))
    return Record(
        cell=cell,
        peers=list(peers),
        rounds_asked=rounds,
        machine=machine,
        load_after=list(os.getloadavg()),
        groups=timings,
        others_cores=others,
        left_out={**left_out, **too_large},
        about=about,
    )


def measure_group(cell: Cell, names: Sequence[str], rounds: int) -> dict[str, object]:
    """Has the rivals `names` take turns in this process and its children."""
    candidates, _ = _rivals_of(cell, [rival.peer for rival in rivals.RIVALS.values()])
    inputs = Inputs(cell)
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(candidates[name].open(cell, inputs)) for name in names}
        about = {name: rival.about for name, rival in opened.items()}
        about[ours(cell)] = {"huge_page_bytes_of_process": _harness.huge_page_bytes()}
        own = {rival.process for rival in opened.values()}
        begun, others = time.monotonic(), _harness.others_seconds(own)
        timings = _harness.take_turns(
            {name: rival.measure for name, rival in opened.items()}, rounds
        )
        # Both clocks tick in hundredths of a second, so that over a short time it may be negative.
        others = max(0.0, _harness.others_seconds(own) - others) / (time.monotonic() - begun)
    return {
        "timings": {name: dataclasses.asdict(timing) for name, timing in timings.items()},
        "about": about,
        "others_cores": others,
    }


def fit_into_memory(
    cell: Cell, taking_part: dict[str, Rival], available: int
) -> tuple[list[list[str]], dict[str, str]]:
    """Divides rivals into groups that fit into memory, with ours in each.

    Returns:
        The names of each group; and why a rival is in none.
    """
    table = cell.tables * cell.rows * cell.dim * 4
    budget = 0.9 * available

    def need(names):
        members = [taking_part[name] for name in names]
        kept = sum(rival.slots(cell) + 1 for rival in members)
        # While tables are filled no step is run: whichever needs more room for a while.
        for_a_while = max(1, sum(rival.temporaries.get(cell.optimizer, 0) for rival in members))
        processes = sum(rival.peer in ("torch", "fbgemm") for rival in members)
        return (kept + for_a_while) * table + processes * _PROCESS_BYTES

    own = ours(cell)
    groups, too_large = [[own]], {}
    for name in taking_part:
        if name == own:
            continue
        if need([own, name]) > budget:
            too_large[name] = (
                f"needs {need([own, name]) / 1e9:.1f} GB together with ours, "
                f"and {budget / 1e9:.1f} GB may be used"
            )
        elif need([*groups[-1], name]) <= budget:
            groups[-1].append(name)
        else:
            groups.append([own, name])
    return groups, too_large


def print_record(record: Record) -> None:
    """Prints the timings of a cell."""
    name = ours(record.cell)
    for group, others in zip(record.groups, record.others_cores, strict=True):
        rounds = len(group[name].wall)
        _harness.print_table(f"{record.cell.title}; median of {rounds} rounds", name, group)
        if others > 0.1:
            print(f"Disturbed: other programs took {others:.1f} cores meanwhile.")
    if len(record.groups) > 1:
        print("Together they do not fit into memory: ours took turns with each group on its own.")
    for rival, reason in record.left_out.items():
        print(f"{rival}: left out, {reason}")
    print(_harness.describe_machine(record.machine), flush=True)


def _rivals_of(cell: Cell, peers: Sequence[str]) -> tuple[dict[str, Rival], dict[str, str]]:
    if cell.against_rows:
        sizes = (cell.against_rows, cell.rows)
        return {_name_at_size(rows): _at_size(rows) for rows in sizes}, {}
    candidates = collection.RIVALS if cell.tables > 1 else rivals.RIVALS
    taking_part, left_out = {}, {}
    for name, rival in candidates.items():
        if rival.peer not in ("ours", *peers):
            continue
        if cell.optimizer in rival.optimizers:
            taking_part[name] = rival
        else:
            left_out[name] = f"has no {cell.optimizer} for sparse gradients on a CPU"
    return taking_part, left_out


def _name_at_size(rows: int) -> str:
    return f"{rivals.OURS}, {format_rows(rows)} rows"


def _at_size(rows: int) -> Rival:
    """Ours with a table of `rows` rows and ids of its own, whatever the cell says."""
    rival = rivals.RIVALS[rivals.OURS]

    def open_at_size(cell, inputs):
        cell = dataclasses.replace(cell, rows=rows, against_rows=None)
        return rival.open(cell, Inputs(cell))

    return dataclasses.replace(rival, open=open_at_size)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    cell = Cell(**asked["cell"])
    tf.config.threading.set_intra_op_parallelism_threads(cell.threads)
    print(json.dumps(measure_group(cell, asked["rivals"], asked["rounds"])))
