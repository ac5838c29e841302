import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.testing import run_layer_test

IDS = np.array([[1, 2, 2], [4, 0, 0]])


@pytest.mark.parametrize(
    ("combiner", "shape"), [("sum", (2, 3)), ("mean", (2, 3)), ("sqrtn", (2, 3)), (None, (2, 3, 3))]
)
def test_layer(implementation, combiner, shape):
    run_layer_test(
        tfrec.EmbeddingBag,
        {
            "input_dim": 5,
            "output_dim": 3,
            "combiner": combiner,
            "embeddings_initializer": keras.initializers.RandomNormal(seed=1),
            "embeddings_regularizer": keras.regularizers.L2(1e-3),
            "embeddings_constraint": keras.constraints.MaxNorm(2.0),
            "padding_id": 0,
        },
        inputs=IDS,
        expected_output_shape=shape,
        expected_num_weights=1,
    )


def test_layer_over_ragged_ids(implementation):
    ids = tf.ragged.constant([[1, 2], [3], []], dtype=tf.int64)
    run_layer_test(tfrec.EmbeddingBag, {"input_dim": 5, "output_dim": 2}, ids, (3, 2), 1)


def test_layer_over_sparse_ids(implementation):
    layer = tfrec.EmbeddingBag(5, 2, "mean")
    ids = tf.ragged.constant([[1, 2], [3], []], dtype=tf.int64)
    np.testing.assert_array_equal(layer(ids.to_sparse()), layer(ids))


def test_pools_the_rows_of_the_table(implementation):
    table = np.arange(10.0).reshape(5, 2)
    layer = tfrec.EmbeddingBag(5, 2, "mean", weights=table)
    assert layer(np.array([[1, 2], [4, 4]])).numpy().tolist() == [[3.0, 4.0], [8.0, 9.0]]
    weighted = layer(np.array([[1, 2], [4, 4]]), weights=np.array([[3.0, 1.0], [1.0, 1.0]]))
    assert weighted.numpy().tolist() == [[2.5, 3.5], [8.0, 9.0]]


def test_pools_the_last_axis(implementation):
    layer = tfrec.EmbeddingBag(5, 2, "sum")
    ids = np.random.default_rng(0).integers(0, 5, (2, 3, 4))
    expected = np.stack([layer(ids[:, i]) for i in range(3)], 1)
    np.testing.assert_array_equal(layer(ids), expected)
    weights = np.random.default_rng(0).random(ids.shape)
    expected = np.stack([layer(ids[:, i], weights[:, i]) for i in range(3)], 1)
    np.testing.assert_allclose(layer(ids, weights), expected, rtol=1e-6)
    assert layer(keras.Input((3, 4), dtype="int32")).shape == (None, 3, 2)
    assert layer(np.zeros((0, 3, 4), "int32")).shape == (0, 3, 2)


# ---- Without a combiner, `keras.layers.Embedding` is the oracle ----------------------------------


@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float16"])
def test_drop_in_for_keras_embedding(implementation, shape, policy):
    ours = tfrec.EmbeddingBag(7, 5, combiner=None, dtype=policy)
    theirs = keras.layers.Embedding(7, 5, dtype=policy)
    ids = np.random.default_rng(0).integers(0, 7, shape)
    theirs.build()
    ours.build()
    ours.set_weights(theirs.get_weights())
    assert ours(ids).dtype == theirs(ids).dtype
    np.testing.assert_array_equal(ours(ids), theirs(ids))
    symbolic = keras.Input(shape, dtype="int64")
    assert ours(symbolic).shape == theirs(symbolic).shape
    assert ours(symbolic).dtype == theirs(symbolic).dtype


