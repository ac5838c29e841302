"""What is kept is what was chosen, of the dataset that was scored, and of no other."""

import warnings

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tfrec_efficient.coreset import filters
from tfrec_efficient.coreset.coreset_selector import CoresetSelector
from tfrec_efficient.coreset.filters import keep
from tfrec_efficient.coreset.filters import select
from tfrec_efficient.coreset.filters import with_index
from tfrec_efficient.coreset.scores._fingerprint import fingerprint
from tfrec_efficient.coreset.scores.warmup_scores import warmup_scores
from tfrec_efficient.testing import run_dataset_transform_test

SIZE = 23
rng = np.random.default_rng(0)
X = rng.normal(size=(SIZE, 4)).astype("float32")
Y = rng.integers(0, 3, SIZE)
CHOSEN = [7, 2, 20, 11]


class Unconfident(CoresetSelector):
    """Chooses those in whose labels the model believes least."""

    requires = ("confidences", "embeddings")

    def _choose(self, samples, count):
        return np.argsort(samples.need("confidences"), kind="stable")[:count]


class Forgotten(CoresetSelector):
    """Chooses those that were forgotten most."""

    requires = ("forgetting_events",)

    def _choose(self, samples, count):
        self.events = samples.need("forgetting_events")
        return np.argsort(-self.events, kind="stable")[:count]


def examples(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def prints(dataset):
    return np.array(list(dataset.map(fingerprint).as_numpy_iterator()))


PRINTS = prints(examples())


def unknown(dataset):
    dataset = dataset.filter(lambda *element: True)
    assert dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
    return dataset


def numbers(size=SIZE):
    return tf.data.Dataset.range(size)


def kept(dataset):
    return [int(number) for number in dataset.as_numpy_iterator()]


# ---- keep.


@pytest.mark.parametrize("with_prints", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_it_is_a_transform(known, with_prints):
    dataset = examples() if known else unknown(examples())
    transform = keep(CHOSEN, fingerprints=PRINTS if with_prints else None)
    run_dataset_transform_test(transform, dataset, [(X[i], Y[i]) for i in sorted(CHOSEN)])
    assert int(dataset.apply(transform).cardinality()) == len(CHOSEN)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.data(), st.integers(1, 40))
def test_it_keeps_what_was_chosen_in_the_order_of_the_dataset(data, size):
    chosen = data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True))
    transform = keep(chosen, warn=False)
    assert kept(numbers(size).apply(transform)) == sorted(chosen)
    assert kept(unknown(numbers(size)).apply(transform)) == sorted(chosen)


NESTED = {
    "dict": {"x": X, "words": [f"word {i}" for i in range(SIZE)]},
    "nested": ({"x": X, "more": (Y, {"flags": Y > 1})}, Y, np.ones(SIZE)),
    "ragged": (tf.ragged.constant([[list(range(i % 4)), [i]] for i in range(SIZE)]), Y),
    "sparse": (tf.sparse.from_dense(np.maximum(X, 0)), Y),
    "single": X,
}


@pytest.mark.parametrize("kind", NESTED)
def test_elements_of_any_structure_stay_as_they_are(kind):
    dataset = tf.data.Dataset.from_tensor_slices(NESTED[kind])
    every = list(dataset)
    transform = keep(CHOSEN, fingerprints=prints(dataset))
    run_dataset_transform_test(transform, dataset, [every[i] for i in sorted(CHOSEN)])


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
def test_integers_of_any_kind(dtype):
    assert kept(numbers().apply(keep(np.array(CHOSEN, dtype)))) == sorted(CHOSEN)


def test_it_works_under_what_follows():
    dataset = examples().apply(keep(CHOSEN, fingerprints=PRINTS))
    batches = dataset.shuffle(4, seed=0).repeat(3).batch(2)
    assert int(batches.cardinality()) == 6
    labels = np.concatenate([y for _, y in batches.as_numpy_iterator()])
    assert sorted(labels) == sorted(np.repeat(Y[CHOSEN], 3))


def test_nothing_behind_the_last_of_an_unknown_number_is_looked_at():
    seen = []
    dataset = numbers().map(
        lambda i: tf.numpy_function(lambda i: seen.append(i) or i, [i], i.dtype)
    )
    assert kept(unknown(dataset).apply(keep([1, 4]))) == [1, 4]
    assert max(seen) <= 5


