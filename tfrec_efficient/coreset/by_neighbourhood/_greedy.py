"""A greedy choice in steps of some seconds, with a progress bar, that goes on where it stopped."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec_efficient.coreset._files import load_array
from tfrec_efficient.coreset._files import load_manifest
from tfrec_efficient.coreset._files import replace
from tfrec_efficient.coreset._files import save_array

# How long a step takes, after which the choice is saved; and how many picks the first one has, from
# which that is told.
_STEP_SECONDS = 20.0
_FIRST_STEP = 4_096


@dataclasses.dataclass
class Choice:
    """What has been chosen so far.

    Args:
        picked: int64, in the order of choice.
        gains: float64, one for each of them.
        coverage: float64 of shape `(samples,)`.
        bounds: float64 of shape `(samples,)`; see `ops.choose_over_graph`.
    """

    picked: np.ndarray
    gains: np.ndarray
    coverage: np.ndarray
    bounds: np.ndarray

    @classmethod
    def empty(cls, samples: int) -> "Choice":
        """Nothing yet."""
        nothing = np.zeros(0)
        return cls(nothing.astype(np.int64), nothing, np.zeros(samples), np.full(samples, np.inf))

    def save(self, directory: Path) -> None:
        """Saves the choice as one file, so that its parts always fit together."""
        head = np.array([len(self.picked)], np.float64)
        parts = [head, self.picked, self.gains, self.coverage, self.bounds]
        save_array(directory / "choice.npy", np.concatenate(parts, dtype=np.float64))

    @classmethod
    def load(cls, directory: Path, samples: int) -> "Choice":
        """Loads what `save` saved, or nothing where nothing was."""
        if not (directory / "choice.npy").exists():
            return cls.empty(samples)
        parts = load_array(directory / "choice.npy")
        count = int(parts[0])
        ends = np.cumsum([1, count, count, samples])
        if len(parts) != ends[-1] + samples:
            raise ValueError(f"`directory` holds a choice that is not whole: {directory}")
        _, picked, gains, coverage, bounds = np.split(parts, ends)
        return cls(picked.astype(np.int64), gains, coverage, bounds)


def claim(directory: Path, about: dict[str, Any], arrays: list[np.ndarray]) -> None:
    """Makes a directory one for the choice of these settings and arrays, or checks that it is.

    Raises:
        ValueError: The directory holds the choice of others.
    """
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        for begin in range(0, len(array), 65_536):
            digest.update(np.ascontiguousarray(array[begin : begin + 65_536]).data)
    manifest = {"format": "tfrec_efficient.choice", "version": 1, **about}
    manifest["data"] = digest.hexdigest()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "choice.json"
    if path.exists():
        found = load_manifest(path)
        differing = [name for name in manifest if found.get(name) != manifest[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                "`directory` must be empty, or hold the choice of the same data and settings. "
                f"Received: {directory} with {name}={found.get(name)}, not {manifest[name]}"
            )
    else:
        replace(path, lambda temporary: temporary.write_text(json.dumps(manifest) + "\n"))


def run(
    step: Callable[[Choice, int], Choice],
    choice: Choice,
    picks: int,
    directory: Path | None,
    verbose: int,
) -> Choice:
    """Calls `step(choice, more)` until there are `picks`, and saves the choice after each."""
    bar = keras.utils.Progbar(picks, verbose=verbose, unit_name="pick")
    more = _FIRST_STEP
    while len(choice.picked) < picks:
        more = min(more, picks - len(choice.picked))
        begun = time.perf_counter()
        choice = step(choice, more)
        seconds = time.perf_counter() - begun
        if directory is not None:
            choice.save(directory)
        bar.update(len(choice.picked))
        more = max(1, min(4 * more, round(more * _STEP_SECONDS / max(seconds, 1e-3))))
    return choice
