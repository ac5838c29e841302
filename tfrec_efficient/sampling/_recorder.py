"""Records what a model predicts in its own training steps, as part of them."""

import concurrent.futures
import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Steps that are recorded before they are read.
CAPACITY = 256

# Instead of an observation: the prediction is not finite, or no probability, or the label no class.
NOT_FINITE, NO_PROBABILITY, NO_CLASS = -1.0, -2.0, -3.0
# Checksums are exact in float32.
_MODULUS = 1 << 24


class Recorder:
    """Adds to a model's `train_step` what writes each step's observations into variables.

    There is no second forward pass: the model's `call` is intercepted during `train_step`, or,
    where `train_step` never calls the model itself, its `compute_loss`. The variables belong to no
    model. There is one for each replica, of `CAPACITY` rows: the number of samples, the checksum of
    their labels, the number of classes, and an entry for each sample.

    Attributes:
        classes: The number of classes of the model's output, known after the first step is traced.
    """

    _COLUMNS = 3

    def __init__(
        self, model: keras.Model, observes: str, batch_size: int, from_logits: bool
    ) -> None:
        self._model = model
        self._observe = functools.partial(_OBSERVE[observes], from_logits=from_logits)
        self._step = threading.local()
        strategy = model.distribute_strategy
        replicas = strategy.num_replicas_in_sync
        self._capacity = max(CAPACITY, 2 * model.steps_per_execution)
        self._width = math.ceil(batch_size / replicas)
        # One row more takes what does not fit.
        shape = (self._capacity + 1, self._COLUMNS + self._width)
        # In a thread of its own, where no scope of a strategy makes mirrored variables of them.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            make = functools.partial(tf.Variable, trainable=False)
            self._rows = list(thread.map(make, [tf.zeros(shape)] * replicas))
            self._written = list(thread.map(make, [tf.zeros((), tf.int64)] * replicas))

        self._originals = {
            name: getattr(model, name) for name in ("train_step", "call", "compute_loss")
        }
        # Past __setattr__, with which Keras tracks what belongs to the model.
        vars(model).update(
            train_step=self._wrap_train_step(self._originals["train_step"]),
            call=self._wrap_call(self._originals["call"]),
            compute_loss=self._wrap_compute_loss(self._originals["compute_loss"]),
        )
        model.train_function = None  # traced anew, with the recording

    def detach(self) -> None:
        """Leaves the model as it was."""
        for name, original in self._originals.items():
            if getattr(original, "__self__", None) is self._model:
                del vars(self._model)[name]
            else:
                vars(self._model)[name] = original
        self._model.train_function = None

    @property
    def capacity(self) -> int:
        """Steps after which `read` must be called."""
        return self._capacity

    def clear(self) -> None:
        """Forgets what was not read."""
        for written in self._written:
            written.assign(0)

    def read(self) -> list[tuple[np.ndarray, list[tuple[int, int]], int]]:
        """Returns the observations of each step since `clear`, and clears.

        Each is the values of its samples in order, the size and label checksum of the part of each
        replica, and the number of classes.
        """
        steps = int(self._written[0])
        rows = np.stack([rows[: min(steps, self._capacity)].numpy() for rows in self._rows], axis=1)
        if steps > self._capacity:
            raise RuntimeError("Steps were lost: more ran in one execution than there is room for.")
        self.clear()
        recorded = []
        for step in rows:
            parts = [(int(row[0]), int(row[1])) for row in step]
            values = [row[self._COLUMNS :][: int(row[0])] for row in step]
            recorded.append((np.concatenate(values), parts, int(step[0, 2])))
        return recorded

    def _wrap_train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(data: Any) -> Any:
            _, self._step.y, _ = keras.utils.unpack_x_y_sample_weight(data)
            self._step.is_recorded = False
            try:
                return original(data)
            finally:
                self._step.y = None

        return train_step

    def _wrap_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            y_pred = original(*args, **kwargs)
            # A model that is not built yet is called by Keras once more, only to be built.
            if self._model.built:
                self._record(y_pred)
            return y_pred

        return call

    def _wrap_compute_loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            self._record(args[2] if len(args) > 2 else kwargs.get("y_pred"))  # after x and y
            return original(*args, **kwargs)

        return compute_loss

    def _record(self, y_pred: Any) -> None:
        """Writes a row, once in each training step."""
        y = getattr(self._step, "y", None)
        if y is None or self._step.is_recorded or y_pred is None:
            return
        self._step.is_recorded = True
        y, y_pred = _check(y, y_pred)
        replica = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
        classes = max(2, y_pred.shape[-1])
        count = tf.shape(y_pred)[0]
        values = self._observe(y, tf.cast(y_pred, tf.float32))
        about = tf.stack([tf.cast(count, tf.float32), _checksum(y), float(classes)])
        room = tf.zeros([self._width])
        row = tf.concat([about, values, room], axis=0)[: self._COLUMNS + self._width]
        written, rows = self._written[replica], self._rows[replica]
        with tf.control_dependencies([row]):
            step = written.assign_add(1, read_value=True) - 1
            rows.scatter_update(tf.IndexedSlices(row, tf.minimum(step, self._capacity)))


