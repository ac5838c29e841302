import sys

import numpy as np
import pytest

from tfrec_efficient.llm.local_models import minilm_l6

TEXTS = [
    "That is a happy person",
    "That is a very happy person",
    "That is a happy dog",
    "Today is a sunny day",
]


@pytest.fixture(scope="module")
def encoder():
    try:
        return minilm_l6()
    except FileNotFoundError as error:
        pytest.skip(f"MiniLM is not at hand: {error}")


def test_similar_texts_are_near(encoder):
    vectors = encoder.encode(TEXTS, verbose=False)
    assert vectors.shape == (4, 384)
    # To the three digits that the model's own library gives, but for the GELU.
    np.testing.assert_allclose(vectors[1:] @ vectors[0], [0.943, 0.694, 0.257], atol=2e-3)


def test_vectors_have_length_one_and_depend_on_no_neighbour(encoder):
    texts = ["", "It", *TEXTS, "Der Himmel \u00fcber Berlin"]
    together = encoder.encode(texts, batch_size=4, verbose=False)
    alone = encoder.encode(texts, batch_size=1, verbose=False)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_texts_begin_and_end_with_their_special_tokens(encoder):
    assert encoder.tokenizer.tokenize(["", "happy"]) == [[101, 102], [101, 3407, 102]]


def test_long_texts_keep_their_end_token(encoder):
    long = encoder.tokenizer.tokenize(["happy " * 1000])[0]
    assert len(long) == 256
    assert long[-2:] == [3407, 102]


def test_the_length_can_be_shortened(encoder):
    assert minilm_l6(max_length=8).tokenize(["happy " * 100])["token_ids"].shape == (1, 8)


def test_without_keras_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'tfrec-efficient\[llm\]'"):
        minilm_l6()


def test_no_pytorch_is_imported(encoder):
    assert "torch" not in sys.modules
