"""`TitleGeneration`: the language model writes a title, which is compared with the candidates'."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.answers._answer import Answer
from tfrec_efficient.llm.answers._answer import answer_tokens
from tfrec_efficient.llm.answers._answer import next_token_losses
from tfrec_efficient.llm.answers._answer import refuse_empty_titles
from tfrec_efficient.llm.prompt import answer_in
from tfrec_efficient.llm.prompt import unquoted


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class TitleGeneration(Answer):
    """Lets the language model write, greedily, as published.

    A candidate scores 1 if what is written is its title, but for capitals and blanks, and 0
    otherwise; where nothing matches, all score 0. `CFLLMRecommender.generate` gives the texts, and
    `title_matches` the shares that the paper and its successors report. It is trained as
    `CandidateLikelihood` is. Scoring needs Python, so it is for eager use and not for SavedModels.

    Args:
        max_tokens: int. The longest answer, in tokens. Defaults to 48.
        **kwargs: Arguments of `keras.layers.Layer`.

    References:
        - Kim et al., KDD 2024, section 5.1. The authors count a hit where the title occurs in the
          answer; here it must be the answer.
    """

    def __init__(self, max_tokens: int = 48, **kwargs: Any) -> None:
        check_sizes(max_tokens=max_tokens)
        super().__init__(**kwargs)
        self.max_tokens = max_tokens

    def prepare(self, recommender: Any) -> None:
        refuse_empty_titles(recommender, "TitleGeneration")
        model = recommender.language_model
        if not model.supports_cache:
            raise ValueError(
                "TitleGeneration needs a language model whose cache is exact. "
                f"Received: {type(model.causal_lm).__name__}"
            )
        super().prepare(recommender)

    def losses(self, recommender: Any, inputs: Any, target: Any, training: bool) -> tf.Tensor:
        prompts, soft_tokens = recommender.prompts(inputs, training)
        right = tf.gather(tf.convert_to_tensor(inputs["candidates"]), target, batch_dims=1)
        return next_token_losses(
            recommender, prompts, soft_tokens, answer_tokens(recommender, right)
        )

    def scores(self, recommender: Any, inputs: Any, training: bool) -> tf.Tensor:
        titles = ["", *(unquoted(title) for title in recommender.prompt.titles)]

        def compare(history: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
            written = recommender.generate(history, candidates, self.max_tokens)
            return tf.constant(
                [
                    [float(item > 0 and titles[item] == unquoted(answer_in(text))) for item in row]
                    for text, row in zip(written, candidates.numpy(), strict=True)
                ]
            )

        scores = tf.py_function(compare, [inputs["history"], inputs["candidates"]], tf.float32)
        return tf.ensure_shape(scores, inputs["candidates"].shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(max_tokens=self.max_tokens)
        return config
