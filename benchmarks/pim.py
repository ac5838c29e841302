"""Compares training with and without a processing-in-memory device, which is modelled.

    python benchmarks/pim.py --all
    python benchmarks/pim.py --cell RM1_1024 overhead [--rounds 11]

`RM1_1024` to `RM4_4096`: a training step of four models of our own at three batch sizes, with
tables on the host or in the device, and with the gradient expanded and coalesced or casted. All
parts of the host are measured here, in turn; those of the device come from its model, and nothing
waits for them. `overhead`: what emulation costs the machine that emulates. `traffic`: the bytes
that are counted against closed forms. `validation`: the time of memory against recorded points of a
cycle-level simulator, and against the one that `$TFREC_DRAM_SIMULATOR` names, if it does.

A cell writes one JSON file, and one that has a file is not measured again. In the end come the
tables, and the picture.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import _harness
import _workers
from _pim import cells
from _pim import picture


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
        if "step_ms" in record:
            _report_design(record)
        for point in record.get("points", []):
            now = point["simulated_now"]
            print(
                f"  {point['order']:11}{point['row_bytes']:4} B: recorded "
                f"{point['gigabytes_per_second']:.1f} GB/s, modelled "
                f"{point['modelled_gigabytes_per_second']:.1f} ({point['difference']:+.1%})"
                + ("" if now is None else f", simulated now {now:.1f}")
            )
        for rival, (median, low, high) in record.get("ratio", {}).items():
            milliseconds = record["milliseconds"][rival]
            print(f"  {rival:22}{milliseconds:8.2f} ms {median:6.2f}x ({low:.2f} to {high:.2f})")
        for placement, kinds in record.get("placements", {}).items():
            for kind, sizes in kinds.items():
                verdict = "equal" if sizes["counted"] == sizes["closed_form"] else "NOT EQUAL"
                print(f"  {placement:28}{kind:22}{sizes['counted']:16,} bytes: {verdict}")


def _report_design(record):
    host = {part: figures["median"] for part, figures in record["host_parts_ms"].items()}
    device = {kind: 1e3 * r["seconds"]["total"] for kind, r in record["device_reports"].items()}
    for title, parts in (("host, measured", host), ("device, modelled", device)):
        listed = ", ".join(f"{part} {milliseconds:.2f}" for part, milliseconds in parts.items())
        print(f"  {title}: {listed} ms")
    tables = cells.step_seconds({**host, "dense": 0.0}, device)
    ahead = cells.step_seconds({**host, "dense": 0.0, "cast": 0.0}, device)
    for design, (median, low, high) in record["speedup"].items():
        print(
            f"  {design:14}{record['step_ms'][design]:10.2f} ms a step {median:7.2f}x "
            f"({low:.2f} to {high:.2f}){record['joules'][design]:9.2f} J; tables alone "
            f"{tables[design]:.2f} ms, {tables['baseline_cpu'] / tables[design]:.1f}x, "
            f"{tables['baseline_cpu'] / ahead[design]:.1f}x with sorting done ahead"
        )


def main(arguments=None):
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--all", action="store_true", help="all cells")
    asked.add_argument("--cell", choices=cells.CELLS, nargs="+")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", type=Path, help="default: a folder of the cache")
    options = parser.parse_args(arguments)
    folder = options.output or _workers.cache_folder() / "pim"
    folder.mkdir(parents=True, exist_ok=True)
    names = cells.CELLS if options.all else options.cell
    found = {name: measured(folder, name, options.rounds) for name in names}
    report(found)
    if options.all:
        picture.draw_designs(found, folder / "design_points.svg")
        picture.draw_validation(found["validation"], folder / "validation.svg")
        print(f"\nThe pictures are in {folder}.")


if __name__ == "__main__":
    main()
