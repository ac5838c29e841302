import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.testing.ops import implementations

# Neither in the order of the alphabet, in which Keras sorts the keys of a dict.
TABLES = {"user": (20, 3), "item": (50, 4)}
FEATURES = {"z": "item", "user": "user", "a": "item"}
IDS = {
    "z": np.array([[7, 8, 9], [7, 7, 0], [0, 0, 0], [1, 2, 49]]),
    "user": np.array([3, 4, 4, 19]),
    "a": np.array([[7, 1], [2, 2], [3, 0], [9, 9]]),
}
RULES = {"combiner": {"z": "mean", "a": "sqrtn"}, "padding_id": {"z": 0}}
SHAPES = {"z": (3,), "user": (), "a": (2,)}


def collection(**kwargs):
    return tfrec.EmbeddingBagCollection(TABLES, FEATURES, **kwargs)


def separate_bags(layer):
    """One EmbeddingBag for each feature, with the weights of the collection."""
    return {
        feature: tfrec.EmbeddingBag(
            *TABLES[table],
            RULES["combiner"].get(feature, "sum"),
            padding_id=RULES["padding_id"].get(feature),
            weights=layer.embeddings[table].numpy(),
        )
        for feature, table in FEATURES.items()
    }


def built(**kwargs):
    layer = collection(**RULES, **kwargs)
    layer.build()
    return layer


def with_hotness(ids):
    return ids[:, np.newaxis] if isinstance(ids, np.ndarray) and ids.ndim == 1 else ids


# ---- The same as separate layers -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "ragged", "sparse", "mixed"])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_separate_layers(implementation, kind, weighted):
    layer = built()
    ids, weights = dict(IDS), {"z": np.random.default_rng(0).random((4, 3)) + 0.5}
    if kind in ("ragged", "mixed"):
        ids["z"] = tf.RaggedTensor.from_row_lengths(IDS["z"].ravel(), [0, 5, 6, 1])
        weights["z"] = ids["z"].with_values(tf.constant(weights["z"].ravel(), tf.float32))
    if kind in ("sparse", "mixed"):
        ids["a"] = tf.sparse.from_dense(IDS["a"].astype("int32"))  # without its zero
    if kind == "sparse":
        weights = {"a": ids["a"].with_values(tf.range(1.0, 8.0))}
    if not weighted:
        weights = {}
    expected = {
        feature: bag(with_hotness(ids[feature]), weights.get(feature))
        for feature, bag in separate_bags(layer).items()
    }
    concat = layer(ids, weights=weights or None)
    np.testing.assert_array_equal(concat, tf.concat(list(expected.values()), 1))
    named = built(output_format="dict")
    named.set_weights(layer.get_weights())
    result = named(ids, weights=weights or None)
    assert list(result) == list(FEATURES)
    for feature, right in expected.items():
        np.testing.assert_array_equal(result[feature], right)


def test_gradients_equal_those_of_separate_layers(implementation):
    layer = built()
    bags = separate_bags(layer)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(IDS) ** 2)
    gradients = tape.gradient(loss, [layer.embeddings[name].value for name in TABLES])
    with tf.GradientTape(persistent=True) as tape:
        outputs = [bag(with_hotness(IDS[feature])) for feature, bag in bags.items()]
        loss = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
    apart = {f: tape.gradient(loss, bag.embeddings.value) for f, bag in bags.items()}
    assert gradients[0].indices.numpy().tolist() == [3, 4, 19]
    np.testing.assert_array_equal(gradients[0].values, apart["user"].values)
    assert gradients[1].indices.numpy().tolist() == [0, 1, 2, 3, 7, 8, 9, 49]  # of both features
    dense = [tf.convert_to_tensor(gradient) for gradient in (gradients[1], apart["z"], apart["a"])]
    np.testing.assert_allclose(dense[0], dense[1] + dense[2], 1e-5, 1e-7)
    assert np.any(dense[1]) and np.any(dense[2])


