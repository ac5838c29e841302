"""Where a selector's samples come from: arrays, a random-access source, or a `tf.data.Dataset`."""

import functools
import weakref
from collections.abc import Callable
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
        labels: The class of each sample, of shape `(size,)`; `UNKNOWN` where it is of none, or in a
            random-access source was not fetched so far.
    """

    def __init__(self, x: Any, y: Any, sample_weight: Any) -> None:
        self._parts: Any = None
        if isinstance(x, tf.data.Dataset):
            _refuse_y(y, sample_weight, "a `tf.data.Dataset`")
            self._parts = _read(x)
        elif y is None and _is_random_access(x):
            _refuse_y(y, sample_weight, "a random-access source")
            self._random_access = x
        elif y is None:
            raise ValueError("`y` must be labels, one for each sample of `x`. Received: y=None")
        else:
            parts = (x, y) if sample_weight is None else (x, y, sample_weight)
            self._parts = keras.tree.map_structure(np.asanyarray, parts)
        self.size = _common_length(self._parts) if self._parts is not None else len(x)
        if not self.size:
            raise ValueError("`x` must hold at least one sample. Received: none")

        first = self._fetch(np.zeros(1, np.int32))
        if not isinstance(first, tuple) or len(first) not in (2, 3):
            raise ValueError(
                "Samples must be tuples `(x, y)` or `(x, y, sample_weight)`. Received: "
                f"{keras.tree.map_structure(lambda array: array.shape, first)}"
            )
        if not isinstance(first[1], np.ndarray):
            raise ValueError(
                "`y` must be one array of labels; selection watches one output. "
                f"Received: {type(first[1]).__name__}"
            )
        labels = to_classes(first[1] if self._parts is None else self._parts[1])
        self._signature = keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), first
        )
        if self._parts is None:
            self.labels = np.full(self.size, UNKNOWN, np.int32)
        else:
            self.labels = labels.astype(np.min_scalar_type(-int(labels.max(initial=0)) - 1))

    def is_like(self, other: "Source") -> bool:
        """Whether this has as many samples as another source, and as far as known their labels."""
        if self.size != other.size:
            return False
        is_known = (self.labels != UNKNOWN) & (other.labels != UNKNOWN)
        return np.array_equal(self.labels[is_known], other.labels[is_known])

    def epochs(self, begin: Callable[[], Any], batch_size: int, weighs: bool) -> tf.data.Dataset:
        """A dataset of batches that asks `begin` at every iteration what to show.

        `begin` returns the number of steps, the ids of all of them, and if `weighs` the factors of
        their losses.
        """

        def epoch(_: tf.Tensor) -> tf.data.Dataset:
            kinds = [tf.int64, tf.int32, tf.float32]
            steps, ids, factors = tf.numpy_function(begin, [], kinds)
            for values in (ids, factors):
                values.set_shape([None])

            def fetch(step: tf.Tensor) -> Any:
                here = slice(step * batch_size, (step + 1) * batch_size)
                batch = self.batch(ids[here])
                if not weighs:
                    return batch
                factor = factors[here]
                if len(batch) == 3:
                    factor *= tf.cast(batch[2], tf.float32)
                return (*batch[:2], factor)

            calls = None if self.is_in_memory else tf.data.AUTOTUNE
            return tf.data.Dataset.range(steps).map(fetch, num_parallel_calls=calls)

        options = tf.data.Options()
        # There is little to tune, and stopping the tuner may take TensorFlow up to a minute, which
        # happens at the end of an epoch.
        options.autotune.enabled = False
        # One worker has all replicas; there are no files to share out among several.
        policy = tf.data.experimental.AutoShardPolicy.OFF
        options.experimental_distribute.auto_shard_policy = policy
        return tf.data.Dataset.from_tensors(0).flat_map(epoch).with_options(options)

    def batch(self, ids: tf.Tensor) -> Any:
        """The batch `(x, y)` or `(x, y, sample_weight)` of some ids, in the graph of a dataset."""
        flat = keras.tree.flatten(self._signature)
        if self.is_in_memory:
            return keras.tree.map_structure(lambda tensor: tf.gather(tensor, ids), self._tensors)

        fetch = weakly(self._fetch_flat)
        arrays = tf.numpy_function(fetch, [ids], [spec.dtype for spec in flat])
        for array, spec in zip(arrays, flat, strict=True):
            array.set_shape(spec.shape)
        return keras.tree.pack_sequence_as(self._signature, arrays)

    @functools.cached_property
    def _tensors(self) -> Any:
        with tf.init_scope(), tf.device("CPU"):
            return keras.tree.map_structure(tf.convert_to_tensor, self._parts)

    @property
    def is_in_memory(self) -> bool:
        """Whether fetching a batch is a matter of microseconds."""
        return self._parts is not None and not any(
            isinstance(array, np.memmap) for array in keras.tree.flatten(self._parts)
        )

    def _fetch_flat(self, ids: np.ndarray) -> list[np.ndarray]:
        return keras.tree.flatten(self._fetch(ids))

    def _fetch(self, ids: np.ndarray) -> Any:
        if self._parts is not None:
            return keras.tree.map_structure(lambda array: np.asarray(array[ids]), self._parts)
        try:
            batch = keras.tree.map_structure(np.asarray, self._random_access[ids])
        except (TypeError, IndexError, KeyError) as error:
            raise ValueError(
                "A random-access source must return the samples of an integer array of ids. "
                f"Received: {type(error).__name__}: {error}"
            ) from error
        lengths = {len(array) if array.ndim else 0 for array in keras.tree.flatten(batch)}
        if lengths != {len(ids)}:
            raise ValueError(
                "A random-access source must return one entry for each id it is given. "
                f"Received: {sorted(lengths)} entries for {len(ids)} ids"
            )
        if hasattr(self, "labels"):
            self.labels[ids] = to_classes(batch[1])
        return batch


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method as a function that does not keep its object, for `tf.numpy_function`, which does."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        alive = reference()
        if alive is None:
            raise RuntimeError("The selector of this dataset does not exist any more.")
        return alive(*args)

    return call


def _is_random_access(x: Any) -> bool:
    is_array = isinstance(x, (np.ndarray, tf.Tensor, list, tuple, dict))
    return not is_array and hasattr(x, "__getitem__") and hasattr(x, "__len__")


def to_classes(y: np.ndarray) -> np.ndarray:
    """Class numbers of labels: integers, 0 or 1 as any number, or rows that are one-hot.

    Raises:
        ValueError: `y` has another shape, or labels that are no class.
    """
    if y.ndim == 2 and y.shape[1] > 1:
        if not (np.isclose(y.sum(axis=1), 1, atol=1e-3) & (y >= 0).all(axis=1)).all():
            raise ValueError(
                "Rows of `y` must be one-hot, or shares of classes that sum to 1; several labels "
                "of one sample are not supported. Received: sums of "
                f"{y.sum(axis=1).min()} to {y.sum(axis=1).max()}"
            )
        # A mixture or a smoothed label belongs to no class.
        is_one_hot = ((y == 1).sum(axis=1) == 1) & ((y != 0).sum(axis=1) == 1)
        return np.where(is_one_hot, y.argmax(axis=1), UNKNOWN)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "biuf":
        raise ValueError(
            "`y` must be numbers of classes of shape `(samples,)` or `(samples, 1)`, or one-hot of "
            f"shape `(samples, classes)`. Received: {y.dtype} of shape {y.shape}"
        )
    is_class = y >= 0
    if y.dtype.kind == "f":
        is_class &= np.isfinite(y) & (y == np.floor(y))
    if not is_class.all():
        at = int(np.argmin(is_class))
        raise ValueError(f"`y` must be 0 or more, and whole. Received: y[{at}]={y[at]}")
    return y.astype(np.int64)


def _refuse_y(y: Any, sample_weight: Any, of: str) -> None:
    if y is not None or sample_weight is not None:
        raise ValueError(f"`y` and `sample_weight` must be part of the samples of {of}.")


def _common_length(parts: Any) -> int:
    arrays = keras.tree.flatten(parts)
    if not all(array.ndim for array in arrays):
        raise ValueError(
            "`x`, `y` and `sample_weight` must be arrays, or structures of arrays; a list is a "
            "structure of what it holds. Received: a structure of numbers"
        )
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(
            "`x`, `y` and `sample_weight` must have the same number of samples. "
            f"Received: {sorted(lengths)} samples"
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
    if not size:
        raise ValueError("`x` must hold at least one sample. Received: none")
    for spec in keras.tree.flatten(dataset.element_spec):
        if not isinstance(spec, tf.TensorSpec) or None in spec.shape:
            raise ValueError(
                "`x` must be a dataset of single samples, which are dense and of one shape; "
                f"`unbatch` a batched one. Received: {spec}"
            )
    blocks = list(dataset.batch(_BLOCK).as_numpy_iterator())
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *blocks)
