import collections
import json
import tempfile
from pathlib import Path

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.embedding import DynamicVocabulary
from tfrec_efficient.embedding._ids import as_keys

ROOM = 1500  # rows of an uncached table that is large enough from the beginning


class Expected:
    """What the rows of keys are, by the rules of the docstring; key None is padding."""

    def __init__(self, min_count=1, max_age=None, max_rows=None):
        self.rule = {"min_count": min_count, "max_age": max_age, "max_rows": max_rows}
        self.rows, self.last_seen, self.step = {}, {}, 0
        self.counts = collections.Counter()
        self.taken = 1

    def train(self, keys):
        self.step += 1
        for key in keys:
            if key is None:
                continue
            self.counts[key] += 1
            self.last_seen[key] = self.step
            if key not in self.rows and self.counts[key] >= self.rule["min_count"]:
                row = self.free_row()
                if row is not None:
                    self.rows[key] = row
        return self.find(keys)

    def free_row(self):
        free = set(range(1, self.taken)) - set(self.rows.values())
        if free:
            return min(free)
        if self.rule["max_rows"] and self.taken >= self.rule["max_rows"]:
            return None
        self.taken += 1
        return self.taken - 1

    def find(self, keys):
        return [-1 if key is None else self.rows.get(key, 0) for key in keys]

    def forget(self):
        """The rows of keys that were not seen for more than `max_age` batches."""
        freed = []
        for key, seen in list(self.last_seen.items()):
            if self.rule["max_age"] and self.step - seen > self.rule["max_age"]:
                del self.last_seen[key], self.counts[key]
                if key in self.rows:
                    freed.append(self.rows.pop(key))
        return freed


def adam():
    return tfrec.optimizers.Adam(0.1)


class Both:
    """A layer with a vocabulary, and an uncached table under what is expected of it."""

    def __init__(self, shared, folder, rule, padding_id=None, **arguments):
        self._shared = shared
        self._folder = folder
        self._arguments = {"padding_id": padding_id, "optimizer": adam, **arguments}
        self.rule = rule
        self.expected = Expected(**rule)
        self.layer = self._open(folder)
        # The rows that all tables of this seed begin with.
        plain = shared.cached(folder.with_name("plain"), rows=ROOM, cache_rows=1, optimizer=adam)
        self._begun = shared.rows_of(plain)
        self._padding_id = padding_id
        self.twin = shared.Twin(plain, adam())
        self.twin.bag = tfrec.EmbeddingBag(
            ROOM, 4, padding_id=-1, weights=plain.read_rows(np.arange(ROOM)).numpy()
        )
        self.twin.bag.build()
        self.twin.optimizer = adam()
        self.twin.optimizer.build([self.twin.bag.embeddings])

    def _open(self, folder):
        vocabulary = DynamicVocabulary(**self.rule)
        return self._shared.cached(folder, rows=None, vocabulary=vocabulary, **self._arguments)

    def keys(self, ids):
        return [None if key == self._padding_id else key for key in np.ravel(ids).tolist()]

    def train(self, ids):
        ids = np.array(ids)
        rows = np.reshape(self.expected.train(self.keys(ids)), np.shape(ids))
        with tf.GradientTape() as tape:
            pooled = self.layer(ids, training=True)
            loss = tf.reduce_sum((pooled - 1.0) ** 2)
        tape.gradient(loss, self.layer.hook.value)
        with tf.GradientTape() as tape:
            of_twin = self.twin.bag(rows)
            loss = tf.reduce_sum((of_twin - 1.0) ** 2)
        (gradient,) = tape.gradient(loss, [self.twin.bag.embeddings.value])
        self.twin.apply(gradient)
        assert self._shared.as_bytes(pooled) == self._shared.as_bytes(of_twin)

    def look(self, ids):
        ids = np.array(ids)
        rows = np.reshape(self.expected.find(self.keys(ids)), np.shape(ids))
        np.testing.assert_array_equal(self.layer(ids, training=False), self.twin.bag(rows))

    def flush(self):
        self.layer.flush()
        freed = self.expected.forget()
        for slot in self._variables():
            begun = self._begun_of(slot)
            table = slot.numpy()
            table[freed] = begun[freed]
            slot.assign(table)

    def _variables(self):
        optimizer = self.twin.optimizer
        return [
            self.twin.bag.embeddings,
            *(v for v in optimizer.variables if v.shape[:1] == (ROOM,)),
        ]

    def _begun_of(self, slot):
        first = 4 * [v is slot for v in self._variables()].index(True)
        return self._begun[:, first : first + 4]

    def reopen(self):
        self.flush()
        self.layer.close()
        self.layer = self._open(self._folder)

    def check(self):
        ours, theirs = self._shared.rows_of(self.layer), self.twin.rows()
        count = min(len(ours), len(theirs))
        np.testing.assert_array_equal(ours[:count], theirs[:count])
        keys, rows = (part.numpy().tolist() for part in self.layer._rows.vocabulary.export())
        assert dict(zip(keys, rows, strict=True)) == self.expected.rows


