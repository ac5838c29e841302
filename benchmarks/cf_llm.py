"""Compares a language model that knows what similar users did with those that it should beat.

    python benchmarks/cf_llm.py --all
    python benchmarks/cf_llm.py [--data amazon-beauty] [--method sasrec cf_llm] [--few 0 128]
                                [--answer retrieval] [--seeds 3]
    python benchmarks/cf_llm.py --timings
    python benchmarks/cf_llm.py --report

Each question has a user's history and 20 candidates, of which one came next; the share of
questions whose right candidate comes first is Hit@1. All methods are asked the same questions.
`--few` trains everything on that many users; 0 is all. With --data ml-100k-to-amazon-beauty, all is
trained on the one and asked about the other. Set TFREC_DATA_DIR.

A cell, one method with one data set and seed, runs in a process of its own, so that its peak of
memory is its own, and writes one JSON file. One that has a file is not measured again, so a run
that was stopped goes on where it was; a file of another budget is refused. In the end come tables.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import _harness
import _workers
from _cf_llm import data
from _cf_llm import methods
from _cf_llm import report
from _cf_llm import timings

HERE = Path(__file__).parent
ACROSS = "ml-100k-to-amazon-beauty"
TIMINGS = ("step", "step_of_two", "inference")
RESULTS = HERE / "results" / "cf_llm"


def cells(names, fews, answers, chosen, seeds):
    """The cells asked for, cheap ones first; a method without a language model has no answer."""
    seen = {}
    for seed, name, few, answer, method in itertools.product(seeds, names, fews, answers, chosen):
        answer = "none" if method in methods.WITHOUT_LANGUAGE_MODEL else answer
        cell = (method, name, few, answer, seed)
        if methods.makes_sense(*cell[:-1]):
            seen[cell] = None
    return sorted(seen, key=lambda cell: (cell[3] != "none", cell[4]))


def all_cells():
    """What two cores measure in hours: language models learn from few users if they can."""
    names, seeds = (*data.NAMES, ACROSS), range(3)
    cheap = methods.WITHOUT_LANGUAGE_MODEL
    with_language_model = [method for method in methods.METHODS if method not in cheap]
    return [
        *cells(names, (0, 128, 256), ("none",), cheap, seeds),
        *cells(names, (128,), ("retrieval",), with_language_model, seeds),
        *cells(data.SPLIT_BY_TIME, (0,), ("retrieval",), with_language_model, seeds),
        *cells(names, (128,), ("verbalizer",), ("llm_only", "tallrec"), seeds),
    ]


def file_of(folder, cell):
    """Where a cell's record lies."""
    method, name, few, answer, seed = cell
    return folder / f"{name}.{method}.{answer}.few{few}.seed{seed}.json"


def measured(folder, cell, budget):
    """A cell's record; measures it in another process where there is none."""
    path, budget = file_of(folder, cell), methods.budget_of(cell[0], budget)
    if not path.exists():
        print(f"-- {path.stem}", flush=True)
        command = [sys.executable, __file__, "--cell", json.dumps(cell), "--output", str(folder)]
        command += ["--budget", json.dumps(dataclasses.asdict(budget))]
        subprocess.run(command, check=True)
    record = json.loads(path.read_text())
    if record["budget"] != dataclasses.asdict(budget):
        raise SystemExit(
            f"{path} must be of the budget {budget}. Received: {record['budget']}. "
            "Name another --output, or the budget of the record."
        )
    return record


def run_cell(options):
    """Measures one cell, and writes its record under another name first."""
    cell = json.loads(options.cell)
    method, name, few, answer, seed = cell
    budget = methods.Budget(**json.loads(options.budget))
    cache = _workers.cache_folder() / "cf_llm"
    cache.mkdir(parents=True, exist_ok=True)
    machine = _harness.machine()
    record = methods.run(method, name, seed, few, answer, budget, cache)
    _write(file_of(options.output, cell), record | {"machine": machine})


def time_part(folder, name):
    """Measures one of `TIMINGS` in this process, if that is not recorded."""
    path = folder / f"timings.{name}.json"
    if not path.exists():
        machine = _harness.machine()
        _write(path, getattr(timings, name)() | {"machine": machine})


def _write(path, record):
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(record) + "\n")
    os.replace(temporary, path)


def main(arguments=None):
    """Measures what was asked for, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="all that takes hours: three seeds")
    parser.add_argument("--report", action="store_true", help="only the tables of what is recorded")
    parser.add_argument("--timings", action="store_true", help="of an answer, and of a step")
    parser.add_argument("--part", choices=TIMINGS, help=argparse.SUPPRESS)
    several = {"nargs": "+"}
    parser.add_argument("--data", choices=(*data.NAMES, ACROSS), default=["ml-100k"], **several)
    parser.add_argument("--method", choices=methods.METHODS, default=methods.METHODS, **several)
    parser.add_argument("--answer", choices=methods.ANSWERS, default=["retrieval"], **several)
    parser.add_argument("--few", type=int, default=[0], help="users; 0: all", **several)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=methods.Budget.epochs)
    parser.add_argument("--train", type=int, default=methods.Budget.train, help="users of stage 2")
    parser.add_argument("--test", type=int, default=methods.Budget.test, help="questions")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--budget", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.cell:
        run_cell(options)
        return
    if options.part:
        time_part(options.output, options.part)
        return
    if options.timings or options.all:
        for part in TIMINGS:
            command = [sys.executable, __file__, "--part", part, "--output", str(options.output)]
            subprocess.run(command, check=True)
    if not (options.report or options.timings):
        seeds = range(options.seeds)
        asked_for = (options.data, options.few, options.answer, options.method, seeds)
        budget = methods.Budget(options.epochs, options.train, options.test)
        for cell in all_cells() if options.all else cells(*asked_for):
            measured(options.output, cell, budget)
    report.tables(options.output)
    report.timings(options.output)


if __name__ == "__main__":
    main()