def test_trains_like_keras_embedding(model_implementation):
    def train(make):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([make(), keras.layers.Flatten(), keras.layers.Dense(1)])
        model.compile("sgd", "mse")  # adagrad and adam of Keras treat duplicate ids differently
        x = np.random.default_rng(0).integers(0, 20, (64, 4))
        model.fit(x, x.sum(-1), batch_size=16, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    for ours, theirs in zip(
        train(lambda: tfrec.EmbeddingBag(20, 3, combiner=None)),
        train(lambda: keras.layers.Embedding(20, 3)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_mask_zero(implementation):
    layer = tfrec.EmbeddingBag(5, 2, combiner=None, mask_zero=True)
    mask = layer.compute_mask(tf.constant(IDS))
    assert mask.numpy().tolist() == [[True, True, True], [True, False, False]]
    model = keras.Sequential([layer, keras.layers.LSTM(3)])
    np.testing.assert_allclose(model(IDS)[1], model(np.array([[4]]))[0], rtol=1e-5)


def test_ragged_without_a_combiner_stays_ragged(implementation):
    layer = tfrec.EmbeddingBag(5, 2, combiner=None)
    ids = tf.ragged.constant([[1, 2], [3]])
    result = layer(ids)
    assert isinstance(result, tf.RaggedTensor)
    np.testing.assert_array_equal(result.flat_values, layer(np.array([1, 2, 3])))


def test_padding_without_a_combiner_gives_zeros(implementation):
    result = tfrec.EmbeddingBag(5, 2, None, padding_id=-1)(np.array([-1, 3]))
    assert result[0].numpy().tolist() == [0.0, 0.0]
    assert np.any(result[1])


# ---- Training ------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.bag = tfrec.EmbeddingBag(20, 3, "mean")
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(self.bag(x))


def sequential():
    return keras.Sequential([tfrec.EmbeddingBag(20, 3, "mean"), keras.layers.Dense(1)])


def functional():
    x = keras.Input((4,), dtype="int64")
    return keras.Model(x, keras.layers.Dense(1)(tfrec.EmbeddingBag(20, 3, "mean")(x)))


@pytest.mark.parametrize("make", [sequential, functional, Subclassed])
@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_fit_repeats_with_a_seed(model_implementation, make, steps_per_execution):
    def train():
        keras.utils.set_random_seed(3)
        model = make()
        model.compile("adam", "mse", steps_per_execution=steps_per_execution)
        x = np.random.default_rng(0).integers(0, 20, (64, 4))
        return model.fit(x, x.mean(-1), batch_size=8, epochs=3, verbose=0).history["loss"]

    losses = train()
    assert losses[-1] < losses[0]
    assert train() == losses


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "ftrl", "lion", "adafactor"])
def test_keras_optimizers_take_the_gradient(implementation, optimizer):
    model = functional()
    model.compile(optimizer, "mse")
    before = model.layers[1].get_weights()[0]
    x = np.full((8, 4), 7)
    model.fit(x, np.ones(8), verbose=0)
    moved = np.any(model.layers[1].get_weights()[0] != before, axis=1)
    assert moved[7]


def test_mirrored_strategy(model_implementation):
    x = np.random.default_rng(0).integers(0, 20, (64, 4))
    y = x.mean(-1)

    def train(strategy):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            model = functional()
            model.compile("sgd", "mse")
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        return model.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"]

    one = train(tf.distribute.get_strategy())
    two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    np.testing.assert_allclose(two, one, rtol=1e-4)


def test_a_functional_model_with_weights_saves_and_clones(implementation, tmp_path):
    ids, weights = keras.Input((3,), dtype="int32"), keras.Input((3,))
    model = keras.Model([ids, weights], tfrec.EmbeddingBag(5, 2, "mean")(ids, weights))
    w = np.random.default_rng(0).random(IDS.shape)
    model.save(tmp_path / "m.keras")
    revived = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(revived([IDS, w]), model([IDS, w]))
    assert keras.models.clone_model(model)([IDS, w]).shape == (2, 2)


def test_a_numpy_padding_id_is_a_number_in_the_config():
    config = tfrec.EmbeddingBag(5, 2, padding_id=np.int64(3)).get_config()
    assert json.loads(json.dumps(config))["padding_id"] == 3


def test_shapes_that_are_known_late(implementation):
    layer = tfrec.EmbeddingBag(9, 2)
    unknown = [None, None, None]
    specs = [tf.TensorSpec(unknown, tf.int64), tf.TensorSpec(unknown, tf.float32)]
    pool = tf.function(lambda ids, weights: layer(ids, weights), input_signature=specs)
    ids = np.random.default_rng(0).integers(0, 9, (2, 3, 4))
    np.testing.assert_allclose(pool(ids, np.ones(ids.shape)), layer(ids), rtol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`weights` must have the shape"):
        pool(ids, np.ones((3, 2, 4)))


# ---- Castings ------------------------------------------------------------------------------------


def table_gradient(layer, ids, casting=None):
    with tf.GradientTape() as tape:
        output = layer(ids, casting=casting)
        loss = tf.reduce_sum(getattr(output, "flat_values", output) ** 2)
    gradient = tape.gradient(loss, layer.embeddings.value)
    return gradient.indices.numpy().tolist(), gradient.values.numpy().tobytes()


@pytest.mark.parametrize("combiner", ["mean", None])
def test_a_casting_changes_no_bit_of_the_gradient(implementation, combiner):
    layer = tfrec.EmbeddingBag(9, 5, combiner, padding_id=8)
    layer.build()
    ids = np.random.default_rng(0).integers(0, 9, (4, 3, 2))
    ragged = tf.ragged.constant([[1, 8], [3], [], [3, 1]], dtype=tf.int64)
    for of_ids in (ids, ids[0], ids.astype("int16"), ids.astype("float32"), ragged):
        whole = ragged if of_ids is ragged else of_ids.astype("int64")
        casting = tfrec.ops.cast_indices(whole, padding_id=8)
        assert table_gradient(layer, of_ids, casting) == table_gradient(layer, of_ids)
        with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
            table_gradient(layer, of_ids, tfrec.ops.cast_indices(whole[::-1], 8))


def with_castings():
    ids, casting = (keras.Input((4,), dtype="int64", name=name) for name in ("ids", "casting"))
    dense = keras.layers.Dense(1)  # made first, as in functional(), which has the same seeds then
    pooled = tfrec.EmbeddingBag(20, 3, "mean")(ids, casting=casting)
    return keras.Model({"ids": ids, "casting": casting}, dense(pooled))


def test_a_model_trains_with_castings_from_a_pipeline(model_implementation, tmp_path):
    x = np.random.default_rng(0).integers(0, 20, (64, 4))
    plain = tf.data.Dataset.from_tensor_slices(({"ids": x}, x.mean(-1))).batch(16)
    cast = plain.apply(tfrec.data.cast_indices({"ids": "casting"}))

    def train(make, data):
        keras.utils.set_random_seed(3)
        model = make()
        model.compile(tfrec.optimizers.Adagrad(0.1), "mse")
        return model, model.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"]

    model, losses = train(with_castings, cast)
    _, expected = train(functional, plain.map(lambda features, y: (features["ids"], y)))
    assert losses == expected
    model.save(tmp_path / "m.keras")
    revived = keras.saving.load_model(tmp_path / "m.keras")
    again = [m.fit(cast, verbose=0, shuffle=False).history["loss"] for m in (model, revived)]
    assert again[0] == again[1]
    swapped = plain.map(lambda features, y: ({**features, "casting": features["ids"]}, y))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
        model.fit(swapped, shuffle=False, verbose=0)
    # Castings are for the gradient: predictions do not look at them.
    ids = x[:16]
    expected = model.predict({"ids": ids, "casting": tfrec.ops.cast_indices(ids)}, verbose=0)
    np.testing.assert_array_equal(model.predict({"ids": ids, "casting": ids}, verbose=0), expected)


# ---- Rows in int8 --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16", "float64"])
def test_quantized_rows_are_within_half_a_scale(implementation, policy):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(500, 33)) * rng.random((500, 1)) * 10
    table[7] = 0
    layer = tfrec.EmbeddingBag(500, 33, combiner=None, dtype=policy, weights=table)
    exact = layer.embeddings.value.numpy().astype("float64")
    layer.quantize("int8")
    rows, scales = layer.embeddings.numpy(), layer.scales.numpy().astype("float64")
    assert rows.dtype == np.int8
    assert layer.embeddings.dtype == "int8"
    assert layer.scales.dtype == "float32"
    np.testing.assert_allclose(scales[:7], np.abs(exact[:7]).max(1) / 127, 1e-6)
    error = np.abs(rows * scales[:, np.newaxis] - exact)
    assert np.all(error <= scales[:, np.newaxis] * 0.50001)
    assert np.abs(rows).max() == 127
    assert not np.any(rows[7])
    assert layer.dtype_policy.name == f"int8_from_{policy}"
    looked_up = layer(np.arange(500))
    assert looked_up.dtype == layer.compute_dtype
    expected = tf.cast((rows * scales[:, np.newaxis]).astype("float32"), layer.compute_dtype)
    tolerance = 1e-6 if policy in ("float32", "float64") else 1e-2
    np.testing.assert_allclose(
        tf.cast(looked_up, tf.float64), tf.cast(expected, tf.float64), tolerance
    )


def test_a_quantized_table_of_many_parts(implementation):
    table = np.random.default_rng(0).normal(size=(2**17 + 3, 16)).astype("float32")
    layer = tfrec.EmbeddingBag(*table.shape, weights=table)
    layer.quantize("int8")
    rows, scales = layer.embeddings.numpy(), layer.scales.numpy()[:, np.newaxis]
    assert np.all(np.abs(rows * scales - table) <= scales * 0.5001)


@pytest.mark.parametrize("through", ["layer", "model"])
def test_a_quantized_model_predicts_saves_and_trains_what_is_left(
    model_implementation, through, tmp_path
):
    keras.utils.set_random_seed(0)
    model = functional()
    model.compile(tfrec.optimizers.Adagrad(0.1), "mse")
    x = np.random.default_rng(0).integers(0, 20, (16, 4))
    y = x.mean(-1)
    model.fit(x, y, verbose=0)
    layer, before = model.layers[1], model.predict(x, verbose=0)
    if through == "model":
        model.quantize("int8", filters=lambda candidate: candidate is layer)
    else:
        layer.quantize("int8")
    assert not layer.trainable_weights
    model.compile(tfrec.optimizers.Adagrad(0.1), "mse")  # with slots for what is left
    after = model.predict(x, verbose=0)
    assert 0 < np.abs(after - before).max() < 0.01
    rows = layer.embeddings.numpy()
    model.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(layer.embeddings.numpy(), rows)
    after = model.predict(x, verbose=0)
    assert np.abs(after - before).max() > 0.05

    model.save(tmp_path / "m.keras")
    revived = keras.saving.load_model(tmp_path / "m.keras")
    assert revived.layers[1].embeddings.dtype == "int8"
    np.testing.assert_array_equal(revived.predict(x, verbose=0), after)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(tf.constant(x)), after, 1e-6)
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = functional()
    fresh.layers[1].quantize("int8")
    fresh.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(fresh.predict(x, verbose=0), after)


