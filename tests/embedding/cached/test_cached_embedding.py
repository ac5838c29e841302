import gc
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.embedding.cached.cached_embedding import cached_layers

IDS = np.array([[1, 2, 2], [4, 0, 39]])


class Subclassed(keras.Model):
    def __init__(self, layer, dense):
        super().__init__()
        self.of_model = [layer, dense]

    def call(self, x):
        for layer in self.of_model:
            x = layer(x)
        return x


def subclassed(layer, dense):
    return Subclassed(layer, dense)


def sequential(layer, dense):
    return keras.Sequential([layer, dense])


def functional(layer, dense):
    x = keras.Input((3,), dtype="int64")
    return keras.Model(x, dense(layer(x)))


def nested(layer, dense):
    x = keras.Input((3,), dtype="int64")
    return keras.Sequential([keras.Model(x, layer(x)), dense])


def dense():
    return keras.layers.Dense(1, kernel_initializer=keras.initializers.RandomNormal(seed=5))


def labels(shared, count=8):
    return np.random.default_rng(0).random((count * 6, 1), np.float32)


MODELS = [sequential, functional, subclassed, nested]


# ---- Models and loops ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
def test_a_layer_may_be_built_by_the_first_step(shared, tmp_path, make):
    ids = np.concatenate(shared.batches())
    losses = []
    for name in ("by the step", "before"):
        layer = tfrec.CachedEmbedding(
            40,
            4,
            20,
            tmp_path / name,
            shared.adagrad(),
            embeddings_initializer=keras.initializers.RandomUniform(seed=3),
        )
        if name == "before":
            layer.build()
        model = make(layer, dense())
        model.compile(shared.adagrad(), "mse")
        fitted = model.fit(ids, labels(shared), batch_size=6, shuffle=False, verbose=0)
        losses.append(fitted.history["loss"])
        assert layer.stats().lookups == ids.size
    assert losses[0] == losses[1]


@pytest.mark.parametrize("make", MODELS)
def test_a_model_with_a_loss_scale_is_refused(shared, store, make):
    layer = shared.cached(store)
    rows = shared.rows_of(layer)
    model = make(layer, dense())
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), "mse")
    ids = shared.batches()[0]
    with pytest.raises(ValueError, match="must be compiled without a loss scale"):
        model.fit(ids, np.ones((len(ids), 1)), verbose=0)
    np.testing.assert_array_equal(shared.rows_of(layer), rows)


