"""What Keras and TensorFlow save of a model refers to the files of its table."""

import shutil

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec

IDS = np.array([[1, 2, 2], [4, 0, 39]])
Y = np.ones((2, 1))


def model_of(layer):
    dense = keras.layers.Dense(1, kernel_initializer=keras.initializers.RandomNormal(seed=5))
    model = keras.Sequential([keras.Input((3,), dtype="int64"), layer, dense])
    model.compile(tfrec.optimizers.Adagrad(0.1), "mse")
    return model


def trained(shared, store, **arguments):
    layer = shared.cached(store, **arguments)
    model = model_of(layer)
    model.fit(IDS, Y, epochs=3, verbose=0)
    return layer, model


def test_a_keras_file_has_the_model_and_refers_to_the_table(shared, store, tmp_path):
    layer, model = trained(shared, store, optimizer=lambda: tfrec.optimizers.Adam(0.1))
    model.save(tmp_path / "m.keras")
    assert layer.stats().checkpoints == 1
    assert (tmp_path / "m.keras").stat().st_size < 100_000
    expected = model.predict(IDS, verbose=0)
    rows = shared.rows_of(layer)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be open once at a time"):
        keras.saving.load_model(tmp_path / "m.keras")
    layer.close()
    revived = keras.saving.load_model(tmp_path / "m.keras")
    of_revived = revived.layers[0]
    np.testing.assert_array_equal(revived.predict(IDS, verbose=0), expected)
    np.testing.assert_array_equal(shared.rows_of(of_revived), rows)
    assert int(of_revived.optimizer.iterations) == 3
    assert isinstance(of_revived.optimizer, tfrec.optimizers.Adam)


def test_a_loaded_model_goes_on_as_the_saved_one_would(shared, tmp_path):
    losses = []
    for name in ("interrupted", "whole"):
        layer, model = trained(shared, tmp_path / name)
        if name == "interrupted":
            model.save(tmp_path / "m.keras")
            layer.close()
            model = keras.saving.load_model(tmp_path / "m.keras")
        losses.append(model.fit(IDS, Y, epochs=3, verbose=0).history["loss"])
    assert losses[0] == losses[1]


def test_weights_are_loaded_where_the_table_is_at_their_checkpoint(shared, store, tmp_path):
    layer, model = trained(shared, store)
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    expected = model.predict(IDS, verbose=0)
    model.fit(IDS, Y, epochs=2, verbose=0)
    layer.close()
    fresh = model_of(shared.cached(store))
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(path)
    np.testing.assert_array_equal(fresh.predict(IDS, verbose=0), expected)


def test_weights_hold_no_rows_and_leave_those_in_memory_alone(shared, store, tmp_path):
    layer, model = trained(shared, store, optimizer=lambda: tfrec.optimizers.Adam(0.1))
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    with h5py.File(path) as file:
        shapes = []
        file.visititems(lambda _, found: shapes.append(getattr(found, "shape", ())))
    assert max(map(len, shapes)) == 2
    assert not [shape for shape in shapes if shape[:1] == (layer.cache_rows,)]
    model.fit(IDS, Y, epochs=2, verbose=0)
    layer.flush()
    rows = shared.rows_of(layer)
    with pytest.warns(RuntimeWarning, match="newer than the other weights"):
        model.load_weights(path)
    np.testing.assert_array_equal(shared.rows_of(layer), rows)


def test_weights_that_are_older_than_the_table_are_loaded_with_a_warning(shared, store, tmp_path):
    layer, model = trained(shared, store)
    model.save_weights(tmp_path / "m.weights.h5")
    layer.flush()
    with pytest.warns(RuntimeWarning, match="belong to checkpoint 1 of the table.*which is at 2"):
        model.load_weights(tmp_path / "m.weights.h5")


def test_weights_that_are_newer_than_the_table_are_refused(shared, store, tmp_path):
    layer, model = trained(shared, store)
    layer.flush()
    layer.close()
    shutil.copytree(store, tmp_path / "copy")
    layer, model = trained(shared, store)
    model.save_weights(tmp_path / "m.weights.h5")
    layer.close()
    shutil.rmtree(store)
    shutil.copytree(tmp_path / "copy", store)
    fresh = model_of(shared.cached(store))
    with pytest.raises(ValueError, match="checkpoint 2 .*is at 1: it was replaced by an older one"):
        fresh.load_weights(tmp_path / "m.weights.h5")


def test_checkpoints_of_tensorflow_leave_the_rows_out(shared, store, tmp_path):
    _, model = trained(shared, store, rows=20_000, cache_rows=20_000)
    written = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    sizes = [np.prod(shape) for _, shape in tf.train.list_variables(written)]
    assert max(sizes) < 100
    assert sum(f.stat().st_size for f in tmp_path.glob("checkpoint*")) < 50_000


def test_a_model_checkpoint_of_keras_makes_one_of_the_table(shared, store, tmp_path):
    layer = shared.cached(store)
    model = model_of(layer)
    callback = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.weights.h5", save_weights_only=True
    )
    model.fit(IDS, Y, epochs=3, verbose=0, callbacks=[callback])
    assert layer.stats().checkpoints == 3
    model.load_weights(tmp_path / "3.weights.h5")
    with pytest.warns(RuntimeWarning, match="checkpoint 1 of the table"):
        model.load_weights(tmp_path / "1.weights.h5")


@pytest.mark.parametrize(
    "dies_at", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 19))]
)
def test_backup_and_restore_after_a_kill(nursery, tmp_path, undisturbed, dies_at):
    arguments = {"folder": tmp_path / "backup", "store": tmp_path / "store"}
    assert nursery.call("fit_with_backup", dies_at=dies_at, **arguments) is None
    assert nursery.call("fit_with_backup", **arguments) == undisturbed


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return nursery.call("fit_with_backup", folder=folder / "backup", store=folder / "store")


def test_clones_open_the_store_when_they_are_built(shared, store):
    layer, model = trained(shared, store)
    layer.flush()
    layer.close()
    clone = keras.models.clone_model(model)
    assert clone.layers[0].store_path == str(store)
    assert int(clone.layers[0].optimizer.iterations) == 3


def test_a_layer_that_goes_lets_its_store_go(shared, store):
    import gc

    def use():
        layer, _ = trained(shared, store)
        layer.flush()

    use()
    gc.collect()
    shared.cached(store)


# ---- Strategies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [["CPU:0", "CPU:1"], ["CPU:0"]])
def test_replicas_are_refused(shared, store, devices):
    words = f"must be built for one replica.*MirroredStrategy with {len(devices)} replicas"
    with (
        tf.distribute.MirroredStrategy(devices).scope(),
        pytest.raises(ValueError, match=words),
    ):
        shared.cached(store)
    assert not store.exists()


def test_one_device_trains(shared, store):
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        layer, _ = trained(shared, store)
    rows = shared.rows_of(layer)
    layer.close()
    shutil.rmtree(store)
    layer, _ = trained(shared, store)
    np.testing.assert_allclose(shared.rows_of(layer), rows, 1e-5, 1e-6)


def test_weights_do_not_take_rows_back_without_a_warning(shared, store, tmp_path):
    layer, model = trained(shared, store)
    model.save_weights(tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")  # nothing was trained since
    model.fit(IDS, Y, verbose=0)
    with pytest.warns(RuntimeWarning, match="was trained since"):
        model.load_weights(tmp_path / "m.weights.h5")
