import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tfrec_efficient.llm.backbones import SASRec
from tfrec_efficient.llm.cf_aligner import CFAligner
from tfrec_efficient.llm.cf_aligner import alignment_dataset

ITEMS, TEXT_WIDTH = 12, 6
TEXTS = np.random.default_rng(0).normal(size=(ITEMS, TEXT_WIDTH)).astype(np.float32)
BATCH = {
    "history": np.array([[0, 1, 2], [3, 4, 5]]),
    "positive": np.array([6, 7]),
    "negative": np.array([8, 9]),
}
SEQUENCES = [[1, 2, 3, 4], [5, 6, 7], [2, 9, 1, 8, 3]]


def aligner(**arguments):
    keras.utils.set_random_seed(1)
    backbone = SASRec(item_count=ITEMS, width=4, max_length=3, dropout=0.5)
    backbone.user_state(BATCH["history"])
    return CFAligner(backbone, arguments.pop("texts", TEXTS), joint_width=5, **arguments)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loss_by_hand(model, batch, alpha=0.5, beta=0.5, mean_of_products=False, has_text=None):
    def dense(name, x):
        kernel, bias = (w.numpy() for w in getattr(model, f"_{name}").weights)
        return x @ kernel + bias

    has_text = np.ones(ITEMS, bool) if has_text is None else has_text
    state = model.cf_backbone.user_state(batch["history"]).numpy()
    total = 0.0
    for name, label in (("positive", 1), ("negative", 0)):
        cf = model.cf_backbone.item_vectors(batch[name]).numpy()
        text, told = TEXTS[batch[name] - 1], has_text[batch[name] - 1]
        e, q = sigmoid(dense("encode_cf", cf)), sigmoid(dense("encode_text", text))
        decoded = dense("decode_cf", e)
        if told.any():
            total += ((e - q) ** 2)[told].mean()
            total += beta * ((dense("decode_text", q) - text) ** 2)[told].mean()
        total += alpha * ((decoded - cf) ** 2).mean()
        logit = (state * decoded).mean(-1) if mean_of_products else (state * decoded).sum(-1)
        total += -np.log(sigmoid(logit if label else -logit)).mean()
    return total


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.5, 0.2), (0, 0), (2, 1)])
def test_the_loss_is_the_published_formula(alpha, beta):
    model = aligner(alpha=alpha, beta=beta)
    loss = model.compute_loss(BATCH, y_pred=model(BATCH, training=True))
    np.testing.assert_allclose(loss, loss_by_hand(model, BATCH, alpha, beta), rtol=1e-5)


def test_faithful_means_a_mean_of_products_and_dropout_in_the_frozen_backbone():
    model = aligner(faithful=True)
    at_rest = model.compute_loss(BATCH, y_pred=model(BATCH, training=False))
    expected = loss_by_hand(model, BATCH, mean_of_products=True)
    np.testing.assert_allclose(at_rest, expected, rtol=1e-5)
    states = [model(BATCH, training=True)["state"].numpy() for _ in range(2)]
    assert (states[0] != states[1]).any()


def test_the_frozen_backbone_drops_nothing_out_by_default():
    model = aligner()
    states = [model(BATCH, training=training)["state"].numpy() for training in (True, False)]
    np.testing.assert_array_equal(*states)


def test_an_item_without_text_has_no_part_in_what_compares_with_texts():
    has_text = np.ones(ITEMS, bool)
    has_text[[5, 7, 8]] = False
    model = aligner(has_text=has_text)
    loss = model.compute_loss(BATCH, y_pred=model(BATCH, training=True))
    np.testing.assert_allclose(loss, loss_by_hand(model, BATCH, has_text=has_text), rtol=1e-5)


