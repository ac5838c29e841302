"""Where a selector's samples come from: arrays, a random-access source, or a `tf.data.Dataset`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Elements of a `tf.data.Dataset` that are read at a time.
_BLOCK = 1024
# A label that no class has: of a soft label, or of a sample that was not fetched so far.
UNKNOWN = -1


class Source:
    """Samples by their number.

    Attributes:
        size: The number of samples.
        signature: `tf.TensorSpec`s of a batch `(x, y)` or `(x, y, sample_weight)`.
        labels: The class of each sample, of shape `(size,)`, `UNKNOWN` where it is.
    """

    def __init__(self, x: Any, y: Any, sample_weight: Any) -> None:
        self._samples: Any
        if isinstance(x, tf.data.Dataset):
            _refuse_y(y, sample_weight, "a `tf.data.Dataset`")
            x = _read(x)
            self._samples, self.size = x, len(keras.tree.flatten(x)[0])
        elif y is None and hasattr(x, "__getitem__") and not isinstance(x, (np.ndarray, tuple)):
            _refuse_y(y, sample_weight, "a random-access source")
            self._samples, self.size = None, len(x)
            self._source = x
        else:
            if y is None:
                raise ValueError("`y` must be an array of labels, one for each sample of `x`.")
            parts = (x, y) if sample_weight is None else (x, y, sample_weight)
            parts = keras.tree.map_structure(np.asarray, parts)
            self._samples, self.size = parts, _common_length(parts)
        if not self.size:
            raise ValueError("`x` must hold at least one sample. Received: 0")

        first = self.fetch(np.zeros(1, np.int32))
        if len(first) not in (2, 3):
            raise ValueError(
                f"Samples must be `(x, y)` or `(x, y, sample_weight)`. Received: {len(first)} parts"
            )
        if not isinstance(first[1], np.ndarray):
            raise ValueError(
                "`y` must be one array of labels; selection watches one output. "
                f"Received: {type(first[1]).__name__}"
            )
        self.signature = keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), first
        )
        if self._samples is None:
            self.labels = np.full(self.size, UNKNOWN, np.int32)
        else:
            labels = to_classes(self._samples[1])
            self.labels = labels.astype(np.min_scalar_type(-int(labels.max(initial=0)) - 1))

    def is_like(self, other: "Source") -> bool:
        """Whether this has as many samples as another source, and as far as known their labels."""
        if self.size != other.size:
            return False
        is_known = (self.labels != UNKNOWN) & (other.labels != UNKNOWN)
        return np.array_equal(self.labels[is_known], other.labels[is_known])

    def fetch(self, ids: np.ndarray) -> tuple[Any, ...]:
        """The batch of the samples `ids`."""
        if self._samples is not None:
            return keras.tree.map_structure(lambda array: array[ids], self._samples)
        batch = keras.tree.map_structure(np.asarray, self._source[ids])
        if not isinstance(batch, tuple):
            raise ValueError(
                "A random-access source must return a tuple for an array of ids. "
                f"Received: {type(batch).__name__}"
            )
        lengths = {len(array) if array.ndim else 0 for array in keras.tree.flatten(batch)}
        if lengths != {len(ids)}:
            raise ValueError(
                "A random-access source must return one entry for each id it is given. "
                f"Received: {sorted(lengths)} entries for {len(ids)} ids"
            )
        if hasattr(self, "labels"):
            self.labels[ids] = to_classes(batch[1])
        return batch


def to_classes(y: np.ndarray) -> np.ndarray:
    """Class numbers of labels: integers, 0 or 1 as any number, or rows that are one-hot.

    Raises:
        ValueError: `y` has another shape, or labels that are no class.
    """
    if y.ndim == 2 and y.shape[1] > 1:
        # A mixture or a smoothed label belongs to no class.
        is_one_hot = ((y == 1).sum(axis=1) == 1) & ((y != 0).sum(axis=1) == 1)
        return np.where(is_one_hot, y.argmax(axis=1), UNKNOWN)
    if y.ndim == 2:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "biuf":
        raise ValueError(
            "`y` must be numbers of classes of shape `(samples,)` or `(samples, 1)`, or one-hot of "
            f"shape `(samples, classes)`. Received: {y.dtype} of shape {y.shape}"
        )
    is_class = (y >= 0) & (y == np.floor(y)) if y.dtype.kind == "f" else y >= 0
    if not is_class.all():
        at = int(np.argmin(is_class))
        raise ValueError(f"`y` must be 0 or more, and whole. Received: y[{at}]={y[at]}")
    return y.astype(np.int64)


def _refuse_y(y: Any, sample_weight: Any, of: str) -> None:
    if y is not None or sample_weight is not None:
        raise ValueError(f"`y` and `sample_weight` must be part of the samples of {of}.")


def _common_length(parts: Sequence[Any]) -> int:
    arrays = keras.tree.flatten(parts)
    lengths = {len(array) if array.ndim else 0 for array in arrays}
    if len(lengths) != 1:
        raise ValueError(
            "`x`, `y` and `sample_weight` must have the same number of samples. "
            f"Received: {[len(array) if array.ndim else 0 for array in arrays]}"
        )
    return lengths.pop()


def _read(dataset: tf.data.Dataset) -> Any:
    """All elements of a dataset as arrays."""
    size = int(dataset.cardinality())
    if size < 0:
        raise ValueError(
            "`x` must be a dataset of known, finite size; "
            "`tf.data.experimental.assert_cardinality` tells a size that is known otherwise. "
            f"Received: {'infinite' if size == tf.data.INFINITE_CARDINALITY else 'unknown'} size"
        )
    for spec in keras.tree.flatten(dataset.element_spec):
        if not isinstance(spec, tf.TensorSpec) or None in spec.shape:
            raise ValueError(
                "`x` must be a dataset of single samples, which are dense and of one shape; "
                f"`unbatch` a batched one. Received: {spec}"
            )
    blocks = list(dataset.batch(_BLOCK).as_numpy_iterator())
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *blocks)
