"""`warmup_scores`: what a model makes of each example, in one pass over a dataset."""

import dataclasses
import os
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.coreset._samples import check_integer
from tfrec_efficient.coreset.coreset_selector import CoresetSelector
from tfrec_efficient.coreset.scores._examples import check_examples
from tfrec_efficient.coreset.scores._fingerprint import fingerprint
from tfrec_efficient.coreset.scores._model import Forward
from tfrec_efficient.coreset.scores._plot import Selection
from tfrec_efficient.coreset.scores._plot import draw
from tfrec_efficient.coreset.scores._plot import label_probabilities
from tfrec_efficient.coreset.scores._plot import selection
from tfrec_efficient.coreset.scores._plot import write_summaries
from tfrec_efficient.coreset.scores._rows import Files
from tfrec_efficient.coreset.scores._rows import Rows

# Examples that are hashed at a time where nothing else is done with them.
_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class WarmupScores:
    """What a model makes of each example of a dataset, one row an example, in its order.

    Args:
        embeddings: float32 of shape `(samples, dim)`: features before the last layer.
        probabilities: float32 of shape `(samples, classes)`, in `[0, 1]`.
        confidences: float32 of shape `(samples,)`: the highest probability of each row.
        labels: int64 of shape `(samples,)`: classes as the dataset gives them, right or wrong.
        fingerprints: int64 of shape `(samples,)`: a hash of each example.
    """

    embeddings: np.ndarray
    probabilities: np.ndarray
    confidences: np.ndarray
    labels: np.ndarray
    fingerprints: np.ndarray

    @property
    def label_confidences(self) -> np.ndarray:
        """The probability of the label of each sample: float32 of shape `(samples,)`.

        Raises:
            ValueError: A label is no class, which can only be where the scores were made by hand.
        """
        return label_probabilities(self.probabilities, self.labels)

    def fit(self, selector: CoresetSelector, forgetting_events: Any = None) -> CoresetSelector:
        """Fits a selector to those of the arrays that it uses.

        As confidences it is given `label_confidences`. With the highest probabilities, those of the
        paper of `Prune4Rel`, a sample whose label is surely wrong counts as one to rely on;
        `selector.fit(scores.embeddings, scores.confidences, scores.labels)` does that.

        Args:
            selector: A `CoresetSelector`.
            forgetting_events: Integers of shape `(samples,)`, as `ForgettingCounter` counts them.
                Defaults to None.

        Returns:
            The selector.

        Raises:
            ValueError: As in `CoresetSelector.fit`.
        """
        # All are checked when they are handed over, which is a pass over them: not the wide ones.
        wide = {name: getattr(self, name) for name in ("embeddings", "probabilities")}
        return selector.fit(
            confidences=self.label_confidences,
            labels=self.labels,
            forgetting_events=forgetting_events,
            **{name: array for name, array in wide.items() if name in selector.requires},
        )

    def plot(self, selector: CoresetSelector, path: str | os.PathLike[str]) -> None:
        """Draws what a selector keeps, and what it drops.

        From left to right: how the `label_confidences` of both spread; the share of each class, as
        the labels have it, in all samples and in the choice; and over the picks, in the order of
        choice, the gain of each where the selector has `gains_` (means of neighbouring picks where
        they are many), or else the mean of the `label_confidences` up to there.

        Args:
            selector: A `CoresetSelector` that was fitted to these scores.
            path: The picture to write, such as `coreset.svg`. Needs the `plot` extra.

        Raises:
            ValueError: `selector` is of another type, is not fitted, or was fitted to another
                number of samples.
        """
        draw(self._selection(selector), Path(path))

    def log(self, selector: CoresetSelector, log_dir: str | os.PathLike[str]) -> None:
        """Writes figures of what a selector keeps, and of what it drops, for TensorBoard.

        All are at step 0. There are the histograms `confidence_kept` and `confidence_dropped`, of
        `label_confidences`, and the scalars `share_kept`, `mean_confidence_kept` and
        `labels_doubted_kept`, the share of the labels that are not the most probable class; and the
        last two with `dropped` instead of `kept`, unless nothing is dropped.

        Args:
            selector: A `CoresetSelector` that was fitted to these scores.
            log_dir: Folder for TensorBoard, one for each choice that is to be compared.

        Raises:
            ValueError: `selector` is of another type, is not fitted, or was fitted to another
                number of samples.
        """
        write_summaries(self._selection(selector), log_dir)

    def _selection(self, selector: CoresetSelector) -> Selection:
        return selection(selector, self.labels, self.probabilities)


