"""Times pooled embeddings against TensorFlow, Keras, PyTorch, FBGEMM and the memory itself.

    python benchmarks/embedding.py --quick
    python benchmarks/embedding.py --rows 10M --skew zipf1.2 --optimizer adagrad --peer fbgemm
    python benchmarks/embedding.py --all

A cell is a table, a distribution of ids, and a forward pass or a whole step with an optimizer.
Within a cell all rivals take turns on the same ids, each with a table of its own that has seen a
sparse update, as in training; every ratio is taken within a round. PyTorch and FBGEMM run in an
environment of their own, which is made when they are first asked for; `pip` is told where to find
packages by its own configuration. The memory ceiling is a small C++ program, and needs g++.

`--all` measures what the table of claims needs, a cell at a time, and goes on where it was
stopped; `--report` prints that table again, and draws the picture, without measuring.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import _workers
from _embedding import cells
from _embedding import claims
from _embedding import measure
from _embedding import memory
from _embedding import picture

_DEFAULT_PEERS = ["tf", "keras"]
_ROUNDS = 31
_QUICK_ROUNDS = 11


def _rows(text: str) -> int:
    try:
        return cells.parse_rows(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(
            f"must be at least 2, or there are no quartiles. Received: {text!r}"
        )
    return int(text)


def _size(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer. Received: {text!r}")
    return int(text)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = {"action": "append", "default": None}
    parser.add_argument("--peer", choices=cells.PEERS, **several, help="default: tf and keras")
    parser.add_argument("--rows", type=_rows, **several, help="like 100k, 1M; default: 1M")
    parser.add_argument("--skew", choices=cells.SKEWS, **several, help="default: uniform, zipf1.05")
    parser.add_argument(
        "--optimizer",
        choices=cells.OPTIMIZERS,
        **several,
        help="none is the forward pass; default: none, sgd, adagrad",
    )
    parser.add_argument("--dim", type=_size, default=64)
    parser.add_argument("--batch", type=_size, default=4096)
    parser.add_argument("--hotness", type=_size, default=32)
    parser.add_argument("--threads", type=_size, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=_rounds, help=f"default: {_ROUNDS}")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="uniform, forward and SGD, few rounds")
    mode.add_argument("--all", action="store_true", help="every cell of the table of claims")
    mode.add_argument("--report", action="store_true", help="print and draw what is recorded")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the records; default: none, or with --all and --report in the user's cache",
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    asked = parser.parse_args(arguments)
    if asked.all or asked.report:
        for name in ("rows", "skew", "optimizer"):
            if getattr(asked, name) is not None:
                parser.error(f"--{name} has no meaning with --all and --report")
        asked.output = asked.output or _workers.cache_folder() / "benchmarks"
    if asked.fresh and not asked.output:
        parser.error("--fresh has no meaning without --output, where records are kept")
    return asked


def _cells_of(asked: argparse.Namespace, sizes: dict[str, int]) -> list[cells.Cell]:
    if asked.all:
        return claims.needed_cells(sizes)
    axes = (
        asked.rows or [1_000_000],
        asked.skew or (["uniform"] if asked.quick else ["uniform", "zipf1.05"]),
        asked.optimizer or (["none", "sgd"] if asked.quick else ["none", "sgd", "adagrad"]),
    )
    return [cells.Cell(*axis, **sizes) for axis in itertools.product(*axes)]


def _measure(asked: argparse.Namespace, wanted: list[cells.Cell]) -> list[str]:
    """Measures what is not recorded; returns the titles of the cells that failed."""
    failed = []
    peers = asked.peer or (list(cells.PEERS) if asked.all else _DEFAULT_PEERS)
    rounds = asked.rounds or (_QUICK_ROUNDS if asked.quick else _ROUNDS)
    for cell in wanted:
        record = None if asked.fresh or not asked.output else cells.read(asked.output, cell)
        if record is not None and record.answers(cell, peers, rounds):
            print(f"\n{cell.title}: recorded on {record.machine['date']}, not measured again")
            continue
        try:
            record = measure.measure(cell, peers, rounds)
        except RuntimeError as error:  # the other cells are worth having all the same
            print(f"\n{cell.title}: failed. {error}", file=sys.stderr, flush=True)
            failed.append(cell.title)
            continue
        if asked.output:
            record.write(asked.output)
        measure.print_record(record)
    return failed


def _report(folder: Path, sizes: dict[str, int]) -> None:
    for cell in claims.needed_cells(sizes):
        record = cells.read(folder, cell)
        if record is not None:
            measure.print_record(record)
    claims.print_claims(folder, sizes)
    memory.print_memory(folder, memory.cell_of(sizes))
    drawn = [record for cell in claims.picture_cells(sizes) if (record := cells.read(folder, cell))]
    if drawn:
        path = folder / "embedding.svg"
        picture.draw(drawn, path)
        print(f"\nStep time against rows: {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    asked = _parse(arguments)
    sizes = {name: getattr(asked, name) for name in ("dim", "batch", "hotness", "threads")}
    failed = [] if asked.report else _measure(asked, _cells_of(asked, sizes))
    if asked.all:
        watched = memory.cell_of(sizes)
        if asked.fresh or not memory.path_of(asked.output, watched).exists():
            memory.record(asked.output, watched)
    if asked.all or asked.report:
        _report(asked.output, sizes)
    if failed:
        sys.exit("\n".join(["", "Failed:", *failed]))


if __name__ == "__main__":
    main()
