"""`CacheReport`: which share of a table takes which share of its lookups."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tfrec_efficient.embedding.cached._export import LOOKUPS
from tfrec_efficient.embedding.cached._export import blocks

_COVERED = 0.95
_BATCHES = 3  # one in work, and two ahead


@dataclasses.dataclass(frozen=True)
class CacheReport:
    """How lookups are spread over the rows of a table, and how many rows to keep in memory.

    `CachedEmbedding.report` makes one, of all lookups that the rows were trained for.

    Attributes:
        input_dim: Rows of the table.
        rows: Numbers of rows, rising, `(points,)`: the most used ones.
        coverage: The share of all lookups that so many rows take, `(points,)`.
        cache_rows: Rows in memory now.
        hit_rate: The share of lookups since the table was opened whose row was in memory.
        largest_batch: The most rows of one batch since then.
        recommended_rows: The least number of rows that take 95 % of the lookups, and three times
            the rows of the largest batch at least: one in work and two ahead.
    """

    input_dim: int
    rows: np.ndarray
    coverage: np.ndarray
    cache_rows: int
    hit_rate: float
    largest_batch: int
    recommended_rows: int

    def __str__(self) -> str:
        lines = [
            f"{self.input_dim:,} rows, {self.cache_rows:,} of them in memory: "
            f"{self.hit_rate:.1%} of the lookups found their row there.",
            "share of rows   share of lookups",
        ]
        for share in (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.5, 1.0):
            lines.append(f"{share:13.2%}{self.covered_by(share * self.input_dim):19.1%}")
        lines.append(f"Recommended: cache_rows={self.recommended_rows:,}")
        return "\n".join(lines)

    def covered_by(self, rows: float) -> float:
        """The share of lookups that the `rows` most used rows take."""
        return float(np.interp(rows, [0, *self.rows], [0, *self.coverage]))

    def plot(self, path: Any = None) -> Any:
        """Draws the coverage curve, with the cache as it is and as it is recommended.

        Args:
            path: Where to save the picture, or None. Defaults to None.

        Returns:
            The figure of Matplotlib.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        share = self.rows / self.input_dim
        axes.plot(share, self.coverage, drawstyle="default")
        for rows, label, style in (
            (self.cache_rows, "now", "--"),
            (self.recommended_rows, "recommended", ":"),
        ):
            axes.axvline(rows / self.input_dim, color="black", linestyle=style, label=label)
        axes.set(
            xscale="log",
            ylim=(0, 1),
            xlabel="share of rows, the most used first",
            ylabel="share of lookups",
            title=f"{self.input_dim:,} rows",
        )
        axes.grid(True, alpha=0.3)
        axes.legend()
        if path is not None:
            figure.savefig(Path(path))
        return figure


def report(table: Any, input_dim: int, cache_rows: int, verbose: int) -> CacheReport:
    """Reads all rows once. Few numbers of lookups are different, hence they are counted."""
    numbers, counts = np.zeros(0, np.float32), np.zeros(0, np.int64)
    for _, values in blocks(table, input_dim, verbose):
        lookups = values[:, LOOKUPS]
        both, place = np.unique(np.concatenate([numbers, lookups]), return_inverse=True)
        weights = np.concatenate([counts, np.ones(len(lookups), np.int64)])
        counts = np.bincount(place, weights, len(both)).astype(np.int64)
        numbers = both
    numbers, counts = numbers[::-1].astype(np.float64), counts[::-1]
    rows, total = np.cumsum(counts), float(numbers @ counts)
    coverage = np.cumsum(numbers * counts) / max(1.0, total)
    stats = table.stats()
    covering = float(np.interp(_COVERED, [0, *coverage], [0, *rows])) if total else 0.0
    recommended = max(int(np.ceil(covering)), _BATCHES * stats.largest_batch, 1)
    return CacheReport(
        input_dim,
        rows,
        coverage,
        cache_rows,
        stats.hits / max(1, stats.lookups),
        stats.largest_batch,
        min(recommended, input_dim),
    )