@pytest.mark.parametrize("rule", [{}, {"max_rows": 5}])
def test_keys_of_any_size_have_rows(shared, store, rule):
    both = Both(shared, store, rule, cache_rows=30)
    rng = np.random.default_rng(0)
    names = rng.integers(-(2**63), 2**63, 12)
    for _ in range(8):
        both.train(names[rng.zipf(1.5, (4, 3)) % 12])
        both.look(names.reshape(4, 3))
    both.check()
    assert len(both.expected.rows) == min(len(both.expected.counts), rule.get("max_rows", 99) - 1)


def test_strings_are_keys_by_their_hashes(shared, store):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary())
    ids = np.array([["alice", "bob"], ["alice", "carol"]])
    first = layer(ids, training=True)
    keys = as_keys(tf.constant(ids))
    assert len(np.unique(keys)) == 3
    np.testing.assert_array_equal(layer(keys), first)
    exported = (part.numpy().tolist() for part in layer._rows.vocabulary.export())
    rows = dict(zip(*exported, strict=True))
    assert [rows[int(key)] for key in np.ravel(keys)] == [1, 2, 1, 3]
    np.testing.assert_array_equal(first[0], tf.reduce_sum(layer.read_rows([1, 2]), 0))


def test_a_key_is_admitted_in_the_batch_that_makes_it_frequent(shared, store):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary(min_count=3))
    rows = layer.read_rows([0, 1]).numpy()
    assert layer(np.array([[7]]), training=True).numpy().tolist() == rows[[0]].tolist()
    # Lookups that come before the third one in this batch have its row, too.
    np.testing.assert_array_equal(layer(np.array([[7], [7]]), training=True), rows[[1, 1]])
    np.testing.assert_array_equal(layer(np.array([[8], [7]])), rows)


@pytest.mark.parametrize("training", [None, False])
def test_keys_are_counted_in_training_only(shared, store, training):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary())
    for _ in range(3):
        layer(np.array([[7]]), training=training)
    assert len(layer._rows.vocabulary.export()[0]) == 0
    layer(np.array([[7]]), training=True)
    assert layer._rows.vocabulary.export()[0].numpy().tolist() == [7]


def test_fit_counts_and_evaluate_does_not(shared, store):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary())
    x = keras.Input((2,), dtype="string")
    model = keras.Model(x, keras.layers.Dense(1)(layer(x)))
    model.compile("sgd", "mse")
    ids = tf.constant([["a", "b"], ["a", "c"]])
    model.predict(ids, verbose=0)
    model.evaluate(ids, np.ones(2), verbose=0)
    assert len(layer._rows.vocabulary.export()[0]) == 0
    model.fit(ids, np.ones(2), verbose=0)
    assert len(layer._rows.vocabulary.export()[0]) == 3


