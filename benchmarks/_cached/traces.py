"""Ids of batches with the skew of real ones: power laws, over permuted ids, that may drift."""

from pathlib import Path

import numpy as np

BATCH, HOTNESS = 4096, 32
SKEWS = {"zipf1.2": 1.2, "zipf1.05": 1.05, "uniform": 0.0}
_DRIFT_BATCHES = 100  # in which a tenth of the hot ids become others


class Trace:
    """Batches of ids, `(BATCH, HOTNESS)` of int64, the same for one seed.

    With drift, ranks move by so many places with each batch that the hottest ids are others after
    some hundred batches.
    """

    def __init__(self, rows: int, skew: str, drifts: bool = False, seed: int = 0) -> None:
        self._rows, self._drifts = rows, drifts
        self._rng = np.random.default_rng(seed)
        self._ids = self._rng.permutation(rows)
        weights = np.arange(1, rows + 1, dtype=np.float64) ** -SKEWS[skew]
        self._sums = np.cumsum(weights) / weights.sum()
        self._batch = 0

    def batch(self) -> np.ndarray:
        drawn = self._rng.random(BATCH * HOTNESS)
        ranks = np.minimum(np.searchsorted(self._sums, drawn), self._rows - 1)
        if self._drifts and self._batch % _DRIFT_BATCHES == _DRIFT_BATCHES - 1:
            hot = self._rng.choice(self._rows // 100, self._rows // 1000, replace=False)
            cold = self._rng.integers(self._rows // 100, self._rows, len(hot))
            self._ids[hot], self._ids[cold] = self._ids[cold], self._ids[hot]
        self._batch += 1
        return self._ids[ranks].reshape(BATCH, HOTNESS)

    def write(self, path: Path, batches: int) -> None:
        """Writes so many batches, one behind the other."""
        with path.open("wb") as file:
            for _ in range(batches):
                file.write(self.batch().tobytes())
