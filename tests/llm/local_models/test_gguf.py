import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tfrec_efficient.llm.local_models._gguf import GGUFFile

IDS = [70, 2, 0, 70, 131, 255, 9, 40, 1, 77]


def logits(backbone, ids):
    ids = np.array([ids])
    hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    return np.asarray(backbone.token_embedding(hidden, reverse=True))[0]


@pytest.fixture(scope="module")
def tokenizer(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny.write(path)
    return tokenizers.Tokenizer.from_str(GGUFFile(path).tokenizer_json())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
def test_logits_are_those_of_a_slow_llama_on_the_raw_file(tiny, tmp_path, tied, quantized):
    written = tiny.write(tmp_path / "tiny.gguf", tied=tied, quantized=quantized)
    backbone = GGUFFile(tmp_path / "tiny.gguf").backbone()
    assert backbone.tie_word_embeddings == tied
    expected = tiny.slow_logits(written, IDS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits(backbone, IDS), expected, atol=1e-4, rtol=1e-4)


def test_weights_are_kept_in_float32(tiny, tmp_path):
    tiny.write(tmp_path / "tiny.gguf")
    assert {weight.dtype for weight in GGUFFile(tmp_path / "tiny.gguf").backbone().weights} == {
        "float32"
    }


@settings(deadline=None)
@given(st.text() | st.text("the in's19 \n\t0оэ½٣漢😀\u00a0\u3000"))
def test_tokens_are_those_of_the_definition(tiny, tokenizer, text):
    assert tokenizer.encode(text).ids == tiny.slow_tokens(text)


@settings(deadline=None)
@given(st.text())
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_each_digit_is_a_token_even_where_a_merge_exists(tiny, tokenizer):
    assert "19" in tiny.tokens()
    assert tokenizer.encode("1995").tokens == ["1", "9", "9", "5"]


def test_special_tokens_are_one_token_wherever_they_stand(tiny, tokenizer):
    assert tokenizer.encode("".join(tiny.special)).ids == [0, 1, 2]
    assert tokenizer.encode("the<|im_end|>the").tokens == ["the", "<|im_end|>", "the"]
    assert tokenizer.encode("<|im_end| >").tokens[0] == "<"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "gemma"}, "must have general.architecture=llama. Received: gemma"),
        ({"pre": "llama-bpe"}, "must have tokenizer.ggml.pre=smollm. Received: llama-bpe"),
        (
            {"llama__rope__scaling__type": "linear"},
            "must have llama.rope.scaling.type=none, or none. Received: linear",
        ),
        ({"llama__expert_count": 8}, "must have llama.expert_count=0, or none. Received: 8"),
        (
            {"llama__attention__key_length": 32},
            "must have llama.attention.key_length=16, or none. Received: 32",
        ),
        (
            {"more": {"rope_freqs": (8,)}},
            "the tensors of a Llama, and no others. Received: missing or more are rope_freqs",
        ),
        ({"more": {"blk.2.attn_q": (64, 64)}}, "missing or more are blk.2.attn_q.weight"),
    ],
)
def test_what_another_model_or_tokenizer_needs_is_refused(tiny, tmp_path, arguments, message):
    tiny.write(tmp_path / "tiny.gguf", **arguments)
    with pytest.raises(ValueError, match=message):
        GGUFFile(tmp_path / "tiny.gguf")


def test_the_tokenizer_names_no_file_and_no_hub(tiny, tmp_path):
    tiny.write(tmp_path / "tiny.gguf")
    described = json.loads(GGUFFile(tmp_path / "tiny.gguf").tokenizer_json())
    assert set(described["model"]) == {"type", "vocab", "merges"}
    assert str(tmp_path) not in json.dumps(described)


def test_without_gguf_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'tfrec-efficient\[llm\]'"):
        GGUFFile(tmp_path / "tiny.gguf")
