import sys

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tfrec_efficient.llm.local_models import LocalTokenizer
from tfrec_efficient.llm.local_models._gguf import GGUFFile


@pytest.fixture(scope="module")
def path(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write(folder / "tiny.gguf")
    (folder / "tokenizer.json").write_text(GGUFFile(folder / "tiny.gguf").tokenizer_json())
    return folder / "tokenizer.json"


@pytest.fixture
def tokenizer(path):
    return LocalTokenizer(path, "<|im_end|>")


def test_ids_are_lists_of_integers_one_for_each_text(tokenizer, tiny):
    ids = tokenizer.tokenize(["the 1995", "", "in"])
    assert ids == [tiny.slow_tokens("the 1995"), [], tiny.slow_tokens("in")]
    assert all(type(number) is int for row in ids for number in row)


def test_any_sequence_of_texts_will_do(tokenizer):
    assert tokenizer.tokenize(text for text in ("a", "b")) == tokenizer.tokenize(["a", "b"])


def test_rows_are_not_padded_to_equal_lengths(tokenizer):
    assert list(map(len, tokenizer.tokenize(["a", "abc"]))) == [1, 3]


@settings(deadline=None)
@given(st.text())
def test_every_text_comes_back(path, text):
    tokenizer = LocalTokenizer(path)
    assert tokenizer.detokenize(tokenizer.tokenize([text])[0]) == text


def test_special_tokens_are_left_out_of_the_text(tokenizer):
    ids = tokenizer.tokenize(["<|im_start|>the<|im_end|>"])[0]
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.detokenize(ids) == "the"


def test_bytes_that_are_no_text_are_replaced(tokenizer):
    ids = tokenizer.tokenize(["é"])[0]
    assert len(ids) == 2
    assert tokenizer.detokenize(ids[:1]) == "\N{REPLACEMENT CHARACTER}"


def test_texts_are_cut_from_truncate_on(tokenizer):
    assert len(tokenizer.tokenize(["abcdef"])[0]) == 6
    tokenizer.truncate(4)
    assert tokenizer.tokenize(["abcdef", "ab"]) == tokenizer.tokenize(["abcd", "ab"])
    with pytest.raises(ValueError, match="`max_length` must be a positive integer. Received: "):
        tokenizer.truncate(0)


def test_what_it_says_of_itself(path, tokenizer, tiny):
    assert tokenizer.vocabulary_size() == len(tiny.tokens())
    assert tokenizer.end_token_id == 2
    assert LocalTokenizer(path).end_token_id is None
    with pytest.raises(ValueError, match="`end_token` must be a token. Received: end_token='</s>'"):
        LocalTokenizer(path, "</s>")


def test_without_tokenizers_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'tfrec-efficient\[llm\]'"):
        LocalTokenizer(path)
