"""Rows of a `CachedEmbedding` into files for serving, a block at a time."""

import contextlib
import json
import numbers
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec_efficient.embedding.cached.frozen_embedding import DTYPES
from tfrec_efficient.embedding.cached.frozen_embedding import MANIFEST
from tfrec_efficient.embedding.cached.frozen_embedding import read_manifest

_BLOCK_BYTES = 2**22  # of rows; a report has two of them at a time
LOOKUPS, CHECKPOINT = -2, -1  # columns of a row that the table keeps itself


def blocks(table: Any, rows: int, verbose: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and rows of a table, with all of their columns, in rising order."""
    step = max(1, _BLOCK_BYTES // (4 * table.width))
    bar = keras.utils.Progbar(rows, verbose=verbose, unit_name="row")
    for start in range(0, rows, step):
        ids = np.arange(start, min(start + step, rows))
        yield ids, table.read(ids).numpy()
        bar.update(int(ids[-1]) + 1)


def freeze(
    table: Any,
    folder: Path,
    input_dim: int,
    output_dim: int,
    rows: Any,
    dtype: str,
    verbose: int,
    keys: Any = None,
) -> None:
    """Writes the files of a `FrozenEmbedding`; the folder is whole or not there.

    `keys` are those of a vocabulary, and their rows, or None where ids are numbers of rows.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {DTYPES}. Received: dtype={dtype!r}")
    ids: np.ndarray | None = None
    places: np.ndarray | None = None
    if keys is not None:
        ids, places, default = _keys_to_keep(table, output_dim, rows, keys)
    elif rows is not None:
        ids, default = _rows_to_keep(table, input_dim, output_dim, rows, verbose)
        places = ids
    with _new_folder(folder) as part:
        out = _Writer(part, dtype, input_dim if ids is None else len(ids) + 1, output_dim)
        if ids is None or places is None:
            for of_block, values in blocks(table, input_dim, verbose):
                out.write(of_block, values[:, :output_dim])
        else:
            np.save(part / "ids.npy", ids)
            for start, values in _blocks_of(table, places):
                out.write(np.arange(start, start + len(values)), values[:, :output_dim])
            out.write(np.array([len(ids)]), default[np.newaxis])
        out.close()
        _write_manifest(
            part,
            version=1,
            input_dim=None if keys is not None else input_dim,
            output_dim=output_dim,
            dtype=dtype,
            rows=None if ids is None else len(ids),
            checkpoint=table.stats().checkpoints,
        )


def write_changes(
    table: Any, folder: Path, input_dim: int, output_dim: int, since: int, verbose: int
) -> int:
    """Writes the rows that changed after a checkpoint, and returns how many there are."""
    checkpoint = table.stats().checkpoints
    if not 0 <= since <= checkpoint:
        raise ValueError(
            f"`since` must be a checkpoint in `[0, {checkpoint}]`. Received: since={since}"
        )
    with _new_folder(folder) as part:
        count = 0
        with (part / "ids").open("wb") as ids_file, (part / "rows").open("wb") as rows_file:
            for ids, values in blocks(table, input_dim, verbose):
                changed = values[:, CHECKPOINT] > since
                ids[changed].astype(np.int64).tofile(ids_file)
                values[changed, :output_dim].tofile(rows_file)
                count += int(changed.sum())
        _as_npy(part / "ids", np.int64, (count,))
        _as_npy(part / "rows", np.float32, (count, output_dim))
        _write_manifest(
            part,
            version=1,
            output_dim=output_dim,
            count=count,
            since=since,
            checkpoint=checkpoint,
        )
    return count


def apply_changes(frozen: Any, changes: Any) -> int:
    """Brings the rows of a frozen table to a later checkpoint, in place.

    A SavedModel has files of its own: export it again. Of a table of some rows only, these are
    brought up to date; which ones they are, and the row of all others, stay. Doing so twice does no
    harm, hence a run that was killed can be repeated.

    Args:
        frozen: The folder that `CachedEmbedding.freeze` made.
        changes: The folder that `CachedEmbedding.export_changes` made.

    Returns:
        How many rows changed.

    Raises:
        ValueError: One of the two is something else, or they do not belong together.
    """
    frozen, changes = Path(frozen), Path(changes)
    manifest = read_manifest(frozen)
    try:
        news = json.loads((changes / MANIFEST).read_text())
        count, dim = news["count"], news["output_dim"]
        since, checkpoint = news["since"], news["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "`changes` must be a folder that `CachedEmbedding.export_changes` has made. "
            f"Received: {changes}, with {error!r}"
        ) from error
    if dim != manifest["output_dim"] or not since <= manifest["checkpoint"] <= checkpoint:
        raise ValueError(
            f"`changes` must begin at checkpoint {manifest['checkpoint']} of the frozen table or "
            f"before, end there or after, and have rows of {manifest['output_dim']} columns. "
            f"Received: checkpoints {since} to {checkpoint}, and {dim} columns"
        )
    ids = np.load(changes / "ids.npy", mmap_mode="r")
    rows = np.load(changes / "rows.npy", mmap_mode="r")
    kept = None if manifest["rows"] is None else np.load(frozen / "ids.npy", mmap_mode="r")
    size = manifest["input_dim"] if kept is None else len(kept) + 1
    out = _Writer(frozen, manifest["dtype"], size, dim)
    changed = 0
    step = max(1, _BLOCK_BYTES // (4 * dim))
    for start in range(0, count, step):
        some, values = np.asarray(ids[start : start + step]), rows[start : start + step]
        if kept is not None:
            places = np.minimum(np.searchsorted(kept, some), len(kept) - 1)
            is_kept = kept[places] == some
            some, values = places[is_kept], values[is_kept]
        out.write(some, values)
        changed += len(some)
    out.close()
    _write_manifest(frozen, **{**manifest, "checkpoint": checkpoint})
    return changed


def _rows_to_keep(
    table: Any, input_dim: int, output_dim: int, rows: Any, verbose: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids to keep, sorted, and the mean of all others that were trained."""
    is_count = _is_count(rows)
    if is_count and 1 <= rows <= input_dim:
        ids = _most_used(table, input_dim, int(rows), verbose)
    else:
        ids = np.zeros(0) if is_count else np.unique(np.asarray(rows))
        in_range = ids.size and ids.dtype.kind in "iu" and ids[0] >= 0 and ids[-1] < input_dim
        if not in_range:
            raise ValueError(
                f"`rows` must be a number in `[1, {input_dim}]`, or ids below {input_dim}. "
                f"Received: rows={rows!r}"
            )
        ids = ids.astype(np.int64)
    total, count = np.zeros(output_dim), 0
    for of_block, values in blocks(table, input_dim, verbose):
        rest = values[:, LOOKUPS] > 0
        begin, end = np.searchsorted(ids, [of_block[0], of_block[-1] + 1])
        rest[ids[begin:end] - of_block[0]] = False
        total += values[rest, :output_dim].sum(axis=0, dtype=np.float64)
        count += int(rest.sum())
    return ids, (total / max(1, count)).astype(np.float32)


def _is_count(rows: Any) -> bool:
    return isinstance(rows, numbers.Integral) and not isinstance(rows, bool)


def _keys_to_keep(
    table: Any, output_dim: int, rows: Any, keys: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted keys, where their rows are, and the row of all others."""
    names, places = keys
    is_count = _is_count(rows) and rows >= 1
    if rows is not None and not is_count:
        raise ValueError(
            "`rows` must be None or a positive number, where the layer has a vocabulary. "
            f"Received: rows={rows!r}"
        )
    if len(names) == 0:
        raise ValueError("A table with a vocabulary must have a key to be frozen. Received: none")
    if rows is not None and rows < len(names):
        lookups = np.concatenate([part[:, LOOKUPS] for _, part in _blocks_of(table, places)])
        best = np.lexsort((names, -lookups))[:rows]
        names, places = names[best], places[best]
    order = np.argsort(names)
    default = table.read(np.zeros(1, np.int64)).numpy()[0, :output_dim]
    return names[order], places[order], default


def _blocks_of(table: Any, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of a table, in pieces, and how many came before each."""
    step = max(1, _BLOCK_BYTES // (4 * table.width))
    for start in range(0, len(ids), step):
        yield start, table.read(ids[start : start + step]).numpy()


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder that has its name once all is in it, or is not there."""
    if folder.exists():
        raise ValueError(f"`path` must not exist yet. Received: {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as parent:
        part = Path(parent) / folder.name
        part.mkdir()
        yield part
        part.rename(folder)


def _most_used(table: Any, input_dim: int, count: int, verbose: int) -> np.ndarray:
    """The ids with the most lookups, the lower of equal ones first; sorted by id."""
    parts: list[np.ndarray] = []
    found, least = 0, -np.inf

    def best() -> np.ndarray:
        """Ids and lookups, `(2, count)`, the best first."""
        ids, lookups = np.concatenate(parts, axis=1)
        order = np.lexsort((ids, -lookups))[:count]
        return np.stack([ids[order], lookups[order]])

    for of_block, values in blocks(table, input_dim, verbose):
        lookups = values[:, LOOKUPS].astype(np.float64)  # in which ids are exact as well
        is_better = lookups > least  # later ids are higher
        parts.append(np.stack([of_block[is_better], lookups[is_better]]))
        found += parts[-1].shape[1]
        if found >= 2 * count:  # or there would be more to sort than to read
            parts = [best()]
            found, least = count, parts[0][1, -1]
    return np.sort(best()[0].astype(np.int64))


class _Writer:
    """The rows of a frozen table, in its dtype, at any places."""

    def __init__(self, folder: Path, dtype: str, count: int, output_dim: int) -> None:
        self._dtype = dtype
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"rows": (dtype, (count, output_dim))}
        if dtype == "int8":
            shapes["scales"] = ("float32", (count,))
        self._arrays = {}
        for name, (of_dtype, shape) in shapes.items():
            path = folder / f"{name}.npy"
            mode: Any = "r+" if path.exists() else "w+"
            self._arrays[name] = np.lib.format.open_memmap(
                path, mode, None if mode == "r+" else of_dtype, None if mode == "r+" else shape
            )

    def write(self, places: np.ndarray, values: np.ndarray) -> None:
        largest = np.abs(values).max(axis=1, initial=0)
        limit = np.finfo(np.float16 if self._dtype == "float16" else np.float32).max
        is_finite = largest <= limit
        if not is_finite.all():
            row = places[np.argmin(is_finite)]
            raise ValueError(
                f"A table must be finite in {self._dtype} to be frozen. Received: row {row} is not"
            )
        if self._dtype == "int8":
            scales = (largest / 127).astype(np.float32)
            scales[scales == 0] = 1  # of the smallest numbers, too
            self._arrays["scales"][places] = scales
            values = np.rint(values / scales[:, np.newaxis])
        self._arrays["rows"][places] = values.astype(self._dtype)

    def close(self) -> None:
        for array in self._arrays.values():
            array.flush()


def _as_npy(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    """Puts the header of NumPy before raw numbers."""
    with path.with_suffix(".npy").open("wb") as out, path.open("rb") as numbers:
        description = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(out, description)
        shutil.copyfileobj(numbers, out, 2**20)
    path.unlink()


def _write_manifest(folder: Path, **facts: Any) -> None:
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(facts, indent=1))
    part.rename(folder / MANIFEST)
