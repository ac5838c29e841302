"""Training gives the bits of the table that lies in memory whole, whatever is kept there."""

import tempfile
from pathlib import Path

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec

_optimizers = tfrec.optimizers
OPTIMIZERS = {
    "sgd": lambda: _optimizers.SGD(0.1),
    "momentum": lambda: _optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: _optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adagrad": lambda: _optimizers.Adagrad(0.1),
    "rowwise": lambda: _optimizers.RowwiseAdagrad(0.1),
    "adam": lambda: _optimizers.Adam(0.1),
    "amsgrad": lambda: _optimizers.Adam(0.1, amsgrad=True),
    "ftrl": lambda: _optimizers.FTRL(0.1, l1_regularization_strength=0.01),
    "decayed": lambda: _optimizers.Adam(0.1, weight_decay=0.01, clipvalue=0.5),
    "scheduled": lambda: _optimizers.Adagrad(
        keras.optimizers.schedules.ExponentialDecay(1, 2, 0.8)
    ),
}
POLICIES = ("lookahead", "lfu", "lru", "static")


def train_both(shared, layer, twin, batches, depth=0, in_graph=False, epochs=1):
    """Trains a layer and its twin, and checks each result on the way."""
    ours, theirs = (shared.trainer(each, in_graph) for each in (layer, twin))
    data = tf.data.Dataset.from_tensor_slices(np.stack(batches))
    if depth:
        data = data.apply(layer.prefetch(depth))
    for _ in range(epochs):
        for ids in data:
            assert ours(ids) == theirs(ids)
    shared.assert_same_rows(layer, twin)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer(shared, store, name):
    batches = shared.batches()
    size = shared.most_rows(batches)
    layer = shared.cached(store, cache_rows=size, optimizer=OPTIMIZERS[name])
    twin = shared.Twin(layer, OPTIMIZERS[name]())
    before = shared.rows_of(layer)
    train_both(shared, layer, twin, batches, in_graph=True)
    assert int(layer.optimizer.iterations) == int(twin.optimizer.iterations) == len(batches)
    stats = layer.stats()
    assert stats.rows_written > size  # evicted, with their state
    moved = np.any(shared.rows_of(layer) != before, axis=0)
    assert np.all(moved)  # each column


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("room", [1.0, 2.0])
def test_each_policy_and_cache_size(shared, store, policy, room):
    batches = shared.batches()
    cache_rows = int(shared.most_rows(batches) * room)
    layer = shared.cached(store, cache_rows=cache_rows, policy=policy)
    train_both(shared, layer, shared.Twin(layer, shared.adagrad()), batches)


@pytest.mark.parametrize(
    ("depth", "batches_in_memory"), [(0, 1), (1, 1), (1, 6), (2, 2), (3, 4), (4, 1), (4, 3), (4, 6)]
)
def test_each_depth(shared, store, depth, batches_in_memory):
    batches = shared.batches()
    cache_rows = shared.most_rows(batches) * batches_in_memory
    layer = shared.cached(store, cache_rows=cache_rows, optimizer=OPTIMIZERS["adam"])
    twin = shared.Twin(layer, OPTIMIZERS["adam"]())
    train_both(shared, layer, twin, batches, depth, in_graph=True, epochs=2)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn", None])
@pytest.mark.parametrize("padding_id", [None, 0, -1])
def test_bags_of_any_rank(shared, store, combiner, padding_id):
    layer = shared.cached(store, combiner=combiner, padding_id=padding_id)
    twin = shared.Twin(layer, shared.adagrad())
    train_both(shared, layer, twin, [b.reshape(2, 3, 3) for b in shared.batches(4)])
    if padding_id is not None:
        padded = np.where(shared.batches(2, seed=1) < np.int64(5), padding_id, 7)
        train_both(shared, layer, twin, list(padded))


@pytest.mark.parametrize("layout", ["dense", "ragged", "sparse"])
@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_weighted_bags_and_the_gradient_of_weights(shared, store, layout, combiner):
    layer = shared.cached(store, cache_rows=18, combiner=combiner, padding_id=1)
    twin = shared.Twin(layer, shared.adagrad())
    ours, theirs = shared.trainer(layer), shared.trainer(twin)
    rng = np.random.default_rng(0)
    for ids in shared.batches(3):
        weights = tf.constant(rng.normal(size=ids.shape), tf.float32)
        ids = tf.constant(ids)
        if layout != "dense":
            lengths = rng.permutation([0, 1, 1, 2, 3, 3])
            ids, weights = (tf.RaggedTensor.from_tensor(x, lengths) for x in (ids, weights))
        if layout == "sparse":
            ids, weights = ids.to_sparse(), weights.to_sparse()
        pooled, of_weights = ours(ids, weights)
        assert of_weights.strip(b"\0")
        assert [pooled, of_weights] == theirs(ids, weights)
        assert ours(ids) == theirs(ids)
    shared.assert_same_rows(layer, twin)