# ---- Another dataset than the one that was scored.


def test_another_order_is_noticed_at_the_first_that_is_kept():
    order = np.arange(SIZE)
    order[[7, 8]] = 8, 7
    dataset = examples(X[order], Y[order]).apply(keep(CHOSEN, fingerprints=PRINTS))
    iterator = iter(dataset)
    np.testing.assert_array_equal(next(iterator)[0], X[2])
    message = r"(?s)in the same order; .*have changed since: another element is at position.*\[7\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        next(iterator)


@pytest.mark.parametrize(
    "dataset",
    [
        examples(X + 1), examples(y=Y + 1), examples(y=Y.astype("int32")),
        examples().map(lambda x, y: (x + tf.random.normal((4,)), y)),
        examples().shuffle(SIZE, seed=1),
    ],
    ids=["features", "labels", "dtype", "augmented", "shuffled"],
)  # fmt: skip
def test_other_data_are_noticed(dataset, tmp_path):
    selector = Unconfident(4).fit(embeddings=X, confidences=np.linspace(1, 0, SIZE))
    selector.save(tmp_path / "coreset.npy", PRINTS)
    for transform in (keep(CHOSEN, fingerprints=PRINTS), keep(tmp_path / "coreset.npy")):
        for later in (dataset, unknown(dataset)):
            with pytest.raises(tf.errors.InvalidArgumentError, match="Order or data have changed"):
                list(later.apply(transform))


def test_only_those_that_are_kept_are_looked_at():
    x = X.copy()
    x[3] += 1
    assert len(list(examples(x).apply(keep(CHOSEN, fingerprints=PRINTS)))) == 4


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (examples().batch(4), "must have the 23 elements .* `batch` it after `keep`. Received: 6"),
        (examples().take(22), "must have the 23 elements that were scored, .* Received: 22"),
        (examples().repeat(2), "Received: 46 elements"),
        (examples().repeat(), "must be finite; `repeat` it after `keep`. Received: infinite"),
    ],
)
def test_a_dataset_of_another_size(dataset, message):
    for transform in (keep(CHOSEN, samples=SIZE), keep(CHOSEN, fingerprints=PRINTS)):
        with pytest.raises(ValueError, match=message):
            dataset.apply(transform)


def test_a_dataset_of_unknown_and_other_size():
    for dataset in (numbers(22), numbers(24)):
        with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 23"):
            list(unknown(dataset).apply(keep(CHOSEN, samples=SIZE)))
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 4 elements"):
        list(unknown(numbers(15)).apply(keep(CHOSEN)))
    with pytest.raises(ValueError, match=r"must be in `\[0, 15\)`, .* Received: 20"):
        numbers(15).apply(keep(CHOSEN))


# ---- Warnings and arguments.


@pytest.mark.parametrize(
    ("share", "message"),
    [(9, "keeps 9 of 1000 elements, 0.90%"), (1000, "keeps 1000 of 1000 elements, 100.00%")],
)
def test_little_or_everything_is_suspicious(share, message):
    with pytest.warns(UserWarning, match=message) as caught:
        numbers(1000).apply(keep(range(share)))
    assert "`warn=False` switches this warning off" in str(caught[0].message)
    assert len(kept(numbers(1000).apply(keep(range(share), warn=False)))) == share


