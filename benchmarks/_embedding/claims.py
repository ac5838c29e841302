"""What `embedding.py --all` is to show: each claim, the cell it is read from, and its target."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import _harness

from _embedding import measure
from _embedding.cells import Cell
from _embedding.cells import Record
from _embedding.cells import read
from _embedding.rivals import CEILING_HUGE
from _embedding.rivals import CEILING_SMALL
from _embedding.rivals import FBGEMM
from _embedding.rivals import GATHER
from _embedding.rivals import KERAS
from _embedding.rivals import LOOKUP
from _embedding.rivals import OURS

STOCK = (GATHER, LOOKUP)
CEILINGS = (CEILING_HUGE, CEILING_SMALL)

# The picture: what an Adagrad step takes in tables of these sizes.
PICTURE_ROWS = (100_000, 1_000_000, 10_000_000)
_PICTURE = {"skew": "zipf1.05", "optimizer": "adagrad"}

_LABELS = {
    "none": "forward",
    "sgd": "SGD step",
    "adagrad": "Adagrad step",
    "rowwise_adagrad": "row-wise Adagrad step",
    "adam": "Adam step",
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A ratio over the rounds; `minima` is the ratio of each one's least time."""

    median: float
    low: float
    high: float
    minima: float


@dataclasses.dataclass(frozen=True)
class Claim:
    """Theirs / ours, for the best of `theirs`, is to be at least `target` (or below `limit`).

    Where `is_noisy`, the ratio of the least times is to reach the target too.
    """

    title: str
    cell: Cell
    theirs: Sequence[str]
    target: float | None = None
    limit: float | None = None
    is_noisy: bool = False
    is_share: bool = False

    def figure(self, record: Record) -> Figure | None:
        """The ratio of the best of `theirs`, or None if none of them took part."""
        figures = []
        for name in self.theirs:
            group = record.group_of(name)
            if group is not None:
                own = group[measure.ours(record.cell)]
                ratios = _harness.ratios(own, group[name])
                figures.append(Figure(*ratios, _harness.ratio_of_minima(own, group[name])))
        return min(figures, key=lambda figure: figure.median, default=None)

    def verdict(self, figure: Figure) -> str:
        by_median, by_minima = self._reaches(figure.median), self._reaches(figure.minima)
        if not self.is_noisy or by_median == by_minima:
            return "yes" if by_median else "no"
        return "by median only" if by_median else "by least times only"

    def _reaches(self, ratio: float) -> bool:
        return ratio >= self.target if self.limit is None else ratio < self.limit

    def format(self, ratio: float) -> str:
        return f"{100 * ratio:.0f} %" if self.is_share else f"{ratio:.2f}x"

    @property
    def aim(self) -> str:
        if self.limit is not None:
            return f"< {self.limit:g}x"
        return f">= {100 * self.target:.0f} %" if self.is_share else f">= {self.target:g}x"


def claims(sizes: dict[str, int]) -> list[Claim]:
    """All rows of the table, for `sizes` of a cell (dim, batch, hotness, threads)."""

    def both_skews(optimizer, against, theirs, target, **kinds):
        for skew in ("uniform", "zipf1.05"):
            cell = Cell(1_000_000, skew, optimizer, **sizes)
            title = f"{_LABELS[optimizer]}: {against}, 1M {skew}"
            yield Claim(title, cell, theirs, target, **kinds)

    def against_fbgemm(optimizer, target):
        return both_skews(optimizer, "FBGEMM fp32", (FBGEMM,), target, is_noisy=True)

    def many_tables(optimizer):
        cell = Cell(100_000, "uniform", optimizer, **{**sizes, "hotness": 1}, tables=26)
        title = f"{_LABELS[optimizer]}: 26 tables of 100k, one Keras layer each"
        return Claim(title, cell, (KERAS,), 10)

    scaling = Cell(10_000_000, **_PICTURE, **sizes, against_rows=100_000)
    return [
        *both_skews("none", "best stock TensorFlow", STOCK, 4),
        *against_fbgemm("none", 1.2),
        *both_skews("none", "share of the memory ceiling", CEILINGS, 0.9, is_share=True),
        *both_skews("sgd", "tf.compat.v1 sparse apply", STOCK, 8),
        *both_skews("adagrad", "tf.compat.v1 sparse apply", STOCK, 8),
        *both_skews("adagrad", "Keras Embedding + optimizer", (KERAS,), 25),
        *both_skews("adam", "Keras Embedding + optimizer", (KERAS,), 40),
        *against_fbgemm("sgd", 2),
        *against_fbgemm("adagrad", 3),
        *against_fbgemm("rowwise_adagrad", 1.5),
        Claim(
            "Adagrad step: 10M rows over 100k rows, zipf1.05, ours",
            scaling,
            (f"{OURS}, 10M rows",),
            limit=2,
        ),
        *(many_tables(optimizer) for optimizer in ("none", "sgd", "adagrad")),
    ]


def picture_cells(sizes: dict[str, int]) -> list[Cell]:
    """The cells of the picture, from the smallest table to the largest."""
    return [Cell(rows, **_PICTURE, **sizes) for rows in PICTURE_ROWS]


def needed_cells(sizes: dict[str, int]) -> list[Cell]:
    """Every cell that the table and the picture need, each once; the slow ones come last."""
    needed = dict.fromkeys([claim.cell for claim in claims(sizes)] + picture_cells(sizes))
    return sorted(needed, key=lambda cell: (cell.rows > 1_000_000, cell.tables > 1))


def print_claims(folder: Path, sizes: dict[str, int]) -> None:
    """Prints the table of all claims from the cells recorded in `folder`."""
    print(f"\n{'theirs / ours':64}{'target':>9}{'median':>9}  {'quartiles':<14}reached")
    for claim in claims(sizes):
        record = read(folder, claim.cell)
        figure = claim.figure(record) if record else None
        if figure is None:
            print(f"{claim.title:64}{claim.aim:>9}   not measured")
            continue
        low, median, high = map(claim.format, (figure.low, figure.median, figure.high))
        minima = f"; least times {claim.format(figure.minima)}" if claim.is_noisy else ""
        print(
            f"{claim.title:64}{claim.aim:>9}{median:>9}  {f'{low}-{high}':<14}"
            f"{claim.verdict(figure)}{minima}"
        )
