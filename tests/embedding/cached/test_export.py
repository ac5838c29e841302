import json
import tempfile
from pathlib import Path

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.embedding import FrozenEmbedding
from tfrec_efficient.embedding import apply_changes
from tfrec_efficient.embedding.cached import _export

DTYPES = ("float32", "float16", "int8")
FILES = ("ids.npy", "rows.npy", "scales.npy")


def contents(folder):
    """The bytes of the arrays of a frozen table."""
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def train(shared, layer, *bags):
    shared.trainer(layer)(np.array(bags))


# ---- Freezing ------------------------------------------------------------------------------------


def test_the_files_are_readable_without_this_package(shared, store, tmp_path):
    layer = shared.cached(store)
    train(shared, layer, [1, 2, 3])
    layer.freeze(tmp_path / "a" / "frozen")
    rows = np.load(tmp_path / "a" / "frozen" / "rows.npy", mmap_mode="r")
    np.testing.assert_array_equal(rows, layer.read_rows(np.arange(40)))
    manifest = json.loads((tmp_path / "a" / "frozen" / "manifest.json").read_text())
    assert manifest == {
        "version": 1,
        "input_dim": 40,
        "output_dim": 4,
        "dtype": "float32",
        "rows": None,
        "checkpoint": 1,
    }
    assert layer.stats().checkpoints == 1  # it is one


def test_a_table_of_many_blocks(shared, store, tmp_path, monkeypatch):
    monkeypatch.setattr(_export, "_BLOCK_BYTES", 4 * 10 * 7)  # seven rows
    layer = shared.cached(store)
    train(shared, layer, [1, 2, 3], [39, 20, 21])
    since = layer.flush()
    layer.freeze(tmp_path / "all")
    layer.freeze(tmp_path / "some", 5)
    train(shared, layer, [8, 15, 39])
    assert layer.export_changes(tmp_path / "changes", since) == 3
    apply_changes(tmp_path / "all", tmp_path / "changes")
    rows = layer.read_rows(np.arange(40)).numpy()
    np.testing.assert_array_equal(FrozenEmbedding(tmp_path / "all", None)(np.arange(40)), rows)
    assert np.load(tmp_path / "some" / "ids.npy").tolist() == [1, 2, 3, 20, 21]


def test_the_most_used_rows_are_those_with_the_most_trained_lookups(shared, store, tmp_path):
    layer = shared.cached(store)
    train(shared, layer, [5, 5, 5], [7, 7, 1], [2, 3, 3])
    layer(np.full((9, 3), 9))  # looked at, and not trained
    for count, ids in ((1, [5]), (2, [3, 5]), (3, [3, 5, 7]), (4, [1, 3, 5, 7])):
        layer.freeze(tmp_path / str(count), count)
        assert np.load(tmp_path / str(count) / "ids.npy").tolist() == ids


@pytest.mark.parametrize("count", [np.int64(3), 3])
def test_a_count_may_come_from_numpy(shared, store, tmp_path, count):
    shared.cached(store).freeze(tmp_path / "frozen", count)
    assert len(np.load(tmp_path / "frozen" / "ids.npy")) == 3


def test_untrained_rows_have_no_part_in_the_default(shared, store, tmp_path):
    layer = shared.cached(store)
    train(shared, layer, [1, 2, 3])
    frozen = layer.freeze(tmp_path / "frozen", [1])
    np.testing.assert_allclose(
        frozen(np.array([[30]]))[0], layer.read_rows([2, 3]).numpy().mean(0), 1e-6
    )
    nothing = layer.freeze(tmp_path / "all of them", [1, 2, 3])
    np.testing.assert_array_equal(nothing(np.array([[30]])), np.zeros((1, 4)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_tiny_and_of_no_numbers(tmp_path, dtype):
    values = np.float32([0.0, 1e-45, 1e-39, 1e-30, 1.0])[:, np.newaxis] * np.float32([1, -1])
    writer = _export._Writer(tmp_path, dtype, 5, 2)
    writer.write(np.arange(5), values)
    writer.close()
    rows = np.load(tmp_path / "rows.npy").astype("float32")
    if dtype == "int8":
        rows *= np.load(tmp_path / "scales.npy")[:, np.newaxis]
    np.testing.assert_allclose(rows, values, 1e-6, 1e-29)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float16", 1e6),
        ("float32", np.inf),
        ("int8", np.inf),
        ("float32", np.nan),
        ("int8", np.nan),
    ],
)
def test_rows_that_are_not_finite_are_refused(shared, store, tmp_path, dtype, value):
    layer = shared.cached(store)
    layer._rows.slab.assign(np.where(np.arange(20)[:, None] == 1, value, layer._rows.slab))
    train(shared, layer, [0])
    train(shared, layer, [1])  # in slot 1
    with pytest.raises(ValueError, match=f"finite in {dtype} to be frozen. Received: row 1 is not"):
        overwrite(layer, 1, value)
        layer.freeze(tmp_path / "frozen", dtype=dtype)
    assert list(tmp_path.iterdir()) == [store]  # nothing is left behind


