"""What is measured together: a cell, its ids, and the record of its timings."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path

import _harness
import numpy as np

PEERS = ("tf", "keras", "torch", "fbgemm", "ceiling")
SKEWS = ("uniform", "zipf1.05", "zipf1.2")
OPTIMIZERS = ("none", "sgd", "adagrad", "rowwise_adagrad", "adam")
LEARNING_RATE = 0.01

# Tables start as these many random rows, again and again: quick to make in every process, and a
# prime, so that the rows of a page differ from those of the next.
PATTERN_ROWS = 1021


@dataclasses.dataclass(frozen=True)
class Cell:
    """One comparison: a table, the ids that are looked up in it, and what is done with them.

    With `optimizer="none"` that is the forward pass; otherwise forward, backward and the update.
    `tables` above 1 is that many tables of `rows` rows each, in one step. `against_rows` compares
    this library with itself at another number of rows.
    """

    rows: int
    skew: str
    optimizer: str
    dim: int = 64
    batch: int = 4096
    hotness: int = 32
    threads: int = dataclasses.field(default_factory=lambda: len(os.sched_getaffinity(0)))
    tables: int = 1
    against_rows: int | None = None

    @property
    def is_forward(self) -> bool:
        return self.optimizer == "none"

    @property
    def what(self) -> str:
        return "forward" if self.is_forward else f"{self.optimizer} step"

    @property
    def name(self) -> str:
        """The name of its record; different for different cells."""
        tables = f"{self.tables}x" if self.tables > 1 else ""
        against = f"-over-{format_rows(self.against_rows)}" if self.against_rows else ""
        return (
            f"{tables}{format_rows(self.rows)}{against}-{self.skew}-{self.what.replace(' ', '-')}"
            f"-{self.dim}x{self.batch}x{self.hotness}-{self.threads}threads"
        )

    @property
    def title(self) -> str:
        tables = f"{self.tables} tables of " if self.tables > 1 else ""
        against = f" and {format_rows(self.against_rows)}" if self.against_rows else ""
        return (
            f"{self.what}: {tables}{format_rows(self.rows)}{against} rows of {self.dim}, "
            f"{self.batch} x {self.hotness} ids, {self.skew}, {self.threads} threads"
        )


def parse_rows(text: str) -> int:
    """The number of rows that `100k`, `1M` or `5000` means."""
    factors = {"k": 1000, "M": 1_000_000}
    digits, factor = (text[:-1], factors[text[-1]]) if text[-1:] in factors else (text, 1)
    if not digits.isdigit() or int(digits) == 0:
        raise ValueError(f"must be a positive number like 5000, 100k or 1M. Received: {text!r}")
    return int(digits) * factor


def format_rows(rows: int) -> str:
    """The inverse of `parse_rows`."""
    for factor, suffix in ((1_000_000, "M"), (1000, "k")):
        if rows % factor == 0:
            return f"{rows // factor}{suffix}"
    return str(rows)


def draw_ids(rows: int, shape: tuple[int, ...], skew: str, seed: int = 0) -> np.ndarray:
    """Uniform ids, or Zipf ids of which the frequent ones lie anywhere in the table."""
    rng = np.random.default_rng(seed)
    if skew == "uniform":
        return rng.integers(0, rows, shape)
    weights = np.arange(1, rows + 1) ** -float(skew.removeprefix("zipf"))
    ranks = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(shape))
    return rng.permutation(rows)[np.minimum(ranks, rows - 1)]


class Inputs:
    """What all rivals of a cell are given, so that they compute the same.

    Attributes:
        ids: int64 of shape `(BATCHES, tables, batch, hotness)`.
        pattern: float32 of shape `(PATTERN_ROWS, dim)`; row r of every table starts as row
            r % PATTERN_ROWS.
        upstream: float32 of shape `(batch, dim)`, the gradient of the pooled rows.
        bag_weights: float64 of shape `(batch,)`.
    """

    def __init__(self, cell: Cell) -> None:
        rng = np.random.default_rng(1)
        shape = (_harness.BATCHES, cell.batch, cell.hotness)
        self.ids = np.stack(
            [draw_ids(cell.rows, shape, cell.skew, seed) for seed in range(cell.tables)], axis=1
        )
        self.pattern = rng.standard_normal((PATTERN_ROWS, cell.dim)).astype(np.float32)
        self.upstream = rng.standard_normal((cell.batch, cell.dim)).astype(np.float32)
        self.bag_weights = rng.random(cell.batch)

    def summary(self, pooled: np.ndarray) -> np.ndarray:
        """The bags of `pooled`, `(batch, any times dim)`, summed: what rivals must agree on."""
        by_table = np.asarray(pooled, np.float64).reshape(len(pooled), -1, self.pattern.shape[1])
        return self.bag_weights @ by_table.sum(axis=1)

    @functools.cached_property
    def expected(self) -> np.ndarray:
        """The summary of the first batch, over all tables."""
        ids = self.ids[0] % PATTERN_ROWS
        return sum(self.summary(self.pattern[bags].sum(axis=1, dtype=np.float64)) for bags in ids)

    def check(self, name: str, summary: np.ndarray) -> None:
        """Raises if a rival does not do the same work as the others."""
        scale = 1e-5 * self.bag_weights.sum() * np.sqrt(self.ids[0].size)
        if not np.allclose(summary, self.expected, rtol=1e-4, atol=scale):
            raise AssertionError(f"{name} pools other rows than the definition says")

    def save(self, folder: Path) -> dict[str, str]:
        """Writes what a rival in another process needs; returns the paths by name."""
        paths = {}
        for name in ("pattern", "upstream", "bag_weights"):
            paths[name] = str(folder / f"{name}.npy")
            np.save(paths[name], getattr(self, name))
        paths["ids"] = str(folder / "ids.npy")
        np.save(paths["ids"], self.ids[:, 0])
        return paths


@dataclasses.dataclass
class Record:
    """The timings of a cell, and what they depend on.

    `groups` are sets of rivals that took turns with each other; ours is in each of them. There is
    more than one where the tables of all rivals do not fit into memory together. While each took
    its turns, other programs took `others_cores` cores.
    """

    cell: Cell
    peers: list[str]
    rounds_asked: int
    machine: dict[str, object]
    load_after: list[float]
    groups: list[dict[str, _harness.Timing]]
    others_cores: list[float]
    left_out: dict[str, str]
    about: dict[str, dict[str, object]]

    def group_of(self, rival: str) -> dict[str, _harness.Timing] | None:
        """The timings of those who took turns with `rival`."""
        return next((group for group in self.groups if rival in group), None)

    def answers(self, cell: Cell, peers: list[str], rounds: int) -> bool:
        """Whether measuring this again would tell nothing new."""
        return self.cell == cell and set(peers) <= set(self.peers) and rounds <= self.rounds_asked

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.cell.name}.json"
        write_json(path, dataclasses.asdict(self))


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes under a temporary name first, so that what lies there is always whole."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.rename(path)


def read(folder: Path, cell: Cell) -> Record | None:
    """The record of `cell` in `folder`, if it has been measured."""
    path = folder / f"{cell.name}.json"
    return _from_json(json.loads(path.read_text())) if path.exists() else None


def _from_json(content: dict) -> Record:
    groups = [
        {name: _harness.Timing(**timing) for name, timing in group.items()}
        for group in content.pop("groups")
    ]
    return Record(cell=Cell(**content.pop("cell")), groups=groups, **content)
