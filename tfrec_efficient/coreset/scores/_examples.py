"""The examples that are scored: what a dataset of them must be, and their labels as classes."""

import numpy as np
import tensorflow as tf


def check_examples(dataset: tf.data.Dataset) -> None:
    """Raises the error of a dataset that is not one of finitely many single examples."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            f"`dataset` must have elements `(x, y)` or `(x, y, sample_weight)`. Received: {spec}"
        )
    if not isinstance(spec[1], tf.TensorSpec):
        raise ValueError(f"`y` must be one dense tensor of labels. Received: {spec[1]}")
    shape = spec[1].shape
    if shape.rank is None or shape.rank > 1 or (shape.rank == 1 and shape[0] is None):
        raise ValueError(
            "`dataset` must be one of single examples, whose labels have the shape `()` or "
            f"`(classes,)`; `unbatch` a batched one. Received: labels of shape {shape}"
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "`dataset` must be finite; `repeat` it afterwards. Received: infinite cardinality"
        )


def to_classes(y: np.ndarray, classes: int, first: int) -> np.ndarray:
    """Numbers of classes of a batch of labels.

    Args:
        y: Of shape `(batch,)`, `(batch, 1)` or `(batch, classes)`.
        classes: Number of classes of the model.
        first: Row of the first one, for errors.

    Raises:
        ValueError: Another shape, or a row that is no class.
    """
    if y.dtype.kind not in "biuf":
        raise ValueError(f"`y` must be numbers. Received: dtype {y.dtype}")
    if y.ndim == 2 and y.shape[1] == classes:
        is_right = ((y == 0) | (y == 1)).all(axis=1) & ((y == 1).sum(axis=1) == 1)
        found, rule = y.argmax(axis=1), "one-hot"
    elif y.ndim == 1 or y.shape[1] == 1:
        y = y.reshape(-1)
        is_right = (y >= 0) & (y < classes) & (y % 1 == 0 if y.dtype.kind == "f" else True)
        found, rule = np.where(is_right, y, 0), f"whole numbers in `[0, {classes})`"
    else:
        raise ValueError(
            f"`y` must be numbers of classes, or one-hot of the {classes} classes of the model's "
            f"output. Received: labels of shape {y.shape[1:]}"
        )
    if not is_right.all():
        at = int(np.argmin(is_right))
        raise ValueError(f"`y` must be {rule}. Received: {y[at].tolist()} in row {first + at}")
    return found.astype(np.int64)
