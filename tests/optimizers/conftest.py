"""What the tests of optimizers share: random gradients of rows, and the loops that take them."""

import keras
import numpy as np
import pytest
import tensorflow as tf


class Steps:
    """Gradients of some rows of a table, step after step; ids repeat within a step."""

    def __init__(self, rows=30, dim=5, steps=100, lookups=25, every_row_once=False, seed=0):
        rng = np.random.default_rng(seed)
        self.table = rng.normal(size=(rows, dim))
        self.steps = []
        for _ in range(steps):
            ids = rng.integers(0, rows, lookups)
            if every_row_once:
                ids = rng.permutation(rows)
            self.steps.append((ids, rng.normal(size=(len(ids), dim)).astype("float32")))

    def variable(self, dtype="float64"):
        return keras.Variable(self.table, dtype=dtype, name="embeddings")

    def slices(self, dtype="float64"):
        for ids, values in self.steps:
            yield tf.IndexedSlices(tf.cast(values, dtype), tf.constant(ids), self.table.shape)

    def dense(self, dtype="float64"):
        return [tf.convert_to_tensor(gradient) for gradient in self.slices(dtype)]

    def train(self, optimizer, dtype="float64"):
        """The table after all steps of `optimizer`, as float64."""
        table = self.variable(dtype)
        optimizer.build([table])
        rows, dim = self.table.shape

        @tf.function(
            input_signature=[tf.TensorSpec([None, dim], dtype), tf.TensorSpec([None], tf.int64)]
        )
        def step(values, ids):
            optimizer.apply([tf.IndexedSlices(values, ids, (rows, dim))], [table])

        for gradient in self.slices(dtype):
            step(gradient.values, gradient.indices)
        return as_float64(table)

    def train_densely(self, optimizer, dtype="float64"):
        table = self.variable(dtype)
        for gradient in self.dense(dtype):
            optimizer.apply([gradient], [table])
        return as_float64(table)

    def train_in_v1(self, optimizer):
        """TensorFlow 1's optimizers sum what belongs to one row, and touch no other rows."""
        table = tf.Variable(self.table)
        for gradient in self.slices():
            optimizer.apply_gradients([(gradient, table)])
        return table.numpy()

    def oracle(self, update):
        """`update(table, step, row, gradient of the row)` in NumPy, in place, row by row."""
        table = self.table.copy()
        for step, (ids, values) in enumerate(self.steps):
            for row in sorted(set(ids.tolist())):
                update(table, step, row, values[ids == row].astype("float64").sum(0))
        return table


def as_float64(variable):
    return tf.cast(tf.convert_to_tensor(variable), tf.float64).numpy()


def assert_close(result, expected, tolerance=1e-5):
    """The largest error is small beside the largest value."""
    error = np.abs(result - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"relative error {error}"


def assert_same_on_dense_variables(ours, theirs, dtype="float32"):
    """Five steps of two optimizers give the same bits, in the variables and in the slots."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in ((7, 5), (5,), (2, 3, 4))]
    ends = []
    steps = [[rng.normal(size=v.shape) for v in start] for _ in range(5)]
    for optimizer in (ours, theirs):
        variables = [
            keras.Variable(v, dtype=dtype, name=name)
            for v, name in zip(start, ("kernel", "bias", "cube"), strict=True)
        ]
        for gradients in steps:
            optimizer.apply([tf.cast(gradient, dtype) for gradient in gradients], variables)
        ends.append([*variables, *optimizer.variables])
    for a, b, before in zip(*ends, [*start, *[None] * len(ends[0])], strict=False):
        assert a.numpy().tobytes() == b.numpy().tobytes()
        assert before is None or np.all(a.numpy() != before.astype(dtype))
    assert len(ends[0]) == len(ends[1])


def small_model(kind="functional", table="bag", dtype=None):
    """A model over ids of shape (batch, 4), for `fit`; compile it with `jit_compile=False`."""
    dense = keras.layers.Dense(1, name="dense")  # first, so that seeds do not depend on the kind
    if table == "bag":
        from tfrec_efficient import EmbeddingBag

        layers = [EmbeddingBag(20, 3, "mean", dtype=dtype, name="table")]
    else:
        layers = [keras.layers.Embedding(20, 3, dtype=dtype, name="table"), keras.layers.Flatten()]
    if kind == "sequential":
        return keras.Sequential([*layers, dense])
    if kind == "functional":
        x = ids = keras.Input((4,), dtype="int64")
        for layer in layers:
            x = layer(x)
        return keras.Model(ids, dense(x))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.of_model = [*layers, dense]

        def call(self, x):
            for layer in self.of_model:
                x = layer(x)
            return x

    return Subclassed()


X = np.random.default_rng(0).integers(0, 20, (32, 4))
Y = X.mean(-1) / 10


def fit(optimizer, model=None, epochs=2, strategy=None, **compile_arguments):
    """The weights and losses after some epochs, always from the same start."""
    keras.utils.set_random_seed(3)
    with (strategy or tf.distribute.get_strategy()).scope():
        model = (model or small_model)()
        model.compile(optimizer(), "mse", **{"jit_compile": False, **compile_arguments})
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    losses = model.fit(data, epochs=epochs, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    return losses, [as_float64(weight) for weight in model.weights]


def two_replicas():
    # Collective ops remember the programs of strategies before, and abort where they differ.
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def assert_same_training(a, b, tolerance=0.0):
    np.testing.assert_allclose(a[0], b[0], rtol=tolerance)
    for ours, theirs in zip(a[1], b[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


class Shared:
    """What test modules use, which cannot import each other."""

    Steps = Steps
    X = X
    Y = Y
    as_float64 = staticmethod(as_float64)
    assert_close = staticmethod(assert_close)
    assert_same_on_dense_variables = staticmethod(assert_same_on_dense_variables)
    assert_same_training = staticmethod(assert_same_training)
    fit = staticmethod(fit)
    small_model = staticmethod(small_model)
    two_replicas = staticmethod(two_replicas)


@pytest.fixture(scope="session")
def shared():
    return Shared