def test_all_else_is_not_suspicious():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (10, 999):
            numbers(1000).apply(keep(range(count)))
        unknown(numbers(1000)).apply(keep(range(1000)))  # nobody knows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"must be at least one integer, in an array of rank 1. Received: .* \(0,\)"),
        (([1.0],), r"must be at least one integer, .* Received: float64 of shape \(1,\)"),
        (([True, False],), r"Received: bool of shape \(2,\)"),
        (([[1]],), r"Received: int64 of shape \(1, 1\)"),
        ((3,), r"Received: int64 of shape \(\)"),
        (([4, -1],), r"`indices_or_path` must be at least 0. Received: indices_or_path\[1\]=-1"),
        (([4, 1, 4],), r"must not repeat a position. Received: indices_or_path\[0\]=indices_or_path"
         r"\[2\]=4"),
        (([1, 2**63 - 1],), "must be at most 1099511627776. Received: .*=9223372036854775807"),
        ((np.array([2**63 + 7, 1], "uint64"), 23), "at most .* Received: .*=9223372036854775815"),
        (([1, 2**64],), r"must be at least one integer, .* Received: object of shape \(2,\)"),
        (([1, 2**40], 23), r"must be in `\[0, 23\)`, the elements of the dataset. Received: 1099"),
        (([1, 23], 23), r"must be in `\[0, 23\)`, the elements of the dataset. Received: 23"),
        (([1, 23], None, PRINTS), r"must be in `\[0, 23\)`, the elements of the dataset"),
        (([1], 0), "`samples` must be an integer of at least 1. Received: samples=0"),
        (([1], 2.0), "Received: samples=2.0"),
        (([1], 22, PRINTS), r"must be int64 of shape \(22,\). Received: int64 of shape \(23,\)"),
        (([1], None, PRINTS.astype(float)), "`fingerprints` must be int64 .* Received: float64"),
        (([1], None, PRINTS[:, None]), r"int64 of shape \(23, 1\)"),
        (("x.npy", 3), "must be None for a path, whose manifest has them. Received: samples=3"),
        (("nothing.npy",), "that of an `.npy` file with a manifest .* Received: nothing.npy"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        keep(*arguments)


# ---- with_index.


def test_positions_are_those_after_the_filter():
    expected = [(X[i], Y[i], np.int64(n)) for n, i in enumerate(sorted(CHOSEN))]
    dataset = examples().apply(keep(CHOSEN))
    run_dataset_transform_test(with_index(), dataset, expected, keeps_element_spec=False)
    indexed = dataset.apply(with_index())
    assert indexed.element_spec[2] == tf.TensorSpec((), tf.int64)
    assert int(indexed.cardinality()) == len(CHOSEN)
    positions = [int(n) for *_, n in indexed.shuffle(4).repeat(2)]
    assert sorted(positions) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("parts", [X, (X, Y, Y), {"x": X}])
def test_only_pairs_have_a_place_for_a_position(parts):
    with pytest.raises(ValueError, match=r"`with_index` needs elements `\(x, y\)`. Received: "):
        tf.data.Dataset.from_tensor_slices(parts).apply(with_index())


# ---- select.


def small_model(seed=1, compiled=True, **arguments):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(3, "softmax")]
    )
    if compiled:
        optimizer = keras.optimizers.Adam(0.1)
        model.compile(optimizer, "sparse_categorical_crossentropy", **arguments)
    return model


def selected(selector, model=None, dataset=None, **arguments):
    arguments = {"warmup_epochs": 3, "batch_size": 6, "verbose": 0, **arguments}
    dataset = examples() if dataset is None else dataset
    return dataset.apply(select(selector, model or small_model(), **arguments))


def labels_of(dataset):
    return [int(y) for _, y in dataset]


@pytest.mark.parametrize("kind", ["known", "unknown"])
def test_it_trains_scores_and_chooses(kind):
    model, selector = small_model(), Unconfident(5)
    before = [weight.numpy() for weight in model.weights]
    dataset = examples() if kind == "known" else unknown(examples())
    kept = selected(selector, model, dataset)
    assert int(model.optimizer.iterations) == 3 * 4
    assert any(
        (weight.numpy() != old).any() for weight, old in zip(model.weights, before, strict=True)
    )
    # The scores are those of the model as it is now.
    confidences = model.predict(X, verbose=0)[np.arange(SIZE), Y]
    assert selector.indices_.tolist() == np.argsort(confidences)[:5].tolist()
    assert selector.samples_ == SIZE
    assert labels_of(kept) == Y[np.sort(selector.indices_)].tolist()
    assert int(kept.cardinality()) == 5


def test_forgetting_is_counted():
    selector = Forgotten(0.5)
    selected(selector)
    assert selector.events.shape == (SIZE,)
    assert len(set(selector.events.tolist())) > 1
    assert selector.events.max() <= 3


def test_a_model_that_has_learned_before_is_not_trained():
    model = small_model(compiled=False)
    before = model.get_weights()
    selector = Unconfident(5)
    selected(selector, model, warmup_epochs=0)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    confidences = model.predict(X, verbose=0)[np.arange(SIZE), Y]
    assert selector.indices_.tolist() == np.argsort(confidences)[:5].tolist()


