"""The callback and its dataset, from the first plan to the last figure."""

import collections
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient import sampling

ADDED = {"train_step", "call", "compute_loss", "make_train_function", "batch_selector"}


class Weighted(sampling.RandomBatches):
    """Weights samples by their number."""

    gives_sample_weight = True
    normalize_batch = False

    def select(self, epoch):
        weight = np.arange(len(self.labels)) * epoch + 1.0
        return sampling.Draws(None, weight, self.normalize_batch)


class Normalized(Weighted):
    normalize_batch = True


class Growing(sampling.RandomBatches):
    """Shows five samples more in every epoch, from 40 on, and then from 5 on."""

    def select(self, epoch):
        return sampling.Pass(np.arange(40 + 5 * epoch if epoch < 3 else 5 * (epoch - 2)))


def recency_bias(**arguments):
    defaults = {"batch_size": 10, "epochs": 8, "warmup_epochs": 2, "window": 4, "seed": 1}
    return tfrec.RecencyBias(**{**defaults, **arguments})


@pytest.fixture
def trained(shared):
    """A selector and its model after four epochs, two of which preferred samples."""
    selector = recency_bias()
    model = shared.compiled(shared.small_model(), 0.5)
    history = shared.fit(model, selector.dataset(shared.X, shared.Y), selector, epochs=4)
    return selector, model, history.history


# ---- What is shown.


def test_the_model_sees_the_planned_batches(shared):
    seen = []

    class Spy(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3, "softmax")

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            seen.append([part.numpy().tolist() for part in data])
            return super().train_step(data)

    selector = recency_bias()
    plans = shared.Plans(selector)
    model = shared.compiled(Spy(), 0.5, run_eagerly=True)
    shared.fit(model, selector.dataset(shared.X, shared.Y), selector, 4, callbacks=[plans])
    planned = [ids for epoch in range(4) for ids in plans.epochs[epoch]]
    assert len(seen) == len(planned) == 20
    for (x, y), ids in zip(seen, planned, strict=True):
        assert x == shared.X[ids].tolist()
        assert y == shared.Y[ids].tolist()