@pytest.mark.parametrize("combiner", ["mean", None])
def test_ragged_ids_come_from_a_pipeline(shared, store, combiner):
    ids = tf.ragged.constant([[1, 2], [3], [], [4, 4, 39], [5], [1]], tf.int64)
    layer = shared.cached(store, cache_rows=6, combiner=combiner)
    twin = shared.Twin(layer, shared.adagrad())
    ours, theirs = shared.trainer(layer), shared.trainer(twin)
    for batch in tf.data.Dataset.from_tensor_slices(ids).ragged_batch(3).apply(layer.prefetch(1)):
        assert ours(batch) == theirs(batch)
    shared.assert_same_rows(layer, twin)
    assert layer.stats().hits == layer.stats().lookups > 0


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64", "float32"])
def test_ids_of_each_dtype(shared, store, dtype):
    layer = shared.cached(store, cache_rows=18)
    batches = [ids.astype(dtype) for ids in shared.batches(3)]
    train_both(shared, layer, shared.Twin(layer, shared.adagrad()), batches, depth=1)
    assert layer.stats().announced > 0


def test_half_precision_computes_alike(shared, store):
    layer = shared.cached(store, dtype="mixed_bfloat16")
    assert layer(shared.batches()[0]).dtype == tf.bfloat16
    train_both(shared, layer, shared.Twin(layer, shared.adagrad()), shared.batches(), depth=2)


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_clipping_of_all_rows_together_differs_by_rounding_only(shared, store, clipping):
    def optimizer():
        return tfrec.optimizers.Adagrad(0.1, **{clipping: 0.01})

    layer = shared.cached(store, optimizer=optimizer)
    twin = shared.Twin(layer, optimizer())
    ours, theirs = shared.trainer(layer), shared.trainer(twin)
    for ids in shared.batches():
        ours(ids), theirs(ids)
    # The norm is a sum over rows in the order of their slots.
    np.testing.assert_allclose(shared.rows_of(layer), twin.rows(), 1e-4, 1e-6)


def model_of(layer, optimizer, **compile_arguments):
    keras.utils.set_random_seed(2)
    dense = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((3,), dtype="int64"), layer, dense])
    model.compile(optimizer, "mse", **compile_arguments)
    return model


@pytest.mark.parametrize(("steps_per_execution", "name"), [(1, "adagrad"), (5, "scheduled")])
def test_fit(shared, store, steps_per_execution, name):
    ids = np.concatenate(shared.batches(12))  # not a multiple of 5 of them
    y = np.random.default_rng(0).random((len(ids), 1))
    make = OPTIMIZERS[name]
    layer = shared.cached(store, cache_rows=55, rows=200, optimizer=make)
    twin = shared.Twin(layer, make())
    data = tf.data.Dataset.from_tensor_slices((ids, y)).batch(6)
    arguments = {"epochs": 2, "shuffle": False, "verbose": 0}
    ours = model_of(layer, make(), steps_per_execution=steps_per_execution)
    losses = ours.fit(data.apply(layer.prefetch(2)), **arguments).history["loss"]
    theirs = model_of(twin.bag, make(), steps_per_execution=steps_per_execution)
    assert theirs.fit(data, **arguments).history["loss"] == losses
    weights = [layer.read_rows(np.arange(200)).numpy(), *map(np.array, ours.get_weights()[1:])]
    for a, b in zip(weights, theirs.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    assert layer.stats().hits == layer.stats().lookups


def test_threads_change_no_bit(nursery, tmp_path):
    one, two = (
        nursery.call("digest_after_training", folder=tmp_path / str(n), threads=n) for n in (1, 2)
    )
    assert one == two


@st.composite
def trainings(draw):
    rows = draw(st.integers(1, 30))
    hotness = draw(st.integers(1, 4))
    batch = st.lists(st.lists(st.integers(0, rows - 1), min_size=hotness, max_size=hotness))
    batches = draw(st.lists(batch.filter(len), min_size=1, max_size=8))
    largest = max(len({i for bag in of_batch for i in bag}) for of_batch in batches)
    return {
        "rows": rows,
        "batches": [np.array(of_batch) for of_batch in batches],
        "cache_rows": largest + draw(st.integers(0, 2 * largest)),
        "policy": draw(st.sampled_from(POLICIES)),
        "depth": draw(st.integers(0, 4)),
        "combiner": draw(st.sampled_from(["sum", "mean", "sqrtn", None])),
        "padding_id": draw(st.none() | st.integers(-1, rows)),
        "optimizer": OPTIMIZERS[draw(st.sampled_from(sorted(OPTIMIZERS)))],
        "flushes_after": draw(st.none() | st.integers(0, 8)),
    }


def check_exactness(shared, training):
    with tempfile.TemporaryDirectory() as folder:
        names = ("rows", "cache_rows", "policy", "combiner", "padding_id", "optimizer")
        layer = shared.cached(Path(folder, "store"), **{name: training[name] for name in names})
        twin = shared.Twin(layer, training["optimizer"]())
        ours, theirs = shared.trainer(layer), shared.trainer(twin)

        def generate():
            yield from training["batches"]

        spec = tf.TensorSpec([None, None], tf.int64)
        data = tf.data.Dataset.from_generator(generate, output_signature=spec)
        if training["depth"] and training["policy"] == "lookahead":
            data = data.apply(layer.prefetch(training["depth"]))
        for number, ids in enumerate(data):
            assert ours(ids) == theirs(ids)
            if number == training["flushes_after"]:
                layer.flush()
        shared.assert_same_rows(layer, twin)
        layer.flush()
        shared.assert_same_rows(layer, twin)
        layer.close()


@hypothesis.given(trainings())
@hypothesis.settings(max_examples=12, deadline=None)
def test_any_training(shared, training):
    check_exactness(shared, training)


@pytest.mark.slow
@hypothesis.given(trainings())
@hypothesis.settings(max_examples=2_000, deadline=None)
def test_any_training_many_times(shared, training):
    check_exactness(shared, training)