def test_old_keys_are_forgotten_and_begin_anew(shared, store):
    both = Both(shared, store, {"max_age": 2}, cache_rows=10)
    for ids in ([[1, 2]], [[1, 3]], [[1, 4]]):
        both.train(ids)
    both.flush()  # key 2 was not seen for two batches, which is not more than two
    assert set(both.expected.rows) == {1, 2, 3, 4}
    both.check()
    both.train([[1, 1]])
    both.flush()
    assert set(both.expected.rows) == {1, 3, 4}
    both.check()
    row = both.expected.free_row()
    np.testing.assert_array_equal(shared.rows_of(both.layer)[row], both._begun[row])
    both.look([[2, 1]])
    both.train([[2, 2]])  # with a neighbour's row, and none of its state
    assert both.expected.rows[2] == row
    both.check()


def test_keys_that_wait_are_admitted_when_others_are_forgotten(shared, store):
    both = Both(shared, store, {"max_rows": 3, "max_age": 1}, cache_rows=10)
    for ids in ([[1, 2]], [[3, 3]], [[3, 4]], [[3, 4]]):
        both.train(ids)
    assert set(both.expected.rows) == {1, 2}
    both.check()
    both.flush()
    assert both.expected.rows == {}
    both.train([[3, 4]])
    assert both.expected.rows == {3: 1, 4: 2}
    both.check()


def test_a_table_grows_beyond_its_first_rows(shared, store):
    both = Both(shared, store, {}, cache_rows=400)
    assert both.layer.stats().rows == 1024
    for start in range(0, 1400, 200):
        both.train(np.arange(start, start + 200).reshape(10, 20) * 10**12)
    assert both.layer.stats().rows == 2048
    both.check()
    both.reopen()
    assert both.layer.stats().rows == 2048
    both.check()


def test_growth_that_was_not_flushed_is_forgotten_with_its_keys(shared, store):
    layer = shared.cached(store, rows=None, cache_rows=2000, vocabulary=DynamicVocabulary())
    layer(np.arange(1500)[np.newaxis], training=True)
    assert layer.stats().rows == 2048
    layer.close()
    layer = shared.cached(store, rows=None, cache_rows=2000, vocabulary=DynamicVocabulary())
    assert layer.stats().rows == 1024
    assert len(layer._rows.vocabulary.export()[0]) == 0


@pytest.mark.parametrize("padding_id", [0, -1, 7])
def test_padding_is_no_key(shared, store, padding_id):
    both = Both(shared, store, {"min_count": 2}, padding_id=padding_id)
    for ids in ([[padding_id, 5], [9, padding_id]], [[5, 9], [padding_id] * 2], [[7, 0], [0, 7]]):
        both.train(ids)
        both.look(ids)
    assert padding_id not in both.layer._rows.vocabulary.export()[0]
    both.check()


@pytest.mark.parametrize("layout", ["ragged", "sparse"])
def test_keys_of_any_layout(shared, store, layout):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary())
    ids = tf.ragged.constant([["a", "b"], [], ["c"]])
    dense = layer(np.array([["a", "b"]]), training=True)
    ids = ids.to_sparse() if layout == "sparse" else ids
    pooled = layer(ids, training=True)
    np.testing.assert_array_equal(pooled[0], dense[0])
    np.testing.assert_array_equal(pooled[1], np.zeros(4))
    np.testing.assert_array_equal(pooled[2], layer.read_rows([3])[0])


def test_looking_ahead_beside_it(shared, store):
    both = Both(shared, store, {"min_count": 2, "max_age": 4}, cache_rows=60)
    batches = shared.batches(12)
    data = tf.data.Dataset.from_tensor_slices(np.stack(batches))
    for _ in range(2):
        for number, ids in enumerate(data.apply(both.layer.prefetch(2))):
            both.train(ids)
            if number == 5:
                both.flush()  # while batches are announced
        both.check()
        stats = both.layer.stats()
    assert 0 < stats.awaited < stats.announced  # not those with a key that is admitted


def test_strings_are_looked_ahead(shared, store):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary())
    words = np.array([[["a", "b"]], [["b", "c"]], [["a", "c"]]])
    layer(words[:, 0], training=True)
    for ids in tf.data.Dataset.from_tensor_slices(words).apply(layer.prefetch(2)):
        layer(ids, training=True)
    assert layer.stats().awaited == 3


