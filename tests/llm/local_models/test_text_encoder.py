import json

import keras
import numpy as np
import pytest

from tfrec_efficient.llm.local_models import TextEncoder


class Characters:
    """A tokenizer of ASCII characters, with nothing before or after."""

    def tokenize(self, texts):
        return [[min(ord(character), 127) for character in text] for text in texts]


TEXTS = ["Heat", "", "The Big Lebowski", "It", "Up", "Dune: Part Two"]


def make_encoder(dtype="float32", family="Bert", **arguments):
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = getattr(keras_hub.models, f"{family}Backbone")(
        vocabulary_size=128,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=32,
        dropout=0.5,
        dtype=dtype,
    )
    return TextEncoder(backbone, Characters(), **arguments)


@pytest.fixture
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT in the format of Hugging Face, whose tokenizer closes with the token 3."""
    import safetensors.numpy
    import tokenizers

    folder = tmp_path_factory.mktemp("bert")
    config = {"model_type": "bert", "vocab_size": 16, "num_hidden_layers": 1, "hidden_size": 8}
    config |= {"num_attention_heads": 2, "intermediate_size": 12, "hidden_dropout_prob": 0.0}
    config |= {"max_position_embeddings": 32, "type_vocab_size": 2}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"embeddings.word_embeddings": (16, 8), "embeddings.position_embeddings": (32, 8)}
    shapes |= {"embeddings.token_type_embeddings": (2, 8), "pooler.dense": (8, 8)}
    shapes |= {f"encoder.layer.0.attention.self.{n}": (8, 8) for n in ("query", "key", "value")}
    shapes |= {"encoder.layer.0.attention.output.dense": (8, 8)}
    shapes |= {"encoder.layer.0.intermediate.dense": (12, 8)}
    shapes |= {"encoder.layer.0.output.dense": (8, 12)}
    norms = ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output")
    shapes |= {f"{name}.LayerNorm": (8,) for name in norms}
    random = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": random.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name, shape in shapes.items():
        if not name.endswith("_embeddings"):
            tensors[f"{name}.bias"] = random.normal(size=shape[:1]).astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijkl"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


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
    )
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
    encoder.compile("adam", "mse", jit_compile=False)
    first = encoder.evaluate(tokens, targets, verbose=0)
    encoder.fit(tokens, targets, epochs=30, verbose=0)
    assert encoder.evaluate(tokens, targets, verbose=0) < first


def test_frozen_it_has_nothing_to_train(encoder):
    encoder.trainable = False
    assert encoder.trainable_weights == []


def test_vectors_are_float32_and_of_length_one_in_any_dtype():
    wide, narrow = (make_encoder(dtype).encode(TEXTS[2:3]) for dtype in ("float32", "bfloat16"))
    assert narrow.dtype == np.float32
    assert np.linalg.norm(narrow) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(narrow, wide, atol=0.05)


def test_a_backbone_without_segments_will_do():
    assert make_encoder(family="DistilBert").encode(TEXTS).shape == (6, 8)


def test_long_texts_are_cut(encoder):
    short = make_encoder(max_length=4)
    assert short.tokenize(["The Big Lebowski"])["token_ids"].shape == (1, 4)
    np.testing.assert_allclose(short.encode(["The Big"]), encoder.encode(["The "]), atol=1e-5)
    with pytest.raises(ValueError, match="`max_length` must be a positive integer. Received: "):
        make_encoder(max_length=0)


def test_a_folder_is_loaded_and_its_tokenizer_closes_texts_that_are_cut(folder):
    encoder = TextEncoder.load(str(folder), max_length=4)
    assert encoder.tokenize(["a b c d e", "l"])["token_ids"].tolist() == [
        [2, 4, 5, 3],
        [2, 15, 3, 0],
    ]
    assert encoder.width == 8
    with pytest.raises(
        FileNotFoundError, match="`reference` must be .* Received: reference='bert'"
    ):
        TextEncoder.load("bert")


def test_a_model_with_a_trained_encoder_is_saved_by_reference(folder, tmp_path):
    encoder = TextEncoder.load(str(folder), max_length=4)
    encoder.compile("adam", "mse", jit_compile=False)
    tokens = encoder.tokenize(["a b", "c"])
    encoder.fit(tokens, np.eye(2, 8, dtype=np.float32), verbose=0)
    encoder.save(tmp_path / "encoder.keras")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_allclose(
        loaded.encode(["a b", "c d"]), encoder.encode(["a b", "c d"]), atol=1e-6
    )
    assert loaded.get_config() == encoder.get_config()


def test_a_frozen_encoder_is_frozen_when_loaded(folder):
    encoder = TextEncoder.load(str(folder), max_length=4, dtype="bfloat16")
    encoder.trainable = False
    loaded = TextEncoder.from_config(encoder.get_config())
    assert loaded.trainable_weights == []
    assert loaded.get_config() == encoder.get_config()


def test_without_a_reference_it_cannot_be_saved(encoder):
    with pytest.raises(ValueError, match="`reference` must be given .* Received: reference=None"):
        encoder.get_config()


def test_a_batch_size_must_be_positive(encoder):
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer. Received: "):
        encoder.encode(TEXTS, batch_size=0)
