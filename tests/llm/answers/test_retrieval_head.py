import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient import llm


def towers(recommender, inputs):
    answer, model = recommender.answer, recommender.language_model
    prompts, soft = recommender.prompts(inputs, False)
    hidden = [
        model.hidden(model.embed(prompts[row][tf.newaxis], soft[row : row + 1]))[0, -1]
        for row in range(len(soft))
    ]
    query = answer._query(tf.stack(hidden)).numpy()
    table = recommender.item_table.embeddings.numpy()
    items = answer._item(table).numpy()
    state = answer._state(recommender.user_state(inputs["history"])).numpy()
    return query, items, state


def inputs_of(house):
    return {name: tf.convert_to_tensor(value) for name, value in house.inputs.items()}


def test_scores_are_cosines_over_the_temperature(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12, temperature=0.2))
    query, items, _ = towers(recommender, inputs_of(house))
    expected = np.einsum("bd,bcd->bc", query, items[house.inputs["candidates"]]) / 0.2
    np.testing.assert_allclose(recommender(house.inputs), expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, rtol=1e-5)


def test_the_loss_is_the_formula_of_the_class(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12, 0.5, distillation=0.7, uniformity=0.3))
    inputs, target = inputs_of(house), house.questions.target
    query, _, state = towers(recommender, inputs)
    scores = recommender(house.inputs).numpy()
    right = np.take_along_axis(scores, target[:, None], 1)[:, 0]
    expected = np.log(np.exp(scores).sum(1)) - right + 0.7 * ((query - state) ** 2).sum(1)
    squares = ((query[:, None] - query[None]) ** 2).sum(-1)
    pairs = np.exp(-2 * squares)[~np.eye(4, dtype=bool)]
    expected = expected + 0.3 * np.log(pairs.mean())
    losses = recommender.answer.losses(recommender, inputs, target, False)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_batch_of_one_has_no_pairs(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    inputs = {name: value[:1] for name, value in inputs_of(house).items()}
    losses = recommender.answer.losses(recommender, inputs, house.questions.target[:1], False)
    assert np.isfinite(losses).all()


def test_it_scores_any_number_of_candidates(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    everything = np.tile(np.arange(1, 10), (4, 1))
    scores = recommender({"history": house.inputs["history"], "candidates": everything}).numpy()
    some = recommender(house.inputs).numpy()
    np.testing.assert_allclose(
        np.take_along_axis(scores, house.inputs["candidates"] - 1, 1), some, atol=1e-5
    )


def test_it_learns_which_item_comes_next(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12), cf_scores=True)
    recommender.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    history = recommender.fit(house.questions.dataset(4), epochs=6, verbose=0, shuffle=False)
    assert history.history["loss"][-1] < history.history["loss"][0] - 0.3


@pytest.mark.parametrize("lacking", ["item_vectors", "cf_backbone"])
def test_vectors_and_states_must_be_there(house, lacking):
    without = {"item_tokens": lacking != "item_vectors", "user": lacking != "cf_backbone"}
    with pytest.raises(ValueError, match=f"RetrievalHead needs .* Received: no {lacking}"):
        house.recommender(llm.RetrievalHead(), **{lacking: None}, **without)


def test_candidates_in_the_prompt_are_refused(house):
    model = llm.SoftPromptLM(house.causal_lm(), house.characters())
    prompt = llm.RecommendationPrompt(house.characters(), house.titles)
    with pytest.raises(ValueError, match="`prompt` must not have {candidates} in its template"):
        llm.CFLLMRecommender(
            model,
            prompt,
            llm.RetrievalHead(),
            llm.SASRec(9, width=4, max_length=5),
            np.zeros((10, 6)),
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"width": 0}, "`width` must be a positive integer"),
        ({"temperature": 0}, "`temperature` must be a positive number. Received: temperature=0"),
        ({"distillation": -1}, "`distillation` must be at least 0"),
        ({"uniformity": float("nan")}, "`uniformity` must be at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        llm.RetrievalHead(**arguments)


def test_the_config_keeps_its_arguments():
    config = llm.RetrievalHead(8, 12, 0.5, 0.7, 0.3).get_config()
    assert llm.RetrievalHead.from_config(config).get_config() == config
