"""Which samples are similar to which: a threshold, an estimate, and the graph."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec_efficient import ops
from tfrec_efficient.coreset._files import load_array
from tfrec_efficient.coreset._files import save_array

# Rows, and pairs, that are compared to estimate how many neighbours a row has.
_SAMPLED = 256
_SAMPLED_PAIRS = 1 << 26

# Rows of the graph that are made, and saved, in one go.
_ROWS = 16_384

# Samples on which the speed of the search is measured before it begins.
_TIMED = 16_384


@dataclasses.dataclass(frozen=True)
class Graph:
    """The neighbours of all samples, row by row; each row has its sample, too."""

    row_splits: np.ndarray
    neighbours: np.ndarray
    similarities: np.ndarray
    capped: float  # share of the rows that had more neighbours than were kept
    recall: float  # share of the neighbours of a few rows that were found

    def coverage(self, confidences: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """As `neighbourhood_coverage`, over the neighbours that are here."""
        coverage = np.zeros(len(self.row_splits) - 1)
        for sample in chosen:
            edges = slice(self.row_splits[sample], self.row_splits[sample + 1])
            coverage[self.neighbours[edges]] += self.similarities[edges] * confidences[sample]
        return coverage


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """The rows at unit length, in float64, where no norm is too large and equal rows are equal."""
    rows = np.asarray(embeddings, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _similarities(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of unit rows with each other, rounded as the native op rounds them."""
    return (0.5 + 0.5 * (rows @ others.T)).astype(np.float32)