def test_a_table_of_keys_has_no_changes_to_export(shared, store, tmp_path):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary())
    with pytest.raises(ValueError, match="needs a table without a vocabulary"):
        layer.export_changes(tmp_path / "changes", 0)


# ---- Any training --------------------------------------------------------------------------------

KEYS = st.integers(-3, 8)
ACTIONS = st.one_of(
    st.tuples(st.just("train"), st.lists(st.lists(KEYS, min_size=2, max_size=2), min_size=1)),
    st.tuples(st.just("look"), st.lists(st.lists(KEYS, min_size=2, max_size=2), min_size=1)),
    st.just(("flush", None)),
    st.just(("reopen", None)),
)


@hypothesis.given(
    rule=st.fixed_dictionaries(
        {
            "min_count": st.integers(1, 3),
            "max_age": st.none() | st.integers(1, 3),
            "max_rows": st.none() | st.integers(1, 6),
        }
    ),
    padding_id=st.none() | KEYS,
    actions=st.lists(ACTIONS, min_size=1, max_size=12),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_any_life_of_a_vocabulary(shared, rule, padding_id, actions):
    with tempfile.TemporaryDirectory() as folder:
        both = Both(shared, Path(folder) / "store", rule, padding_id, cache_rows=13)
        for name, ids in actions:
            getattr(both, name)(*([] if ids is None else [ids]))
        both.check()
        both.reopen()
        both.check()


# ---- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["min_count", "max_age", "max_rows"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*{name}={value!r}"):
        DynamicVocabulary(**{name: value})


def test_a_config_that_goes_through_json(shared, store):
    vocabulary = DynamicVocabulary(2, 100, 1000)
    config = {"min_count": 2, "max_age": 100, "max_rows": 1000}
    assert vocabulary.get_config() == config
    assert DynamicVocabulary.from_config(config).get_config() == config
    layer = shared.cached(store, rows=None, vocabulary=vocabulary)
    layer(np.array([["a"]]), training=True)
    layer(np.array([["a"]]), training=True)
    layer.flush()
    layer.close()
    revived = tfrec.CachedEmbedding.from_config(json.loads(json.dumps(layer.get_config())))
    assert revived.vocabulary.get_config() == config
    revived.build()
    assert len(revived._rows.vocabulary.export()[0]) == 1


def test_bad_ids(shared, store):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary(), padding_id=0)
    with pytest.raises(ValueError, match="`padding_id` is a number, and strings have none"):
        layer(np.array([["a"]]))
    with pytest.raises(ValueError, match="`padding_id` is a number"):
        layer(keras.Input((3,), dtype="string"))
    with pytest.raises(ValueError, match="must be integers or strings. Received: dtype float64"):
        layer(np.array([[1.0]]))


def test_rows_of_one_batch_that_do_not_fit(shared, store):
    layer = shared.cached(store, rows=None, cache_rows=3, vocabulary=DynamicVocabulary())
    with pytest.raises(tf.errors.InvalidArgumentError, match="`cache_rows` must be so many"):
        layer(np.array([[1, 2, 3, 4]]), training=True)


def test_rows_are_freed_only_where_they_can_be_reset(shared, store):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary(max_age=2))

    def train(key):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([[key]]), training=True))
        tape.gradient(loss, layer.trainable_weights)

    first = layer(tf.constant([["a"]]), training=True).numpy()
    train("a")
    trained = layer(tf.constant([["a"]])).numpy()
    assert (trained != first).any()
    for _ in range(5):
        train("b")
    with tf.GradientTape() as tape:
        held = layer(tf.constant([["a"]]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="No batch must be in use"):
        layer.flush()
    np.testing.assert_array_equal(layer(tf.constant([["a"]])), trained)
    del tape, held
    layer.flush()
    layer(tf.constant([["c"]]), training=True)  # has the row that "a" had
    np.testing.assert_array_equal(layer(tf.constant([["c"]])), first)
