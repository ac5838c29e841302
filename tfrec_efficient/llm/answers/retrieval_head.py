"""`RetrievalHead`: the last hidden state as a query over the vectors of all items."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.answers._answer import Answer
from tfrec_efficient.llm.answers._answer import cross_entropies


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class RetrievalHead(Answer):
    """Scores any number of items by a cosine with what the language model made of the user.

    The hidden state at the prompt's last token becomes `u` of `width` dimensions by two dense
    layers, the vector of item i becomes `v_i` by two more, and the score is
    `u . v_i / temperature`, all of length one. The candidates are not in the prompt, so that one
    forward pass scores the whole catalogue. With hundreds of candidates a row in training, the
    loss is a sampled softmax:

        `cross-entropy + distillation * |u - w|^2 + uniformity * log mean exp(-2 |u_a - u_b|^2)`

    where `w`, of length one, is made of the CF backbone's state by two dense layers: the language
    model's view of a user is drawn to the backbone's, which knows the order of the items. The last
    term, over the pairs of users of a batch, keeps both from collapsing to a point.

    Args:
        width: int. Dimensions in which users meet items. Defaults to 128.
        hidden_width: int. Units of the first of two dense layers. Defaults to 512.
        temperature: float. What cosines are divided by. Defaults to 0.07; where the scores of a
            CF backbone are added, 0.5 leaves them their say.
        distillation: float. Weight of the second term. Defaults to 1.0.
        uniformity: float. Weight of the third term. Defaults to 0.1.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: An argument is out of its range.

    References:
        - Kim et al., "Lost in Sequence: Do Large Language Models Understand Sequential
          Recommendation?" (LLM-SRec), KDD 2025, section 4. There users and items are compared by
          dot products, the mean squared error is over features, and prompts of items give the item
          vectors.
    """

    lists_candidates = False

    def __init__(
        self,
        width: int = 128,
        hidden_width: int = 512,
        temperature: float = 0.07,
        distillation: float = 1.0,
        uniformity: float = 0.1,
        **kwargs: Any,
    ) -> None:
        check_sizes(width=width, hidden_width=hidden_width)
        if not 0 < temperature < float("inf"):
            raise ValueError(
                f"`temperature` must be a positive number. Received: temperature={temperature!r}"
            )
        for name, weight in (("distillation", distillation), ("uniformity", uniformity)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"`{name}` must be at least 0. Received: {name}={weight!r}")
        super().__init__(**kwargs)
        self.width = width
        self.hidden_width = hidden_width
        self.temperature = temperature
        self.distillation = distillation
        self.uniformity = uniformity

    def prepare(self, recommender: Any) -> None:
        if recommender.item_table is None or recommender.cf_backbone is None:
            raise ValueError(
                "RetrievalHead needs `item_vectors` and a `cf_backbone`. Received: "
                f"{'no item_vectors' if recommender.item_table is None else 'no cf_backbone'}"
            )
        super().prepare(recommender)
        self._query = self._tower("query", recommender.language_model.width)
        self._item = self._tower("item", recommender.item_table.output_dim)
        self._state = self._tower("state", recommender.cf_backbone.width)

    def _tower(self, name: str, input_width: int) -> keras.Sequential:
        policy = self.dtype_policy
        tower = keras.Sequential(
            [
                keras.layers.Dense(self.hidden_width, "gelu", dtype=policy),
                keras.layers.Dense(self.width, dtype=policy),
                keras.layers.UnitNormalization(dtype=policy),
            ],
            name=name,
        )
        tower.build((None, input_width))
        return tower

    def losses(self, recommender: Any, inputs: Any, target: Any, training: bool) -> tf.Tensor:
        query = self._queries(recommender, inputs, training)
        scores = self._scores_of(recommender, query, inputs["candidates"])
        scores = recommender.with_added(scores, inputs)
        losses = cross_entropies(scores, target, inputs["candidates"])
        state = tf.cast(self._state(recommender.user_state(inputs["history"])), tf.float32)
        gap = tf.reduce_sum(tf.math.squared_difference(query, state), axis=1)
        return losses + self.distillation * gap + self.uniformity * _crowding(query)

    def scores(self, recommender: Any, inputs: Any, training: bool) -> tf.Tensor:
        query = self._queries(recommender, inputs, training)
        return self._scores_of(recommender, query, inputs["candidates"])

    def _queries(self, recommender: Any, inputs: Any, training: bool) -> tf.Tensor:
        prompts, soft_tokens = recommender.prompts(inputs, training)
        hidden = recommender.last_hidden(prompts, soft_tokens)
        return tf.cast(self._query(tf.cast(hidden, tf.float32)), tf.float32)

    def _scores_of(self, recommender: Any, query: tf.Tensor, candidates: Any) -> tf.Tensor:
        table = recommender.item_table(candidates)
        # `keras.Sequential` holds to the rank that it was built for.
        flat = tf.cast(self._item(tf.reshape(table, [-1, table.shape[-1]])), tf.float32)
        items = tf.reshape(flat, tf.concat([tf.shape(table)[:2], [self.width]], 0))
        return tf.einsum("bd,bcd->bc", query, items) / self.temperature

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            width=self.width,
            hidden_width=self.hidden_width,
            temperature=self.temperature,
            distillation=self.distillation,
            uniformity=self.uniformity,
        )
        return config


def _crowding(query: tf.Tensor) -> tf.Tensor:
    """The uniformity loss over pairs of different rows; zero for a batch of one."""
    batch = tf.shape(query)[0]
    # Of vectors of length one; a distance of a row to itself is not counted.
    squares = tf.maximum(2.0 - 2.0 * tf.matmul(query, query, transpose_b=True), 0.0)
    pairs = tf.boolean_mask(tf.exp(-2.0 * squares), ~tf.eye(batch, dtype=tf.bool))
    return tf.cond(batch > 1, lambda: tf.math.log(tf.reduce_mean(pairs)), lambda: tf.constant(0.0))