def test_a_view_is_scored_and_the_dataset_stays_plain():
    model, selector = small_model(), Unconfident(5)
    kept = selected(selector, model, view=lambda x, y: (-x, y))
    confidences = model.predict(-X, verbose=0)[np.arange(SIZE), Y]
    assert selector.indices_.tolist() == np.argsort(confidences)[:5].tolist()
    for (x, _), i in zip(kept, np.sort(selector.indices_), strict=True):
        np.testing.assert_array_equal(x, X[i])


def test_what_is_kept_is_checked():
    offset = tf.Variable(0.0)
    dataset = examples().map(lambda x, y: (x + offset, y))
    kept = selected(Unconfident(5), dataset=dataset)
    assert len(list(kept)) == 5
    offset.assign(1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Order or data have changed"):
        list(kept)


def test_the_seed_decides_and_nothing_else():
    def order(seed, of_keras):
        keras.utils.set_random_seed(of_keras)
        epochs = []

        class Watch(keras.Model):
            def train_step(self, data):
                epochs.append(data[1].numpy().tolist())
                return {"loss": 0.0}

        model = Watch()
        model.compile(run_eagerly=True)
        about = {"warmup_epochs": 3, "batch_size": SIZE, "seed": seed, "samples": SIZE}
        filters._warm_up(model, examples(y=np.arange(SIZE)), about, None, None, 0)
        assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
        return epochs

    first = order(0, 0)
    assert first == order(0, 5)
    assert first != order(1, 0)
    assert len(set(map(tuple, [*first, *order(1, 0)]))) == 6


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (tf.TensorSpec((1024,), tf.float32), 2**18),
        ((tf.TensorSpec((32, 32, 3), tf.uint8), tf.TensorSpec((), tf.int64)), 2**30 // 3080),
        (tf.TensorSpec((), tf.uint8), 1_000_000),
        (tf.TensorSpec((2**20, 2**11), tf.float32), 1),
        (tf.TensorSpec((None,), tf.float32), 10_000),
        (tf.RaggedTensorSpec((None,), tf.float32), 10_000),
    ],
)
def test_the_buffer_of_the_shuffling_has_a_limit(spec, size):
    assert filters._buffer_size(spec) == size


# ---- select with a directory.


