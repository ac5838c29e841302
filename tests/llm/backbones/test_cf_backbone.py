"""What all backbones share, tried on each of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit

import tfrec_efficient as tfrec
from tfrec_efficient.llm import backbones
from tfrec_efficient.llm.backbones import sequence_dataset

ITEMS, LENGTH = 12, 6
CLASSES = [
    backbones.SASRec,
    backbones.GRU4Rec,
    backbones.NextItNet,
    backbones.MatrixFactorization,
]
HISTORY = np.array([[0, 0, 0, 3, 1, 2], [4, 5, 6, 7, 8, 9], [0, 0, 0, 0, 0, 12]])
each_class = pytest.mark.parametrize("model_class", CLASSES)


class Last(backbones.CFBackbone):
    """The state is the vector of the last item: no weights but the table, so no surprises."""

    def __init__(self, item_count=ITEMS, width=4, max_length=LENGTH, **kwargs):
        super().__init__(item_count, width, max_length, dropout=0.0, seed=1, **kwargs)
        self.build_tables()
        self.built = True

    def encode(self, vectors, is_item, training):
        return vectors


def small(model_class, **kwargs):
    """As few layers as there can be, because tracing them is what takes time."""
    shallow = {backbones.SASRec: {"blocks": 1}, backbones.NextItNet: {"dilations": (1,)}}
    defaults = {"width": 8, "max_length": LENGTH, "seed": 3, **shallow.get(model_class, {})}
    return model_class(ITEMS, **{**defaults, **kwargs})


def states(model, history):
    """The state at every place, from which the model itself takes the last."""
    history = tf.constant(history, tf.int64)
    table = model._items_of_history if model.separate_history else model._items
    return model.encode(table(history), history > 0, False).numpy()


def randomize(model, seed=0):
    """Weights of a size at which nothing is lost in rounding."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def batch(negatives_shape, seed=0):
    rng = np.random.default_rng(seed)
    positives = np.where(HISTORY > 0, rng.integers(1, ITEMS + 1, HISTORY.shape), 0)
    negatives = rng.integers(1, ITEMS + 1, negatives_shape)
    return {"history": HISTORY, "positives": positives, "negatives": negatives}


# ---- States --------------------------------------------------------------------------------------


