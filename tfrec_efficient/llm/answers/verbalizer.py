"""`Verbalizer`: candidates are lettered, and the next token's letter says which."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.llm.answers._answer import Answer
from tfrec_efficient.llm.answers._answer import cross_entropies
from tfrec_efficient.llm.prompt import LETTERS


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class Verbalizer(Answer):
    """Scores all candidates by one forward pass: the logits of their letters.

    The prompt lists candidates as `A: "title"`, and the answer is the letter that the language
    model expects next. It is trained by the cross-entropy over the letters of the candidates, so
    it learns from wrong candidates too. At most 52 candidates.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    References:
        - Yue et al., "LlamaRec: Two-Stage Recommendation using Large Language Models for Ranking",
          2023, section 3.3.
    """

    lists_candidates = True
    lettered = True

    def prepare(self, recommender: Any) -> None:
        super().prepare(recommender)
        # The token of the letter itself, as it stands in the list.
        self._letters = [recommender.first_token(f"{letter}: ") for letter in LETTERS]
        if len(set(self._letters)) != len(LETTERS):
            raise ValueError(
                "`language_model` must have a token of its own for every letter. Received: "
                f"{len(set(self._letters))} tokens for {len(LETTERS)} letters"
            )

    def losses(self, recommender: Any, inputs: Any, target: Any, training: bool) -> tf.Tensor:
        scores = recommender.with_added(self.scores(recommender, inputs, training), inputs)
        return cross_entropies(scores, target, inputs["candidates"])

    def scores(self, recommender: Any, inputs: Any, training: bool) -> tf.Tensor:
        prompts, soft_tokens = recommender.prompts(inputs, training)
        hidden = recommender.last_hidden(prompts, soft_tokens)
        logits = recommender.language_model.logits(hidden)
        letters = tf.constant(self._letters)[: tf.shape(inputs["candidates"])[1]]
        return tf.cast(tf.gather(logits, letters, axis=1), tf.float32)