def assert_alike(one, other):
    """Two choices, with the models that they made."""
    (model, selector), (other_model, other_selector) = one, other
    assert selector.indices_.tolist() == other_selector.indices_.tolist()
    variables = [*model.weights, *model.optimizer.variables]
    others = [*other_model.weights, *other_model.optimizer.variables]
    for variable, found in zip(variables, others, strict=True):
        np.testing.assert_allclose(variable.numpy(), found.numpy(), rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody killed: its directory, model and selector."""
    directory = tmp_path_factory.mktemp("whole")
    model, selector = small_model(), Forgotten(0.5)
    selected(selector, model, directory=directory)
    return directory, model, selector


def test_a_directory_holds_all_of_a_run(whole):
    directory, _, selector = whole
    assert [path.name for path in (directory / "warmup").iterdir()] == ["epoch-3"]
    assert np.load(directory / "scores" / "labels.npy").tolist() == Y.tolist()
    assert np.load(directory / "scores" / "fingerprints.npy").tolist() == PRINTS.tolist()
    kept = examples().apply(keep(directory / "coreset.npy"))
    assert labels_of(kept) == Y[np.sort(selector.indices_)].tolist()


def test_a_second_run_takes_up_model_and_scores(whole):
    directory, model, selector = whole
    again, second = small_model(seed=5), Forgotten(0.5)
    again.train_step = None  # which would fail if it were called
    selected(second, again, directory=directory)
    assert_alike((again, second), (model, selector))
    assert second.events.tolist() == selector.events.tolist()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["an epoch", "a save", "the scoring", "the choice"])
def test_a_killed_run_goes_on(moment, whole, tmp_path, monkeypatch):
    def kill(*args, **kwargs):
        raise Killed

    class AtEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise Killed

    model = small_model()
    with monkeypatch.context() as patch:
        if moment == "an epoch":
            fit = model.fit
            model.fit = lambda *args, callbacks, **kwargs: fit(
                *args, callbacks=[*callbacks, AtEpoch()], **kwargs
            )
        elif moment == "a save":
            patch.setattr(filters.os, "replace", kill)
        elif moment == "the scoring":

            def score(*args, directory=None, **others):
                return kill() if directory else warmup_scores(*args, **others)

            patch.setattr(filters, "warmup_scores", score)
        else:
            patch.setattr(Forgotten, "save", kill)
        with pytest.raises(Killed):
            selected(Forgotten(0.5), model, directory=tmp_path)
    assert not (tmp_path / "coreset.npy").exists()
    epochs = {"an epoch": ["epoch-2"], "a save": []}.get(moment, ["epoch-3"])
    assert [path.name for path in (tmp_path / "warmup").iterdir()] == epochs
    # A run that begins anew needs the same weights, and one that goes on brings its own.
    resumed, selector = small_model(seed=1 if moment == "a save" else 5), Forgotten(0.5)
    selected(selector, resumed, directory=tmp_path)
    assert_alike((resumed, selector), whole[1:])
    assert selector.events.tolist() == whole[2].events.tolist()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"warmup_epochs": 2}, "warmup_epochs=2"),
        ({"seed": 1}, "seed=1"),
        ({"batch_size": 5}, "batch_size=5"),
        ({"dataset": examples().take(22)}, "samples=22"),
        ({"dataset": examples(X + 1)}, "examples="),
    ],
)
def test_a_directory_of_another_run_is_refused(arguments, name, whole):
    directory = whole[0]
    message = f"must be empty, or hold a warm-up with {name}.*; use another one. Received: "
    with pytest.raises(ValueError, match=message):
        selected(Forgotten(0.5), directory=directory, **arguments)


def test_a_directory_in_which_nothing_was_counted_is_refused_where_counts_are_needed(tmp_path):
    selected(Unconfident(5), directory=tmp_path)
    message = "a warm-up in which forgetting events were counted, .* Received: one without in .*-3"
    with pytest.raises(ValueError, match=message):
        selected(Forgotten(5), directory=tmp_path)
    selected(Unconfident(5), directory=tmp_path)
    (tmp_path / "warmup" / "epoch-3" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON. Received: .*epoch-3/manifest.json: "):
        selected(Unconfident(5), directory=tmp_path)


def test_two_that_save_into_one_folder_do_not_stop_each_other(tmp_path):
    ahead, behind = (filters._Backup(tmp_path, {}, None) for _ in range(2))
    for backup in (ahead, behind):
        backup.set_model(small_model())
    for backup, epoch in [(ahead, 0), (behind, 0), (ahead, 1), (ahead, 2), (behind, 1)]:
        backup.on_epoch_end(epoch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-2", "epoch-3"]
    assert filters._Backup(tmp_path, {}, None).epochs_done == 3


# ---- What select refuses before it trains.


def shuffled():
    return examples().shuffle(SIZE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selector": 5}, "`selector` must be a `CoresetSelector`. Received: selector=5"),
        ({"selector": Unconfident(24)}, "must ask for 1 to 23 samples"),
        ({"warmup_epochs": -1}, "`warmup_epochs` must be an integer of at least 0"),
        ({"selector": Forgotten(5), "warmup_epochs": 0}, "`warmup_epochs` must be an integer of at "
         "least 1. Received: warmup_epochs=0"),
        ({"seed": -1}, "`seed` must be an integer of at least 0. Received: seed=-1"),
        ({"model": small_model(compiled=False)}, "`model` must be compiled"),
        ({"embedding_layer": "none"}, "`embedding_layer` must be one of the model's layers"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"dataset": examples().batch(4)}, "`dataset` must be one of single examples"),
        ({"dataset": examples().repeat()}, "`dataset` must be finite"),
        ({"dataset": examples().take(0)}, "`dataset` must hold an example at least"),
        ({"dataset": examples(y=Y + 5)}, "`y` must be whole numbers"),
        ({"dataset": shuffled()}, "same order each time; shuffle and augment after `select`"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_the_training(arguments, message):
    arguments = {"selector": Unconfident(5), "model": small_model(), **arguments}
    arguments["model"].train_step = None  # which would fail if it were called
    with pytest.raises(ValueError, match=message):
        selected(**arguments)


def test_a_suspicious_choice_warns():
    with pytest.warns(UserWarning, match="keeps 23 of 23 elements"):
        selected(Unconfident(1.0), warmup_epochs=0)
    selected(Unconfident(1.0), warmup_epochs=0, warn=False)