@pytest.mark.parametrize("make", MODELS)
def test_each_kind_of_model_trains_as_with_a_bag(shared, store, make):
    ids = np.concatenate(shared.batches())
    y = labels(shared)
    layer = shared.cached(store, combiner="mean")
    twin = shared.Twin(layer, shared.adagrad())
    losses = []
    for each in (layer, twin.bag):
        model = make(each, dense())
        model.compile(shared.adagrad(), "mse")
        fitted = model.fit(ids, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        losses.append(fitted.history["loss"])
    assert losses[0] == losses[1]
    rows = layer.read_rows(np.arange(40)).numpy()
    assert rows.tobytes() == twin.bag.embeddings.numpy().tobytes()
    assert [found.name for found in cached_layers(make(layer, dense()))] == [layer.name]


def loop(model, twin, kind):
    """A step of a loop of one's own; the table of a twin has an optimizer of its own."""
    model.build((None, 3))
    of_dense = tfrec.optimizers.Adam(0.1)
    of_dense.build([v for v in model.trainable_variables if "embeddings" not in v.path])
    called = tf.function(model) if kind == "calls a function" else model

    def step(ids, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((called(ids) - y) ** 2)
        variables = [v for v in model.trainable_variables if "embeddings" not in v.path]
        table = [twin.bag.embeddings.value] if twin else []
        gradients = tape.gradient(loss, [v.value for v in variables] + table)
        if twin:
            twin.apply(gradients.pop())
        of_dense.apply(gradients, variables)
        return loss

    if kind == "eager":
        return step
    if kind == "a function in a function":
        inner = tf.function(step)
        middle = tf.function(lambda ids, y: inner(ids, y))
        return tf.function(lambda ids, y: middle(ids, y))
    if kind == "an eager tape around a function":
        called = tf.function(model)
        return step
    if kind == "steps in a while loop":
        inner = tf.function(step)

        @tf.function
        def both(ids, y):
            loss = 0.0
            for _ in tf.range(2):
                loss = inner(ids, y)
            return loss

        return both
    return tf.function(step)


@pytest.mark.parametrize(
    "kind",
    [
        "eager",
        "a function",
        "a function in a function",
        "calls a function",
        "an eager tape around a function",
        "steps in a while loop",
    ],
)
def test_loops_of_ones_own(shared, store, kind):
    def adam():
        return tfrec.optimizers.Adam(0.1)

    batches = shared.batches(10)
    y = labels(shared, 10).reshape(10, 6, 1)
    layer = shared.cached(store, cache_rows=shared.most_rows(batches), optimizer=adam)
    twin = shared.Twin(layer, adam())
    ours = loop(sequential(layer, dense()), None, kind)
    theirs = loop(sequential(twin.bag, dense()), twin, "eager")
    repeats = 2 if kind == "steps in a while loop" else 1
    for ids, of_batch in zip(batches, y, strict=True):
        loss = ours(tf.constant(ids), tf.constant(of_batch))
        for _ in range(repeats):
            expected = theirs(tf.constant(ids), tf.constant(of_batch))
        np.testing.assert_allclose(loss, expected, 1e-6)
    assert int(layer.optimizer.iterations) == 10 * repeats
    np.testing.assert_allclose(shared.rows_of(layer), twin.rows(), 1e-4, 1e-5)


def test_the_hook_stays_zero_and_is_the_only_weight(shared, store):
    layer = shared.cached(store)
    model = sequential(layer, dense())
    model.compile(keras.optimizers.AdamW(0.1, weight_decay=0.1), "mse")
    model.fit(IDS, np.ones(2), verbose=0)
    assert [w.path for w in layer.weights] == [f"{layer.name}/hook"]
    assert layer.trainable_weights == layer.weights
    assert layer.count_params() == 1
    assert float(layer.hook) == 0.0


def test_rows_that_are_not_trainable_stay(shared, store):
    layer = shared.cached(store)
    before = shared.rows_of(layer).tobytes()
    layer.trainable = False
    model = sequential(layer, dense())
    model.compile("sgd", "mse")
    model.fit(IDS, np.ones(2), epochs=2, verbose=0)
    assert shared.rows_of(layer).tobytes() == before
    layer.trainable = True
    model.compile("sgd", "mse")
    model.fit(IDS, np.ones(2), epochs=2, verbose=0)
    assert shared.rows_of(layer).tobytes() != before


@pytest.mark.parametrize("in_graph", [False, True])
def test_rows_that_are_not_trainable_stay_where_their_weights_are_trained(shared, store, in_graph):
    layer = shared.cached(store)
    layer.trainable = False
    before = shared.rows_of(layer).tobytes()
    weights = tf.Variable(tf.ones(IDS.shape))

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(IDS, weights) ** 2)
        return tape.gradient(loss, weights)

    assert np.any((tf.function(gradient) if in_graph else gradient)())
    assert shared.rows_of(layer).tobytes() == before
    assert int(layer.optimizer.iterations) == 0


def test_what_does_not_train_changes_nothing(shared, store):
    layer = shared.cached(store)
    model = sequential(layer, dense())
    model.compile("sgd", "mse")
    model.fit(IDS, np.ones(2), verbose=0)
    layer.flush()
    before = shared.rows_of(layer).tobytes(), int(layer.optimizer.iterations)
    model.evaluate(IDS, np.ones(2), verbose=0)
    model.predict(IDS, verbose=0)
    model(IDS, training=True)
    with tf.GradientTape():
        model(IDS)
    assert (shared.rows_of(layer).tobytes(), int(layer.optimizer.iterations)) == before
    written = layer.stats().rows_written
    layer.flush()
    assert layer.stats().rows_written == written


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_tape_that_is_not_asked_leaves_no_lease(shared, store, in_graph):
    batches = shared.batches(10, rows=300)
    layer = shared.cached(store, rows=300, cache_rows=shared.most_rows(batches))
    twin = shared.Twin(layer, shared.adagrad())
    ours, theirs = shared.trainer(layer), shared.trainer(twin)

    def look(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids))
        del tape
        return loss

    look = tf.function(look) if in_graph else look
    gc.collect()
    gc.disable()  # a lease must not wait for it
    try:
        for ids in batches:
            look(tf.constant(ids))
            assert ours(ids) == theirs(ids)
    finally:
        gc.enable()
    shared.assert_same_rows(layer, twin)


def test_a_step_that_fails_leaves_no_lease(shared, store):
    batches = shared.batches(6, rows=300)
    layer = shared.cached(store, rows=300, cache_rows=shared.most_rows(batches))

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.int64)])
    def fail(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.reshape(layer(ids), [-1, 5 * tf.shape(ids)[0]]))
        return tape.gradient(loss, layer.hook.value)

    before = shared.rows_of(layer).tobytes()
    for ids in batches:
        with pytest.raises(tf.errors.InvalidArgumentError):
            fail(tf.constant(ids))
    assert shared.rows_of(layer).tobytes() == before
    step = shared.trainer(layer)
    for ids in batches:
        step(ids)


