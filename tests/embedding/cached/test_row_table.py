"""The files of a table: what they hold, who may open them, and what is refused."""

import gc
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.embedding.cached._row_table import RowTable

IDS = np.array([[1, 2, 2], [4, 0, 39]])


def adam():
    return tfrec.optimizers.Adam(0.1)


def train(shared, layer, steps=2):
    step = shared.trainer(layer)
    for _ in range(steps):
        step(IDS)


def test_the_files_are_readable_without_this_package(shared, store):
    layer = shared.cached(store, optimizer=adam)
    train(shared, layer)
    rows = shared.rows_of(layer)
    layer.flush()
    code = (
        "import json, numpy;"
        f"rows = numpy.load({str(store / 'rows.npy')!r}, mmap_mode='r');"
        f"header = json.load(open({str(store / 'header.json')!r}));"
        "print(json.dumps([header, len(rows), rows[[1, 2, 4, 0, 39]]['weights'].tolist(),"
        "  rows[39]['momentum'].tolist(), rows[39]['velocity'].tolist(), "
        "  rows[[3, 2]]['lookups'].tolist()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    header, count, weights, momentum, velocity, lookups = json.loads(done.stdout)
    assert count == 40
    trained = rows[[1, 2, 4, 0, 39]]
    np.testing.assert_array_equal(np.float32(weights), trained[:, :4])
    np.testing.assert_array_equal(np.float32(momentum), rows[39, 4:8])
    np.testing.assert_array_equal(np.float32(velocity), rows[39, 8:12])
    assert np.any(rows[39, 8:12])
    assert lookups == [0, 4]
    assert header["rows"] == 40
    assert header["checkpoint"] == 1
    assert header["user"]["optimizer"] == "Adam"
    assert header["user"]["iterations"] == 2
    assert header["user"]["initializer"]["seed"] == 3


def test_a_table_comes_back_as_it_was_flushed(shared, store):
    layer = shared.cached(store, optimizer=adam)
    train(shared, layer)
    assert layer.flush() == 1
    assert layer.flush() == 2
    rows = shared.rows_of(layer)
    train(shared, layer)
    assert np.any(shared.rows_of(layer) != rows)
    layer.close()  # what changed since is dropped
    reopened = shared.cached(store, optimizer=adam)
    np.testing.assert_array_equal(shared.rows_of(reopened), rows)
    assert int(reopened.optimizer.iterations) == 2
    assert reopened.stats().checkpoints == 2


def test_a_table_that_was_never_flushed_comes_back_new(shared, store):
    layer = shared.cached(store)
    rows = shared.rows_of(layer)
    train(shared, layer)
    layer.close()
    reopened = shared.cached(store)
    np.testing.assert_array_equal(shared.rows_of(reopened), rows)
    assert int(reopened.optimizer.iterations) == 0


def test_training_goes_on_with_the_bits_of_an_undisturbed_one(shared, store):
    batches = shared.batches(9)
    layer = shared.cached(store, optimizer=adam)
    twin = shared.Twin(layer, adam())
    for n, ids in enumerate(batches):
        if n % 3 == 2:
            layer.flush()
            layer.close()
            cache_rows, policy = (21, "lru") if n == 2 else (30, "static")  # as one likes
            layer = shared.cached(store, cache_rows=cache_rows, policy=policy, optimizer=adam)
        assert shared.trainer(layer)(ids) == shared.trainer(twin)(ids)
    shared.assert_same_rows(layer, twin)


def test_the_learning_rate_is_what_it_is_given(shared, store):
    shared.cached(store).close()
    layer = shared.cached(store, optimizer=lambda: tfrec.optimizers.Adagrad(0.25))
    assert float(layer.optimizer.learning_rate) == 0.25


def test_a_schedule_goes_on_from_the_iterations_of_the_files(shared, store):
    def scheduled():
        return tfrec.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([2], [1, 0]))

    layer = shared.cached(store, optimizer=scheduled)
    train(shared, layer, 3)
    layer.flush()
    layer.close()
    layer = shared.cached(store, optimizer=scheduled)
    before = shared.rows_of(layer)
    train(shared, layer)
    np.testing.assert_array_equal(shared.rows_of(layer), before)


def test_a_seed_of_its_own_is_kept(shared, store):
    layer = shared.cached(store, embeddings_initializer="uniform")
    rows = shared.rows_of(layer)
    layer.close()
    for initializer in ("uniform", keras.initializers.RandomUniform(seed=99)):
        layer = shared.cached(store, embeddings_initializer=initializer)
        np.testing.assert_array_equal(shared.rows_of(layer), rows)
        layer.close()


def test_a_folder_that_is_moved_is_the_same_table(shared, store, tmp_path):
    layer = shared.cached(store)
    train(shared, layer)
    layer.flush()
    rows = shared.rows_of(layer)
    layer.close()
    store.rename(tmp_path / "moved")
    np.testing.assert_array_equal(shared.rows_of(shared.cached(tmp_path / "moved")), rows)


