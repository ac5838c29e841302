import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.embedding import DynamicVocabulary
from tfrec_efficient.embedding import FrozenEmbedding
from tfrec_efficient.embedding import freeze_model

IDS = np.array([[1, 2, 2], [4, 0, 39]])
DTYPES = ("float32", "float16", "int8")


@pytest.fixture
def layer(shared, store):
    layer = shared.cached(store, combiner="mean")
    step = shared.trainer(layer)
    for ids in shared.batches(4):
        step(ids)
    return layer


def as_stored(rows, dtype):
    """Rows after a round trip through a narrow dtype."""
    if dtype != "int8":
        return rows.astype(dtype).astype("float32")
    scales = (np.abs(rows).max(1, keepdims=True) / 127).astype("float32")
    return np.rint(rows / scales).astype("int8") * scales


# ---- Rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [None, [1, 2, 7], 5])
def test_rows_are_those_of_the_table(shared, layer, tmp_path, dtype, kept):
    frozen = layer.freeze(tmp_path / "frozen", kept, dtype)
    rows = layer.read_rows(np.arange(40)).numpy()
    lookups = layer._rows.table.read(np.arange(40)).numpy()[:, -2]
    if kept is not None:
        ids = kept if isinstance(kept, list) else np.argsort(-lookups, kind="stable")[:kept]
        is_left_out = ~np.isin(np.arange(40), ids)
        rows[is_left_out] = rows[is_left_out & (lookups > 0)].mean(0, dtype=np.float64)
    expected = as_stored(rows, dtype)
    single = FrozenEmbedding(tmp_path / "frozen", combiner=None)
    np.testing.assert_allclose(single(np.arange(40)), expected, 1e-6, 1e-9)
    if dtype == "float32":
        of_kept = rows[:40] if kept is None else rows[sorted(ids)]
        where = np.arange(40) if kept is None else sorted(ids)
        assert single(np.array(where)).numpy().tobytes() == of_kept.tobytes()
    rounding = 1e-3 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(frozen(IDS), expected[IDS].mean(1), rounding, 1e-6)
    tolerance = {"float32": 1e-6, "float16": 1e-3, "int8": np.abs(rows).max() / 200}[dtype]
    np.testing.assert_allclose(frozen(IDS), rows[IDS].mean(1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [None, [0, 1, 39]])
@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn", None])
@pytest.mark.parametrize("padding_id", [None, 0])
def test_pools_as_the_layer_does(shared, tmp_path, dtype, kept, combiner, padding_id):
    layer = shared.cached(
        tmp_path / "store",
        combiner=combiner,
        padding_id=padding_id,
        embeddings_initializer=keras.initializers.Constant(0.5),
    )
    frozen = layer.freeze(tmp_path / "frozen", kept, dtype)
    ids = np.array([[[1, 0], [39, 39]], [[0, 0], [1, 39]]])
    expected = layer(ids)
    # Results are rounded to float16, too, where the table is.
    tolerance = 1e-3 if dtype == "float16" else 1e-6
    np.testing.assert_allclose(frozen(ids), expected, tolerance)
    symbolic = frozen(keras.Input((2, 2), dtype="int64"))
    assert symbolic.shape[1:] == expected.shape[1:]
    if combiner is not None:
        weights = np.random.default_rng(0).random(ids.shape)
        np.testing.assert_allclose(frozen(ids, weights), layer(ids, weights), tolerance)
        ragged = tf.ragged.constant([[1, 1], [], [39]], dtype=tf.int64)
        np.testing.assert_allclose(frozen(ragged), layer(ragged), tolerance)
        np.testing.assert_array_equal(frozen(ragged.to_sparse()), frozen(ragged))


def test_ids_out_of_range_are_refused_where_all_rows_are_there(layer, tmp_path):
    frozen = layer.freeze(tmp_path / "frozen")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids` must be in `\[0, 40\)`"):
        frozen(IDS + 1)
    with pytest.raises(ValueError, match="`ids` must be integers"):
        frozen(np.array([["a"]]))


def test_any_other_id_has_the_default_row(layer, tmp_path):
    frozen = layer.freeze(tmp_path / "frozen", [1, 3])
    default = frozen(np.array([[0]]))
    for other in (2, 39, 40, -1, 2**62, -(2**63)):
        np.testing.assert_array_equal(frozen(np.array([[other]])), default)
    assert np.any(default != frozen(np.array([[1]])))


def test_it_is_not_trained(layer, tmp_path):
    frozen = layer.freeze(tmp_path / "frozen")
    assert frozen.weights == []
    with tf.GradientTape() as tape:
        frozen(IDS)
    assert not tape.watched_variables()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16"])
def test_it_computes_in_any_dtype(layer, tmp_path, policy):
    frozen = layer.freeze(tmp_path / "frozen")
    narrow = FrozenEmbedding(tmp_path / "frozen", "mean", dtype=policy)
    assert narrow(IDS).dtype == narrow.compute_dtype != "float32"
    np.testing.assert_allclose(tf.cast(narrow(IDS), tf.float32), frozen(IDS), 1e-2)


# ---- Keys ----------------------------------------------------------------------------------------


@pytest.fixture
def of_keys(shared, store):
    vocabulary = DynamicVocabulary(min_count=2)
    layer = shared.cached(store, rows=None, vocabulary=vocabulary)
    for ids in ([["a", "b"], ["a", "c"]], [["a", "b"], ["d", "d"]], [["a", "a"], ["d", "e"]]):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(np.array(ids), training=True) ** 2)
        tape.gradient(loss, layer.hook.value)
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [None, 1, 2, 100])
def test_keys_are_found_and_others_have_row_0(of_keys, tmp_path, dtype, kept):
    frozen = of_keys.freeze(tmp_path / "frozen", kept, dtype)
    rows = np.concatenate([of_keys(np.array([[key]])) for key in "abcde"])
    other = of_keys.read_rows([0]).numpy()[0]
    for left_out in {None: "ce", 1: "bcde", 2: "bce", 100: "ce"}[kept]:
        rows["abcde".index(left_out)] = other
    found = frozen(np.array([[key] for key in "abcde"]))
    np.testing.assert_allclose(found, as_stored(rows, dtype), 1e-6, 1e-9)
    np.testing.assert_allclose(
        frozen(np.array([["nobody"]]))[0], as_stored(other[None], dtype)[0], 1e-6
    )
    symbolic = frozen(keras.Input((2,), dtype="string"))
    assert symbolic.shape == (None, 4)


@pytest.mark.parametrize("rows", [0, [1, 2], 1.5, "all"])
def test_keys_are_chosen_by_their_number(of_keys, tmp_path, rows):
    with pytest.raises(ValueError, match="`rows` must be None or a positive number, where"):
        of_keys.freeze(tmp_path / "frozen", rows)
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]


def test_a_vocabulary_without_keys_is_refused(shared, store, tmp_path):
    layer = shared.cached(store, rows=None, vocabulary=DynamicVocabulary())
    with pytest.raises(ValueError, match="must have a key to be frozen"):
        layer.freeze(tmp_path / "frozen")


# ---- Models --------------------------------------------------------------------------------------


def models(layer):
    dense = keras.layers.Dense(2, name="dense")
    x = keras.Input((3,), dtype="int64")
    functional = keras.Model(x, dense(layer(x)), name="functional")
    return functional, keras.Sequential([keras.Input((3,), dtype="int64"), layer, dense])


@pytest.mark.parametrize(("which", "dtype"), [(0, "float32"), (1, "int8")])
def test_a_frozen_model_predicts_as_the_trained_one(layer, tmp_path, nursery, which, dtype):
    model = models(layer)[which]
    frozen = layer.freeze(tmp_path / "frozen", dtype=dtype)
    served = freeze_model(model, {layer.name: frozen})
    assert served.get_layer(layer.name) is frozen
    expected = model.predict(IDS, verbose=0)
    predicted = served.predict(IDS, verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-6 if dtype == "float32" else 2e-3)
    # The trained model is as it was.
    np.testing.assert_array_equal(model.predict(IDS, verbose=0), expected)
    layer.close()  # and the frozen one does not need it

    served.save(tmp_path / "m.keras")
    revived = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(revived.predict(IDS, verbose=0), predicted)
    served.export(tmp_path / "exported", verbose=False)
    for file in (tmp_path / "frozen").iterdir():
        file.unlink()
    answer = nursery.call("serve", exported=tmp_path / "exported", inputs=IDS.tolist())
    np.testing.assert_allclose(answer, predicted, 1e-6)


def test_a_frozen_model_of_keys_is_served(of_keys, tmp_path, nursery):
    x = keras.Input((2,), dtype="string")
    model = keras.Model(x, of_keys(x))
    served = freeze_model(model, {of_keys.name: of_keys.freeze(tmp_path / "frozen", dtype="int8")})
    served.export(tmp_path / "exported", verbose=False)
    ids = np.array([["a", "nobody"], ["d", "b"]])
    answer = nursery.call("serve", exported=tmp_path / "exported", inputs=ids.tolist())
    np.testing.assert_allclose(answer, served(ids), 1e-6)


def test_the_table_is_an_asset_of_the_saved_model(layer, tmp_path):
    model = models(layer)[0]
    frozen = layer.freeze(tmp_path / "frozen", [1, 2], "int8")
    freeze_model(model, {layer.name: frozen}).export(tmp_path / "exported", verbose=False)
    assets = sorted(os.listdir(tmp_path / "exported" / "assets"))
    assert assets == ["ids.npy", "rows.npy", "scales.npy"]
    for name in assets:
        copied = (tmp_path / "exported" / "assets" / name).read_bytes()
        assert copied == (tmp_path / "frozen" / name).read_bytes()


def test_two_frozen_tables_in_one_model(shared, tmp_path, nursery):
    x = keras.Input((3,), dtype="int64")
    layers = [shared.cached(tmp_path / name, name=name) for name in ("first", "second")]
    layers[1](IDS)
    shared.trainer(layers[1])(IDS)
    model = keras.Model(x, keras.layers.Concatenate()([layer(x) for layer in layers]))
    frozen = {layer.name: layer.freeze(tmp_path / f"f-{layer.name}") for layer in layers}
    served = freeze_model(model, frozen)
    np.testing.assert_array_equal(served(IDS), model(IDS))
    served.export(tmp_path / "exported", verbose=False)
    answer = nursery.call("serve", exported=tmp_path / "exported", inputs=IDS.tolist())
    np.testing.assert_allclose(answer, model(IDS), 1e-6)


def test_layers_that_the_model_does_not_have(layer, tmp_path):
    frozen = layer.freeze(tmp_path / "frozen")
    with pytest.raises(ValueError, match=r"must have names of layers.*Received: \['other'\]"):
        freeze_model(models(layer)[0], {"other": frozen})


# ---- The layer -----------------------------------------------------------------------------------


def test_a_config_that_goes_through_json(layer, tmp_path):
    frozen = layer.freeze(tmp_path / "frozen")
    assert (frozen.combiner, frozen.padding_id, frozen.name) == ("mean", None, layer.name)
    revived = FrozenEmbedding.from_config(json.loads(json.dumps(frozen.get_config())))
    assert revived.get_config() == frozen.get_config()
    assert (revived.input_dim, revived.output_dim) == (40, 4)
    np.testing.assert_array_equal(revived(IDS), frozen(IDS))


def test_masks_zero(shared, store, tmp_path):
    layer = shared.cached(store, combiner=None, mask_zero=True)
    frozen = layer.freeze(tmp_path / "frozen")
    assert frozen.compute_mask(tf.constant(IDS)).numpy().tolist() == [
        [True] * 3,
        [True, False, True],
    ]


@pytest.mark.parametrize("change", [{"version": 2}, {"dtype": "float64"}, {"rows": ...}])
def test_folders_that_are_no_frozen_table(layer, tmp_path, change):
    with pytest.raises(ValueError, match="`path` must be a folder that `CachedEmbedding.freeze`"):
        FrozenEmbedding(tmp_path)
    layer.freeze(tmp_path / "frozen")
    manifest = tmp_path / "frozen" / "manifest.json"
    facts = {**json.loads(manifest.read_text()), **change}
    manifest.write_text(json.dumps({k: v for k, v in facts.items() if v is not ...}))
    with pytest.raises(ValueError, match="must be of version 1"):
        FrozenEmbedding(tmp_path / "frozen")
    manifest.write_text("[]")
    with pytest.raises(ValueError, match="`path` must be a folder that `CachedEmbedding.freeze`"):
        FrozenEmbedding(tmp_path / "frozen")


def test_a_folder_that_was_made_anew(shared, layer, tmp_path):
    old = layer.freeze(tmp_path / "frozen")(IDS)
    shared.trainer(layer)(IDS)
    shutil.rmtree(tmp_path / "frozen")
    new = layer.freeze(tmp_path / "frozen")(IDS)
    assert np.all(old != new)
    np.testing.assert_array_equal(new, layer(IDS))


def test_a_file_that_is_another_one(layer, tmp_path):
    layer.freeze(tmp_path / "frozen")
    np.save(tmp_path / "frozen" / "rows.npy", np.zeros((40, 5), np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have the header"):
        FrozenEmbedding(tmp_path / "frozen")(IDS)
