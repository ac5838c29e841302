import keras
import numpy as np
import pytest

from tfrec_efficient.llm.local_models import TextEncoder


class Characters:
    """A tokenizer of ASCII characters, with nothing before or after."""

    def tokenize(self, texts):
        return [[min(ord(character), 127) for character in text] for text in texts]


TEXTS = ["Heat", "", "The Big Lebowski", "It", "Up", "Dune: Part Two"]


@pytest.fixture
def encoder():
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=128,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=32,
        dropout=0.5,
    )
    return TextEncoder(backbone, Characters())


def test_tokens_are_padded_on_the_right(encoder):
    tokens = encoder.tokenize(["It", "", "Ran"])
    assert tokens["token_ids"].tolist() == [[73, 116, 0], [0, 0, 0], [82, 97, 110]]
    assert tokens["padding_mask"].tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert tokens["token_ids"].dtype == np.int32
    assert tokens["padding_mask"].dtype == bool


def test_a_vector_is_the_mean_of_the_states_scaled_to_length_one(encoder):
    tokens = encoder.tokenize(["Heat", "It"])
    states = encoder.backbone(
        {
            "token_ids": tokens["token_ids"],
            "segment_ids": np.zeros_like(tokens["token_ids"]),
            "padding_mask": tokens["padding_mask"].astype(np.int32),
        },
        training=False,
    )["sequence_output"]
    states = np.asarray(states)
    means = np.stack([states[0].mean(0), states[1, :2].mean(0)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder(tokens), expected, atol=1e-5)


def test_texts_are_encoded_in_the_order_given(encoder):
    vectors = encoder.encode(TEXTS, batch_size=2, verbose=False)
    assert vectors.shape == (6, 8)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        if text:
            np.testing.assert_allclose(encoder(encoder.tokenize([text]))[0], vector, atol=1e-5)


def test_a_text_of_no_tokens_gives_zeros(encoder):
    vectors = encoder.encode(["", "It"], verbose=False)
    assert vectors[0].tolist() == [0.0] * 8
    assert encoder.encode(["", ""], verbose=False).tolist() == [[0.0] * 8] * 2


def test_no_texts_give_no_vectors(encoder):
    assert encoder.encode([], verbose=False).shape == (0, 8)


def test_dropout_is_off_unless_training(encoder):
    first, second = (encoder.encode(TEXTS, verbose=False) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    tokens = encoder.tokenize(["The Big Lebowski"])
    assert np.abs(encoder(tokens, training=True) - encoder(tokens)).max() > 1e-3


def test_encoding_sees_weights_that_were_trained_meanwhile(encoder):
    before = encoder.encode(TEXTS, verbose=False)
    for weight in encoder.trainable_weights:
        weight.assign(weight + 0.1 * keras.random.normal(weight.shape, seed=1))
    assert np.abs(encoder.encode(TEXTS, verbose=False) - before).max() > 1e-3


def test_it_can_be_trained_and_all_its_weights_get_gradients(encoder):
    tokens = encoder.tokenize(["Heat", "Up", "Dune"])
    targets = np.eye(3, 8, dtype=np.float32)
    encoder.compile("adam", "mse")
    first = encoder.evaluate(tokens, targets, verbose=0)
    encoder.fit(tokens, targets, epochs=30, verbose=0)
    assert encoder.evaluate(tokens, targets, verbose=0) < first


def test_frozen_it_has_nothing_to_train(encoder):
    encoder.trainable = False
    assert encoder.trainable_weights == []


def test_a_batch_size_must_be_positive(encoder):
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer. Received: "):
        encoder.encode(TEXTS, batch_size=0)
