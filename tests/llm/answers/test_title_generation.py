import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient import llm


def test_what_is_written_is_what_a_greedy_loop_without_cache_writes(house):
    recommender = house.recommender(llm.TitleGeneration(5))
    model = recommender.language_model
    inputs = {name: tf.convert_to_tensor(value) for name, value in house.inputs.items()}
    prompts, soft = recommender.prompts(inputs, False)
    written = recommender.generate(house.inputs["history"], house.inputs["candidates"], 5)
    for row in range(2):
        tokens = prompts[row].numpy().tolist()
        start = len(tokens)
        while len(tokens) < start + 5:
            hidden = model.hidden(model.embed([tokens], soft[row : row + 1]))
            tokens.append(int(tf.argmax(model.logits(hidden[:, -1]), -1)[0]))
            if tokens[-1] == recommender.end_token_id:
                tokens.pop()
                break
        assert written[row] == "".join(map(chr, tokens[start:]))


def test_the_candidate_whose_title_is_written_scores_one(house, monkeypatch):
    recommender = house.recommender(llm.TitleGeneration(5))
    titles = [house.titles[item - 1] for item in house.questions.target_items]
    texts = [f'"{titles[0].upper()}"', titles[1], "Nothing", f' "{titles[3]}" is good']
    monkeypatch.setattr(type(recommender), "generate", lambda *_: texts)
    scores = recommender(house.inputs).numpy()
    expected = np.zeros((4, 4))
    expected[[0, 1, 3], house.questions.target[[0, 1, 3]]] = 1
    np.testing.assert_array_equal(scores, expected)


def test_what_is_written_must_stay_within_what_the_language_model_reads(house):
    model = llm.SoftPromptLM(house.causal_lm(), house.characters(), context_length=80)
    recommender = house.recommender(llm.TitleGeneration(5), language_model=model)
    assert len(recommender.generate(house.inputs["history"], house.inputs["candidates"], 5)) == 4
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have at most 80 tokens"):
        recommender.generate(house.inputs["history"], house.inputs["candidates"], 40)


def test_a_language_model_without_an_exact_cache_is_refused_before_it_is_trained(house):
    model = llm.SoftPromptLM(house.causal_lm(), house.characters())
    model.supports_cache = False
    with pytest.raises(ValueError, match="needs a language model whose cache is exact"):
        house.recommender(llm.TitleGeneration(5), language_model=model)


def test_it_is_trained_as_likelihoods_are(house):
    inputs = {name: tf.convert_to_tensor(value) for name, value in house.inputs.items()}
    losses = []
    for answer in (llm.TitleGeneration(5), llm.CandidateLikelihood()):
        recommender = house.recommender(answer)
        losses.append(answer.losses(recommender, inputs, house.questions.target, False))
    np.testing.assert_array_equal(*losses)


def test_the_config_keeps_its_arguments():
    config = llm.TitleGeneration(7).get_config()
    assert llm.TitleGeneration.from_config(config).max_tokens == 7