@pytest.mark.parametrize(
    "transform",
    [
        lambda dataset: dataset.prefetch(10),
        lambda dataset: dataset.map(lambda x, y: (x + 0.0, y), num_parallel_calls=2),
        lambda dataset: dataset.map(lambda x, y: (x, tf.one_hot(y, 3))).prefetch(2),
    ],
    ids=["prefetch", "map", "one_hot"],
)
def test_transforms_change_no_batch(transform, shared, trained):
    selector = recency_bias()
    dataset = transform(selector.dataset(shared.X, shared.Y))
    loss = "sparse_" * (len(dataset.element_spec[1].shape) == 1) + "categorical_crossentropy"
    model = shared.compiled(shared.small_model(), 0.5, loss)
    shared.fit(model, dataset, selector, 4)
    expected, expected_model, _ = trained
    assert selector.log == expected.log
    assert selector._planned().ids.tolist() == expected._planned().ids.tolist()
    for ours, theirs in zip(model.weights, expected_model.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_seeds_decide_the_batches(shared):
    def batches(seed):
        selector = sampling.RandomBatches(batch_size=10, seed=seed)
        selector.dataset(shared.X, shared.Y)
        return selector._planned().ids.tolist()

    assert batches(1) == batches(1) != batches(2)


def test_epochs_differ(shared):
    selector = sampling.RandomBatches(batch_size=10)
    plans = shared.Plans(selector)
    model = shared.compiled(shared.small_model())
    shared.fit(model, selector.dataset(shared.X, shared.Y), selector, 3, callbacks=[plans])
    assert plans.epochs[0] != plans.epochs[1] != plans.epochs[2]


@pytest.mark.parametrize("given", [None, np.linspace(1, 3, 50)], ids=["", "given"])
@pytest.mark.parametrize("kind", [Weighted, Normalized])
def test_weights_are_those_of_the_samples(kind, given, shared):
    selector = kind(batch_size=10)
    dataset = selector.dataset(shared.X, shared.Y, given)
    for ids, (_, _, weight) in zip(selector._planned().batches, dataset, strict=True):
        expected = ids + 1.0
        if kind is Normalized:
            expected = expected / expected.mean()
        if given is not None:
            expected = expected * given[ids]
        assert weight.dtype == tf.float32
        np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_weights_weight_the_loss(shared):
    """One step at a learning rate equals one with the weighted mean of the samples' losses."""
    selector = Weighted(batch_size=50)
    model = shared.compiled(shared.small_model(), 0.5)
    shared.fit(model, selector.dataset(shared.X, shared.Y), selector)
    twin = shared.compiled(shared.small_model(), 0.5)
    twin.train_on_batch(shared.X, shared.Y, sample_weight=np.arange(50) + 1.0)
    for ours, theirs in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_given_weights_reach_the_model(shared):
    weight = np.linspace(0, 1, 50)
    selector = sampling.RandomBatches(batch_size=50)
    model = shared.compiled(shared.small_model(), 0.5)
    shared.fit(model, selector.dataset(shared.X, shared.Y, weight), selector)
    twin = shared.compiled(shared.small_model(), 0.5)
    twin.train_on_batch(shared.X, shared.Y, sample_weight=weight)
    for ours, theirs in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_class_weights_are_left_to_keras(shared):
    watcher = shared.Watcher()
    model = shared.compiled(shared.small_model())
    dataset = watcher.dataset(shared.X, shared.Y)
    shared.fit(model, dataset, watcher, class_weight={0: 1.0, 1: 2.0, 2: 0.0})
    shared.assert_observed(watcher, model.predict(shared.X, verbose=0).argmax(axis=1))


def test_epochs_may_grow_and_shrink(shared):
    selector = Growing(batch_size=10)
    plans = shared.Plans(selector)
    model = shared.compiled(shared.small_model())
    dataset, filters = selector.dataset(shared.X, shared.Y), warnings.filters[:]
    history = shared.fit(model, dataset, selector, 6, callbacks=[plans]).history
    assert warnings.filters == filters
    sizes = [[len(ids) for ids in plans.epochs[epoch]] for epoch in range(6)]
    assert sizes == [[10, 10, 10, 10, 5], [10] * 5, [5], [10], [10, 5], [10, 10]]
    assert history["share_shown"] == pytest.approx([0.9, 1.0, 0.1, 0.2, 0.3, 0.4])
    assert (
        selector.memory.votes().tolist()
        == [6] * 5 + [5] * 5 + [4] * 5 + [3] * 5 + [2] * 25 + [1] * 5
    )


# ---- What is remembered.


def test_a_plain_loop_finds_the_same_uncertainties(shared):
    """No recorder and no arrays: one forward pass before each update, and lists of labels."""
    selector = recency_bias()
    plans = shared.Plans(selector)
    model = shared.compiled(shared.small_model(), 1.0, momentum=0.9)
    shared.fit(model, selector.dataset(shared.X, shared.Y), selector, 5, callbacks=[plans])

    twin = shared.compiled(shared.small_model(), 1.0, momentum=0.9)
    histories = [[] for _ in shared.X]
    for epoch in range(5):
        for ids in plans.epochs[epoch]:
            for sample, label in zip(ids, np.argmax(twin(shared.X[ids]), axis=1), strict=True):
                histories[sample].append(int(label))
            twin.train_on_batch(shared.X[ids], shared.Y[ids])
    for sample, history in enumerate(histories):
        last = history[-4:]
        shares = [count / len(last) for count in collections.Counter(last).values()]
        expected = -sum(share * math.log(share) for share in shares) / math.log(3) if last else 1
        assert selector.uncertainty()[sample] == pytest.approx(expected, abs=1e-6)
    assert 0.1 < selector.uncertainty().mean() < 0.9
    wrong = [
        np.mean([label != y for label in history[-4:]]) if history else -1
        for history, y in zip(histories, shared.Y, strict=True)
    ]
    assert selector.hardest(7).tolist() == np.argsort(-np.array(wrong), kind="stable")[:7].tolist()


def test_several_fits_are_one_long_fit(shared, trained):
    expected, expected_model, history = trained
    selector = recency_bias()
    model = shared.compiled(shared.small_model(), 0.5)
    parts = []
    for epochs in (1, 2, 1):
        dataset = selector.dataset(shared.X, shared.Y)  # anew, of the same samples
        parts.append(shared.fit(model, dataset, selector, epochs).history)
    assert selector.log == expected.log
    assert [entry["epoch"] for entry in selector.log] == [1, 2, 3, 4]
    assert {name: sum((part[name] for part in parts), []) for name in history} == history
    assert selector._planned().ids.tolist() == expected._planned().ids.tolist()
    for ours, theirs in zip(model.weights, expected_model.weights, strict=True):
        assert ours.numpy().tolist() == theirs.numpy().tolist()


@pytest.mark.parametrize("arguments", [{"steps_per_execution": 2}, {"run_eagerly": True}])
def test_validation_in_between_is_not_recorded(arguments, shared, trained):
    expected, _, _ = trained
    selector = recency_bias()
    model = shared.compiled(shared.small_model(), 0.5, **arguments)
    dataset = selector.dataset(shared.X, shared.Y)
    validation = (shared.X[::-1], (shared.Y + 1) % 3)
    history = shared.fit(model, dataset, selector, 4, validation_data=validation).history
    assert len(history["val_loss"]) == 4
    assert selector.log == expected.log
    arrays, of_expected = selector.memory.arrays(), expected.memory.arrays()
    assert all((arrays[name] == of_expected[name]).all() for name in of_expected)


def test_stopping_within_an_epoch_keeps_what_was_shown(shared):
    watcher = shared.Watcher()

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2

    model = shared.compiled(shared.small_model())
    dataset = watcher.dataset(shared.X, shared.Y)
    shared.fit(model, dataset, watcher, 3, callbacks=[Stop()])
    assert len(watcher.memory.steps) == 3
    shown = len(set(np.concatenate(watcher.ids()).tolist()))
    assert [entry["share_shown"] for entry in watcher.log] == [shown / 50]
    shared.fit(model, dataset, watcher)
    assert len(watcher.memory.steps) == 3 + 5
    assert [entry["epoch"] for entry in watcher.log] == [1, 2]


def test_an_interrupted_epoch_is_shown_again(shared):
    selector = recency_bias()
    model = shared.compiled(shared.small_model(), 0.5)
    dataset = selector.dataset(shared.X, shared.Y)
    first, second = shared.Plans(selector), shared.Plans(selector)
    with pytest.raises(KeyboardInterrupt):
        shared.fit(model, dataset, selector, 4, callbacks=[first, shared.Killer(2, 3)])
    model.fit(shared.X, shared.Y, batch_size=10, shuffle=False, verbose=0)  # without a selector
    shared.fit(model, dataset, selector, 2, callbacks=[second])
    assert first.epochs[2] == second.epochs[0] != second.epochs[1]
    assert [entry["epoch"] for entry in selector.log] == [1, 2, 3, 4]
    assert not ADDED & set(vars(model))
    assert selector.labels.tolist() == shared.Y.tolist()


# ---- What is told.


def test_figures_of_an_epoch(trained, shared):
    selector, _, history = trained
    assert [entry["epoch"] for entry in selector.log] == [1, 2, 3, 4]
    for entry in selector.log:  # a sample with a score is easy, hard or moderate
        shares = [entry[f"share_{kind}"] for kind in ("easy", "hard", "moderate")]
        assert sum(entry["scores"]) == round(50 * sum(shares))
        assert min(shares) >= 0
    names = ["share_shown", "selection_pressure", "share_easy", "share_hard", "share_moderate"]
    for name in names:
        assert history[name] == [entry[name] for entry in selector.log]
    last = selector.log[-1]
    scores = selector.memory.scores(3)
    is_seen = ~np.isnan(scores)
    edges = selector.memory.score_edges
    assert last["scores"] == np.histogram(scores[is_seen], edges)[0].tolist()
    assert sum(last["scores"]) == is_seen.sum()
    assert history["selection_pressure"] == pytest.approx([1, 1, 100 ** (5 / 6), 100 ** (4 / 6)])
    assert 0 < last["share_shown"] < 1


def test_the_progress_bar_shows_figures(shared, capsys):
    selector = recency_bias()
    model = shared.compiled(shared.small_model())
    dataset = selector.dataset(shared.X, shared.Y)
    model.fit(dataset, epochs=1, callbacks=[selector], verbose=2, shuffle=False)
    assert "share_shown: " in capsys.readouterr().out


def test_tensorboard_gets_a_histogram_and_every_figure(shared, tmp_path):
    selector = recency_bias(log_dir=str(tmp_path))
    model = shared.compiled(shared.small_model(), 0.5)
    dataset = selector.dataset(shared.X, shared.Y)
    for epochs in (1, 2):
        shared.fit(model, dataset, selector, epochs)
    from tensorflow.core.util import event_pb2

    found = collections.defaultdict(dict)
    [path] = tmp_path.iterdir()
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = event_pb2.Event.FromString(record)
        for value in event.summary.value:
            found[value.tag][event.step] = tf.make_ndarray(value.tensor)
    histograms = found.pop("uncertainty")
    assert sorted(histograms) == [1, 2, 3]
    scores = selector.memory.scores(3)
    assert histograms[3][:, 2].sum() == (~np.isnan(scores)).sum()  # of left, right, count
    assert histograms[3][:, 1].max() == pytest.approx(np.nanmax(scores))
    assert set(found) == set(selector.log[0]) - {"epoch", "scores"}
    for name, values in found.items():
        assert values == {e["epoch"]: pytest.approx(e[name]) for e in selector.log}


def test_the_hardest_samples_come_worst_first(trained, shared):
    selector, _, _ = trained
    hardness = selector.memory.hardness(shared.Y)
    ids = selector.hardest(1000)
    assert len(ids) == (~np.isnan(hardness)).sum() <= 50
    assert (np.diff(hardness[ids]) <= 0).all()
    assert selector.hardest(5).tolist() == ids[:5].tolist()
    unseen = recency_bias()
    unseen.dataset(shared.X, shared.Y)
    assert len(unseen.hardest()) == 0


def test_the_state_of_imagenet_fits_into_40_megabytes():
    size = 1_280_000
    selector = tfrec.RecencyBias(batch_size=128, window=10)
    selector.dataset(np.zeros(size, np.uint8), np.arange(size) % 1000)
    plan = selector._planned()
    selector.memory.append(plan.batch(0), np.full(128, 999.0, np.float32))
    arrays = [*selector.memory.arrays().values(), selector.labels, plan.ids, plan.factors]
    assert selector.memory.arrays()["ring"].dtype == np.uint16
    assert plan.ids.shape == (10_000 * 128,)
    assert sum(array.nbytes for array in arrays) < 40e6


def test_a_config_makes_the_same_selector():
    selector = recency_bias(from_logits=True, log_dir="somewhere")
    config = selector.get_config()
    assert config["batch_size"] == 10
    assert config["from_logits"] is True
    assert config["log_dir"] == "somewhere"
    assert tfrec.RecencyBias(**config).get_config() == config


# ---- Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 0},
            "`batch_size` must be an integer of at least 1. Received: batch_size=0",
        ),
        ({"seed": -1}, "`seed` must be an integer of at least 0. Received: seed=-1"),
        ({"window": 0}, "`window` must be an integer of at least 1. Received: window=0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        recency_bias(**arguments)


def test_a_batch_larger_than_the_data(shared):
    message = "`batch_size` must be at most the number of samples, 50. Received: batch_size=51"
    with pytest.raises(ValueError, match=message):
        recency_bias(batch_size=51).dataset(shared.X, shared.Y)


@pytest.mark.parametrize(
    "use",
    [
        lambda selector, model: model.fit(
            np.zeros((1, 4)), np.zeros(1), callbacks=[selector], shuffle=False
        ),
        lambda selector, model: selector.memory,
        lambda selector, model: selector.labels,
        lambda selector, model: selector.hardest(),
        lambda selector, model: selector.load("model.keras"),
    ],
)
def test_a_selector_needs_its_dataset_first(use, shared):
    model = shared.compiled(shared.small_model())
    message = "`RecencyBias.dataset` must be called before, .* Received: no dataset"
    with pytest.raises(ValueError, match=message):
        use(recency_bias(), model)
    assert not ADDED & set(vars(model))


def test_another_dataset_needs_another_selector(shared, trained):
    selector, model, _ = trained
    message = "make a new selector for another dataset. Received: 49 samples after 50$"
    with pytest.raises(ValueError, match=message):
        selector.dataset(shared.X[1:], shared.Y[1:])
    with pytest.raises(ValueError, match="Received: 50 samples after 50 with other labels"):
        selector.dataset(shared.X, 2 - shared.Y)
    shared.fit(model, selector.dataset(2 * shared.X, shared.Y), selector)  # say, augmented
    assert len(selector.log) == 5


def other(selector, shared):
    selector.dataset(shared.X, shared.Y)
    return tf.data.Dataset.from_tensor_slices((shared.X, shared.Y)).batch(10)


def changed(change):
    return lambda selector, shared: change(selector.dataset(shared.X, shared.Y))


DATASETS = {
    "other": (other, {}, "`fit` must be given the dataset that this selector returned. Received: "
              "another one"),
    "shuffled": (changed(lambda d: d.shuffle(10, seed=1)), {},
                 "must reach the model as the selector made them, in their order and with their "
                 r"labels. Received: 10 other samples in step \d"),
    "rebatched": (changed(lambda d: d.rebatch(7)), {}, "Received: 7 other samples in step 1"),
    "reversed": (changed(lambda d: d.map(lambda x, y: (x[::-1], y[::-1]))), {},
                 "Received: 10 other samples in step 1"),
    "repeated": (changed(lambda d: d.repeat(2)), {},
                 "must have the 5 steps that the selector planned. Received: more; was the dataset "
                 "repeated"),
    "endless": (changed(lambda d: d.repeat()), {}, "Received: more; was the dataset repeated"),
    "fewer": (changed(lambda d: d.take(3)), {}, "has as many steps as the selector planned, 5. "
              "Received: 3 steps"),
    "steps": (changed(lambda d: d), {"steps_per_epoch": 3},
              "`steps_per_epoch` must be None, .* planned, 5. Received: 3 steps"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "steps_per_execution"),
    [*((what, 1) for what in DATASETS), ("other", 3), ("repeated", 3), ("steps", 3)],
)
def test_a_dataset_that_is_not_as_it_was_returned(what, steps_per_execution, shared):
    make, arguments, message = DATASETS[what]
    selector = recency_bias()
    model = shared.compiled(shared.small_model(), steps_per_execution=steps_per_execution)
    with pytest.raises(ValueError, match=message):
        shared.fit(model, make(selector, shared), selector, 2, **arguments)
    assert not ADDED & set(vars(model))
    if steps_per_execution > 1:
        return
    model.fit(shared.X, shared.Y, batch_size=10, shuffle=False, verbose=0)
    selector = recency_bias()
    shared.fit(model, selector.dataset(shared.X, shared.Y), selector, 2)
    assert len(selector.log) == 2


def test_epochs_of_any_length_need_a_dataset_of_known_size(shared):
    """Else Keras would cut all epochs to the size of the first, in silence."""
    model = shared.compiled(shared.small_model())
    selector = Growing(batch_size=10)
    dataset = selector.dataset(shared.X, shared.Y)
    shared.fit(model, dataset, selector, 3)
    with pytest.raises(ValueError, match="a dataset of unknown size, 1 steps now and up to 5 lat"):
        shared.fit(model, dataset.map(lambda x, y: (x, y)), selector, 3)
    assert not ADDED & set(vars(model))
    shared.fit(model, dataset, selector, 2)
    assert [round(50 * entry["share_shown"]) for entry in selector.log] == [45, 50, 5, 10, 15]


def test_epochs_of_any_length_can_be_transformed_by_dataset(shared):
    scores = []
    for transform in (None, lambda dataset: dataset.map(lambda x, y: (x + 0.0, y))):
        selector = Growing(batch_size=10)
        dataset = selector.dataset(shared.X, shared.Y, transform=transform)
        model = shared.compiled(shared.small_model(), 0.5)
        for _ in range(2):  # the second begins with an epoch of one step
            shared.fit(model, dataset, selector, 3)
        scores.append(selector.log)
    assert scores[0] == scores[1]
    assert [round(50 * entry["share_shown"]) for entry in scores[0]] == [45, 50, 5, 10, 15, 20]


FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("loss", "from_logits", "received"),
    [
        (FROM_LOGITS, False, "loss, True. Received: from_logits=False"),
        ("sparse_categorical_crossentropy", True, "loss, False. Received: from_logits=True"),
        (keras.losses.SparseCategoricalCrossentropy(), False, None),
        (FROM_LOGITS, True, None),
        (lambda y, y_pred: FROM_LOGITS(y, y_pred), True, None),  # of which nothing is known
    ],
    ids=["not_said", "said_wrongly", "said_in_the_loss", "said_twice", "of_any_function"],
)
def test_the_loss_says_whether_outputs_are_logits(loss, from_logits, received, shared):
    activation = None if from_logits else "softmax"
    model = shared.compiled(shared.small_model(activation=activation), loss=loss)
    selector = recency_bias(from_logits=from_logits)
    dataset = selector.dataset(shared.X, shared.Y)
    if received is None:
        shared.fit(model, dataset, selector)
        return
    with pytest.raises(ValueError, match=f"`from_logits` must be that of the model's {received}"):
        shared.fit(model, dataset, selector)
    assert not ADDED & set(vars(model))


