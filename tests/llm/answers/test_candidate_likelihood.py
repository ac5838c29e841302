import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient import llm


def log_likelihoods(recommender, inputs, row, normalize):
    """Prompt and title in one row, one candidate at a time, with no batch and no cache."""
    model = recommender.language_model
    prompts, soft = recommender.prompts(inputs, False)
    scores = []
    for item in np.asarray(inputs["candidates"])[row]:
        prompt = prompts[row].numpy().tolist()
        title = model.tokenizer.tokenize([f'"{recommender.prompt.titles[item - 1]}"'])[0] + [3]
        hidden = model.hidden(model.embed([prompt + title], soft[row : row + 1]))
        logits = tf.cast(model.logits(hidden)[0], tf.float64)
        logits = tf.nn.log_softmax(logits).numpy()
        places = np.arange(len(title)) + len(prompt) - 1
        values = logits[places, title]
        scores.append(values.mean() if normalize else values.sum())
    return scores


@pytest.mark.parametrize(
    ("normalize", "reuse_prefix"), [(True, True), (True, False), (False, True)]
)
def test_scores_are_log_likelihoods_of_titles(house, normalize, reuse_prefix):
    recommender = house.recommender(llm.CandidateLikelihood(normalize, reuse_prefix))
    scores = recommender(house.inputs).numpy()
    for row in range(2):
        expected = log_likelihoods(recommender, house.inputs, row, normalize)
        np.testing.assert_allclose(scores[row], expected, rtol=1e-5)


def test_the_loss_is_that_of_the_right_title(house):
    recommender = house.recommender()
    inputs = recommender_inputs(house)
    losses = recommender.answer.losses(recommender, inputs, house.questions.target, False)
    scores = recommender(house.inputs).numpy()
    right = np.take_along_axis(scores, house.questions.target[:, None], 1)[:, 0]
    np.testing.assert_allclose(losses, -right, rtol=1e-5)


def recommender_inputs(house):
    return {name: tf.convert_to_tensor(value) for name, value in house.inputs.items()}


def test_equal_titles_have_equal_scores(house):
    titles = ["It"] * 9
    recommender = house.recommender(titles=titles)
    scores = recommender(house.inputs).numpy()
    # What follows the prompt is the same; only the prompt's soft tokens differ between items.
    np.testing.assert_allclose(scores, np.broadcast_to(scores[:, :1], scores.shape), rtol=1e-5)


def test_an_item_without_a_title_is_refused_by_its_id(house):
    with pytest.raises(ValueError, match="needs a title of every item. Received: item 3 has none"):
        house.recommender(titles=[*house.titles[:2], " ", *house.titles[3:]])


def test_without_an_exact_cache_the_prefix_is_not_reused(house):
    model = llm.SoftPromptLM(house.causal_lm(), house.characters())
    model.supports_cache = False
    with pytest.raises(ValueError, match="`reuse_prefix` needs a language model whose cache is"):
        house.recommender(language_model=model)
    without = llm.CandidateLikelihood(reuse_prefix=False)
    assert house.recommender(without, language_model=model)(house.inputs).shape == (4, 4)


@pytest.mark.parametrize("reuse_prefix", [True, False])
def test_a_prompt_and_title_longer_than_the_language_model_reads_are_refused(house, reuse_prefix):
    answer = llm.CandidateLikelihood(reuse_prefix=reuse_prefix)
    model = llm.SoftPromptLM(house.causal_lm(), house.characters())
    recommender = house.recommender(answer, language_model=model)
    prompts, _ = recommender.prompts(house.inputs, False)
    model.context_length = int(prompts.row_lengths().numpy().max())
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have at most .. tokens"):
        recommender(house.inputs)


def test_the_config_keeps_its_arguments():
    config = llm.CandidateLikelihood(False, False).get_config()
    again = llm.CandidateLikelihood.from_config(config)
    assert (again.normalize, again.reuse_prefix) == (False, False)
