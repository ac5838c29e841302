import json

import keras
import numpy as np
import pytest

import tfrec_efficient as tfrec
from tfrec_efficient.embedding import TableCheckpoint


def model_of(*layers):
    x = keras.Input((3,), dtype="int64")
    pooled = keras.layers.Concatenate()([keras.Sequential([layer])(x) for layer in layers])
    model = keras.Model(x, keras.layers.Dense(1)(pooled))
    model.compile("sgd", "mse")
    return model


def fit(shared, model, callback, epochs=2):
    ids = np.concatenate(shared.batches(4))
    y = np.random.default_rng(0).random((len(ids), 1))
    model.fit(ids, y, batch_size=6, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback])


@pytest.mark.parametrize(("save_freq", "count"), [("epoch", 2), (1, 8), (3, 2), (100, 0)])
def test_makes_checkpoints_of_all_tables(shared, tmp_path, save_freq, count):
    layers = [shared.cached(tmp_path / name, name=name) for name in ("users", "items")]
    fit(shared, model_of(*layers), TableCheckpoint(save_freq))
    assert [layer.stats().checkpoints for layer in layers] == [count, count]


def test_a_table_stands_at_the_last_one(shared, store):
    layer = shared.cached(store)
    fit(shared, model_of(layer), TableCheckpoint(3))  # at step 6 of 8
    layer.close()
    assert int(shared.cached(store).optimizer.iterations) == 6


@pytest.mark.parametrize("save_freq", [0, -1, 1.5, True, "batch", None])
def test_bad_arguments(save_freq):
    with pytest.raises(ValueError, match='`save_freq` must be "epoch" or a positive integer'):
        TableCheckpoint(save_freq)


def test_a_config_that_goes_through_json():
    config = keras.saving.serialize_keras_object(tfrec.embedding.TableCheckpoint(17))
    assert keras.saving.deserialize_keras_object(json.loads(json.dumps(config))).save_freq == 17