def test_training_by_others_while_fit_runs_is_an_error(shared):
    class Meddle(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.train_on_batch(shared.X, shared.Y)

    model = shared.compiled(shared.small_model())
    selector = recency_bias()
    with pytest.raises(ValueError, match="must not be trained by others while `fit` runs"):
        shared.fit(model, selector.dataset(shared.X, shared.Y), selector, callbacks=[Meddle()])
    assert not ADDED & set(vars(model))


def test_a_run_that_keras_ends_for_nan_ends_without_an_error(shared):
    model = shared.compiled(shared.small_model(), 1e30)
    selector = recency_bias()
    dataset = selector.dataset(1e9 * shared.X, shared.Y)
    shared.fit(model, dataset, selector, 3, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert len(selector.log) == 1
    assert not ADDED & set(vars(model))


def test_a_selector_that_was_forgotten_is_missed(shared):
    dataset = recency_bias().dataset(shared.X, shared.Y)
    for _ in range(4):
        list(dataset)
    with pytest.warns(UserWarning, match="Is the selector among the callbacks of `fit`?"):
        list(dataset)


def test_a_run_that_does_not_begin_at_the_beginning_is_told(shared):
    model = shared.compiled(shared.small_model())
    selector = recency_bias()
    dataset = selector.dataset(shared.X, shared.Y)
    with pytest.warns(UserWarning, match="`initial_epoch` is 2, but RecencyBias remembers no ep"):
        shared.fit(model, dataset, selector, 3, initial_epoch=2)
    shared.fit(model, dataset, selector, 4, initial_epoch=3)  # it remembers one
    assert len(selector.log) == 2


class Fickle(sampling.RandomBatches):
    def select(self, epoch):
        return sampling.Draws() if epoch < 2 else sampling.Pass(np.arange(50))


class Untold(sampling.RandomBatches):
    def select(self, epoch):
        return sampling.Draws(None, np.ones(50, np.float32) if epoch > 1 else None)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Fickle, "`select` must always return Draws, as it did before. Received: Pass"),
        (Untold, "Received: Untold.gives_sample_weight=False"),
    ],
)
def test_a_selector_must_keep_its_kind(kind, message, shared):
    selector = kind(batch_size=10)
    model = shared.compiled(shared.small_model())
    with pytest.raises(ValueError, match=message):
        shared.fit(model, selector.dataset(shared.X, shared.Y), selector, 2)
    assert not ADDED & set(vars(model))