def overwrite(layer, row, value):
    """Puts a value where a row lies in memory."""
    slots, lease = layer._rows.table.lookup(np.array([row]))
    slab = layer._rows.slab.numpy()
    slab[int(slots[0])] = value
    layer._rows.slab.assign(slab)
    layer._rows.table.commit(lease)


def test_the_largest_numbers_of_float16_are_kept(shared, store, tmp_path):
    layer = shared.cached(store, embeddings_initializer=keras.initializers.Constant(65504.0))
    frozen = layer.freeze(tmp_path / "frozen", dtype="float16")
    np.testing.assert_array_equal(frozen(np.array([[1]])), np.full((1, 4), 65504.0))


@pytest.mark.parametrize(
    ("rows", "dtype", "message"),
    [
        (0, "float32", r"`rows` must be a number in `\[1, 40\]`, or ids below 40"),
        (41, "float32", "Received: rows=41"),
        ([40], "float32", r"Received: rows=\[40\]"),
        ([-1], "float32", r"Received: rows=\[-1\]"),
        ([], "float32", r"Received: rows=\[\]"),
        ([0.5], "float32", r"Received: rows=\[0.5\]"),
        (True, "float32", "Received: rows=True"),
        (None, "float64", "`dtype` must be one of .*Received: dtype='float64'"),
    ],
)
def test_bad_arguments(shared, store, tmp_path, rows, dtype, message):
    with pytest.raises(ValueError, match=message):
        shared.cached(store).freeze(tmp_path / "frozen", rows, dtype)
    assert list(tmp_path.iterdir()) == [store]


def test_a_folder_that_is_there_is_not_overwritten(shared, store, tmp_path):
    layer = shared.cached(store)
    layer.freeze(tmp_path / "frozen")
    before = contents(tmp_path / "frozen")
    for make in (layer.freeze, lambda path: layer.export_changes(path, 0)):
        with pytest.raises(ValueError, match="`path` must not exist yet"):
            make(tmp_path / "frozen")
    assert contents(tmp_path / "frozen") == before


def test_a_progress_bar(shared, store, tmp_path, capsys):
    layer = shared.cached(store)
    layer.freeze(tmp_path / "silent")
    assert capsys.readouterr().out == ""
    layer.freeze(tmp_path / "frozen", verbose=1)
    assert "40/40" in capsys.readouterr().out


# ---- Changes -------------------------------------------------------------------------------------


def test_changes_are_the_rows_that_were_trained_since(shared, store, tmp_path):
    layer = shared.cached(store)
    train(shared, layer, [1, 2, 3])
    first = layer.flush()
    train(shared, layer, [3, 4])
    second = layer.flush()
    layer(np.array([[7]]))
    train(shared, layer, [5])
    for since, ids in ((0, [1, 2, 3, 4, 5]), (first, [3, 4, 5]), (second, [5]), (3, []), (4, [])):
        folder = tmp_path / f"changes-{since}"
        assert layer.export_changes(folder, since) == len(ids)
        assert np.load(folder / "ids.npy").tolist() == ids
        np.testing.assert_array_equal(np.load(folder / "rows.npy"), layer.read_rows(ids))


def test_changes_after_a_table_was_opened_again(shared, store, tmp_path):
    layer = shared.cached(store)
    train(shared, layer, [1, 2, 3])
    since = layer.flush()
    train(shared, layer, [30])  # and never flushed
    layer.close()
    layer = shared.cached(store)
    train(shared, layer, [4])
    assert layer.export_changes(tmp_path / "changes", since) == 1
    assert np.load(tmp_path / "changes" / "ids.npy").tolist() == [4]


