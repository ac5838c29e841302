"""Batches that are announced find their rows in memory; those that never come do no harm."""

import gc
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec


def dataset(batches):
    return tf.data.Dataset.from_tensor_slices(np.stack(batches))


class Pair:
    """A layer and its twin that train together, to be compared in the end."""

    def __init__(self, shared, store, **arguments):
        self.layer = shared.cached(store, **arguments)
        self._shared = shared
        self._twin = shared.Twin(self.layer, shared.adagrad())
        self._steps = [shared.trainer(each, in_graph=True) for each in (self.layer, self._twin)]

    def step(self, ids):
        ours, theirs = (step(ids) for step in self._steps)
        assert ours == theirs

    def check(self):
        self._shared.assert_same_rows(self.layer, self._twin)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_each_lookup_hits_where_there_is_room(shared, store, depth):
    batches = shared.batches(12, rows=1000)
    room = (depth + 2) * shared.most_rows(batches)
    pair = Pair(shared, store, rows=1000, cache_rows=room)
    for epoch in (1, 2, 3):
        for ids in dataset(batches).apply(pair.layer.prefetch(depth)):
            pair.step(ids)
        stats = pair.layer.stats()
        assert stats.hits == stats.lookups == epoch * 12 * 18
        assert stats.announced == stats.awaited == epoch * 12
        assert stats.stall_nanoseconds == 0
    assert stats.rows_read > room  # rows come and go all the time
    pair.check()


def test_without_it_lookups_miss(shared, store):
    batches = shared.batches(12, rows=1000)
    pair = Pair(shared, store, rows=1000, cache_rows=shared.most_rows(batches))
    for ids in batches:
        pair.step(ids)
    stats = pair.layer.stats()
    assert 0 < stats.hits < stats.lookups == 12 * 18
    assert stats.announced == stats.awaited == 0
    assert stats.stall_nanoseconds > 0


@pytest.mark.parametrize("room", [1, 2, 8])
def test_abandoned_iterators(shared, store, room):
    batches = shared.batches(10, rows=300)
    pair = Pair(shared, store, rows=300, cache_rows=room * shared.most_rows(batches))
    data = dataset(batches).apply(pair.layer.prefetch(3))
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(12):
        iterator = iter(data)
        for ids in itertools.islice(iterator, int(rng.integers(0, 6))):
            pair.step(ids)
        if rng.random() < 0.5:
            kept.append(iterator)  # and not even freed
        pair.step(batches[int(rng.integers(10))])  # a batch that comes besides
    for ids in batches:
        pair.step(ids)
    pair.check()


def test_an_abandoned_iterator_holds_rows_until_the_next_one_begins(shared, store):
    batches = shared.batches(10, rows=1000)
    size = shared.most_rows(batches)
    pair = Pair(shared, store, rows=1000, cache_rows=4 * size)
    data = dataset(batches).apply(pair.layer.prefetch(2))
    for _ in range(5):
        for ids in data.take(3):
            pair.step(ids)
    before = pair.layer.stats()
    for ids in data:
        pair.step(ids)
    after = pair.layer.stats()
    assert after.lookups - before.lookups == after.hits - before.hits == 180
    pair.check()


def model_of(layer):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,), dtype="int64"), layer, keras.layers.Dense(1)])
    model.compile(tfrec.optimizers.Adagrad(0.1), "mse")
    return model


@pytest.mark.parametrize("kind", ["plain", "ahead", "the same transform", "the same ids"])
def test_validation_data_beside_it(shared, store, kind):
    def labelled(batches):
        y = np.random.default_rng(0).random((len(batches), 6, 1))
        return tf.data.Dataset.from_tensor_slices((np.stack(batches), y))

    batches = shared.batches(10, rows=300)
    training = labelled(batches)
    validation = training if kind == "the same ids" else labelled(shared.batches(6, seed=1))
    room = 8 * shared.most_rows(batches)
    layer = shared.cached(store, rows=300, cache_rows=room)
    twin = shared.Twin(layer, shared.adagrad())
    ahead = layer.prefetch(2)
    beside = {"ahead": layer.prefetch(2), "the same transform": ahead}.get(kind, lambda data: data)
    arguments = {"epochs": 3, "shuffle": False, "verbose": 0}
    ours = model_of(layer).fit(
        training.apply(ahead), validation_data=validation.apply(beside), **arguments
    )
    theirs = model_of(twin.bag).fit(training, validation_data=validation, **arguments)
    assert ours.history == theirs.history
    if kind in ("plain", "ahead"):
        stats = layer.stats()
        assert stats.announced == stats.awaited == (30 if kind == "plain" else 48)


def test_two_streams(shared, store):
    batches = [shared.batches(10, rows=300, seed=seed) for seed in (0, 1)]
    room = 8 * max(map(shared.most_rows, batches))
    pair = Pair(shared, store, rows=300, cache_rows=room)
    streams = [iter(dataset(each).apply(pair.layer.prefetch(2))) for each in batches]
    for which in [0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1]:
        pair.step(next(streams[which]))
    stats = pair.layer.stats()
    assert stats.hits == stats.lookups == 12 * 18
    pair.check()


def test_ids_that_change_on_the_way(shared, store):
    batches = shared.batches(12, rows=300)
    pair = Pair(shared, store, rows=301, cache_rows=2 * shared.most_rows(batches))
    for _ in range(3):
        for ids in dataset(batches).apply(pair.layer.prefetch(2)).map(lambda ids: ids + 1):
            pair.step(ids)
    stats = pair.layer.stats()
    assert stats.announced > 0
    assert stats.awaited == 0
    pair.check()


