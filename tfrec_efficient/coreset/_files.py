"""Files that are whole or not there."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file or a folder where no other process writes, and moves it to its place.

    A process that is killed leaves a hidden folder beside `path`, which nobody reads.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        os.replace(temporary, path)


def save_array(path: Path, array: np.ndarray) -> None:
    """Saves an array as `path`, which ends in `.npy`."""
    replace(path, lambda temporary: np.save(temporary, array, allow_pickle=False))


def load_array(path: Path) -> np.ndarray:
    """Loads what `save_array` saved."""
    return np.load(path, allow_pickle=False)


def load_manifest(path: Path) -> dict[str, Any]:
    """Loads an object of JSON.

    Raises:
        ValueError: The file holds none.
    """
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"The manifest must be JSON. Received: {path}: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(
            f"The manifest must be an object of JSON. Received: {path}: {type(about).__name__}"
        )
    return about
