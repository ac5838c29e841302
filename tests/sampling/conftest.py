"""What the tests of sampling share: a selector that keeps all it is told, small models and data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient import sampling

CLASSES = 3
_rng = np.random.default_rng(0)
X = _rng.normal(size=(50, 4)).astype("float32")
Y = _rng.integers(0, CLASSES, 50)


class Everything(sampling.Memory):
    """Keeps the ids and values of every step."""

    score_name = "count"
    score_edges = np.linspace(0.0, 10.0, 11)

    def __init__(self, size, observes):
        self.size = size
        self.observes = observes
        self.steps = []

    def append(self, ids, values):
        self.steps.append((np.array(ids), np.array(values)))

    def scores(self, classes):
        ids = np.concatenate([ids for ids, _ in self.steps])
        return np.bincount(ids, minlength=self.size).astype(float)

    def hardness(self, labels):
        return np.zeros(self.size)

    def arrays(self):
        return {}

    def restore(self, arrays):
        del arrays


@keras.saving.register_keras_serializable(package="tests")
class Watcher(sampling.BatchSelector):
    """Draws evenly, and keeps all observations of one kind."""

    def __init__(self, observes="label", batch_size=10, **arguments):
        super().__init__(batch_size, **arguments)
        self.observes = observes

    def make_memory(self, size):
        return Everything(size, self.observes)

    def select(self, epoch):
        return sampling.Draws()

    def ids(self):
        """The ids of each step so far."""
        return [ids for ids, _ in self.memory.steps]

    def values(self):
        """The observations of each step so far."""
        return [values for _, values in self.memory.steps]


class Plans(keras.callbacks.Callback):
    """Keeps the batches of each epoch as they are planned when it begins."""

    def __init__(self, selector):
        super().__init__()
        self.selector = selector
        self.epochs = {}

    def on_epoch_begin(self, epoch, logs=None):
        batches = self.selector._planned().batches
        self.epochs[epoch] = [np.asarray(ids).tolist() for ids in batches]


class Killer(keras.callbacks.Callback):
    """Ends a run in the way a user does, at the start of an epoch or after a step of it."""

    def __init__(self, epoch, step=None):
        super().__init__()
        self.epoch = epoch
        self.step = step
        self.current = None

    def on_epoch_begin(self, epoch, logs=None):
        self.current = epoch
        if self.step is None and epoch == self.epoch:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        if self.current == self.epoch and batch == self.step:
            raise KeyboardInterrupt


def small_model(outputs=CLASSES, activation="softmax", seed=1):
    """A functional model over rows of four numbers."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(outputs, activation)(inputs))


def compiled(
    model, learning_rate=0.0, loss="sparse_categorical_crossentropy", momentum=0.0, **arguments
):
    model.compile(keras.optimizers.SGD(learning_rate, momentum), loss, **arguments)
    return model


def fit(model, dataset, selector, epochs=1, callbacks=(), **arguments):
    """`fit` with the selector last among the callbacks."""
    callbacks = [*callbacks, selector]
    return model.fit(
        dataset, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0, **arguments
    )


def observation(kind, y, probabilities):
    """What NumPy makes of labels `(n,)` or `(n, classes)`, and probabilities `(n, classes)`."""
    if kind == "label":
        return probabilities.argmax(axis=1)
    one_hot = np.eye(probabilities.shape[1])[y.astype(int)] if y.ndim == 1 else y
    if kind == "probability":
        return (one_hot * probabilities).sum(axis=1)
    return -(one_hot * np.log(probabilities)).sum(axis=1)


def assert_observed(selector, expected, epochs=1, tolerance=1e-5):
    """Every step was recorded, and said of its samples what is expected of all of them."""
    steps = -(-len(expected) // selector.batch_size)
    assert len(selector.memory.steps) == epochs * steps
    for ids, values in selector.memory.steps:
        assert len(ids) == selector.batch_size
        np.testing.assert_allclose(values, expected[ids], rtol=tolerance, atol=tolerance)


def two_replicas():
    # Collective ops remember the programs of strategies before, and abort where they differ.
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


class Shared:
    """What test modules use, which cannot import each other."""

    CLASSES = CLASSES
    X = X
    Y = Y
    Everything = Everything
    Watcher = Watcher
    Plans = Plans
    Killer = Killer
    small_model = staticmethod(small_model)
    compiled = staticmethod(compiled)
    fit = staticmethod(fit)
    observation = staticmethod(observation)
    assert_observed = staticmethod(assert_observed)
    two_replicas = staticmethod(two_replicas)


@pytest.fixture(scope="session")
def shared():
    return Shared
