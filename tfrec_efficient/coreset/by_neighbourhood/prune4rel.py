"""Prune4Rel: the samples that help most to correct the labels of all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import ClassVar
from typing import Literal

import numpy as np

from tfrec_efficient import ops
from tfrec_efficient.coreset._samples import Samples
from tfrec_efficient.coreset._samples import blocks
from tfrec_efficient.coreset._samples import check_integer
from tfrec_efficient.coreset.by_neighbourhood import _greedy
from tfrec_efficient.coreset.by_neighbourhood import _neighbourhoods
from tfrec_efficient.coreset.by_neighbourhood._greedy import Choice
from tfrec_efficient.coreset.by_neighbourhood._neighbourhoods import neighbourhood_coverage
from tfrec_efficient.coreset.coreset_selector import CoresetSelector

# Neighbours of a sample on average, itself included, where the threshold is chosen for the user.
_AUTO_DEGREE = 20

_MEGABYTE = 1 << 20


class Prune4Rel(CoresetSelector):
    """Chooses the samples with the largest neighbourhood confidence.

    A network that learns from wrong labels can correct many of them, those of samples that are like
    samples which it knows well. So a coreset should hold, near every sample, others that the model
    is confident of. With s(x, v) = (1 + cos(x, v)) / 2 where that is above the threshold, else 0,
    and the confidence C(x), it maximizes

        sum over all v of tanh(sum over chosen x of s(x, v) C(x) / scale)

    greedily. The confidence in the paper is the highest probability of x. `WarmupScores.fit` takes
    the probability of the label of x instead: only a right label helps those around it.

    The objective is monotone and submodular. With `gain="full"` and `balanced=False` the choice has
    at least 1 - 1/e of the best value that so many samples can have, over the neighbours that were
    searched and kept. `gain="own"` is the rule of the authors' program: it counts what a sample
    adds at its own place only, which needs no graph of neighbours, but is not the gain of the
    objective. With `search="exact"` both are exact and repeat: ties go to the first sample.

    It compares all pairs of samples (`"full"`), or all picks with all samples (`"own"`), at some
    ten thousand million multiplications a second and core. Before it starts it prints how long
    that will take, and how much memory.

    Args:
        size_or_fraction: See `CoresetSelector`.
        similarity_threshold: float in `[0, 1)`, or `"auto"`: such that a sample has 20 neighbours
            on average, itself included. Defaults to `"auto"`.
        gain: `"full"` or `"own"`. Defaults to `"full"`.
        balanced: bool. Whether classes take turns; needs `labels`. Defaults to True.
        scale: float above 0. The coverage at which a sample is nearly satisfied. Defaults to 1.
        max_degree: int. The most neighbours of a sample that the graph keeps, the nearest ones.
            Bounds its memory, at up to 24 bytes each. Defaults to 256.
        search: `"exact"`, or `"scann"` for the approximate search of ScaNN (the extra
            `retrieval`), for more than a million samples. Defaults to `"exact"`.
        directory: Where to save what was found so far. A run that was stopped goes on from there,
            and one for more samples, too. Defaults to None, for not at all.
        verbose: 0 for silence, 1 for the estimate and progress bars. Defaults to 1.

    Attributes:
        indices_: int64 of shape `(chosen,)`, in the order of choice.
        gains_: float64 of shape `(chosen,)`: what each added when it was chosen.
        objective_: float. The sum above, over the neighbourhoods that were searched.
        similarity_threshold_: float. The threshold that was used.
        mean_degree_: float. Neighbours of a sample, itself included, estimated from a few samples.
        capped_: float. Share of the samples that have more than `max_degree` neighbours; None
            without a graph.
        recall_: float. Share of the neighbours that ScaNN found, of a few samples; else 1.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> random = np.random.default_rng(0)
    >>> embeddings, confidences = random.normal(size=(500, 8)), random.uniform(size=500)
    >>> selector = tfrec.Prune4Rel(0.2, verbose=0)
    >>> selector.fit(embeddings, confidences, labels=np.arange(500) % 5).indices_.shape
    (100,)

    References:
        - Park, Choi, Kim, Song and Lee, "Robust Data Pruning under Label Noise via Maximizing
          Re-labeling Accuracy", NeurIPS 2023, algorithm 1. Their program has `gain="own"`, computes
          embeddings of one strongly augmented view, and stops to balance once one class is used
          up and another one has given half as many again; here classes take turns as long as they
          have samples.
    """

    requires: ClassVar[tuple[str, ...]] = ("embeddings", "confidences")

    def __init__(
        self,
        size_or_fraction: float,
        similarity_threshold: float | Literal["auto"] = "auto",
        gain: Literal["full", "own"] = "full",
        balanced: bool = True,
        scale: float = 1.0,
        max_degree: int = 256,
        search: Literal["exact", "scann"] = "exact",
        directory: str | os.PathLike[str] | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__(size_or_fraction, balanced)
        if not isinstance(similarity_threshold, str):
            similarity_threshold = _number("similarity_threshold", similarity_threshold)
        is_share = similarity_threshold != "auto" and (
            isinstance(similarity_threshold, float) and 0 <= np.float32(similarity_threshold) < 1
        )
        is_threshold = similarity_threshold == "auto" or is_share
        scale = _number("scale", scale)
        for name, value, is_right, rule in (
            (
                "similarity_threshold",
                similarity_threshold,
                is_threshold,
                'in `[0, 1)` as float32, or "auto"',
            ),
            ("gain", gain, gain in ("full", "own"), '"full" or "own"'),
            ("scale", scale, 0 < scale < np.inf, "above 0, and finite"),
            ("search", search, search in ("exact", "scann"), '"exact" or "scann"'),
        ):
            if not is_right:
                raise ValueError(f"`{name}` must be {rule}. Received: {name}={value}")
        self.similarity_threshold = similarity_threshold
        self.gain = gain
        self.scale = scale
        self.max_degree = check_integer("max_degree", max_degree, 1)
        self.search = search
        self.directory = directory
        self.verbose = verbose

    def _choose(self, samples: Samples, count: int) -> np.ndarray:
        embeddings = _as_rows(samples.need("embeddings"))
        confidences = np.asarray(samples.need("confidences"), np.float64)
        classes = np.zeros(len(samples), np.int32)
        if self.balanced:
            classes = np.unique(samples.need("labels"), return_inverse=True)[1].astype(np.int32)
        sample = _neighbourhoods.SimilaritySample(embeddings)
        threshold = self.similarity_threshold
        if threshold == "auto":
            threshold = sample.threshold_for(min(_AUTO_DEGREE, len(embeddings)))
        self.similarity_threshold_ = threshold = float(np.float32(threshold))
        self.mean_degree_ = float(sample.degrees(threshold).mean())
        self._print_estimate(embeddings, sample, count)

        directory = None if self.directory is None else Path(self.directory)
        choice = Choice.empty(len(samples))
        if directory is not None:
            about = {
                name: getattr(self, name)
                for name in ("gain", "balanced", "scale", "max_degree", "search")
            }
            about["similarity_threshold"] = threshold
            _greedy.claim(directory, about, [embeddings, confidences, classes])
            choice = Choice.load(directory, len(samples))
        graph = self._graph(embeddings, sample, directory)
        if graph is None:
            step = _step_without_graph(embeddings, threshold, confidences, classes, self.scale)
        else:
            step = _step_over_graph(graph, confidences, classes, self.scale, self.gain == "own")
        del sample  # which is large
        if len(choice.picked) < count:
            choice = _greedy.run(step, choice, count, directory, self.verbose)
        picked, self.gains_ = choice.picked[:count], choice.gains[:count]
        coverage = choice.coverage
        if len(choice.picked) > count:  # from a run for more samples
            if graph is None:
                coverage = neighbourhood_coverage(embeddings, confidences, picked, threshold)
            else:
                coverage = graph.coverage(confidences, picked)
        self.objective_ = float(np.tanh(coverage / self.scale).sum())
        return picked

    def _graph(
        self,
        embeddings: np.ndarray,
        sample: _neighbourhoods.SimilaritySample,
        directory: Path | None,
    ) -> _neighbourhoods.Graph | None:
        self.capped_: float | None = None
        self.recall_ = 1.0
        settings = (directory, self.verbose)
        threshold = self.similarity_threshold_
        if self.search == "scann":
            graph = _neighbourhoods.scann_graph(
                embeddings, threshold, self.max_degree, sample, *settings
            )
        elif self.gain == "full":
            graph = _neighbourhoods.exact_graph(embeddings, threshold, self.max_degree, *settings)
        else:
            return None
        self.capped_, self.recall_ = graph.capped, graph.recall
        if self.verbose:
            print(
                f"{len(graph.neighbours):,} neighbours; {graph.capped:.1%} of the samples have "
                f"more than max_degree={self.max_degree}; {graph.recall:.1%} of them found."
            )
        return graph

    def _print_estimate(
        self, embeddings: np.ndarray, sample: _neighbourhoods.SimilaritySample, count: int
    ) -> None:
        if not self.verbose:
            return
        size, dim = embeddings.shape
        working = size * dim * 2 + size * 100
        line = (
            f"{size:,} samples, threshold {self.similarity_threshold_:.4f}: "
            f"{self.mean_degree_:.1f} neighbours on average; "
        )
        seconds = None
        if self.search == "exact":
            speed = _neighbourhoods.pairs_per_second(embeddings, self.similarity_threshold_)
            seconds = size * (count if self.gain == "own" else size) / speed
        if self.gain == "full" or self.search == "scann":
            kept = np.minimum(sample.degrees(self.similarity_threshold_), self.max_degree).mean()
            working += int(3 * 8 * kept * size)
        # Embeddings in float32 and as a tensor; and the sample with a copy that is sorted, which
        # has gone when the choice begins.
        memory = 2 * embeddings.nbytes + max(2 * sample.similarities.nbytes, working)
        line += f"up to {memory / _MEGABYTE:,.0f} MB"
        print(line if seconds is None else f"{line}, {seconds / 60:.1f} minutes")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "similarity_threshold": self.similarity_threshold,
            "gain": self.gain,
            "scale": self.scale,
            "max_degree": self.max_degree,
            "search": self.search,
            "directory": None if self.directory is None else os.fspath(self.directory),
            "verbose": self.verbose,
        }


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"`{name}` must be a number. Received: {name}={value}")
    return float(value)


def _step_without_graph(
    embeddings: np.ndarray,
    threshold: float,
    confidences: np.ndarray,
    classes: np.ndarray,
    scale: float,
) -> Callable[[Choice, int], Choice]:
    def step(choice: Choice, more: int) -> Choice:
        picked, gains, coverage = ops.choose_by_own_gain(
            embeddings, threshold, confidences, classes, choice.picked, choice.coverage, scale, more
        )
        return _longer(choice, picked, gains, coverage, choice.bounds)

    return step


def _step_over_graph(
    graph: _neighbourhoods.Graph,
    confidences: np.ndarray,
    classes: np.ndarray,
    scale: float,
    own: bool,
) -> Callable[[Choice, int], Choice]:
    def step(choice: Choice, more: int) -> Choice:
        picked, gains, coverage, bounds = ops.choose_over_graph(
            graph.row_splits, graph.neighbours, graph.similarities, confidences, classes,
            choice.picked, choice.coverage, choice.bounds, scale, more, own,
        )  # fmt: skip
        return _longer(choice, picked, gains, coverage, bounds)

    return step


def _as_rows(embeddings: np.ndarray) -> np.ndarray:
    """Rows in float32 of the same directions, none of them zero."""
    is_float32 = embeddings.dtype == np.float32
    rows = np.ascontiguousarray(embeddings) if is_float32 else np.empty(embeddings.shape, "f4")
    for part in blocks(*embeddings.shape):
        wide = np.asarray(embeddings[part], np.float64)
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        if not norms.all():
            row = part.start + int(np.argmin(norms))
            raise ValueError(
                "`embeddings` must not be zero, which is in no direction. "
                f"Received: embeddings[{row}] with a norm of 0"
            )
        if not is_float32:  # in which they might be infinite, or zero
            rows[part] = wide / norms
    return rows


def _longer(choice: Choice, picked: Any, gains: Any, coverage: Any, bounds: Any) -> Choice:
    return Choice(
        np.concatenate([choice.picked, picked.numpy()]),
        np.concatenate([choice.gains, gains.numpy()]),
        coverage.numpy(),
        np.asarray(bounds),
    )