@each_class
def test_later_items_do_not_change_earlier_states(model_class):
    model = randomize(small(model_class))
    changed = HISTORY.copy()
    changed[:, 4:] = [10, 11]
    before, after = states(model, HISTORY), states(model, changed)
    np.testing.assert_allclose(before[:2, :4], after[:2, :4], atol=1e-6)
    assert np.abs(before[:, 4:] - after[:, 4:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("model_class", CLASSES[1:])
def test_more_padding_changes_no_state(model_class):
    short = randomize(small(model_class))
    long = small(model_class, max_length=LENGTH + 5)
    long.set_weights(short.get_weights())
    np.testing.assert_allclose(
        short.user_state(HISTORY), long.user_state(np.pad(HISTORY, [[0, 0], [5, 0]])), atol=1e-6
    )


@each_class
def test_the_state_of_a_user_is_that_after_the_last_item(model_class):
    model = randomize(small(model_class))
    np.testing.assert_allclose(model.user_state(HISTORY), states(model, HISTORY)[:, -1], atol=1e-6)


@each_class
def test_an_empty_history_has_a_finite_state(model_class):
    model = randomize(small(model_class))
    state = model.user_state(np.zeros((2, LENGTH), int)).numpy()
    assert np.isfinite(state).all()
    np.testing.assert_array_equal(state[0], state[1])
    assert model.user_state(np.zeros((0, LENGTH), int)).shape == (0, 8)


@each_class
def test_dropout_is_for_training_only(model_class):
    model = randomize(small(model_class, dropout=0.5))
    np.testing.assert_array_equal(model.user_state(HISTORY), model.user_state(HISTORY))
    trained = [model.user_state(HISTORY, training=True).numpy() for _ in range(2)]
    assert np.abs(trained[0] - trained[1]).max() > 1e-3


# ---- Scores --------------------------------------------------------------------------------------


def test_scores_are_dot_products():
    model = Last()
    table = model._items.embeddings.numpy()
    scores = model.scores(HISTORY, [[1, 0], [2, 5], [12, 12]]).numpy()
    assert scores[0, 1] == -np.inf
    expected = (table[[2, 9, 12]][:, np.newaxis] * table[[[1, 0], [2, 5], [12, 12]]]).sum(-1)
    np.testing.assert_allclose(np.delete(scores, 1), np.delete(expected, 1), rtol=1e-5)
    np.testing.assert_array_equal(model.item_vectors([[0], [7]]), table[[[0], [7]]])


@pytest.mark.parametrize("exclude_history", [True, False])
def test_top_k_is_the_best_of_all_scores(exclude_history):
    model = Last()
    every = np.tile(np.arange(1, ITEMS + 1), (3, 1))
    scores = model.scores(HISTORY, every).numpy()
    if exclude_history:
        for row, history in zip(scores, HISTORY, strict=True):
            row[history[history > 0] - 1] = -np.inf
    ids, best = model.top_k(HISTORY, 5, exclude_history)
    order = np.argsort(-scores, 1)[:, :5]
    np.testing.assert_array_equal(ids, order + 1)
    np.testing.assert_allclose(best, np.take_along_axis(scores, order, 1), rtol=1e-5)


def test_top_k_says_where_no_item_is_left():
    ids, scores = Last().top_k(HISTORY, ITEMS)
    assert (ids.numpy() == 0).sum(1).tolist() == [3, 6, 1]
    np.testing.assert_array_equal(ids == 0, np.isneginf(scores))


def test_an_int8_table_finds_much_the_same():
    model = Last(width=32)
    before = model.top_k(HISTORY, 1)[0].numpy()
    model.quantize("int8")
    np.testing.assert_array_equal(model.top_k(HISTORY, 1)[0], before)


# ---- Training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives_shape", [(3, 2), (3, LENGTH, 2)])
def test_the_loss_is_binary_cross_entropy_over_real_places(negatives_shape):
    model = randomize(Last())
    table = model._items.embeddings.numpy()
    inputs = batch(negatives_shape)
    logits = model(inputs)
    assert logits.shape == (3, LENGTH, 3)
    losses = []
    for row, place in np.argwhere(HISTORY > 0):
        state = table[HISTORY[row, place]]
        negatives = inputs["negatives"][row] if len(negatives_shape) == 2 else (
            inputs["negatives"][row, place]
        )  # fmt: skip
        losses.append(
            -np.log(expit(state @ table[inputs["positives"][row, place]]))
            - np.log(1 - expit(table[negatives] @ state)).mean()
        )
    loss = model.compute_loss(x=inputs, y_pred=logits)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def test_a_batch_of_padding_has_no_loss():
    model = Last()
    inputs = {name: ids * 0 for name, ids in batch((3, 2)).items()}
    assert model.compute_loss(x=inputs, y_pred=model(inputs)) == 0


@each_class
def test_the_gradient_of_a_table_has_each_row_once_and_nothing_for_padding(model_class):
    model = randomize(small(model_class))
    inputs = batch((3, 2))
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=inputs, y_pred=model(inputs, training=True))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    tables = [g for g in gradients if isinstance(g, tf.IndexedSlices)]
    assert len(tables) == (2 if model.separate_history else 1)
    for gradient in tables:
        rows = gradient.indices.numpy()
        assert len(rows) == len(set(rows))
        dense = tf.convert_to_tensor(gradient).numpy()
        assert (dense[0] == 0).all() and np.abs(dense[1:]).max() > 0


@pytest.mark.parametrize(
    ("model_class", "optimizer_class", "least"),
    [
        (backbones.SASRec, keras.optimizers.Adam, 0.7),
        pytest.param(*(backbones.GRU4Rec, tfrec.optimizers.Adam, 0.7), marks=pytest.mark.slow),
        pytest.param(*(backbones.NextItNet, tfrec.optimizers.Adam, 0.7), marks=pytest.mark.slow),
        # It does not know the order of the items.
        (backbones.MatrixFactorization, keras.optimizers.Adam, 0.45),
        pytest.param(
            *(backbones.MatrixFactorization, tfrec.optimizers.Adam, 0.45), marks=pytest.mark.slow
        ),
    ],
)
def test_learns_a_chain_better_than_popularity_does(model_class, optimizer_class, least):
    # An item is followed by one of the next two on a circle.
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 4, 256)
    steps = rng.integers(1, 3, (256, LENGTH))
    chains = 1 + (starts[:, np.newaxis] + np.cumsum(steps, 1)) % ITEMS
    seen, last = chains[:, :-1], chains[:, -1:]
    model = small(model_class, width=16)
    model.compile(optimizer_class(0.02))
    dataset = sequence_dataset(seen, ITEMS, LENGTH, 32, 4, share_negatives=True)
    model.fit(dataset, epochs=12, verbose=0, shuffle=False)
    assert not model.jit_compile
    for table in [w for w in model.weights if w.path.endswith("embeddings")]:
        np.testing.assert_array_equal(table[0], np.zeros(16))
    best = model.top_k(keras.utils.pad_sequences(seen, LENGTH), 2)[0]
    popular = np.tile(np.bincount(seen.ravel(), minlength=ITEMS + 1), (256, 1))
    np.put_along_axis(popular, seen, -1, 1)
    assert (np.argsort(-popular, 1)[:, :2] == last).any(1).mean() < 0.2
    assert (best.numpy() == last).any(1).mean() > least