class SimilaritySample:
    """Similarities of a few rows with all others, from which to tell how dense the data is.

    Args:
        embeddings: float32 of shape `(samples, dim)`.
        seed: int. Which rows.
    """

    def __init__(self, embeddings: np.ndarray, seed: int = 0) -> None:
        size = len(embeddings)
        few = max(1, min(_SAMPLED, _SAMPLED_PAIRS // size))
        rows = np.random.default_rng(seed).permutation(size)[:few]
        self.rows = np.sort(rows)
        units = unit_rows(embeddings[self.rows])
        self.similarities = np.empty((len(rows), size), np.float32)
        for begin in range(0, size, _ROWS):
            block = unit_rows(embeddings[begin : begin + _ROWS])
            self.similarities[:, begin : begin + _ROWS] = _similarities(units, block)
        self.similarities[np.arange(len(rows)), self.rows] = 1  # whatever rounding did

    def degrees(self, threshold: float) -> np.ndarray:
        """How many neighbours each of the rows has, itself included."""
        return (self.similarities > threshold).sum(axis=1)

    def threshold_for(self, degree: float) -> float:
        """The threshold above which a row has so many neighbours on average, itself included."""
        rows, size = self.similarities.shape
        if degree >= size:
            return 0.0
        wanted = round(degree * rows)
        flat = self.similarities.ravel()
        threshold = float(np.partition(flat, flat.size - wanted - 1)[flat.size - wanted - 1])
        return min(max(threshold, 0.0), float(np.nextafter(np.float32(1), np.float32(0))))


def neighbourhood_coverage(
    embeddings: np.ndarray, confidences: np.ndarray, chosen: np.ndarray, threshold: float
) -> np.ndarray:
    """The sum, over the chosen neighbours of each sample, of similarity times confidence.

    For any choice, and nearly as exact as the native op, which sums in another order.

    Returns:
        float64 of shape `(samples,)`.
    """
    units = unit_rows(embeddings[chosen])
    coverage = np.empty(len(embeddings))
    for begin in range(0, len(embeddings), 1024):
        block = unit_rows(embeddings[begin : begin + 1024])
        similarities = _similarities(block, units)
        similarities[similarities <= np.float32(threshold)] = 0
        coverage[begin : begin + 1024] = similarities @ confidences[chosen]
    return coverage


def pairs_per_second(embeddings: np.ndarray, threshold: float) -> float:
    """How many pairs of rows this machine compares in a second."""
    few = np.ascontiguousarray(embeddings[:_TIMED], np.float32)
    rows = min(len(few), 480)
    seconds = []
    for _ in range(2):  # the first is slower
        begun = time.perf_counter()
        ops.neighbour_graph(few, threshold, len(few), 0, rows)
        seconds.append(time.perf_counter() - begun)
    return rows * len(few) / min(seconds)


def exact_graph(
    embeddings: np.ndarray,
    threshold: float,
    max_degree: int,
    directory: Path | None,
    verbose: int,
) -> Graph:
    """Compares all pairs. With a directory, goes on behind the rows that lie there."""

    def search(begin: int, end: int) -> list[np.ndarray]:
        found = ops.neighbour_graph(embeddings, threshold, max_degree, begin, end)
        return [array.numpy() for array in found]

    return _join(_search_all(len(embeddings), search, directory, verbose))


def _search_all(
    size: int,
    search: Callable[[int, int], list[np.ndarray]],
    directory: Path | None,
    verbose: int,
) -> list[list[np.ndarray]]:
    """What `search(begin, end)` finds, for all rows in turn; saved where there is a directory."""
    bar = keras.utils.Progbar(size, verbose=verbose, unit_name="row")
    parts = []
    for begin in range(0, size, _ROWS):
        end = min(begin + _ROWS, size)
        part = _load_part(directory, begin)
        if part is None:
            part = search(begin, end)
            _save_part(directory, begin, part)
        parts.append(part)
        bar.update(end)
    return parts


_PARTS = ("lengths", "neighbours", "similarities", "degrees")


def _part_path(directory: Path, begin: int, name: str) -> Path:
    return directory / f"graph_{begin:010}_{name}.npy"


def _load_part(directory: Path | None, begin: int) -> list[np.ndarray] | None:
    # The last array is saved last: where it is, all are.
    if directory is None or not _part_path(directory, begin, _PARTS[-1]).exists():
        return None
    return [load_array(_part_path(directory, begin, name)) for name in _PARTS]


def _save_part(directory: Path | None, begin: int, part: list[np.ndarray]) -> None:
    if directory is not None:
        for name, array in zip(_PARTS, part, strict=True):
            save_array(_part_path(directory, begin, name), array)


def _join(parts: list[list[np.ndarray]]) -> Graph:
    lengths, degrees = (np.concatenate([part[k] for part in parts]) for k in (0, 3))
    neighbours, similarities = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    splits = np.concatenate([[0], np.cumsum(lengths)])
    return Graph(splits, neighbours, similarities, float((degrees > lengths).mean()), 1.0)


def scann_graph(
    embeddings: np.ndarray,
    threshold: float,
    max_degree: int,
    sample: SimilaritySample,
    directory: Path | None,
    verbose: int,
) -> Graph:
    """Searches with ScaNN, which misses some neighbours; `recall` says how many.

    With a directory, goes on behind the rows that lie there. Another run may find others.
    """
    size = len(embeddings)
    nearest = min(max_degree, size)
    searchers: list[Any] = []  # none where all rows are there

    def search(begin: int, end: int) -> list[np.ndarray]:
        if not searchers:
            searchers.append(_searcher(embeddings, nearest))
        rows = np.arange(begin, end)
        units = unit_rows(embeddings[begin:end]).astype(np.float32)
        found, dots = searchers[0].search_batched_parallel(units)
        return _as_part(rows, found.astype(np.int64), 0.5 + 0.5 * dots, threshold)

    graph = _join(_search_all(size, search, directory, verbose))
    exact = np.minimum(sample.degrees(threshold), nearest)
    got = np.minimum(np.diff(graph.row_splits)[sample.rows], exact)
    capped = float((sample.degrees(threshold) > nearest).mean())
    return dataclasses.replace(graph, capped=capped, recall=float(got.sum() / exact.sum()))


def _searcher(embeddings: np.ndarray, nearest: int) -> Any:
    scann = _import_scann()
    size = len(embeddings)
    units = np.empty(embeddings.shape, np.float32)
    for begin in range(0, size, _ROWS):
        units[begin : begin + _ROWS] = unit_rows(embeddings[begin : begin + _ROWS])
    builder = scann.scann_ops_pybind.builder(units, nearest, "dot_product")
    if size <= 2 * _TIMED:
        return builder.score_brute_force().build()
    # The settings that ScaNN's documentation advises for so many rows.
    leaves = round(size**0.5)
    builder = builder.tree(leaves, max(1, leaves // 20), training_sample_size=min(size, 250_000))
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    return builder.reorder(min(size, 2 * nearest)).build()


def _as_part(
    rows: np.ndarray, found: np.ndarray, similarities: np.ndarray, threshold: float
) -> list[np.ndarray]:
    """The arrays of `ops.neighbour_graph`, from the nearest ones of each row."""
    # Where ScaNN looked at fewer rows than it was asked for, the rest is row 0 without a number.
    is_found = np.isfinite(similarities)
    is_self = (found == rows[:, None]) & is_found
    # Rows that are equal to it may have pushed a row out of its own list.
    lost = ~is_self.any(axis=1)
    found[lost, -1], is_self[lost, -1], is_found[lost, -1] = rows[lost], True, True
    similarities = np.minimum(np.where(is_self, 1, similarities), 1).astype(np.float32)
    order = np.argsort(found, axis=1)
    found, similarities, is_found = (
        np.take_along_axis(array, order, 1) for array in (found, similarities, is_found)
    )
    kept = is_found & (similarities > np.float32(threshold))
    lengths = kept.sum(axis=1)
    return [lengths, found[kept].astype(np.int32), similarities[kept], lengths]


def _import_scann() -> Any:
    try:
        import scann
    except ImportError as error:
        raise ImportError(
            'search="scann" needs the package `scann`: '
            '`pip install tfrec-efficient[retrieval]`, or use search="exact".'
        ) from error
    return scann