def test_a_vector_of_zeros_is_no_text_where_nothing_else_is_said():
    texts = TEXTS.copy()
    texts[4] = 0
    with pytest.raises(ValueError, match="Received: 5, which has none"):
        aligner(texts=texts).item_vectors(cold_ids=[5])
    told = aligner(texts=texts, has_text=np.ones(ITEMS, bool))
    assert told.item_vectors(cold_ids=[5]).shape == (ITEMS + 1, 5)


def test_the_policy_is_that_of_the_arguments():
    model = aligner(dtype="mixed_bfloat16")
    assert model(BATCH)["decoded_text"].dtype == tf.bfloat16
    np.testing.assert_allclose(
        model.compute_loss(BATCH, y_pred=model(BATCH)), loss_by_hand(model, BATCH), rtol=0.02
    )


def test_the_backbone_stays_as_it_is_and_the_loss_falls():
    model = aligner()
    before = [weight.numpy() for weight in model.cf_backbone.weights]
    model.compile(keras.optimizers.Adam(0.01))
    data = alignment_dataset(SEQUENCES, ITEMS, 3, batch_size=2, every_position=True)
    history = model.fit(data, epochs=12, verbose=0, shuffle=False).history["loss"]
    assert history[-1] < 0.9 * history[0]
    for old, new in zip(before, model.cf_backbone.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(model.trainable_weights) == 8


def test_a_text_encoder_is_trained_along():
    class Encoder(keras.Model):
        width = TEXT_WIDTH

        def __init__(self):
            super().__init__()
            self.table = keras.layers.Embedding(20, TEXT_WIDTH)

        def call(self, inputs, training=False):
            mask = tf.cast(inputs["padding_mask"], tf.float32)[..., tf.newaxis]
            return tf.reduce_sum(self.table(inputs["token_ids"]) * mask, axis=1)

    encoder = Encoder()
    tokens = {
        "token_ids": np.arange(ITEMS * 2).reshape(ITEMS, 2) % 20,
        "padding_mask": np.ones((ITEMS, 2), bool),
    }
    model = aligner(texts=tokens, text_encoder=encoder)
    model(BATCH)
    before = encoder.table.embeddings.numpy()
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(alignment_dataset(SEQUENCES, ITEMS, 3, 2), epochs=1, verbose=0, shuffle=False)
    assert (encoder.table.embeddings.numpy() != before).any()
    assert model.item_vectors(cold_ids=[3]).shape == (ITEMS + 1, 5)


def test_cold_items_take_the_side_of_their_texts():
    model = aligner()
    warm, mixed = model.item_vectors(), model.item_vectors(cold_ids=[2, 7])
    assert not warm[0].any()
    np.testing.assert_allclose(np.delete(warm, [2, 7], 0), np.delete(mixed, [2, 7], 0), rtol=1e-5)
    kernel, bias = (w.numpy() for w in model._encode_text.weights)
    np.testing.assert_allclose(mixed[[2, 7]], sigmoid(TEXTS[[1, 6]] @ kernel + bias), rtol=1e-5)


def test_texts_are_placed_in_the_space_of_the_backbone():
    has_text = np.ones(ITEMS, bool)
    has_text[4] = False
    model = aligner(has_text=has_text)
    placed = model.cf_vectors_of_texts()
    assert placed.shape == (ITEMS + 1, 4) and not placed[[0, 5]].any()
    kernel, bias = (w.numpy() for w in model._decode_cf.weights)
    mixed = model.item_vectors(cold_ids=[3])
    np.testing.assert_allclose(placed[3], mixed[3] @ kernel + bias, rtol=1e-4)


def test_two_replicas_train_as_one():
    losses = []
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(
            ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
        ),
    ):
        with strategy.scope():
            model = aligner()
            model.compile(keras.optimizers.SGD(0.1))
        data = tf.data.Dataset.from_tensors({k: v.repeat(2, 0) for k, v in BATCH.items()}).repeat(3)
        model.fit(data, epochs=1, verbose=0, shuffle=False)
        losses.append(model.item_vectors())
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_replica_may_get_no_row():
    model, none = aligner(), {name: ids[:0] for name, ids in BATCH.items()}
    assert float(model.compute_loss(none, y_pred=model(none, training=True))) == 0


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=6), min_size=1, max_size=6),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=25)
def test_rows_to_align_are_histories_with_what_came_next(sequences, size, every_position, seed):
    data = alignment_dataset(sequences, 12, 3, size, every_position, seed)
    expected = []
    for items in sequences:
        for end in range(1, len(items)) if every_position else [len(items) - 1]:
            expected.append(([0] * (3 - len(items[:end][-3:])) + items[:end][-3:], items[end]))
    for _ in range(2):
        rows = []
        for batch in data:
            assert len(batch["positive"]) <= size
            rows += zip(
                batch["history"].numpy().tolist(), batch["positive"].numpy().tolist(), strict=True
            )
            for negative in batch["negative"].numpy():
                assert 1 <= negative <= 12
        assert sorted(rows) == sorted(expected)
    assert int(data.cardinality()) == -(-len(expected) // size)


def test_negatives_are_no_items_of_the_user_and_repeat_with_the_seed():
    def negatives(seed):
        data = alignment_dataset([[1, 2, 3]] * 50, 5, 3, 50, seed=seed)
        return [next(iter(data))["negative"].numpy().tolist() for _ in range(1)][0]

    assert set(negatives(0)) == {4, 5}
    assert negatives(0) == negatives(0) != negatives(1)


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ([], "must not be empty"),
        ([[1, 2], [1]], r"2 items or more. Received: `sequences\[1\]`"),
        ([[1, 13]], r"items in `\[1, 12\]`. Received: `sequences\[0\]\[1\]=13`"),
        ([[1.5, 2.0]], "must be integers"),
        ([list(range(1, 13))], "leave an item out"),
    ],
)
def test_sequences_that_do_not_do_are_refused(sequences, words):
    with pytest.raises(ValueError, match=words):
        alignment_dataset(sequences, 12, 3)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_seeds_that_do_not_do_are_refused(seed):
    with pytest.raises(ValueError, match="`seed` must be an integer, 0 or more. Received: seed="):
        alignment_dataset(SEQUENCES, 12, 3, seed=seed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"texts": TEXTS[:3]}, r"`texts` must have a row for each item, `\(12, ...\)`"),
        ({"texts": TEXTS * np.nan}, "`texts` must be finite. Received: the vector of item 1"),
        ({"texts": {"token_ids": TEXTS}}, "`texts` must be tokens with a `text_encoder`"),
        (
            {"texts": {"ids": TEXTS}, "text_encoder": object()},
            r"`texts` must have token_ids and padding_mask.*Received: \['ids'\]",
        ),
        ({"alpha": -1}, "`alpha` must be at least 0. Received: alpha=-1"),
        ({"has_text": [True]}, r"`has_text` must be a boolean array of shape \(12,\)"),
    ],
)
def test_arguments_that_do_not_do_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        aligner(**arguments)


@pytest.mark.parametrize(
    ("cold", "words"),
    [
        ([13], r"in `\[1, 12\]`"),
        ([2], "which has none"),
        ([3.7], "must be integers. Received: dtype float64"),
        ([True] * ITEMS, "must be integers. Received: dtype bool"),
    ],
)
def test_items_that_cannot_be_cold_are_refused(cold, words):
    has_text = np.ones(ITEMS, bool)
    has_text[1] = False
    with pytest.raises(ValueError, match=words):
        aligner(has_text=has_text).item_vectors(cold_ids=cold)


def test_an_aligner_says_how_it_is_saved(tmp_path):
    with pytest.raises(NotImplementedError, match="Save its weights by `save_weights`"):
        aligner().save(tmp_path / "aligner.keras")


def test_sample_weights_are_refused():
    model = aligner()
    with pytest.raises(ValueError, match="`sample_weight` must be None"):
        model.compute_loss(BATCH, y_pred=model(BATCH), sample_weight=1)
