import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.llm.prompt import RecommendationPrompt
from tfrec_efficient.llm.prompt import prompt_template
from tfrec_efficient.llm.prompt import title_matches

TITLES = ["It", "Up", 'The "Best"\nof all', "", "Амели", "Up"]


class Characters:
    """A tokenizer of code points, so that prompts can be read."""

    def tokenize(self, texts):
        return [[ord(character) for character in text] for text in texts]


class Words:
    """One that gives what keras-hub gives: a ragged tensor."""

    def tokenize(self, texts):
        return tf.ragged.constant(Characters().tokenize(texts), tf.int32)


def read(row):
    return "".join(chr(token) if token >= 0 else f"<{-1 - token}>" for token in row)


def prompts(history, candidates=None, titles=TITLES, tokenizer=None, **arguments):
    prompt = RecommendationPrompt(tokenizer or Characters(), titles, **arguments)
    return [read(row) for row in prompt.token_ids(history, candidates).to_list()]


def test_the_default_asks_the_papers_question():
    assert prompts([[0, 1, 2]], [[6, 1]], history_length=3) == [
        '<0> is a user representation. This user has watched "It"<2>,"Up"<3> in the previous. '
        "Recommend one next movie for this user to watch next from the following movie title set, "
        '"Up"<4>,"It"<5>. The recommendation is '
    ]


def test_other_trades_have_their_words():
    assert "has bought {history}" in prompt_template("buy", "bought", "item")
    assert prompt_template(user=False).startswith("This user has watched")
    assert prompt_template(candidates=False).endswith("movie for this user to watch is")


def test_only_the_latest_items_are_shown():
    template = "{history}."
    assert prompts([[1, 1, 1, 2, 5]], template=template, history_length=2) == [
        '"Up"<1>,"Амели"<2>.'
    ]
    assert prompts([[2]], template=template, history_length=2) == ['"Up"<1>.']


def test_rows_differ_in_length_and_an_empty_history_is_empty():
    shown = prompts([[0, 0], [0, 1], [1, 2]], template="a {history} b", history_length=2)
    assert shown == ["a  b", 'a "It"<2> b', 'a "It"<1>,"Up"<2> b']


def test_titles_keep_quotes_lose_line_breaks_and_may_be_empty():
    template = "{history}"
    assert prompts([[3, 4]], template=template) == ['"The "Best" of all"<1>,""<2>']


def test_without_soft_tokens_of_items_there_are_none():
    assert prompts([[1]], [[2]], template="{history}|{candidates}", item_tokens=False) == [
        '"It"|"Up"'
    ]


def test_candidates_are_lettered_and_padding_is_left_out():
    template = "{history}: {candidates}"
    assert prompts([[1]], [[2, 1, 0]], template=template, lettered=True) == [
        '"It"<1>: A: "Up"<2>,B: "It"<3>'
    ]


def test_a_tokenizer_of_keras_hub_gives_the_same():
    assert prompts([[1, 2]], [[3, 5]], tokenizer=Words()) == prompts([[1, 2]], [[3, 5]])


@pytest.mark.parametrize("lettered", [False, True])
def test_a_graph_gives_the_same(lettered):
    prompt = RecommendationPrompt(Characters(), TITLES, lettered=lettered)
    history, candidates = tf.constant([[0, 1], [3, 2]]), tf.constant([[5, 6], [1, 0]])
    specs = [tf.TensorSpec([None, None], tf.int32)] * 2
    graph = tf.function(prompt.token_ids, input_signature=specs)
    assert graph(history, candidates).to_list() == prompt.token_ids(history, candidates).to_list()


def test_no_prompt_is_longer_than_the_bound():
    prompt = RecommendationPrompt(Characters(), TITLES, history_length=2, lettered=True)
    tokens = prompt.token_ids([[3, 3, 3]], [[3] * 5])
    assert tokens.row_lengths()[0] <= prompt.longest(5) <= tokens.row_lengths()[0] + 4