@pytest.mark.parametrize(
    "model_class", [*(pytest.param(c, marks=pytest.mark.slow) for c in CLASSES[:-1]), CLASSES[-1]]
)
def test_equal_seeds_give_equal_models_and_other_seeds_others(model_class):
    def trained():
        model = small(model_class, dropout=0.3)
        before = model.get_weights()
        model.compile(keras.optimizers.Adam(0.01))
        losses = [model.train_on_batch(batch((3, 2))) for _ in range(2)]
        return before, losses

    (weights, losses), (same_weights, same_losses) = trained(), trained()
    for first, again in zip(weights, same_weights, strict=True):
        np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(losses, same_losses, rtol=1e-5)
    others = small(model_class, seed=4).get_weights()
    assert any(not np.array_equal(a, b) for a, b in zip(weights, others, strict=False))


@pytest.mark.slow
def test_replicas_share_the_batch():
    # As many real places for each: a replica averages over its own.
    rows = {name: ids[[1, 1]] for name, ids in batch((3, 2)).items()}
    rows["positives"] = rows["positives"] * 0 + [[1], [5]]
    data = tf.data.Dataset.from_tensor_slices(rows).batch(2)

    def trained(strategy):
        with strategy.scope():
            model = small(backbones.SASRec, dropout=0.0)
            model.compile(keras.optimizers.SGD(0.1))
        loss = model.fit(data, epochs=3, verbose=0, shuffle=False).history["loss"]
        return loss, model._items.embeddings.numpy()

    mirrored = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    loss, table = trained(mirrored)
    expected_loss, expected = trained(tf.distribute.get_strategy())
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_losses_of_layers_are_added():
    model = Last()
    inputs = batch((3, 2))
    logits = model(inputs)
    alone = model.compute_loss(x=inputs, y_pred=logits)
    model.add_loss(tf.constant(2.0))
    np.testing.assert_allclose(model.compute_loss(x=inputs, y_pred=logits), alone + 2.0)


# ---- Saving and policies -------------------------------------------------------------------------


@each_class
def test_is_saved_and_loaded(model_class, tmp_path):
    model = randomize(small(model_class, dropout=0.3))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded.user_state(HISTORY), model.user_state(HISTORY))
    assert type(model).from_config(model.get_config()).get_config() == model.get_config()