if "native" in implementations():

    def test_a_training_step_is_one_op_forward_and_one_backward():
        layer = built()
        optimizer = tfrec.optimizers.Adagrad(0.1)
        variables = [weight.value for weight in layer.trainable_weights]
        optimizer.build(variables)

        @tf.function
        def step(ids):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(ids) ** 2)
            optimizer.apply(tape.gradient(loss, variables), variables)

        specs = {f: tf.TensorSpec([None, *SHAPES[f]], tf.int64, name=f) for f in FEATURES}
        with tfrec.testing.ops.implementation("native"):
            graph = step.get_concrete_function(specs).graph
        ours = [op.type for op in graph.get_operations() if op.type.startswith("TfrecEfficient>")]
        assert sorted(op.removeprefix("TfrecEfficient>") for op in ours) == [
            "CastIndices",
            "GatherReduceGrad",
            "ResourceGatherReduce",
            "ResourceRowUpdate",  # one for each table
            "ResourceRowUpdate",
        ]


def test_all_features_of_one_table(implementation):
    layer = tfrec.EmbeddingBagCollection({"t": (9, 2)}, {"b": "t", "a": "t"}, output_format="dict")
    ids = {"b": np.array([1, 2]), "a": np.array([[2, 3], [4, 4]])}
    with tf.GradientTape() as tape:
        output = layer(ids)
        loss = tf.reduce_sum(output["b"]) + 10 * tf.reduce_sum(output["a"])
    gradient = tape.gradient(loss, layer.trainable_weights[0].value)
    assert gradient.indices.numpy().tolist() == [1, 2, 3, 4]
    assert gradient.values.numpy()[:, 0].tolist() == [1.0, 11.0, 10.0, 20.0]


def test_tables_start_differently_and_repeat_with_a_seed(implementation):
    def weights():
        keras.utils.set_random_seed(1)
        layer = tfrec.EmbeddingBagCollection({"a": (9, 2), "b": (9, 2)}, {"a": "a", "b": "b"})
        layer.build()
        return layer.get_weights()

    a, b = weights()
    assert np.any(a != b)
    for again, first in zip(weights(), (a, b), strict=True):
        np.testing.assert_array_equal(again, first)


# ---- A citizen of Keras --------------------------------------------------------------------------


def make_model(output="concat", cast=False, dtype=None):
    inputs = {f: keras.Input(SHAPES[f], dtype="int64", name=f) for f in FEATURES}
    castings = None
    if cast:
        castings = {  # flat for a table of several features, else in the shape of the ids
            "user": keras.Input((1,), dtype="int64", name="user_casting"),
            "item": keras.Input((), dtype="int64", name="item_casting"),
        }
    layer = collection(output_format=output, dtype=dtype, name="collection", **RULES)
    pooled = layer(inputs, castings=castings)
    if output == "dict":
        pooled = keras.layers.Concatenate()([pooled[f] for f in FEATURES])
    if cast:
        inputs = {**inputs, **{value.name: value for value in castings.values()}}
    return keras.Model(inputs, keras.layers.Dense(1)(pooled))


