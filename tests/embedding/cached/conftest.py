"""What the tests of cached tables share: layers, their uncached twins, and children to kill."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.ops import _loader

# There is no reference of these layers: without the native library there is nothing to test.
collect_ignore_glob = [] if _loader._LIBRARY.exists() else ["test_*"]

ROWS, DIM = 40, 4
TARGET = np.linspace(-1, 1, DIM, dtype="float32")
_CHILDREN = Path(__file__).with_name("children.py")


def adagrad():
    return tfrec.optimizers.Adagrad(0.1)


def cached(path, rows=ROWS, cache_rows=ROWS // 2, optimizer=adagrad, **arguments):
    """A small layer that is built."""
    arguments.setdefault("embeddings_initializer", keras.initializers.RandomUniform(seed=3))
    layer = tfrec.CachedEmbedding(rows, DIM, cache_rows, path, optimizer=optimizer(), **arguments)
    layer.build()
    return layer


def values(tensor):
    if isinstance(tensor, tf.RaggedTensor):
        return tensor.flat_values
    return tensor.values if isinstance(tensor, tf.SparseTensor) else tensor


def as_bytes(tensor):
    return None if tensor is None else tf.convert_to_tensor(tensor).numpy().tobytes()


def rows_of(layer):
    """Weights and optimizer state of all rows."""
    return layer._rows.table.read(np.arange(layer.stats().rows)).numpy()[:, :-2]


class Twin:
    """An `EmbeddingBag` that begins with the rows of a cached layer, and its optimizer."""

    def __init__(self, layer, optimizer):
        start = layer.read_rows(np.arange(layer.stats().rows))
        self.bag = tfrec.EmbeddingBag(
            *start.shape,
            layer.combiner,
            padding_id=layer.padding_id,
            weights=start,
            dtype=layer.dtype_policy,
        )
        self.bag.build()
        self.optimizer = optimizer
        optimizer.build([self.bag.embeddings])

    def apply(self, gradient):
        self.optimizer.apply([gradient], [self.bag.embeddings])

    def rows(self):
        own = (self.optimizer.iterations, self.optimizer._learning_rate)
        slots = [v for v in self.optimizer.variables if not any(v is o for o in own)]
        table = self.bag.embeddings.numpy()
        return np.concatenate([table, *(s.numpy().reshape(len(table), -1) for s in slots)], 1)


def trainer(layer, in_graph=False):
    """A training step of a layer or a twin, which returns the bits of what comes out."""
    if isinstance(layer, Twin):
        model, source, apply = layer.bag, layer.bag.embeddings.value, layer.apply
    else:
        model, source, apply = layer, layer.hook.value, lambda gradient: None

    def run(ids, weights=None):
        with tf.GradientTape() as tape:
            if weights is not None:
                tape.watch(values(weights))
            pooled = values(model(ids, weights))
            loss = tf.reduce_sum((tf.cast(pooled, tf.float32) - TARGET) ** 2)
        of_weights = [] if weights is None else [values(weights)]
        of_rows, *of_weights = tape.gradient(loss, [source, *of_weights])
        apply(of_rows)
        return pooled, *of_weights

    step = tf.function(run, reduce_retracing=True) if in_graph else run
    return lambda *args: [as_bytes(result) for result in step(*args)]


def batches(count=8, batch=6, hotness=3, rows=ROWS, seed=0):
    """Ids of which few are frequent, and some come twice in a batch."""
    rng = np.random.default_rng(seed)
    return [rng.zipf(1.2, (batch, hotness)) % rows for _ in range(count)]


def most_rows(of_batches):
    """What is the least cache for these batches."""
    return max(len(np.unique(batch)) for batch in of_batches)


def assert_same_rows(layer, twin):
    """All bits of weights and optimizer state, and not those that they began with."""
    ours, theirs = rows_of(layer), twin.rows()
    assert ours.shape == theirs.shape
    differ = np.flatnonzero((ours != theirs).any(axis=1))
    assert ours.tobytes() == theirs.tobytes(), f"rows {differ.tolist()} differ"


class Nursery:
    """Calls functions of `children.py` in processes of their own."""

    def __init__(self, folder):
        self._folder = folder
        self._count = 0
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._parent = subprocess.Popen(
            [sys.executable, _CHILDREN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, call, **arguments):
        """Returns a function that waits, and another one that kills."""
        self._count += 1
        answer = self._folder / f"{self._count}.json"
        request = {"call": call, "arguments": arguments, "answer": str(answer)}
        self._parent.stdin.write(json.dumps(request, default=str) + "\n")
        self._parent.stdin.flush()
        child = int(self._parent.stdout.readline())

        def wait():
            assert self._parent.stdout.readline() == "gone\n"
            if not answer.exists():
                return None
            result = json.loads(answer.read_text())
            assert "error" not in result, result["error"]
            return result["value"]

        def kill():
            os.kill(child, signal.SIGKILL)
            return wait()

        return wait, kill

    def call(self, call, **arguments):
        """What a function returns, or None where its process was killed."""
        wait, _ = self.start(call, **arguments)
        return wait()

    def close(self):
        self._parent.kill()
        self._parent.communicate()


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("answers"))
    yield nursery
    nursery.close()


def _load_children():
    spec = importlib.util.spec_from_file_location("children", _CHILDREN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Shared:
    """What test modules use, which cannot import each other."""

    ROWS, DIM = ROWS, DIM
    Twin = Twin
    children = _load_children()
    adagrad = staticmethod(adagrad)
    as_bytes = staticmethod(as_bytes)
    assert_same_rows = staticmethod(assert_same_rows)
    batches = staticmethod(batches)
    cached = staticmethod(cached)
    most_rows = staticmethod(most_rows)
    rows_of = staticmethod(rows_of)
    trainer = staticmethod(trainer)
    values = staticmethod(values)


@pytest.fixture(scope="session")
def shared():
    return Shared


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"
