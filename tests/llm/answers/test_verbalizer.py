import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient import llm


def test_scores_are_the_logits_of_letters_after_the_prompt(house):
    recommender = house.recommender(llm.Verbalizer())
    scores = recommender(house.inputs).numpy()
    model = recommender.language_model
    inputs = {name: tf.convert_to_tensor(value) for name, value in house.inputs.items()}
    prompts, soft = recommender.prompts(inputs, False)
    for row in range(4):
        hidden = model.hidden(model.embed(prompts[row][tf.newaxis], soft[row : row + 1]))
        logits = model.logits(hidden[:, -1])[0].numpy()
        np.testing.assert_allclose(
            scores[row], logits[[ord(letter) for letter in "ABCD"]], atol=1e-6
        )


def test_the_loss_is_the_cross_entropy_of_letters_and_what_is_added(house):
    recommender = house.recommender(llm.Verbalizer(), cf_scores=True)
    logits = recommender(house.inputs).numpy()
    inputs = {name: tf.convert_to_tensor(value) for name, value in house.inputs.items()}
    losses = recommender.answer.losses(recommender, inputs, house.questions.target, False)
    right = np.take_along_axis(logits, house.questions.target[:, None], 1)[:, 0]
    np.testing.assert_allclose(losses, np.log(np.exp(logits).sum(1)) - right, rtol=1e-5)


def test_a_tokenizer_that_does_not_tell_letters_apart_is_refused(house):
    class Coarse(house.characters):
        def tokenize(self, texts):
            return [
                [token if token < 65 else 65 for token in row] for row in super().tokenize(texts)
            ]

    model = llm.SoftPromptLM(house.causal_lm(), Coarse())
    with pytest.raises(ValueError, match="a token of its own for every letter. Received: 1 tokens"):
        house.recommender(llm.Verbalizer(), language_model=model)


def test_a_prompt_without_letters_is_refused(house):
    model = llm.SoftPromptLM(house.causal_lm(), house.characters())
    prompt = llm.RecommendationPrompt(house.characters(), house.titles, item_tokens=False)
    with pytest.raises(ValueError, match="`prompt` must have lettered=True for Verbalizer"):
        llm.CFLLMRecommender(
            model, prompt, llm.Verbalizer(), cf_backbone=llm.SASRec(9, width=4, max_length=5)
        )