@pytest.mark.parametrize("output", ["concat", "dict"])
def test_trains_saves_and_serves(model_implementation, output, tmp_path):
    model = make_model(output)
    model.compile(tfrec.optimizers.Adagrad(0.1), "mse")
    y = np.arange(4.0)
    losses = model.fit(IDS, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    expected = model.predict(IDS, verbose=0)

    model.save(tmp_path / "m.keras")
    revived = keras.saving.load_model(tmp_path / "m.keras")
    assert list(revived.get_layer("collection").features) == list(FEATURES)
    np.testing.assert_array_equal(revived.predict(IDS, verbose=0), expected)
    again = [m.fit(IDS, y, epochs=2, verbose=0).history["loss"] for m in (model, revived)]
    assert again[0] == again[1]  # the state of the optimizer came along
    if output == "dict":
        return
    expected = model.predict(IDS, verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    ids = {feature: tf.constant(of_feature) for feature, of_feature in IDS.items()}
    np.testing.assert_allclose(served.serve(ids), expected, 1e-6)
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = make_model(output)
    fresh.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(fresh.predict(IDS, verbose=0), expected)


def test_a_subclassed_model_of_ragged_features(model_implementation):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.collection = collection(combiner="mean")
            self.dense = keras.layers.Dense(1)

        def call(self, ids):
            return self.dense(self.collection(ids))

    ids = {**IDS, "z": tf.ragged.constant([[7, 8, 9], [], [0], [1, 2, 49, 7]], dtype=tf.int64)}
    model = Model()
    model.compile(tfrec.optimizers.Adam(0.1), "mse")
    data = tf.data.Dataset.from_tensor_slices((ids, np.arange(4.0))).batch(2)
    losses = model.fit(data, epochs=5, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("policy", "compute", "variable"),
    [
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float64", "float64", "float64"),
    ],
)
def test_dtype_policies(implementation, policy, compute, variable):
    for output in ("concat", "dict"):
        layer = built(dtype=policy, output_format=output)
        result = tf.nest.flatten(layer(IDS))
        symbolic = tf.nest.flatten(
            layer({f: keras.Input(SHAPES[f], dtype="int32") for f in FEATURES})
        )
        assert {weight.dtype for weight in layer.weights} == {variable}
        for real, promised in zip(result, symbolic, strict=True):
            assert real.dtype == compute
            assert promised.dtype == compute
            assert promised.shape == (None, real.shape[1])


def test_the_config_survives_json(implementation):
    layer = collection(
        **RULES,
        output_format="dict",
        name="collection",
        embeddings_initializer=keras.initializers.RandomNormal(seed=1),
    )
    config = layer.get_config()
    revived = tfrec.EmbeddingBagCollection.from_config(json.loads(json.dumps(config)))
    assert revived.get_config() == config
    assert list(revived.features) == list(FEATURES)
    assert list(revived.tables) == list(TABLES)
    for name in ("tables", "features", "combiner", "padding_id", "embeddings_initializer"):
        assert hasattr(layer, name)
    for a in (layer, revived):
        a.build()
    for ours, theirs in zip(layer.get_weights(), revived.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_names_of_variables_end_in_embeddings(implementation):
    assert sorted(weight.name for weight in built().weights) == [
        "item_embeddings",
        "user_embeddings",
    ]


# ---- Castings ------------------------------------------------------------------------------------


def test_castings_from_a_pipeline_change_nothing_but_the_time(model_implementation):
    layer = collection(**RULES)
    y = np.arange(4.0)

    def with_castings(ids, y):
        castings = layer.cast_indices(ids)
        return {**ids, **{f"{table}_casting": castings[table] for table in castings}}, y

    plain = tf.data.Dataset.from_tensor_slices((IDS, y)).batch(2)

    def train(cast, data):
        keras.utils.set_random_seed(5)
        model = make_model(cast=cast)
        model.compile(tfrec.optimizers.Adagrad(0.1), "mse")
        return model.fit(data, epochs=3, shuffle=False, verbose=0).history["loss"]

    assert train(True, plain.map(with_castings)) == train(False, plain)


def test_castings_are_checked(implementation):
    layer = built()
    castings = layer.cast_indices(IDS)
    assert {name: casting.shape for name, casting in castings.items()} == {
        "user": (4, 1),
        "item": (4 * 3 + 4 * 2,),
    }

    def gradient(ids, castings):
        with tf.GradientTape() as tape:
            pooled = layer(ids, castings=castings)
        return tape.gradient(pooled, layer.embeddings["item"].value)

    plain, cast = gradient(IDS, None), gradient(IDS, castings)
    np.testing.assert_array_equal(cast.values, plain.values)
    np.testing.assert_array_equal(cast.indices, plain.indices)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
        gradient({**IDS, "a": IDS["a"][::-1]}, castings)
    for bad in ({"user": castings["user"]}, {**castings, "z": castings["item"]}):
        with pytest.raises(ValueError, match=r"`castings` must have the keys \['user', 'item'\]"):
            layer(IDS, castings=bad)


# ---- Bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tables": {}}, "`features` must name every table of `tables` and no other. Received"),
        ({"features": {}}, "`features` must name every table"),
        ({"features": {"z": "item"}}, "`features` must name every table"),
        ({"features": {**FEATURES, "b": "other"}}, "`features` must name every table"),
        ({"tables": {**TABLES, "user": (0, 3)}}, r"two positive integers.*tables\['user'\]=\(0, 3"),
        ({"tables": {**TABLES, "user": (20,)}}, "`tables` must give two positive integers"),
        ({"tables": {**TABLES, "user": (20, 3.0)}}, "`tables` must give two positive integers"),
        ({"tables": {**TABLES, "user": (True, 3)}}, "`tables` must give two positive integers"),
        ({"combiner": "max"}, '`combiner` must be "sum", "mean" or "sqrtn". Received: combiner='),
        ({"combiner": None}, "`combiner` must be .* Received: combiner=None"),
        ({"combiner": {"z": "max"}}, "`combiner` must be .* Received: combiner='max'"),
        ({"combiner": {"item": "sum"}}, r"`combiner` must name features. Received: \['item'\]"),
        ({"padding_id": {"item": 0}}, r"`padding_id` must name features. Received: \['item'\]"),
        ({"padding_id": {"z": 0.5}}, "`padding_id` must be None or an integer of 64 bits"),
        (
            {"output_format": "list"},
            '`output_format` must be "concat" or "dict". Received: output_format=\'list\'',
        ),
    ],
)
def test_bad_constructor_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tfrec.EmbeddingBagCollection(**{"tables": TABLES, "features": FEATURES, **kwargs})


def test_bad_calls(implementation):
    layer = built()
    some = {"z": IDS["z"]}
    symbolic = {f: keras.Input(SHAPES[f], dtype="int64") for f in FEATURES}
    for ids in (some, {**IDS, "b": IDS["z"]}):
        with pytest.raises(ValueError, match=r"`ids` must have the keys \['z', 'user', 'a'\]"):
            layer(ids)
        with pytest.raises(ValueError, match=r"`ids` must have the keys \['z', 'user', 'a'\]"):
            layer.cast_indices(ids)
    with pytest.raises(ValueError, match=r"`ids` must have the keys"):
        layer({"z": symbolic["z"]})
    with pytest.raises(ValueError, match=r"`weights` must have the keys .* Received: \['b'\]"):
        layer(IDS, weights={"b": np.ones((4, 3))})
    with pytest.raises(ValueError, match="`weights` must have the shape of `ids`"):
        layer(IDS, weights={"z": np.ones((4, 2))})
    with pytest.raises(ValueError, match=r"Received: `ids\['z'\]` of shape \(None, 3, 2\)"):
        layer({**symbolic, "z": keras.Input((3, 2), dtype="int64")})
    with pytest.raises(ValueError, match="`ids` must have rank 2"):
        layer({**IDS, "z": np.zeros((4, 3, 2), "int64")})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids\[1\]` must be in `\[0, 20\)`"):
        layer({**IDS, "user": np.array([0, 1, 20, 3])})
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="as many bags, 4. Rec"):
        layer({**IDS, "user": IDS["user"][:3]})


def test_weights_of_features_without_a_hotness(implementation):
    layer = built()
    weighted = layer(IDS, weights={"user": np.array([1.0, 2.0, 0.5, 0.0])})
    plain = layer(IDS).numpy()
    plain[:, 4:7] *= np.array([[1.0], [2.0], [0.5], [0.0]])
    np.testing.assert_allclose(weighted, plain, rtol=1e-6)