@pytest.mark.parametrize("since", [-1, 3])
def test_changes_since_a_checkpoint_that_never_was(shared, store, tmp_path, since):
    layer = shared.cached(store)
    layer.flush()
    with pytest.raises(ValueError, match=rf"`since` must be a checkpoint in `\[0, 2\]`.*={since}"):
        layer.export_changes(tmp_path / "changes", since)
    assert list(tmp_path.iterdir()) == [store]


def frozen_and_changed(shared, tmp_path):
    layer = shared.cached(tmp_path / "store")
    train(shared, layer, [1, 2, 3])
    layer.freeze(tmp_path / "frozen")  # at checkpoint 1
    train(shared, layer, [3, 4])
    layer.export_changes(tmp_path / "first", 1)
    train(shared, layer, [5])
    layer.export_changes(tmp_path / "second", 2)
    return layer


def test_changes_are_applied_in_their_order(shared, tmp_path):
    layer = frozen_and_changed(shared, tmp_path)
    with pytest.raises(ValueError, match="`changes` must begin at checkpoint 1 .*checkpoints 2 to"):
        apply_changes(tmp_path / "frozen", tmp_path / "second")
    assert apply_changes(str(tmp_path / "frozen"), str(tmp_path / "first")) == 2
    assert apply_changes(tmp_path / "frozen", tmp_path / "second") == 1
    assert apply_changes(tmp_path / "frozen", tmp_path / "second") == 1  # again, without harm
    with pytest.raises(ValueError, match="`changes` must begin at checkpoint 3 .*checkpoints 1 to"):
        apply_changes(tmp_path / "frozen", tmp_path / "first")
    layer.freeze(tmp_path / "anew")
    assert contents(tmp_path / "frozen") == contents(tmp_path / "anew")


def test_changes_of_another_table_are_refused(shared, tmp_path):
    frozen_and_changed(shared, tmp_path)
    other = tfrec.CachedEmbedding(40, 5, 20, tmp_path / "other", shared.adagrad())
    other.export_changes(tmp_path / "of other", 0)
    with pytest.raises(ValueError, match="have rows of 4 columns. Received: .* 5 columns"):
        apply_changes(tmp_path / "frozen", tmp_path / "of other")
    for none in (tmp_path, tmp_path / "frozen"):
        with pytest.raises(ValueError, match="`changes` must be a folder that .*export_changes`"):
            apply_changes(tmp_path / "frozen", none)
    with pytest.raises(ValueError, match="`path` must be a folder that `CachedEmbedding.freeze`"):
        apply_changes(tmp_path / "first", tmp_path / "first")


def test_an_open_layer_sees_changes_of_its_table(shared, tmp_path):
    """The files are mapped, and written in place."""
    layer = frozen_and_changed(shared, tmp_path)
    open_one = FrozenEmbedding(tmp_path / "frozen")
    before = open_one(np.array([[3]])).numpy()
    apply_changes(tmp_path / "frozen", tmp_path / "first")
    assert np.any(open_one(np.array([[3]])) != before)
    np.testing.assert_array_equal(open_one(np.array([[3]])), layer.read_rows([3]))


BATCH = st.lists(st.integers(0, 19), min_size=1, max_size=6)


@hypothesis.given(
    trainings=st.lists(st.lists(BATCH, max_size=3), min_size=1, max_size=3),
    first=st.lists(BATCH, max_size=3),
    dtype=st.sampled_from(DTYPES),
    kept=st.none() | st.sets(st.integers(0, 19), min_size=1),
)
@hypothesis.settings(max_examples=12, deadline=None)
def test_changes_make_a_table_what_freezing_anew_makes_it(shared, trainings, first, dtype, kept):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        layer = shared.cached(folder / "store", rows=20, cache_rows=7)
        kept = None if kept is None else sorted(kept)

        def train_all(batches):
            for ids in batches:
                train(shared, layer, ids)

        train_all(first)
        layer.freeze(folder / "frozen", kept, dtype)
        for number, batches in enumerate(trainings):
            since = layer.stats().checkpoints
            train_all(batches)
            count = layer.export_changes(folder / f"changes-{number}", since)
            assert count == len({row for ids in batches for row in ids})
            for _ in range(2):
                apply_changes(folder / "frozen", folder / f"changes-{number}")
        layer.freeze(folder / "anew", kept, dtype)
        where = np.arange(20) if kept is None else np.array(kept)
        updated, anew = (FrozenEmbedding(folder / name, None) for name in ("frozen", "anew"))
        np.testing.assert_array_equal(updated(where), anew(where))
        if kept is None:
            assert contents(folder / "frozen") == contents(folder / "anew")
        layer.close()
