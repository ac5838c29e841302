import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec

NAMES = ("hit_rate", "moved_mb", "stall_ms")


def data_of(batches, seed=0):
    y = np.random.default_rng(seed).random((len(batches), 6, 1))
    return tf.data.Dataset.from_tensor_slices((np.stack(batches), y))


def model_of(*layers):
    x = keras.Input((3,), dtype="int64")
    pooled = [layer(x) for layer in layers]
    pooled = pooled[0] if len(pooled) == 1 else keras.layers.Concatenate()(pooled)
    model = keras.Model(x, keras.layers.Dense(1)(pooled))
    model.compile("sgd", "mse")
    return model


def difference(after, before):
    names = ("lookups", "hits", "rows_read", "rows_written", "stall_nanoseconds")
    return {name: getattr(after, name) - getattr(before, name) for name in names}


class Watch(keras.callbacks.Callback):
    """Counts what the steps of each epoch did, and keeps the logs of its steps."""

    def __init__(self, layer):
        super().__init__()
        self._layer = layer
        self.epochs, self.logs = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._begun = self._layer.stats()

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))
        self._ended = self._layer.stats()

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(difference(self._ended, self._begun))


@pytest.mark.parametrize("validated", [False, True])
def test_history_has_the_numbers_of_the_training_steps(shared, store, validated):
    batches = shared.batches(10, rows=300)
    layer = shared.cached(store, rows=300, cache_rows=shared.most_rows(batches))
    watch = Watch(layer)
    history = model_of(layer).fit(
        data_of(batches),
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[tfrec.embedding.CacheMonitor(), watch],
        validation_data=data_of(shared.batches(5, seed=1)) if validated else None,
    )
    logs, row_bytes = history.history, 4 * layer.stats().width
    for epoch, counted in enumerate(watch.epochs):
        assert counted["lookups"] == 180
        assert logs["hit_rate"][epoch] == counted["hits"] / 180 < 1
        moved = (counted["rows_read"] + counted["rows_written"]) * row_bytes / 1e6
        assert logs["moved_mb"][epoch] == pytest.approx(moved / 10)
        stall = counted["stall_nanoseconds"] / 1e6
        assert logs["stall_ms"][epoch] == pytest.approx(stall / 10)
        assert logs["stall_ms"][epoch] > 0
        of_last_step = watch.logs[10 * epoch + 9]
        assert [of_last_step[name] for name in NAMES] == [logs[name][epoch] for name in NAMES]


def test_lookahead_hits_all(shared, store):
    batches = shared.batches(10, rows=300)
    layer = shared.cached(store, rows=300, cache_rows=4 * shared.most_rows(batches))
    logs = model_of(layer).fit(
        data_of(batches).apply(layer.prefetch(2)),
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[tfrec.embedding.CacheMonitor()],
    )
    assert logs.history["hit_rate"] == [1.0, 1.0]
    assert logs.history["stall_ms"] == [0.0, 0.0]
    assert min(logs.history["moved_mb"]) > 0


def test_they_are_in_the_progress_bar(shared, store, capsys):
    layer = shared.cached(store)
    model_of(layer).fit(
        data_of(shared.batches(2)),
        verbose=2,
        shuffle=False,
        callbacks=[tfrec.embedding.CacheMonitor()],
    )
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in NAMES)


def test_several_layers_have_names(shared, tmp_path):
    layers = [shared.cached(tmp_path / name, name=name) for name in ("users", "items")]
    inner = keras.Sequential([layers[0]])
    logs = model_of(inner, layers[1]).fit(
        data_of(shared.batches(4)),
        verbose=0,
        shuffle=False,
        callbacks=[tfrec.embedding.CacheMonitor()],
    )
    expected = {f"{layer}_{name}" for layer in ("users", "items") for name in NAMES}
    assert set(logs.history) == {"loss", *expected}
    assert logs.history["users_hit_rate"] == logs.history["items_hit_rate"]


def test_several_steps_at_a_time(shared, store):
    layer = shared.cached(store)
    model = model_of(layer)
    model.compile("sgd", "mse", steps_per_execution=4)
    logs = model.fit(
        data_of(shared.batches(10)),
        verbose=0,
        shuffle=False,
        callbacks=[tfrec.embedding.CacheMonitor()],
    )
    assert logs.history["hit_rate"] == [layer.stats().hits / layer.stats().lookups]


def test_tensorboard_writes_them_where_it_comes_later(shared, store, tmp_path):
    layer = shared.cached(store)
    callbacks = [
        tfrec.embedding.CacheMonitor(),
        keras.callbacks.TensorBoard(tmp_path / "logs", write_graph=False),
    ]
    model_of(layer).fit(data_of(shared.batches(2)), verbose=0, shuffle=False, callbacks=callbacks)
    tags = set()
    for file in (tmp_path / "logs" / "train").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            tags |= {value.tag for value in event.summary.value}
    assert {f"epoch_{name}" for name in NAMES} <= tags


def test_evaluating_alone_needs_no_layer(shared, store):
    layer = shared.cached(store)
    monitor = tfrec.embedding.CacheMonitor()
    model_of(layer).evaluate(data_of(shared.batches(2)), verbose=0, callbacks=[monitor])


def test_a_model_without_a_table_is_refused():
    model = model_of(tfrec.EmbeddingBag(40, 4))
    with pytest.raises(ValueError, match="needs a model with a `CachedEmbedding`"):
        model.fit(np.zeros((2, 3)), np.ones(2), callbacks=[tfrec.embedding.CacheMonitor()])


def test_a_config_that_goes_through_json():
    config = keras.saving.serialize_keras_object(tfrec.embedding.CacheMonitor())
    revived = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    assert isinstance(revived, tfrec.embedding.CacheMonitor)
