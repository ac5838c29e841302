"""A language model small enough to train in tests, and a recommender around it."""

import warnings

import keras
import numpy as np
import pytest

from tfrec_efficient import llm

TITLES = ["It", "Up", "Heat", "Alien", "Jaws", "Tron", "Dune", "Big", "Ran"]


class Characters:
    """A tokenizer of ASCII characters."""

    end_token_id = 3

    def tokenize(self, texts):
        return [[min(ord(character), 127) for character in text] for text in texts]

    def detokenize(self, ids):
        return "".join(chr(token) for token in ids)


def tiny_causal_lm(dtype="float32", vocabulary_size=128):
    import keras_hub

    keras.utils.set_random_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = keras_hub.models.LlamaBackbone(
            vocabulary_size=vocabulary_size,
            num_layers=1,
            num_query_heads=2,
            num_key_value_heads=1,
            hidden_dim=16,
            intermediate_dim=24,
            dtype=dtype,
        )
        return keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=None)


def _template(user, candidates):
    """Short, for a character is a token."""
    template = "{user} saw {history}" if user else "Saw {history}"
    return f"{template} of {{candidates}}: " if candidates else f"{template}, next"


def make_recommender(answer=None, causal_lm=None, user=True, **arguments):
    """A recommender of nine items over a tiny language model; nothing is trained."""
    language_model = arguments.pop("language_model", None) or llm.SoftPromptLM(
        causal_lm or tiny_causal_lm(), Characters()
    )
    keras.utils.set_random_seed(1)
    if answer is None:
        answer = llm.CandidateLikelihood()
    prompt = llm.RecommendationPrompt(
        Characters(),
        arguments.pop("titles", TITLES),
        _template(user, candidates=not isinstance(answer, llm.RetrievalHead)),
        history_length=3,
        item_tokens=arguments.pop("item_tokens", True),
        lettered=answer.lettered,
    )
    settings = {
        "cf_backbone": llm.SASRec(len(TITLES), width=4, max_length=5, seed=2),
        "item_vectors": np.random.default_rng(3).uniform(size=(len(TITLES) + 1, 6)),
        **arguments,
    }
    return llm.CFLLMRecommender(language_model, prompt, answer, **settings)


QUESTIONS = llm.CandidateQuestions.draw(
    [[1, 2, 3], [4, 5, 1, 2], [9, 8, 7], [3, 1, 6, 2, 5, 4]], 9, max_length=5, negatives=3
)
INPUTS = {"history": QUESTIONS.history, "candidates": QUESTIONS.candidates}


@pytest.fixture(scope="session")
def house():
    """What the tests of this folder share; test modules are no packages here."""

    class House:
        titles = TITLES
        questions = QUESTIONS
        inputs = INPUTS
        characters = Characters
        causal_lm = staticmethod(tiny_causal_lm)
        recommender = staticmethod(make_recommender)

    return House