def test_the_config_gives_the_same_prompt():
    prompt = RecommendationPrompt(Characters(), TITLES, "{history} {candidates}", 3, False, True)
    again = RecommendationPrompt(Characters(), **prompt.get_config())
    assert prompt.token_ids([[1, 2]], [[3]]).to_list() == again.token_ids([[1, 2]], [[3]]).to_list()


@pytest.mark.parametrize(("name", "history", "candidates"), [
    ("history", [[7]], [[1]]), ("history", [[-1]], [[1]]), ("candidates", [[1]], [[7]]),
])  # fmt: skip
def test_ids_of_no_item_are_refused(name, history, candidates):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"`{name}` must be in `\[0, 6\]`"):
        prompts(history, candidates)


def test_ids_are_integers_of_any_size():
    titles = ["a"] * 300
    prompt = RecommendationPrompt(Characters(), titles, "{history} x", item_tokens=False)
    wide = prompt.token_ids([[1, 200]]).to_list()
    for dtype in (np.uint8, np.int16, np.int64):
        assert prompt.token_ids(np.array([[1, 200]], dtype)).to_list() == wide
    with pytest.raises(ValueError, match="`history` must be integers. Received: dtype float64"):
        prompt.token_ids(np.array([[1.0, 2.5]]))


def test_items_of_a_history_that_are_not_shown_are_not_looked_at():
    assert prompts([[99, 1]], template="{history}", history_length=1) == ['"It"<1>']


@pytest.mark.parametrize("template", ["", "{user}", "{history}{history}", "{history}{user}{user}"])
def test_a_template_without_its_fields_is_refused(template):
    with pytest.raises(ValueError, match="`template` must have {history} once"):
        RecommendationPrompt(Characters(), TITLES, template)


def test_letters_need_candidates():
    with pytest.raises(ValueError, match="`lettered` needs {candidates} in `template`"):
        RecommendationPrompt(Characters(), TITLES, "{history}", lettered=True)


def test_more_candidates_than_letters_are_refused():
    with pytest.raises(ValueError, match="`candidates` must be at most 52.*Received: 53"):
        prompts([[1]], [[1] * 53], lettered=True)
    prompt = RecommendationPrompt(Characters(), TITLES, lettered=True)
    specs = [tf.TensorSpec([None, None], tf.int32)] * 2
    graph = tf.function(prompt.token_ids, input_signature=specs)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`candidates` must be at most 52"):
        graph(tf.constant([[1]]), tf.constant([[1] * 53]))


def test_candidates_that_the_template_lists_must_be_there():
    with pytest.raises(ValueError, match="`candidates` must be given"):
        prompts([[1]])


@pytest.mark.parametrize(
    ("titles", "words"),
    [([], "hold a title"), (["a", None], "None of item 2"), ("abc", "one of each item.*'abc'")],
)
def test_titles_must_be_strings(titles, words):
    with pytest.raises(ValueError, match=words):
        RecommendationPrompt(Characters(), titles)


def test_answers_are_compared_with_titles():
    matches = title_matches(
        ['"It"', ' "up" is good', "Up (2009) 2", "", "IT\nand more", '"Nothing"'],
        ["It", "Up", "Up (2009)", "It", "It", "Up"],
        ["It", "Up", "Up (2009)"],
    )
    np.testing.assert_array_equal(matches["exact"], [1, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(matches["substring"], [1, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(matches["valid"], [1, 1, 0, 0, 1, 0])


def test_a_title_with_quotes_inside_is_matched_whole():
    title = 'Say "no" now'
    assert title_matches([f'"{title}"'], [title], [title])["exact"].all()


def test_empty_titles_and_answers_match_nothing():
    matches = title_matches(["", "It", '""'], ["", " ", "It"], ["", "It"])
    np.testing.assert_array_equal(matches["exact"], [0, 0, 0])
    np.testing.assert_array_equal(matches["substring"], [0, 0, 0])
    np.testing.assert_array_equal(matches["valid"], [0, 1, 0])


def test_answers_and_targets_must_be_equally_many():
    with pytest.raises(ValueError, match="equal lengths. Received: 1 and 2"):
        title_matches(["a"], ["a", "b"], ["a"])