def test_a_quantized_layer_comes_back_from_its_config(implementation):
    layer = tfrec.EmbeddingBag(5, 2, "mean", weights=np.arange(10.0).reshape(5, 2))
    layer.quantize("int8")
    revived = tfrec.EmbeddingBag.from_config(json.loads(json.dumps(layer.get_config())))
    revived.build()
    revived.set_weights(layer.get_weights())
    np.testing.assert_array_equal(revived(IDS), layer(IDS))


def test_a_quantized_table_has_no_gradient(implementation):
    layer = tfrec.EmbeddingBag(5, 2, "mean")
    layer.build()
    layer.quantize("int8")
    with tf.GradientTape() as tape:
        layer(IDS)
    assert not tape.watched_variables()


@pytest.mark.parametrize(
    ("prepare", "mode", "message"),
    [
        (lambda layer: layer.build(), "int4", '`quantize` takes `mode="int8"` and no quantizer'),
        (lambda layer: layer.build(), "float8", "Received: mode='float8'"),
        (lambda layer: layer.build(), "other", "Received: mode=other"),
        (lambda layer: None, "int8", "isn't yet built"),
        (lambda layer: [layer.build(), layer.quantize("int8")], "int8", "already quantized"),
    ],
)
def test_what_cannot_be_quantized(implementation, prepare, mode, message):
    layer = tfrec.EmbeddingBag(5, 2)
    prepare(layer)
    with pytest.raises(ValueError, match=message):
        layer.quantize(mode)