def test_two_calls_of_one_batch_are_two_steps(shared, store):
    """Both hold the rows; the second update begins where the first one ended."""
    layer = shared.cached(store, optimizer=lambda: tfrec.optimizers.SGD(1.0))
    before = layer.read_rows([1]).numpy()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(np.array([[1]]))) + tf.reduce_sum(layer(np.array([[1, 1]])))
    tape.gradient(loss, layer.hook.value)
    np.testing.assert_allclose(layer.read_rows([1]), before - 3, 1e-6)
    assert int(layer.optimizer.iterations) == 2


# ---- Layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("combiner", "shape"), [("sum", (2, 4)), ("mean", (2, 4)), ("sqrtn", (2, 4)), (None, (2, 3, 4))]
)
def test_symbolic_and_eager_calls_agree(shared, store, combiner, shape):
    layer = shared.cached(store, combiner=combiner)
    symbolic = layer(keras.Input((3,), dtype="int64"))
    assert symbolic.shape[1:] == shape[1:]
    assert layer(IDS).shape == shape
    assert symbolic.dtype == layer(IDS).dtype == "float32"
    assert layer.compute_output_shape((2, 3)) == shape


def test_masks_zero(shared, store):
    layer = shared.cached(store, combiner=None, mask_zero=True)
    assert layer.compute_mask(tf.constant(IDS)).numpy().tolist() == [
        [True] * 3,
        [True, False, True],
    ]


def test_a_config_that_goes_through_json(shared, store):
    arguments = {
        "rows": 30,
        "policy": "lru",
        "combiner": "mean",
        "padding_id": 3,
        "optimizer": lambda: tfrec.optimizers.Adam(0.25, amsgrad=True),
        "embeddings_initializer": keras.initializers.RandomNormal(stddev=0.5, seed=7),
        "name": "users",
    }
    layer = shared.cached(store, **arguments)
    config = layer.get_config()
    layer.close()
    revived = tfrec.CachedEmbedding.from_config(json.loads(json.dumps(config)))
    assert revived.get_config() == config
    assert {key: config[key] for key in ("input_dim", "cache_rows", "path", "policy")} == {
        "input_dim": 30,
        "cache_rows": 20,
        "path": str(store),
        "policy": "lru",
    }
    assert revived.optimizer.amsgrad
    revived.build()
    np.testing.assert_array_equal(revived(IDS % 30), shared_pool(revived, IDS % 30))


def shared_pool(layer, ids):
    bag = tfrec.EmbeddingBag(
        30, 4, "mean", padding_id=3, weights=layer.read_rows(np.arange(30)).numpy()
    )
    return bag(ids)


def test_quotes_the_rows_of_a_seed(shared, tmp_path):
    rows = [
        shared.cached(
            tmp_path / name,
            rows=rows,
            embeddings_initializer=keras.initializers.RandomUniform(-1, 1, seed=seed),
        )
        .read_rows(np.arange(20))
        .numpy()
        for name, rows, seed in (("a", 20, 1), ("b", 40, 1), ("c", 20, 2))
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.all(rows[0] != rows[2])
    assert len(np.unique(rows[0])) == 80
    assert -1 <= rows[0].min() < -0.8 < 0.8 < rows[0].max() < 1


@pytest.mark.parametrize(
    ("initializer", "expected"),
    [("zeros", 0), ("ones", 1), (keras.initializers.Constant(2.5), 2.5)],
)
def test_rows_that_begin_constant(shared, store, initializer, expected):
    layer = shared.cached(store, embeddings_initializer=initializer)
    assert np.all(layer.read_rows([0, 39]).numpy() == expected)


def test_a_normal_initializer_has_its_mean_and_deviation(shared, store):
    initializer = keras.initializers.RandomNormal(2.0, 0.5, seed=1)
    layer = shared.cached(store, rows=5000, embeddings_initializer=initializer)
    rows = layer.read_rows(np.arange(5000)).numpy()
    assert abs(rows.mean() - 2.0) < 0.02
    assert abs(rows.std() - 0.5) < 0.01


# ---- Bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rows": 0}, "`input_dim` must be a positive integer. Received: input_dim=0"),
        ({"rows": None}, "Either `input_dim` must be a number of rows, or `vocabulary`"),
        ({"cache_rows": 0}, "`cache_rows` must be a positive integer. Received: cache_rows=0"),
        ({"cache_rows": 2.5}, "`cache_rows` must be a positive integer"),
        ({"policy": "fifo"}, "`policy` must be one of .*Received: policy='fifo'"),
        ({"combiner": "max"}, '`combiner` must be "sum", "mean", "sqrtn" or None'),
        ({"mask_zero": True}, "`mask_zero` needs `combiner=None`"),
        ({"padding_id": "0"}, "`padding_id` must be None or an integer"),
        ({"optimizer": lambda: "adagrad"}, "`optimizer` must be one of `tfrec_efficient.optimiz"),
        ({"optimizer": keras.optimizers.Adagrad}, "`optimizer` must be one of `tfrec_efficient"),
        ({"dtype": "float16"}, "`dtype` must be a policy with variables in float32"),
        ({"dtype": "float64"}, "`dtype` must be a policy.*Received: dtype='float64'"),
        ({"dtype": "mixed_float16"}, "and not mixed_float16"),
        ({"dtype": "bfloat16"}, "`dtype` must be a policy with variables in float32"),
        ({"embeddings_initializer": "glorot_uniform"}, "`embeddings_initializer` must be Zeros"),
        ({"vocabulary": tfrec.embedding.DynamicVocabulary()}, "Either `input_dim` must be"),
    ],
)
def test_bad_constructor_arguments(shared, store, kwargs, message):
    with pytest.raises(ValueError, match=message):
        shared.cached(store, **kwargs)
    assert not store.exists()