def _check(y: Any, y_pred: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Predictions as `(batch, outputs)`; labels as `(batch,)`, or `(batch, classes)` if one-hot."""
    if len(keras.tree.flatten(y_pred)) != 1 or not hasattr(y_pred, "shape"):
        raise ValueError(
            "The model must have one output for selection to watch. "
            f"Received: {keras.tree.map_structure(lambda t: t.shape, y_pred)}"
        )
    if y_pred.shape.rank == 1:
        y_pred = y_pred[:, None]
    if y_pred.shape.rank != 2 or y_pred.shape[1] is None:
        raise ValueError(
            "The model's output must have the shape `(batch, classes)`, or for two classes "
            f"`(batch, 1)` or `(batch,)`. Received: {y_pred.shape}"
        )
    y = tf.convert_to_tensor(y)
    y = tf.cast(y, tf.int32) if y.dtype == tf.bool else y
    if y.shape.rank == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape.rank not in (1, 2) or (y.shape.rank == 2 and y.shape[1] != y_pred.shape[1]):
        raise ValueError(
            "Labels must be numbers of classes, or one-hot of the width of the model's output. "
            f"Received: labels of shape {y.shape} for an output of shape {y_pred.shape}"
        )
    return y, y_pred


def _checksum(y: tf.Tensor) -> tf.Tensor:
    """A number that changes with labels and their order; -1 if some label belongs to no class."""
    is_known = tf.constant(True)
    if y.shape.rank == 2:
        ones = tf.reduce_sum(tf.cast(tf.equal(y, 1), tf.int32), axis=1)
        others = tf.reduce_sum(tf.cast(tf.not_equal(y, 0), tf.int32), axis=1)
        is_known = tf.reduce_all((ones == 1) & (others == 1))
        y = tf.argmax(y, axis=1)
    y = tf.cast(y, tf.int64)
    places = tf.range(1, tf.shape(y, tf.int64)[0] + 1)
    total = tf.reduce_sum((y + 1) * places) % _MODULUS
    return tf.where(is_known, tf.cast(total, tf.float32), -1.0)


def agree(parts: list[tuple[int, int]], labels: np.ndarray) -> bool:
    """Whether the recorded size and checksum of each replica's part fit a batch's labels."""
    if sum(count for count, _ in parts) != len(labels):
        return False
    start = 0
    for count, recorded in parts:
        own = labels[start : start + count].astype(np.int64)
        start += count
        if recorded >= 0 and (own >= 0).all():
            total = ((own + 1) * np.arange(1, count + 1)).sum() % _MODULUS
            if total != recorded:
                return False
    return True


def check_values(values: np.ndarray, ids: np.ndarray, classes: int) -> None:
    """Raises an error that names the first sample whose prediction cannot be used."""
    faults = np.flatnonzero(~(values >= 0))
    if not len(faults):
        return
    at = int(ids[faults[0]])
    if values[faults[0]] == NO_PROBABILITY:
        raise ValueError(
            "Predictions must be probabilities unless `from_logits=True`. "
            f"Received: one outside of [0, 1] for sample {at}"
        )
    if values[faults[0]] == NO_CLASS:
        raise ValueError(
            f"Labels must be in `[0, {classes})`, the classes of the model's output. "
            f"Received: another one for sample {at}"
        )
    raise ValueError(f"Predictions must be finite. Received: NaN or infinity for sample {at}")


def _probabilities(y_pred: tf.Tensor, from_logits: bool) -> tf.Tensor:
    """Of shape `(batch, classes)`."""
    if y_pred.shape[1] > 1:
        return tf.nn.softmax(y_pred) if from_logits else y_pred
    of_one = tf.sigmoid(y_pred) if from_logits else y_pred
    return tf.concat([1.0 - of_one, of_one], axis=1)


def _observe_label(y: tf.Tensor, y_pred: tf.Tensor, from_logits: bool) -> tf.Tensor:
    if y_pred.shape[1] > 1:
        label = tf.argmax(y_pred, axis=1)
    else:
        label = y_pred[:, 0] >= (0.0 if from_logits else 0.5)
    return _or_fault(tf.cast(label, tf.float32), y, y_pred, from_logits)


def _observe_probability(y: tf.Tensor, y_pred: tf.Tensor, from_logits: bool) -> tf.Tensor:
    found = _of_label(y, _probabilities(y_pred, from_logits))
    return _or_fault(tf.clip_by_value(found, 0.0, 1.0), y, y_pred, from_logits)


def _observe_loss(y: tf.Tensor, y_pred: tf.Tensor, from_logits: bool) -> tf.Tensor:
    if not from_logits:
        logs = tf.math.log(tf.maximum(_probabilities(y_pred, False), keras.config.epsilon()))
    elif y_pred.shape[1] > 1:
        logs = tf.nn.log_softmax(y_pred)
    else:
        logs = tf.math.log_sigmoid(tf.concat([-y_pred, y_pred], axis=1))
    return _or_fault(tf.maximum(-_of_label(y, logs), 0.0), y, y_pred, from_logits)


_OBSERVE = {"label": _observe_label, "probability": _observe_probability, "loss": _observe_loss}


def _of_label(y: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The entry of the given label, or the mean over a soft label, of shape `(batch,)`."""
    if y.shape.rank == 1:
        y = tf.one_hot(tf.cast(y, tf.int32), values.shape[1])
    return tf.reduce_sum(tf.cast(y, values.dtype) * values, axis=1)


def _or_fault(value: tf.Tensor, y: tf.Tensor, y_pred: tf.Tensor, from_logits: bool) -> tf.Tensor:
    """`value`, or what is wrong with a sample, all of which are below zero."""
    classes = max(2, y_pred.shape[1])
    if y.shape.rank == 1:
        value = tf.where(
            (y < tf.cast(0, y.dtype)) | (tf.cast(y, tf.int64) >= classes), NO_CLASS, value
        )
    if not from_logits:
        outside = (y_pred < -1e-3) | (y_pred > 1 + 1e-3)
        value = tf.where(tf.reduce_any(outside, axis=1), NO_PROBABILITY, value)
    finite = tf.reduce_all(tf.math.is_finite(y_pred), axis=1)
    return tf.where(finite, value, NOT_FINITE)
