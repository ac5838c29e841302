"""What a dataset of examples and their labels must be."""

import numpy as np
import pytest
import tensorflow as tf

X = np.random.default_rng(0).normal(size=(23, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 23)


def examples(y=Y):
    return tf.data.Dataset.from_tensor_slices((X, y))


@pytest.mark.parametrize(
    "y",
    [Y, Y.astype("uint8"), Y.astype("float32"), Y[:, None], np.eye(3)[Y], np.eye(3, dtype=bool)[Y]],
    ids=lambda y: f"{y.dtype} {y.shape[1:]}",
)
def test_labels_in_every_form(y, shared):
    scores = shared.score(shared.small_model(), examples(y))
    assert scores.labels.dtype == np.int64
    assert scores.labels.tolist() == Y.tolist()


def at(row, value, y=Y, dtype=None):
    y = y.astype(dtype or y.dtype)
    y[row] = value
    return examples(y)


ERRORS = [
    (at(7, 3), r"must be whole numbers in `\[0, 3\)`. Received: 3 in row 7"),
    (at(7, -1), "Received: -1 in row 7"),
    (at(7, 0.5, dtype=float), "Received: 0.5 in row 7"),
    (at(7, np.nan, dtype=float), "Received: nan in row 7"),
    (at(7, 0.5, np.eye(3)[Y]), r"one-hot. Received: \[0.5, 0.5, 0.5\] in row 7"),
    (examples(np.eye(4)[Y]), r"of the 3 classes .* labels of shape \(4,\)"),
    (examples(Y.astype(str)), "`y` must be numbers. Received: dtype object"),
    (examples().batch(4), "`unbatch` a batched one. Received: labels of shape"),
    (examples().repeat(), "must be finite; `repeat` it afterwards"),
    (examples().take(0), "must hold an example at least. Received: none"),
    (examples().map(lambda x, y: x), r"elements `\(x, y\)` or .*: TensorSpec"),
    (examples({"a": Y}), "must be one dense tensor of labels. Received: {'a'"),
]


@pytest.mark.parametrize(("dataset", "message"), ERRORS, ids=[message for *_, message in ERRORS])
def test_errors(dataset, message, shared):
    with pytest.raises(ValueError, match=message):
        shared.score(shared.small_model(), dataset)
