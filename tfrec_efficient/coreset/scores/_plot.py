"""What a selector keeps and what it drops, as a picture and as summaries for TensorBoard."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec_efficient.coreset._files import replace
from tfrec_efficient.coreset._samples import check_samples
from tfrec_efficient.coreset.coreset_selector import CoresetSelector

# Of the histogram of confidences, over `[0, 1]`.
_BINS = 40
# More classes than this have no room for a pair of bars and a number each.
_MOST_BARS = 20
# Points of a line: about one for each pixel of its axes.
_MOST_POINTS = 300
_COLORS = {"kept": "C0", "dropped": "C1", "all": "C7"}
# A line of fewer points is marked at each, so that one point can be seen.
_FEW_POINTS = 50


@dataclasses.dataclass(frozen=True)
class Selection:
    """The choice of a selector, beside what a model makes of the samples.

    Args:
        selector: Name of its class.
        indices: int64 of shape `(chosen,)`: positions, in the order of choice.
        gains: Numbers of shape `(chosen,)`: what each added; or None.
        labels: Integers in `[0, classes)` of shape `(samples,)`.
        probabilities: Numbers in `[0, 1]` of shape `(samples, classes)`.
        confidences: Numbers in `[0, 1]` of shape `(samples,)`: the probability of each label.
    """

    selector: str
    indices: np.ndarray
    gains: np.ndarray | None
    labels: np.ndarray
    probabilities: np.ndarray
    confidences: np.ndarray

    def groups(self) -> dict[str, np.ndarray]:
        """Positions of the samples that are kept, in the order of choice, and of the others."""
        is_dropped = np.ones(len(self.labels), bool)
        is_dropped[self.indices] = False
        return {"kept": self.indices, "dropped": np.flatnonzero(is_dropped)}

    def class_shares(self, indices: Any = slice(None)) -> np.ndarray:
        """The share of each class among some samples, or all: of shape `(classes,)`."""
        counts = np.bincount(self.labels[indices], minlength=self.probabilities.shape[1])
        return counts / counts.sum()


def label_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability of the label of each row.

    Raises:
        ValueError: An array breaks a rule of `Selection`; scores that were made by hand might.
    """
    check_samples((), labels=labels, probabilities=probabilities)
    return np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]


def selection(
    selector: CoresetSelector, labels: np.ndarray, probabilities: np.ndarray
) -> Selection:
    """Checks that a selector has chosen among these samples.

    Raises:
        ValueError: It is no selector, is not fitted, or was fitted to another number of samples;
            or an array breaks a rule of `Selection`.
    """
    if not isinstance(selector, CoresetSelector):
        raise ValueError(f"`selector` must be a `CoresetSelector`. Received: selector={selector}")
    name = type(selector).__name__
    if not hasattr(selector, "indices_"):
        raise ValueError(
            f"`selector` must be fitted before. Received: a {name} that was not fitted"
        )
    if selector.samples_ != len(labels):
        raise ValueError(
            f"`selector` must be fitted to the samples of these scores, which are {len(labels)}. "
            f"Received: a {name} that was fitted to {selector.samples_}"
        )
    confidences = label_probabilities(probabilities, labels)
    gains = getattr(selector, "gains_", None)
    return Selection(name, selector.indices_, gains, labels, probabilities, confidences)


# ---- The picture.


def draw(chosen: Selection, path: Path) -> None:
    """Writes a picture: confidences, classes, and what came of each pick."""
    import matplotlib.figure

    kept, samples = len(chosen.indices), len(chosen.labels)
    figure = matplotlib.figure.Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(f"{chosen.selector}: {kept:,} of {samples:,} samples kept")
    confidences, classes, picks = figure.subplots(1, 3)
    _draw_confidences(confidences, chosen)
    _draw_classes(classes, chosen)
    if chosen.gains is None:
        _draw_label_probabilities(picks, chosen)
    else:
        _draw_gains(picks, chosen.gains)
    file_format = path.suffix.lstrip(".") or "svg"
    replace(path, lambda temporary: figure.savefig(temporary, format=file_format))


