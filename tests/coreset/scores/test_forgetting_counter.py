"""Forgetting is going from right to wrong, as counted by hand."""

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfrec_efficient.coreset.scores.forgetting_counter import ForgettingCounter

rng = np.random.default_rng(0)
X = rng.normal(size=(23, 4)).astype("float32")
Y = rng.integers(0, 3, 23)


def examples(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def small_model(outputs=3, activation="softmax", **arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs, activation)])
    model.compile(keras.optimizers.SGD(2.0), "mse", **arguments)
    return model


class Predictions(keras.callbacks.Callback):
    """What Keras predicts after each epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.model.predict(X, verbose=0))


def fit(model, counter, epochs=4, y=None, batch_size=4):
    seen = Predictions()
    y = np.eye(3)[Y] if y is None else y
    batches = examples(y=y).shuffle(23, seed=0).batch(batch_size)
    model.fit(batches, epochs=epochs, callbacks=[counter, seen], shuffle=False, verbose=0)
    return np.stack(seen.epochs)


def slow_events(right):
    events = []
    for sample in right.T.tolist():
        count = 0
        for before, now in zip(sample[:-1], sample[1:], strict=True):
            count += before and not now
        events.append(count if any(sample) else len(sample))
    return events


def counted(right):
    counter = ForgettingCounter(examples())
    counter.right_ = np.array(right, bool)
    return counter.events_


def test_worked_by_hand():
    of_samples = [
        [1, 1, 1, 1, 1],  # always right: never forgotten
        [0, 0, 1, 1, 1],  # learned late, and kept
        [1, 0, 1, 0, 1],  # forgotten twice
        [0, 1, 1, 0, 0],  # forgotten once, for good
        [0, 0, 0, 0, 0],  # never right: as often as there are epochs, which is more than any other
    ]
    events = counted(np.array(of_samples).T)
    assert events.tolist() == [0, 0, 2, 1, 5]
    assert events.dtype == np.int64


@hypothesis.settings(deadline=None)
@hypothesis.given(hnp.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 9))))
def test_events_are_those_of_a_slow_count(right):
    events = counted(right)
    assert events.tolist() == slow_events(right)
    never = ~right.any(axis=0)
    if never.any() and not never.all():
        assert events[never].min() > events[~never].max()


def mirrored(**arguments):
    # Collective ops remember the programs of strategies before, and abort where they differ.
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        return small_model(**arguments)


@pytest.mark.parametrize(
    "kind", ["graph", "eager", pytest.param("mirrored", marks=pytest.mark.slow)]
)
def test_it_sees_what_the_model_predicts_after_each_epoch(kind):
    model = mirrored() if kind == "mirrored" else small_model(run_eagerly=kind == "eager")
    counter = ForgettingCounter(examples(), batch_size=10)
    predictions = fit(model, counter)
    right = predictions.argmax(axis=2) == Y
    assert counter.right_.tolist() == right.tolist()
    assert counter.events_.tolist() == slow_events(right)
    assert len(set(counter.events_.tolist())) > 1  # or the test could not fail


def test_one_output_and_logits():
    model = small_model(1, None)
    counter = ForgettingCounter(examples(y=Y == 2), from_logits=True)
    predictions = fit(model, counter, y=(Y == 2).astype("float32"))
    assert counter.right_.tolist() == ((predictions[:, :, 0] > 0) == (Y == 2)).tolist()


def test_counting_goes_on_over_calls_of_fit_and_from_what_was_saved():
    model = small_model()
    counter = ForgettingCounter(examples())
    before = fit(model, counter, 2).argmax(axis=2) == Y
    saved = counter.right_.copy()
    after = fit(model, counter, 2).argmax(axis=2) == Y
    assert counter.right_.tolist() == np.concatenate([before, after]).tolist()
    resumed = ForgettingCounter(examples())
    resumed.right_ = saved
    more = fit(model, resumed, 1).argmax(axis=2) == Y
    assert resumed.right_.tolist() == np.concatenate([before, more]).tolist()


def test_training_is_not_changed():
    models = [small_model(), small_model()]
    fit(models[0], ForgettingCounter(examples()))
    fit(models[1], keras.callbacks.Callback())
    for one, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_another_order_is_noticed():
    counter = ForgettingCounter(examples().shuffle(23))
    message = "same examples in the same order each time; .* other labels after epoch 2"
    with pytest.raises(ValueError, match=message):
        fit(small_model(), counter)


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (examples().batch(4), {}, "`dataset` must be one of single examples"),
        (examples().repeat(), {}, "`dataset` must be finite"),
        (examples(), {"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        (examples(), {"batch_size": 1.0}, "Received: batch_size=1.0"),
    ],
)
def test_bad_arguments(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        ForgettingCounter(dataset, **arguments)


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (examples().take(0), {}, "`dataset` must hold an example at least"),
        (examples(y=Y + 1), {}, r"whole numbers in `\[0, 3\)`. Received: 3 in row"),
        (examples(), {"activation": None}, "must be probabilities .* unless `from_logits=True`"),
    ],
)
def test_errors_while_it_counts(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(small_model(**arguments), ForgettingCounter(dataset))


def test_there_are_no_events_before_the_first_epoch():
    counter = ForgettingCounter(examples())
    with pytest.raises(ValueError, match="Give the counter to `fit` as a callback: no epoch has"):
        counter.events_  # noqa: B018
