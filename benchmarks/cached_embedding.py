"""Measures a table that is larger than memory: its speed, its hits and its memory.

    python benchmarks/cached_embedding.py --all
    python benchmarks/cached_embedding.py --cell step_zipf1.2 hits [--rounds 11]

`step_*`: a table of 10 million rows of 64 floats and as much optimizer state, a tenth of it in the
memory of the process, which may take no more (RLIMIT_DATA); the files are in the page cache as far
as the machine likes. Against an `EmbeddingBag` with all of it in memory, on the same batches in
turn. `hits`: hit rates against Belady's choice. `sparse`: a file of more than 100 GB. `peers_*`:
half the table, all memory limited to a tenth of it, the page cache included, by a control group
(version 1, as root): against a variable under swap (turn some on), and RocksDB.

A cell writes one JSON file, and one that has a file is not measured again, so a run that was
stopped goes on where it was. In the end come the tables, and the picture.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import _harness
import _workers
from _cached import cells


def measured(folder, name, rounds):
    """The record of a cell; measures it where there is none."""
    path = folder / f"{name}.json"
    if not path.exists():
        print(f"-- {name}", flush=True)
        machine = _harness.machine()
        record = {**cells.run(name, rounds), "machine": machine}
        part = path.with_name(f".{name}.{os.getpid()}")
        part.write_text(json.dumps(record, indent=1) + "\n")
        part.replace(path)
    return json.loads(path.read_text())


def report(found):
    """Prints a table for each kind of cell."""
    for name, record in found.items():
        print(f"\n{name}: {_harness.describe_machine(record['machine'])}")
        for rival, figures in record.get("rivals", {}).items():
            median, low, high = figures["ratio"]
            print(
                f"  {rival:22}{figures['wall_ms']:9.1f} ms{figures['cpu_ms']:9.1f} CPU ms"
                f"   ours / theirs {median:.2f} ({low:.2f} to {high:.2f})"
            )
        if "hit_rate" in record:
            print(
                f"  hits {record['hit_rate']:.2%}, {record['rows_read']:.0f} rows read and "
                f"{record['rows_written']:.0f} written, {record['stall_ms']:.2f} ms stalled, a "
                f"step; bookkeeping {record['bookkeeping_bytes'] / record['slab_bytes']:.1%} of "
                f"the slab, {record['resident_bytes'] / 1e6:.0f} MB resident"
            )
        for case, rates in record.get("hit_rates", {}).items():
            best = rates["belady"]
            shares = "".join(
                f"{policy:>11}{rate:7.1%}" + (f" ({rate / best:.0%})" if best else "")
                for policy, rate in rates.items()
            )
            print(f"  {case:16}{shares}")
        if "opened_seconds" in record:
            print(
                f"  {record['file_bytes'] / 1e9:.0f} GB, {record['disk_bytes'] / 1e6:.0f} MB of "
                f"them on the disk; opened in {record['opened_seconds']:.2f} s; steps of "
                + ", ".join(f"{ms:.0f}" for ms in record["step_ms"])
                + " ms"
            )


def draw(found, path):
    """Draws step times, and hit rates against Belady's."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = {name: record for name, record in found.items() if name.startswith("step_")}
    for offset, rival in enumerate(("cached", "memory")):
        left.bar(
            [place + 0.4 * offset for place in range(len(steps))],
            [record["rivals"][rival]["wall_ms"] for record in steps.values()],
            0.4,
            label={"cached": "a tenth in memory", "memory": "all in memory"}[rival],
        )
    left.set_xticks(
        [place + 0.2 for place in range(len(steps))],
        [name.removeprefix("step_").replace("_", "\n") for name in steps],
    )
    left.set(ylabel="milliseconds a step", title="10M rows of 64 floats, 4096 x 32 ids, Adagrad")
    left.legend()
    rates = found.get("hits", {}).get("hit_rates", {})
    for policy in ("belady", "lookahead", "lfu", "lru", "static"):
        right.plot(list(rates), [case[policy] for case in rates.values()], "o-", label=policy)
    right.set(ylabel="hit rate", title="share of rows in memory, without and with lookahead")
    right.tick_params(axis="x", rotation=30)
    right.grid(True, alpha=0.3)
    right.legend()
    figure.savefig(path, format="svg")


def main(arguments=None):
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--all", action="store_true", help="all cells")
    asked.add_argument("--cell", choices=cells.CELLS, nargs="+")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", type=Path, help="default: a folder of the cache")
    options = parser.parse_args(arguments)
    folder = options.output or _workers.cache_folder() / "cached_embedding"
    folder.mkdir(parents=True, exist_ok=True)
    names = cells.CELLS if options.all else options.cell
    found = {name: measured(folder, name, options.rounds) for name in names}
    report(found)
    if options.all:
        draw(found, folder / "cached_embedding.svg")
        print(f"\nThe picture is {folder / 'cached_embedding.svg'}.")


if __name__ == "__main__":
    main()
