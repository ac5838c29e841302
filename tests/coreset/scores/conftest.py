"""What the tests of scores share: a few examples, a small model, and files of its scores."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.coreset.scores.warmup_scores import WarmupScores
from tfrec_efficient.coreset.scores.warmup_scores import warmup_scores

SIZE, CLASSES = 23, 3
_rng = np.random.default_rng(0)
X = _rng.normal(size=(SIZE, 4)).astype("float32")
Y = _rng.integers(0, CLASSES, SIZE)
FILES = ["confidences", "embeddings", "fingerprints", "labels", "probabilities"]


def examples(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def score(model, dataset=None, **arguments):
    arguments = {"batch_size": 5, "verbose": 0, **arguments}
    return warmup_scores(model, examples() if dataset is None else dataset, **arguments)


def small_model(seed=1, classes=CLASSES, activation="softmax"):
    """A Sequential model with weights that NumPy draws, so that other processes have them."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "relu", name="hidden"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(classes, activation, name="head"),
        ]
    )
    draw = np.random.default_rng(seed)
    model.set_weights([draw.normal(size=weight.shape) for weight in model.weights])
    return model


def assert_same(found, expected):
    assert isinstance(found, WarmupScores)
    for name in FILES:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def contents(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.is_file()}


def as_if_killed(directory, rows, rng):
    """Leaves what a kill leaves: more rows than the manifest counts, and the half of another."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest |= {"rows": rows, "data": None}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    for name in FILES:
        data = (directory / f"{name}.npy").read_bytes()
        end = 128 + rows * ((len(data) - 128) // SIZE)
        garbage = rng.integers(0, 256, rng.integers(0, 40), np.uint8).tobytes()
        (directory / f"{name}.npy").write_bytes(bytes(128) + data[128:end] + garbage)
    half = directory / ".manifest.json-killed"
    half.mkdir()
    (half / "manifest.json").write_text('{"rows"')


@pytest.fixture(scope="session")
def shared():
    return sys.modules[__name__]