def test_a_quantizer_of_ones_own_is_refused(implementation):
    layer = tfrec.EmbeddingBag(5, 2)
    layer.build()
    config = keras.quantizers.Int8QuantizationConfig(
        weight_quantizer=keras.quantizers.AbsMaxQuantizer(axis=0)
    )
    with pytest.raises(ValueError, match="no quantizer of its own. Received: mode='int8', weight_"):
        layer.quantize("int8", config=config)
    layer(IDS)  # and the layer is as it was
    assert layer.embeddings.dtype == "float32"


# ---- Bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_dim": 0}, "`input_dim` must be a positive integer. Received: input_dim=0"),
        ({"input_dim": 2.0}, "`input_dim` must be a positive integer"),
        ({"output_dim": -1}, "`output_dim` must be a positive integer"),
        ({"output_dim": True}, "`output_dim` must be a positive integer"),
        ({"combiner": "max"}, '`combiner` must be "sum", "mean", "sqrtn" or None'),
        ({"mask_zero": True}, "`mask_zero` needs `combiner=None`"),
        ({"padding_id": "0"}, "`padding_id` must be None or an integer"),
    ],
)
def test_bad_constructor_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tfrec.EmbeddingBag(**{"input_dim": 5, "output_dim": 2, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "spec", "message"),
    [
        ({"combiner": None}, {"shape": (9,), "dtype": "int64", "sparse": True}, "Sparse `ids`"),
    ],
)
def test_bad_symbolic_inputs(kwargs, spec, message):
    with pytest.raises(ValueError, match=message):
        tfrec.EmbeddingBag(**{"input_dim": 5, "output_dim": 2, **kwargs})(keras.Input(**spec))


def test_bad_calls(implementation):
    bag, plain = tfrec.EmbeddingBag(5, 2), tfrec.EmbeddingBag(5, 2, combiner=None)
    with pytest.raises(ValueError, match="rank 2 or more"):
        bag(np.array([1, 2]))
    with pytest.raises(ValueError, match="rank 2 or more"):
        bag(keras.Input((), dtype="int64"))
    with pytest.raises(ValueError, match="`weights` need a combiner"):
        plain(IDS, np.ones(IDS.shape))
    with pytest.raises(ValueError, match="Sparse `ids` need a combiner"):
        plain(tf.sparse.from_dense(IDS))
    with pytest.raises(ValueError, match="`weights` must have the shape of `ids`"):
        bag(IDS[np.newaxis], np.ones((1, 2, 2)))
    for layer in (bag, plain):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids` must be in `\[0, 5\)`"):
            layer(IDS - 1)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids` must be in `\[0, 5\)`"):
            layer(IDS + 1)


def test_error_inside_fit_names_the_id(implementation):
    model = functional()
    model.compile("sgd", "mse")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids\[1, 2\]=20`"):
        model.fit(np.array([[0, 1, 2, 3], [0, 1, 20, 3]]), np.ones(2), shuffle=False, verbose=0)