@pytest.mark.parametrize(
    "model_class", [CLASSES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in CLASSES[1:])]
)
def test_is_exported(model_class, tmp_path):
    model = randomize(small(model_class))
    of_ids = tf.TensorSpec((None, None), tf.int32)
    scores = tf.function(model.scores, [tf.TensorSpec((None, LENGTH), tf.int32), of_ids])
    tf.saved_model.save(model, tmp_path / "model", scores)
    served = tf.saved_model.load(tmp_path / "model").signatures["serving_default"]
    candidates = np.array([[1, 2], [0, 3], [4, 5]])
    (received,) = served(
        history=tf.constant(HISTORY, tf.int32), candidates=tf.constant(candidates, tf.int32)
    ).values()
    np.testing.assert_allclose(received, model.scores(HISTORY, candidates), rtol=1e-5)
    assert received.shape == (3, 2)


@each_class
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_computes_in_half_precision_and_scores_in_float32(model_class, dtype):
    model = small(model_class, dtype=f"mixed_{dtype}")
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    assert model.user_state(HISTORY).dtype == dtype
    assert model.item_vectors([1]).dtype == dtype
    assert model.top_k(HISTORY, 2)[1].dtype == tf.float32
    model.compile(keras.optimizers.Adam(0.01))
    loss = model.train_on_batch(batch((3, 2)))
    assert np.isfinite(loss)
    wide = small(model_class)
    wide.set_weights(model.get_weights())
    np.testing.assert_allclose(
        tf.cast(model.user_state(HISTORY), tf.float32), wide.user_state(HISTORY), atol=0.1
    )


# ---- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"item_count": 0}, "`item_count` must be a positive integer. Received: item_count=0"),
        ({"width": 2.5}, "`width` must be a positive integer. Received: width=2.5"),
        ({"max_length": -1}, "`max_length` must be a positive integer"),
        ({"dropout": 1.0}, r"`dropout` must be in `\[0, 1\)`. Received: dropout=1.0"),
        ({"seed": None}, "`seed` must be an integer, 0 or more. Received: seed=None"),
    ],
)
def test_constructor_refuses(kwargs, words):
    with pytest.raises(ValueError, match=words):
        backbones.SASRec(**{"item_count": 5, **kwargs})


def test_ids_that_are_no_items_are_refused():
    model = Last()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids` must be in `\[0, 13\)`"):
        model.user_state([[0, 0, 0, 0, 1, 13]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be in .*=-1"):
        model.item_vectors([-1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be in .*=99"):
        model(batch((3, 2)) | {"negatives": np.full((3, 2), 99)})
    with pytest.raises(ValueError, match="`candidates` must be integers. Received: dtype float32"):
        model.scores(HISTORY, [[1.0]])


@pytest.mark.parametrize("history", [[1, 2, 3, 0, 0, 0], [1, 0, 2, 3, 4, 5]])
def test_a_history_that_is_not_left_padded_is_refused(history):
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be left padded: no 0 may foll"):
        Last().user_state([history])
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be left padded: no 0 may foll"):
        tf.function(Last().user_state)(tf.constant([history]))


def test_wrong_shapes_and_inputs_are_refused():
    model = Last()
    with pytest.raises(ValueError, match=r"`history` must have the shape `\(batch, 6\)`. Received"):
        model.user_state([[1, 2]])
    with pytest.raises(ValueError, match="`candidates` must have the shape"):
        model.scores(HISTORY, [1, 2])
    with pytest.raises(ValueError, match="`k` must be at most 12, the items. Received: k=13"):
        model.top_k(HISTORY, 13)
    with pytest.raises(ValueError, match=r"must be a dict .* Received: \['history'\]"):
        model({"history": HISTORY})
    with pytest.raises(ValueError, match="`negatives` must have the shape"):
        model(batch((3,)))
    with pytest.raises(ValueError, match="trained on inputs alone"):
        model.compute_loss(x=batch((3, 2)), y=1)
