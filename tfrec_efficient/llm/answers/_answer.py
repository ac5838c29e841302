"""`Answer`: how a language model's hidden states become scores of candidates."""

import abc
from typing import Any

import keras
import tensorflow as tf


class Answer(keras.layers.Layer, abc.ABC):
    """How a recommender asks its language model, learns from it, and gets scores out of it.

    Subclasses say with `lists_candidates` and `lettered` what the prompt must look like.
    """

    lists_candidates: bool | None = None
    lettered = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_jit = False

    def prepare(self, recommender: Any) -> None:
        """Checks that the recommender fits, and makes weights."""
        prompt = recommender.prompt
        if self.lists_candidates is not None and prompt.lists_candidates != self.lists_candidates:
            must = "have" if self.lists_candidates else "not have"
            raise ValueError(
                f"`prompt` must {must} {{candidates}} in its template for "
                f"{type(self).__name__}. Received: template={prompt.template!r}"
            )
        if prompt.lettered != self.lettered:
            raise ValueError(
                f"`prompt` must have lettered={self.lettered} for {type(self).__name__}. "
                f"Received: lettered={prompt.lettered}"
            )
        self.built = True

    @abc.abstractmethod
    def losses(self, recommender: Any, inputs: Any, target: Any, training: bool) -> tf.Tensor:
        """The loss of each row, of shape `(batch,)`.

        Args:
            recommender: The `CFLLMRecommender`.
            inputs: dict of `"history"` `(batch, max_length)` and `"candidates"`
                `(batch, candidates)`.
            target: Integers of shape `(batch,)`: the place of the right candidate.
            training: bool.
        """

    @abc.abstractmethod
    def scores(self, recommender: Any, inputs: Any, training: bool) -> tf.Tensor:
        """The scores of shape `(batch, candidates)` by the language model alone."""


def cross_entropies(scores: tf.Tensor, target: Any, candidates: Any) -> tf.Tensor:
    """The cross-entropy of each row, candidates that are padding left out."""
    scores = tf.where(tf.convert_to_tensor(candidates) > 0, scores, scores.dtype.min)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(target, scores)


def next_token_losses(
    recommender: Any, prompts: tf.RaggedTensor, soft_tokens: Any, answers: tf.RaggedTensor
) -> tf.Tensor:
    """The mean cross-entropy of each row's answer tokens, given its prompt: shape `(batch,)`.

    Only the places that foretell a token of an answer reach the vocabulary's softmax.
    """
    tokens = tf.concat([prompts, answers], axis=1)
    hidden, mask = recommender.hidden(tokens, soft_tokens)
    starts, lengths = prompts.row_lengths(), answers.row_lengths()
    # The token at place p is foretold at p - 1.
    places = tf.range(tf.shape(mask)[1], dtype=tf.int64)[tf.newaxis]
    foretells = (places >= starts[:, tf.newaxis] - 1) & (
        places < (starts + lengths)[:, tf.newaxis] - 1
    )
    logits = tf.cast(recommender.language_model.logits_at(hidden, foretells), tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(answers.flat_values, logits)
    return tf.reduce_mean(tf.RaggedTensor.from_row_lengths(losses, lengths), axis=1)


def answer_tokens(recommender: Any, ids: Any) -> tf.RaggedTensor:
    """The quoted titles of items, each with the token that ends an answer."""
    titles = recommender.prompt.title_tokens(ids)
    end = tf.fill([tf.shape(ids)[0], 1], tf.constant(recommender.end_token_id, tf.int32))
    return tf.concat([titles, end], axis=1)


def refuse_empty_titles(recommender: Any, name: str) -> None:
    """Raises ValueError if some item has no title to be told by."""
    for item, title in enumerate(recommender.prompt.titles, 1):
        if not title.strip():
            raise ValueError(f"{name} needs a title of every item. Received: item {item} has none")
