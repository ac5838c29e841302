"""The rows of scores: in memory, or in files that a killed run leaves whole."""

import hashlib
import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfrec_efficient.coreset._files import load_manifest
from tfrec_efficient.coreset._files import replace

_FORMAT = {"format": "tfrec_efficient.warmup_scores", "version": 1}
_DTYPES: dict[str, np.dtype[Any]] = {
    "embeddings": np.dtype("<f4"),
    "probabilities": np.dtype("<f4"),
    "confidences": np.dtype("<f4"),
    "labels": np.dtype("<i8"),
    "fingerprints": np.dtype("<i8"),
}
# Seconds of work that a killed run may lose. Syncing five files takes some milliseconds.
_COMMIT_SECONDS = 1.0


class Rows:
    """Rows in memory."""

    is_whole = False

    def __init__(self) -> None:
        self.count = 0
        self._blocks: list[dict[str, np.ndarray]] = []

    def fingerprints(self) -> np.ndarray:
        return np.empty(0, np.int64)

    def append(self, block: dict[str, np.ndarray]) -> None:
        self._blocks.append(block)
        self.count += len(block["labels"])

    def finish(self) -> dict[str, np.ndarray]:
        """All rows, an array for each name."""
        return {name: np.concatenate([b[name] for b in self._blocks]) for name in _DTYPES}

    def close(self) -> None:
        pass


class Files:
    """Rows in `.npy` files, of which a manifest says how many are there.

    Rows are written first and counted in the manifest then, so what lies behind those it counts is
    what a killed run left, and is cut off. The header of a `.npy` file has room for any number of
    rows, and gets the right one at the end.

    Args:
        directory: Where the files are, or will be.
        identity: What decides the rows besides the examples.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self._directory = directory
        self._about: dict[str, Any] = {**_FORMAT, **identity, "rows": 0, "data": None}
        self._files: dict[str, Any] = {}
        self._committed = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)
        manifest = directory / "manifest.json"
        if manifest.exists():
            about = load_manifest(manifest)
            for name in (*_FORMAT, *identity):
                if about.get(name) != self._about[name]:
                    raise ValueError(
                        "`directory` must be empty, or hold scores of the same model and "
                        f"arguments, with {name}={self._about[name]}; use another one. "
                        f"Received: {name}={about.get(name)} in {manifest}"
                    )
            self._about = about
        self.count: int = self._about["rows"]

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing left to write."""
        return self._about["data"] is not None

    def fingerprints(self) -> np.ndarray:
        """Those of the rows that are there."""
        header = len(self._header("fingerprints"))
        return np.fromfile(self._path("fingerprints"), "<i8", self.count, offset=header)

    def append(self, block: dict[str, np.ndarray]) -> None:
        if not self.count:
            self._about["dim"] = block["embeddings"].shape[1]
            self._about["classes"] = block["probabilities"].shape[1]
        self._open()
        count = len(block["labels"])
        for name, file in self._files.items():
            file.write(
                block[name].astype(_DTYPES[name]).reshape(count, *self._tail(name)).tobytes()
            )
        self.count += count
        if time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self._commit()

    def finish(self) -> dict[str, np.ndarray]:
        """All rows, a memory-mapped array for each name."""
        if not self.is_whole:
            self._open()
            for name, file in self._files.items():
                file.seek(0)
                file.write(self._header(name))
                file.flush()
            self._about["data"] = hashlib.sha256(self.fingerprints().tobytes()).hexdigest()
            self._commit()
        return {name: np.load(self._path(name), mmap_mode="r") for name in _DTYPES}

    def close(self) -> None:
        """Closes the files. What was appended is kept, whatever ended the run."""
        if self.count > self._about["rows"]:
            self._commit()
        for file in self._files.values():
            file.close()

    def _open(self) -> None:
        """Opens the files behind the rows that the manifest counts."""
        for name in _DTYPES.keys() - self._files.keys():
            path, header = self._path(name), self._header(name)
            end = len(header) + self.count * _DTYPES[name].itemsize * math.prod(self._tail(name))
            if self.count and not (path.exists() and path.stat().st_size >= end):
                raise ValueError(
                    f"`directory` must hold the {self.count} rows that its manifest counts; delete "
                    f"it to begin anew. Received: {path}, which is missing or cut short"
                )
            self._files[name] = file = path.open("r+b" if self.count else "w+b")
            file.write(header)
            file.truncate(end)
            file.seek(end)

    def _commit(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._about["rows"] = self.count
        text = json.dumps(self._about, indent=1) + "\n"
        replace(self._directory / "manifest.json", lambda path: path.write_text(text))
        self._committed = time.monotonic()

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.npy"

    def _tail(self, name: str) -> tuple[int, ...]:
        widths = {"embeddings": "dim", "probabilities": "classes"}
        return (self._about[widths[name]],) if name in widths else ()

    def _header(self, name: str) -> bytes:
        header = io.BytesIO()
        about = {
            "descr": np.lib.format.dtype_to_descr(_DTYPES[name]),
            "fortran_order": False,
            "shape": (self.count, *self._tail(name)),
        }
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()