def warmup_scores(
    model: keras.Model,
    dataset: tf.data.Dataset,
    embedding_layer: keras.Layer | str | None = None,
    batch_size: int = 128,
    from_logits: bool = False,
    view: Callable[..., Any] | None = None,
    directory: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> WarmupScores:
    """Runs a model once over a dataset, and keeps features, probabilities, labels and hashes.

    The model may be of any kind, and is left as it is: its layers are listened to while it runs.

    With a `directory`, arrays are written to files there as they are made, and are memory-mapped,
    so that they need not fit into memory. A run that was killed goes on where it was when it is
    called again: rows that were written are not computed anew, but their examples are hashed, to
    see that they are the same. With the same `batch_size`, files are then the same, up to how
    TensorFlow rounds in another process. The call after a whole run checks the examples and reads
    the files. The scores of another model, or of other examples, are never overwritten, but are an
    error.

    Args:
        model: A model with one output: of shape `(batch, classes)` after a softmax, or `(batch,)`
            or `(batch, 1)` after a sigmoid, which means two classes.
        dataset: A finite `tf.data.Dataset` of single examples `(x, y)` or `(x, y, sample_weight)`,
            which gives the same ones in the same order each time. Labels are numbers of classes or
            one-hot.
        embedding_layer: The layer, or the name of the layer, whose output is the embedding,
            flattened where it has a rank above 2. Defaults to None, for the input of that layer
            with weights which runs last, where it gives as many values as the model does.
        batch_size: int. Examples in a forward pass. Defaults to 128.
        from_logits: bool. Whether the output is before the softmax or sigmoid. Defaults to False.
        view: A function for `tf.data.Dataset.map` of what the model is to see instead of the
            examples, such as augmented ones, or None. Hashes are of the examples before it. If it
            draws random numbers, a resumed run draws others. Another view needs another
            `directory`: functions cannot be told apart. Defaults to None.
        directory: Folder for the files, which is made where there is none. Defaults to None, for
            arrays in memory.
        verbose: 0, 1 or 2: how much progress to show, as in Keras. Defaults to 1.

    Returns:
        `WarmupScores`.

    Raises:
        ValueError: An argument breaks a rule above, an output or an embedding is not finite, an
            output is no probability, or a label is no class.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(3, "softmax")])
    >>> dataset = tf.data.Dataset.from_tensor_slices((np.eye(5), [0, 1, 2, 0, 1]))
    >>> scores = tfrec.coreset.warmup_scores(model, dataset, verbose=0)
    >>> scores.embeddings.shape, scores.probabilities.shape, scores.labels.tolist()
    ((5, 4), (5, 3), [0, 1, 2, 0, 1])

    References:
        - Park et al., "Robust Data Pruning under Label Noise via Maximizing Re-labeling Accuracy",
          NeurIPS 2023, section 3: embeddings and confidences come from a model after a short
          training. Theirs see one strongly augmented view of each example; ours see the examples,
          unless there is a `view`.
    """
    check_examples(dataset)
    batch_size = check_integer("batch_size", batch_size, 1)

    def with_fingerprint(*example: Any) -> Any:
        seen = example if view is None else view(*example)
        if not isinstance(seen, tuple) or len(seen) not in (2, 3):
            raise ValueError(f"`view` must return what it is given, `(x, y)`. Received: {seen}")
        return fingerprint(example), seen[0], seen[1]

    def viewed(examples: tf.data.Dataset) -> tf.data.Dataset:
        calls = 1 if view is None else tf.data.AUTOTUNE
        return examples.map(with_fingerprint, num_parallel_calls=calls, deterministic=True)

    forward = Forward(model, dataset.apply(viewed), embedding_layer, from_logits)
    rows: Rows | Files = Rows()
    if directory is not None:
        rows = Files(Path(directory), forward.identity())
    size = int(dataset.cardinality())
    bar = keras.utils.Progbar(size if size > 0 else None, verbose=verbose, unit_name="sample")
    try:
        for checked in _check_written(dataset, rows):
            bar.update(checked, finalize=False)
        rest = dataset.skip(rows.count).apply(viewed).batch(batch_size).prefetch(2)
        for hashes, x, y in [] if rows.is_whole else rest:
            rows.append({**forward.run(x, y, rows.count), "fingerprints": hashes.numpy()})
            bar.update(rows.count, finalize=False)
        if not rows.count:
            raise ValueError("`dataset` must hold an example at least. Received: none")
        scores = WarmupScores(**rows.finish())
    finally:
        rows.close()
    bar.update(rows.count, finalize=True)
    return scores


def _check_written(dataset: tf.data.Dataset, rows: Rows | Files) -> Iterator[int]:
    """Checks that rows from before are those of the dataset, and says how many it has checked."""
    if not rows.count:
        return
    known = rows.fingerprints()
    # One more, where there must not be one.
    hashes = dataset.map(fingerprint).take(rows.count + int(rows.is_whole)).batch(_BLOCK)
    checked = 0
    for block in hashes.as_numpy_iterator():
        expected = known[checked : checked + len(block)]
        is_same = np.equal(block[: len(expected)], expected)
        if not is_same.all() or len(expected) < len(block):
            at = checked + (len(expected) if is_same.all() else int(np.argmin(is_same)))
            raise _other_examples(rows.count, f"another example in row {at}")
        checked += len(block)
        yield checked
    if checked < rows.count:
        raise _other_examples(rows.count, f"{checked} examples")


def _other_examples(count: int, received: str) -> ValueError:
    return ValueError(
        f"`dataset` must give the examples whose scores are in `directory`, {count} so far, and in "
        "the same order; use another directory for another dataset, and shuffle and augment "
        f"afterwards. Received: {received}"
    )