def test_batches_that_are_dropped_on_the_way(shared, store):
    batches = shared.batches(12, rows=300)
    pair = Pair(shared, store, rows=300, cache_rows=8 * shared.most_rows(batches))
    for ids in dataset(batches).apply(pair.layer.prefetch(2)).shard(3, 1):
        pair.step(ids)
    stats = pair.layer.stats()
    assert stats.awaited == 4
    assert stats.hits == stats.lookups
    pair.check()


def test_batches_that_come_twice(shared, store):
    batches = shared.batches(6, rows=300)
    pair = Pair(shared, store, rows=300, cache_rows=8 * shared.most_rows(batches))
    for ids in dataset(batches).apply(pair.layer.prefetch(2)):
        pair.step(ids)
        pair.step(ids)
    pair.check()


def test_steps_that_are_shuffled_behind_it(shared, store):
    batches = shared.batches(20, rows=300)
    pair = Pair(shared, store, rows=300, cache_rows=6 * shared.most_rows(batches))
    for ids in dataset(batches).apply(pair.layer.prefetch(2)).shuffle(10, seed=0):
        pair.step(ids)
    pair.check()


def test_with_two_threads_that_train(shared, store):
    """Steps of two loops at a time have no order, but no row may be lost or mixed up."""
    import threading

    layer = shared.cached(store, rows=400, cache_rows=150, optimizer=tfrec.optimizers.SGD)
    layer.optimizer.learning_rate = 1.0
    before = layer.read_rows(np.arange(400)).numpy()
    batches = [b % 200 + 200 * half for half in (0, 1) for b in shared.batches(20, rows=200)]
    failures = []

    def loop(of_thread):
        try:
            for ids in dataset(of_thread).apply(layer.prefetch(2)):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(layer(ids))
                tape.gradient(loss, layer.hook.value)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=loop, args=(half,)) for half in (batches[:20], batches[20:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    counts = np.bincount(np.concatenate(batches).ravel(), minlength=400)
    moved = before - layer.read_rows(np.arange(400)).numpy()
    np.testing.assert_allclose(moved, np.repeat(counts[:, np.newaxis], 4, 1), 1e-4, 1e-3)


# ---- What it takes and gives ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "ids"),
    [
        (lambda ids: ids, None),
        (lambda ids: (ids, ids), None),
        (lambda ids: ({"a": ids, "b": ids + 1}, ids, ids), lambda x, y, w: x["a"]),
        (lambda ids: {"a": ids}, lambda x: x["a"]),
    ],
)
def test_elements_of_any_structure(shared, store, element, ids):
    layer = shared.cached(store, cache_rows=40)
    batches = shared.batches(3)
    plain = dataset(batches).map(element)
    ahead = plain.apply(layer.prefetch(1, ids))
    assert ahead.element_spec == plain.element_spec
    for ours, theirs, batch in zip(ahead, plain, batches, strict=True):
        tf.nest.assert_same_structure(ours, theirs)
        for a, b in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
            np.testing.assert_array_equal(a, b)
        layer(batch)
    assert layer.stats().awaited == 3


def test_datasets_of_any_length(shared, store):
    layer = shared.cached(store)
    data = dataset(shared.batches(5))
    assert data.apply(layer.prefetch(2)).cardinality() == 5
    unknown = data.filter(lambda ids: True).apply(layer.prefetch(2))
    assert unknown.cardinality() == tf.data.UNKNOWN_CARDINALITY
    assert len(list(unknown)) == 5
    endless = data.repeat().apply(layer.prefetch(2))
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    assert len(list(endless.take(12))) == 12
    assert list(data.take(0).apply(layer.prefetch(2))) == []


def test_the_layer_lives_as_long_as_the_dataset(shared, store):
    data = dataset(shared.batches(5)).apply(shared.cached(store).prefetch(2))
    gc.collect()
    assert len(list(data)) == 5


def test_bad_ids_are_an_error_of_the_dataset_and_do_no_harm(shared, store):
    batches = shared.batches(4)
    pair = Pair(shared, store)
    bad = [*batches[:2], np.full((6, 3), 40), *batches[2:]]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids` must be in `\[0, 40\)`"):
        for ids in dataset(bad).apply(pair.layer.prefetch(1)):
            pair.step(ids)
    for ids in dataset(batches).apply(pair.layer.prefetch(1)):
        pair.step(ids)
    pair.check()


@pytest.mark.parametrize("policy", ["lfu", "lru", "static"])
def test_other_policies_do_not_look_ahead(shared, store, policy):
    layer = shared.cached(store, policy=policy)
    with pytest.raises(ValueError, match=f'needs `policy="lookahead"`.*policy={policy!r}'):
        layer.prefetch(2)


@pytest.mark.parametrize("depth", [0, -1, 1.5, None])
def test_bad_depths(shared, store, depth):
    with pytest.raises(ValueError, match="`depth` must be a positive integer"):
        shared.cached(store).prefetch(depth)


def test_a_closed_table_is_an_error_of_the_dataset(shared, store):
    layer = shared.cached(store)
    data = dataset(shared.batches(2)).apply(layer.prefetch(1))
    layer.close()
    with pytest.raises(tf.errors.FailedPreconditionError, match="must be open"):
        list(data)


def test_iterators_that_were_left_hold_no_rows(shared, store):
    batches = shared.batches(count=12)
    layer = shared.cached(store, cache_rows=4 * shared.most_rows(batches))
    for _ in range(3):  # as a cell of a notebook that is run again
        dataset = tf.data.Dataset.from_tensor_slices(np.stack(batches)).apply(layer.prefetch(2))
        left = next(iter(dataset))
        del left
    before = layer.stats()
    for ids in tf.data.Dataset.from_tensor_slices(np.stack(batches)).apply(layer.prefetch(2)):
        layer(ids)
    assert layer.stats().awaited - before.awaited == len(batches)