def test_unwritten_rows_take_no_space(shared, store):
    layer = shared.cached(store, rows=50_000_000)
    train(shared, layer)
    layer.flush()
    taken = sum(f.stat().st_blocks * 512 for f in store.iterdir())
    assert taken < 1e6
    assert (store / "rows.npy").stat().st_size > 50_000_000 * 4 * 8


# ---- One opener at a time ------------------------------------------------------------------------


def test_two_layers_cannot_open_one_store(shared, store, nursery):
    layer = shared.children.table(store)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be open once at a time"):
        shared.children.table(store)
    assert "must be open once at a time" in nursery.call("error_of_opening", folder=store)
    train(shared, layer)  # which did it no harm
    layer.flush()
    layer.close()
    shared.children.table(store).close()


def test_a_table_that_goes_is_closed(shared, store):
    def open_and_leave():
        return shared.rows_of(shared.cached(store))

    rows = open_and_leave()
    gc.collect()
    np.testing.assert_array_equal(shared.rows_of(shared.cached(store)), rows)


# ---- What a store was made with ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rows": 41}, "`input_dim` must be 40, the rows of the store"),
        ({"optimizer": adam}, "was made with optimizer='Adagrad'. Received: optimizer='Adam'"),
        (
            {"embeddings_initializer": "ones"},
            "was made with initializer=.*'uniform'.*Received: .*'constant'",
        ),
        (
            {"embeddings_initializer": keras.initializers.RandomUniform(0, 1)},
            "was made with initializer=",
        ),
        (
            {"rows": None, "vocabulary": tfrec.embedding.DynamicVocabulary()},
            "was made with vocabulary=None. Received: vocabulary={'min_count': 1",
        ),
    ],
)
def test_a_store_that_was_made_with_others_is_refused(shared, store, kwargs, message):
    layer = shared.cached(store)
    train(shared, layer)
    layer.flush()
    rows = shared.rows_of(layer)
    layer.close()
    with pytest.raises(ValueError, match=message):
        shared.cached(store, **kwargs)
    np.testing.assert_array_equal(shared.rows_of(shared.cached(store)), rows)  # and not locked


def test_a_store_of_another_width_or_state_is_refused(shared, store):
    shared.cached(store, optimizer=adam).close()
    with pytest.raises(ValueError, match="was made with output_dim=4. Received: output_dim=5"):
        tfrec.CachedEmbedding(40, 5, 20, store, adam()).build()
    with pytest.raises(ValueError, match="columns="):
        shared.cached(store, optimizer=lambda: tfrec.optimizers.Adam(0.1, amsgrad=True))


def test_a_vocabulary_of_another_rule_is_refused(shared, store):
    vocabulary = tfrec.embedding.DynamicVocabulary(min_count=2)
    shared.cached(store, rows=None, vocabulary=vocabulary).close()
    for other in (
        {"vocabulary": tfrec.embedding.DynamicVocabulary(min_count=3)},
        {"vocabulary": tfrec.embedding.DynamicVocabulary(min_count=2, max_age=5)},
    ):
        with pytest.raises(ValueError, match="was made with vocabulary={'min_count': 2"):
            shared.cached(store, rows=None, **other)


def test_folders_that_are_no_store(shared, tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError, match="No such file"):
        shared.cached(tmp_path / "none" / "store")
    (tmp_path / "file").write_text("text")
    with pytest.raises(tf.errors.InvalidArgumentError, match="Not a directory"):
        shared.cached(tmp_path / "file")
    for text in ("", "{}", '{"user": {}}', "[1]", "nonsense"):
        folder = tmp_path / "other"
        folder.mkdir()
        (folder / "header.json").write_text(text)
        with pytest.raises(ValueError, match="`path` must be the folder of a CachedEmbedding"):
            shared.cached(folder)
        shutil.rmtree(folder)


def test_rows_without_their_header_are_not_overwritten(shared, store):
    layer = shared.cached(store)
    shared.trainer(layer)(shared.batches()[0])
    layer.flush()
    layer.close()
    (store / "header.json").unlink()
    with pytest.raises(tf.errors.InvalidArgumentError, match="must not hold a store, nor"):
        shared.cached(store)


def test_a_store_that_was_half_made_is_made_again(shared, store):
    layer = shared.cached(store)
    rows = shared.rows_of(layer)
    layer.close()
    (store / "header.json").unlink()  # which comes last
    np.testing.assert_array_equal(shared.rows_of(shared.cached(store)), rows)


def test_an_optimizer_that_has_trained_is_refused_before_files_are_made(store):
    optimizer = adam()
    optimizer.build([keras.Variable(np.zeros(3))])
    with pytest.raises(ValueError, match="an optimizer with 4 variables"):
        RowTable(store, 10, 4, 5, "lru", keras.initializers.Zeros(), optimizer, None, "table")
    assert not store.exists()