def _draw_confidences(axes: Any, chosen: Selection) -> None:
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    for name, indices in chosen.groups().items():
        counts = np.histogram(chosen.confidences[indices], edges)[0]
        shares = counts / max(len(indices), 1)
        label = f"{len(indices):,} {name}"
        axes.stairs(shares, edges, fill=True, alpha=0.5, color=_COLORS[name], label=label)
    axes.set(xlabel="probability of the label", title="confidences")
    _describe_shares(axes)


def _draw_classes(axes: Any, chosen: Selection) -> None:
    of_all, of_kept = chosen.class_shares(), chosen.class_shares(chosen.indices)
    if len(of_all) <= _MOST_BARS:
        places = np.arange(len(of_all))
        axes.bar(places - 0.2, of_all, 0.4, color=_COLORS["all"], label="all")
        axes.bar(places + 0.2, of_kept, 0.4, color=_COLORS["kept"], label="kept")
        axes.set_xticks(places)
        axes.tick_params(axis="x", labelsize="x-small")
        axes.set_xlabel("class")
    else:
        # Bars would be thinner than a pixel, and the numbers would lie upon each other.
        order = np.argsort(-of_all, kind="stable")
        axes.stairs(of_kept[order], fill=True, alpha=0.5, color=_COLORS["kept"], label="kept")
        axes.stairs(of_all[order], baseline=None, color=_COLORS["all"], label="all")
        axes.set_xlabel(f"{len(order):,} classes, the largest first")
    axes.set_title("classes of labels")
    _describe_shares(axes)


def _describe_shares(axes: Any) -> None:
    axes.set_ylabel("share of samples")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])  # room for the legend above what is drawn
    axes.legend(loc="upper center", ncols=2, fontsize="small")


def _draw_gains(axes: Any, gains: np.ndarray) -> None:
    # Means of stretches, and not a pick of each: where classes take turns, those might all be of
    # the same class.
    edges = _stretches(len(gains))
    means = np.add.reduceat(np.asarray(gains, float), edges[:-1]) / np.diff(edges)
    _draw_line(axes, (edges[:-1] + 1 + edges[1:]) / 2, means)
    if (means > 0).any():  # where all have underflowed, there is no logarithm to show
        axes.set_yscale("log")
    axes.set(ylabel="gain", title="gain of each pick")


def _draw_label_probabilities(axes: Any, chosen: Selection) -> None:
    sums = chosen.confidences[chosen.indices].cumsum(dtype=float)
    picks = _stretches(len(sums))[1:]
    _draw_line(axes, picks, sums[picks - 1] / picks)
    axes.set(ylabel="mean up to the pick", ylim=(0, 1.02), title="probability of the label")


def _stretches(count: int) -> np.ndarray:
    """Where stretches of picks begin, one for each point of a line, and where the last ends."""
    points = min(count, _MOST_POINTS)
    return np.arange(points + 1) * count // points


def _draw_line(axes: Any, picks: np.ndarray, values: np.ndarray) -> None:
    axes.plot(picks, values, marker="." if len(picks) < _FEW_POINTS else None)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("pick, in the order of choice")


# ---- The summaries.


def write_summaries(chosen: Selection, log_dir: str | os.PathLike[str]) -> None:
    """Writes the figures of a choice for TensorBoard, all at step 0."""
    is_doubted = chosen.probabilities.argmax(axis=1) != chosen.labels
    writer = tf.summary.create_file_writer(os.fspath(log_dir))
    with contextlib.closing(writer), writer.as_default(step=0):
        tf.summary.scalar("share_kept", len(chosen.indices) / len(chosen.labels))
        for name, indices in chosen.groups().items():
            if not len(indices):  # no mean of nothing
                continue
            confidences = chosen.confidences[indices]
            tf.summary.histogram(f"confidence_{name}", confidences)
            for figure, values in (
                ("mean_confidence", confidences),
                ("labels_doubted", is_doubted[indices]),
            ):
                tf.summary.scalar(f"{figure}_{name}", values.mean(dtype=float))