def test_an_optimizer_trains_one_table(shared, tmp_path):
    optimizer = shared.adagrad()
    shared.cached(tmp_path / "a", optimizer=lambda: optimizer)
    with pytest.raises(ValueError, match="`optimizer` must be one that trains nothing else yet"):
        shared.cached(tmp_path / "b", optimizer=lambda: optimizer)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "without `gradient_accumulation_steps`"),
        ({"use_ema": True}, "without `use_ema`, which would .* Received: use_ema=True"),
    ],
)
def test_an_optimizer_that_rewrites_all_rows(shared, store, option, message):
    with pytest.raises(ValueError, match=message):
        shared.cached(store, optimizer=lambda: tfrec.optimizers.Adagrad(0.1, **option))
    assert not store.exists()


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_gradient_of_some_bags(shared, store, in_graph):
    layer = shared.cached(store)
    twin = shared.Twin(layer, shared.adagrad())

    def gradient(model, source):
        def step(ids):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(model(ids), [1, 1]) ** 2)  # in slices
            return tape.gradient(loss, source)

        return (tf.function(step) if in_graph else step)(tf.constant(IDS))

    gradient(layer, layer.hook.value)
    twin.apply(gradient(twin.bag, twin.bag.embeddings.value))
    shared.assert_same_rows(layer, twin)


def test_bad_calls(shared, store):
    layer = shared.cached(store)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids` must be in `\[0, 40\)`"):
        layer(IDS + 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids` must be in `\[0, 40\)`"):
        layer(IDS - 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`cache_rows` must be so many"):
        layer(np.arange(21)[np.newaxis])
    with pytest.raises(ValueError, match="`ids` must be integers; for strings"):
        layer(np.array([["a"]]))
    with pytest.raises(ValueError, match="rank 2 or more"):
        layer(np.array([1, 2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="whole numbers"):
        layer(np.array([[0.5]]))
    layer(IDS)  # and the layer is as it was
    layer(np.arange(20)[np.newaxis])


def test_a_batch_of_padding_or_nothing(shared, store):
    layer = shared.cached(store, padding_id=-1, cache_rows=1)
    step = shared.trainer(layer)
    for ids in (np.full((2, 3), -1), np.zeros((0, 3), np.int64), np.zeros((2, 0), np.int64)):
        before = shared.rows_of(layer).tobytes()
        (pooled,) = step(ids)
        assert not pooled.strip(b"\0")
        assert shared.rows_of(layer).tobytes() == before


def test_a_closed_layer_says_so(shared, store):
    layer = shared.cached(store)
    layer.close()
    for use in (lambda: layer(IDS), layer.flush, layer.stats, lambda: layer.read_rows([1])):
        with pytest.raises(tf.errors.FailedPreconditionError, match="The table must be open"):
            use()
    layer.close()  # twice is once


def test_stats_count(shared, store):
    layer = shared.cached(store, cache_rows=5)
    step = shared.trainer(layer)
    step(np.array([[1, 2, 2]]))
    step(np.array([[2, 2, 3]]))
    stats = layer.stats()
    assert (stats.rows, stats.width, stats.checkpoints) == (40, 4 + 4 + 2, 0)
    assert (stats.lookups, stats.hits, stats.used_rows, stats.largest_batch) == (6, 2, 3, 2)
    assert (stats.rows_read, stats.rows_written) == (3, 0)
    layer.flush()
    stats = layer.stats()
    assert (stats.rows_written, stats.checkpoints) == (3, 1)
    step(np.array([[10, 11, 12, 13, 14]]))
    assert layer.stats().rows_written == 3  # those that left were clean
    assert stats.stall_nanoseconds > 0
