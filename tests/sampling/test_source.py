"""Whatever samples come from, a batch holds those of its ids."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.sampling import RandomBatches
from tfrec_efficient.sampling import _source
from tfrec_efficient.sampling._source import Source

SIZE = 23
rng = np.random.default_rng(0)
X = rng.normal(size=(SIZE, 2, 3)).astype("float32")
IDS = rng.integers(0, 99, (SIZE, 4))
WORDS = np.array([f"word {i}" for i in range(SIZE)])
Y = rng.integers(0, 5, SIZE)
WEIGHT = rng.random(SIZE)
NESTED = {"x": X, "more": (IDS, {"words": WORDS, "flags": Y > 2})}


class RandomAccess:
    """Samples made on the fly; `calls` counts how often."""

    def __init__(self, parts=(X, Y), size=SIZE):
        self.parts = parts
        self.size = size
        self.calls = 0

    def __len__(self):
        return self.size

    def __getitem__(self, ids):
        self.calls += 1
        assert isinstance(ids, np.ndarray)
        assert ids.dtype.kind == "i"
        return keras.tree.map_structure(lambda array: array[ids], self.parts)


def as_dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts)


SOURCES = {  # arguments of `dataset`, and what they hold
    "array": ((X, Y), (X, Y)),
    "tensor": ((tf.constant(X), tf.constant(Y)), (X, Y)),
    "nested": ((NESTED, Y), (NESTED, Y)),
    "weighted": ((X, Y, WEIGHT), (X, Y, WEIGHT)),
    "half precision": ((X.astype("float16"), Y.astype("uint8")), (X.astype("float16"), Y)),
    "one-hot": ((X, np.eye(5)[Y]), (X, np.eye(5)[Y])),
    "column": ((X, Y[:, None]), (X, Y[:, None])),
    "random access": ((RandomAccess(),), (X, Y)),
    "random access, nested": ((RandomAccess((NESTED, Y, WEIGHT)),), (NESTED, Y, WEIGHT)),
    "dataset": ((as_dataset(X, Y),), (X, Y)),
    "dataset, weighted": ((as_dataset(NESTED, Y, WEIGHT),), (NESTED, Y, WEIGHT)),
}


def strings(part):
    """Numbers and texts in the same form."""
    return np.char.decode(part.astype(bytes)) if part.dtype.kind in "OSU" else part


@pytest.mark.parametrize("kind", SOURCES)
def test_a_batch_holds_the_samples_of_its_ids(kind):
    arguments, samples = SOURCES[kind]
    selector = RandomBatches(batch_size=5, seed=3)
    dataset = selector.dataset(*arguments)
    assert int(dataset.cardinality()) == 5
    specs = keras.tree.flatten(dataset.element_spec)
    for spec, array in zip(specs, keras.tree.flatten(samples), strict=True):
        assert spec.shape.as_list() == [None, *array.shape[1:]]
    planned = [ids.tolist() for ids in selector._planned().batches]
    for _ in range(2):  # iterating by hand plans nothing anew
        batches = list(dataset.as_numpy_iterator())
        for ids, batch in zip(planned, batches, strict=True):
            keras.tree.assert_same_structure(batch, samples)
            for part, array in zip(
                keras.tree.flatten(batch), keras.tree.flatten(samples), strict=True
            ):
                assert strings(part).tolist() == strings(array[ids]).tolist()
    for part, spec in zip(keras.tree.flatten(batches[0]), specs, strict=True):
        assert tf.as_dtype(part.dtype) == spec.dtype or spec.dtype == tf.string


def test_arrays_keep_their_dtype():
    selector = RandomBatches(batch_size=5)
    x = {"a": X.astype("float16"), "b": IDS.astype("uint8"), "c": Y > 2, "d": X.astype("float64")}
    [part, _] = selector.dataset(x, Y.astype("int16")).element_spec
    assert [part[name].dtype.name for name in "abcd"] == ["float16", "uint8", "bool", "float64"]


def test_arrays_on_disk_are_not_read_into_memory(tmp_path):
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(x, np.memmap)
    selector = RandomBatches(batch_size=5)
    dataset = selector.dataset(x, Y)
    source = selector._of_dataset()
    for ids, (batch, y) in zip(selector._planned().batches, dataset, strict=True):
        assert batch.numpy().tolist() == X[ids].tolist()
        assert y.numpy().tolist() == Y[ids].tolist()
    assert isinstance(source._parts[0], np.memmap)
    assert not source.is_in_memory


def test_a_random_access_source_is_asked_for_batches_only():
    source = RandomAccess()
    selector = RandomBatches(batch_size=5)
    dataset = selector.dataset(source)
    before = source.calls
    assert len(list(dataset)) == 5
    assert source.calls == before + 5


# ---- Labels.

ONE_HOT = np.eye(3)[[2, 0, 1]]


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        ([0, 4, 2], [0, 4, 2]),
        (np.array([0, 255, 2], np.uint8), [0, 255, 2]),
        ([[1], [0], [3]], [1, 0, 3]),
        ([True, False, True], [1, 0, 1]),
        ([0.0, 1.0, 1.0], [0, 1, 1]),
        ([[0.0], [1.0], [1.0]], [0, 1, 1]),
        (ONE_HOT, [2, 0, 1]),
        (ONE_HOT.astype("int8"), [2, 0, 1]),
        (ONE_HOT.astype(bool), [2, 0, 1]),
        ([[0.9, 0.1], [0.0, 1.0], [0.5, 0.5]], [-1, 1, -1]),
        ([[1.0, 1e-9], [0.0, 1.0], [1.0, 0.0]], [-1, 1, 0]),
    ],
    ids=str,
)
def test_classes_of_labels(y, classes):
    y = np.asarray(y)
    assert _source.to_classes(y).tolist() == classes
    for source in (Source(X[:3], y, None), Source(as_dataset(X[:3], y), None, None)):
        assert source.labels.tolist() == classes


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, -1, 2], r"`y` must be 0 or more, and whole. Received: y\[1\]=-1"),
        ([0.0, 0.5, 1.0], r"`y` must be 0 or more, and whole. Received: y\[1\]=0.5"),
        ([[0.0], [1.0], [np.nan]], r"and whole. Received: y\[2\]=nan"),
        ([0.0, np.inf, 1.0], r"and whole. Received: y\[1\]=inf"),
        (["a", "b", "c"], r"`y` must be numbers of classes .* Received: <U1 of shape \(3,\)"),
        (np.zeros((3, 2, 2)), r"one-hot of shape `\(samples, classes\)`. Received: float64 of "
         r"shape \(3, 2, 2\)"),
        (np.zeros((3, 0)), r"Received: float64 of shape \(3, 0\)"),
    ],
    ids=str,
)  # fmt: skip
def test_labels_that_are_no_classes(y, message):
    with pytest.raises(ValueError, match=message):
        Source(X[:3], np.asarray(y), None)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, "int8"), (128, "int8"), (129, "int16"), (40_000, "int32")]
)
def test_labels_take_little_memory(classes, dtype):
    labels = Source(np.zeros(2), np.array([0, classes - 1]), None).labels
    assert labels.dtype == dtype
    assert labels.tolist() == [0, classes - 1]


def test_labels_of_a_random_access_source_are_learnt_as_they_are_fetched():
    selector = RandomBatches(batch_size=5)
    dataset = selector.dataset(RandomAccess())
    assert (selector.labels == -1).all()
    ids = selector._planned().ids[:10]
    for _ in dataset.take(2):
        pass
    known = np.flatnonzero(selector.labels >= 0)
    assert set(ids) <= set(known)
    assert (selector.labels[known] == Y[known]).all()
    assert len(known) < SIZE or len(set(selector._planned().ids)) == SIZE


def test_sources_are_alike_if_their_sizes_and_known_labels_are():
    one = Source(X, Y, None)
    assert one.is_like(Source(X[::-1], Y, None))  # say, augmented anew
    assert one.is_like(Source(RandomAccess(), None, None))
    assert one.is_like(Source(X, np.eye(5)[Y], None))
    assert not one.is_like(Source(X[:-1], Y[:-1], None))
    assert not one.is_like(Source(X, (Y + 1) % 5, None))
    soft = np.eye(5)[Y]
    soft[0] = 0.2
    assert one.is_like(Source(X, soft, None))


# ---- Errors.


def unknown_size(keep):
    return as_dataset(X, Y).filter(lambda x, y: keep)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, None), "`y` must be labels, one for each sample of `x`. Received: y=None"),
        (({"x": X}, None), "`y` must be labels, one for each sample of `x`"),
        ((X, Y[:-1]), r"must have the same number of samples. Received: \[22, 23\]"),
        (({"x": X, "z": X[1:]}, Y), r"the same number of samples. Received: \[22, 23\]"),
        ((X, Y, WEIGHT[1:]), r"must have the same number of samples. Received: \[22, 23\]"),
        ((X, 3), "must be arrays, or structures of arrays; .* Received: a structure of numbers"),
        ((X.tolist(), Y), "a list is a structure of what it holds. Received: a structure of nu"),
        ((X, np.array([[1, 1]] * 23)), "several labels of one sample are not supported. Received"),
        ((X, {"y": Y}), "`y` must be one array of labels; selection watches one output. Received: "
         "dict"),
        ((X, [Y, Y]), "`y` must be one array of labels; .* Received: list"),
        ((X[:0], Y[:0]), "`x` must hold at least one sample. Received: none"),
        ((as_dataset(X[:0], Y[:0]),), "`x` must hold at least one sample. Received: none"),
        ((RandomAccess(size=0),), "`x` must hold at least one sample. Received: none"),
        ((as_dataset(X, Y), Y), "`y` and `sample_weight` must be part of the samples of a "
         "`tf.data.Dataset`"),
        ((as_dataset(X, Y), None, WEIGHT), "must be part of the samples of a `tf.data.Dataset`"),
        ((RandomAccess(), None, WEIGHT), "must be part of the samples of a random-access source"),
        ((as_dataset(X, Y).repeat(),), "of known, finite size; .* Received: infinite size"),
        ((unknown_size(True),), "`tf.data.experimental.assert_cardinality` .* Received: unknown"),
        ((as_dataset(X, Y).batch(4),), r"`unbatch` a batched one. Received: TensorSpec\(shape=\("
         r"None, 2, 3\)"),
        ((as_dataset({"x": X, "y": Y}),), r"Samples must be tuples `\(x, y\)` or"),
        ((tf.data.Dataset.from_tensor_slices(X),), r"Samples must be tuples `\(x, y\)` or"),
        ((RandomAccess((X,)),), r"Samples must be tuples `\(x, y\)` or"),
        ((RandomAccess((X, Y, Y, Y)),), r"Samples must be tuples `\(x, y\)` or"),
        ((RandomAccess([X, Y]),), r"Samples must be tuples `\(x, y\)` or"),
        ((RandomAccess((X, {"y": Y})),), "`y` must be one array of labels; .* Received: dict"),
        ((RandomAccess((X, -1 - Y)),), r"`y` must be 0 or more, and whole. Received: y\[0\]=-"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomBatches(batch_size=1).dataset(*arguments)


def test_a_ragged_dataset_is_refused():
    rows = tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1], [2, 3]]), [0, 1]))
    with pytest.raises(ValueError, match="which are dense and of one shape; .* RaggedTensorSpec"):
        Source(rows, None, None)


def test_a_size_that_is_told_counts():
    dataset = unknown_size(True).apply(tf.data.experimental.assert_cardinality(SIZE))
    assert Source(dataset, None, None).labels.tolist() == Y.tolist()


class TooFew(RandomAccess):
    def __getitem__(self, ids):
        return X[ids][:1], Y[ids]


class ForOneId(RandomAccess):
    def __getitem__(self, ids):
        return X[ids[0]], Y[ids[0]]


@pytest.mark.parametrize(
    ("source", "received"),
    [(TooFew(), r"\[1, 5\] entries for 5 ids"), (ForOneId(), r"\[0, 2\] entries for 1 ids")],
)
def test_a_source_that_does_not_return_what_was_asked_for(source, received):
    message = f"must return one entry for each id it is given. Received: {received}"
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        list(RandomBatches(batch_size=5).dataset(source))


def test_a_source_that_takes_no_arrays_of_ids_is_refused():
    class OneByOne:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return X[int(index)], Y[int(index)]

    with pytest.raises(ValueError, match="must return the samples of an integer array of ids"):
        Source(OneByOne(), None, None)


def test_nothing_outlives_its_selector():
    """TensorFlow keeps what `tf.numpy_function` calls for the life of the process."""
    alive = []

    def use():
        selector = RandomBatches(batch_size=5)
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(5, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        data = selector.dataset(RandomAccess())
        model.fit(data, callbacks=[selector], shuffle=False, verbose=0)
        alive.extend(weakref.ref(thing) for thing in (selector, selector._of_dataset(), model))

    use()
    keras.backend.clear_session()
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3


def test_a_dataset_keeps_its_selector():
    dataset = RandomBatches(batch_size=5).dataset(RandomAccess()).map(lambda x, y: (x, y))
    gc.collect()
    assert sum(len(y) for _, y in dataset) == 25
