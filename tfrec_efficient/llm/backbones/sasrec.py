"""`SASRec`: causal self-attention over the history."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.backbones.cf_backbone import CFBackbone

_EPSILON = 1e-8


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class SASRec(CFBackbone):
    """Self-attentive sequential recommendation.

    With `m` the rows that are no padding, in each of the blocks and before the first:

        x = m * dropout(sqrt(width) * vectors + positions)
        q = normalize(x);  y = normalize(q + attention(q, x, x))
        x = m * (y + dropout(dense(dropout(relu(dense(y))))))

    and the states are `normalize(x)`. Attention is causal, with dropout on its weights. Positions
    are learned, and count from the end of the history. See `CFBackbone` for how it is used.

    Args:
        item_count: int. Number of items.
        width: int. Width of states and of the vectors of items. Defaults to 64.
        max_length: int. Items in a history. Defaults to 50.
        blocks: int. Blocks of attention and dense layers. Defaults to 2.
        heads: int. Of the attention; divides `width`. Defaults to 1.
        dropout: float in `[0, 1)`. Defaults to 0.2.
        seed: int. Of the initial weights and of dropout. Defaults to 0.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> import keras
    >>> from tfrec_efficient.llm.backbones import SASRec, sequence_dataset
    >>> sequences = [[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 1]]
    >>> batches = sequence_dataset(sequences, item_count=6, max_length=4, batch_size=3)
    >>> model = SASRec(item_count=6, width=8, max_length=4)
    >>> model.compile(keras.optimizers.Adam(0.01))
    >>> model.fit(batches, epochs=2, verbose=0, shuffle=False).epoch
    [0, 1]
    >>> model.scores([[0, 0, 1, 2]], [[3, 6]]).shape
    TensorShape([1, 2])

    References:
        - Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, section III.
          As in the authors' code, queries are normalized and keys are not, and the residual starts
          from what is normalized. Attention has an output projection, as in the later ports.
          Padding is never attended to, which there it is.
    """

    def __init__(
        self,
        item_count: int,
        width: int = 64,
        max_length: int = 50,
        blocks: int = 2,
        heads: int = 1,
        dropout: float = 0.2,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_sizes(width=width, blocks=blocks, heads=heads)
        if width % heads:
            raise ValueError(f"`heads` must divide `width`. Received: heads={heads}, width={width}")
        super().__init__(item_count, width, max_length, dropout, seed, **kwargs)
        self.blocks = blocks
        self.heads = heads
        self._positions_seed = self.new_seed()
        self._drop = self.new_dropout()
        self._blocks = [_Block(self, f"block_{i}") for i in range(blocks)]
        self._normalize = _normalization(self, "normalize")
        self.build()

    def build(self, inputs_shape: Any = None) -> None:
        if self.built:
            return
        self.build_tables()
        self._positions = self.add_weight(
            name="positions",
            shape=(self.max_length, self.width),
            initializer=keras.initializers.RandomNormal(stddev=0.02, seed=self._positions_seed),
        )
        shape = (None, self.max_length, self.width)
        for block in self._blocks:
            block.build(shape)
        self._normalize.build(shape)
        self.built = True

    def encode(self, vectors: tf.Tensor, is_item: tf.Tensor, training: bool) -> tf.Tensor:
        mask = tf.cast(is_item, vectors.dtype)[:, :, tf.newaxis]
        x = vectors * tf.cast(self.width**0.5, vectors.dtype)
        x += tf.cast(self._positions.value, vectors.dtype)
        x = self._drop(x, training=training) * mask
        causal = tf.linalg.band_part(tf.ones([self.max_length] * 2, tf.bool), -1, 0)
        visible = causal & is_item[:, tf.newaxis, :]
        # A large number, not infinity, in float16 either: padding sees nothing, and a softmax of
        # nothing is NaN.
        hidden = tf.cast(tf.where(visible, 0.0, -3e4), vectors.dtype)[:, tf.newaxis]
        for block in self._blocks:
            x = block(x, hidden, training=training) * mask
        return self._normalize(x)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(blocks=self.blocks, heads=self.heads)
        return config


def _normalization(model: SASRec, name: str) -> keras.layers.LayerNormalization:
    return keras.layers.LayerNormalization(epsilon=_EPSILON, dtype=model.dtype_policy, name=name)


class _Block(keras.layers.Layer):
    """Attention and two dense layers, from `(batch, length, width)` to the same shape."""

    # Not `MultiHeadAttention`: with a seed, its four projections start equal.

    def __init__(self, model: SASRec, name: str) -> None:
        super().__init__(dtype=model.dtype_policy, name=name)
        self.width = model.width
        self.heads = model.heads
        self._normalize_query = _normalization(model, "normalize_query")
        self._query, self._key, self._value, self._output = (
            model.new_dense(model.width, name) for name in ("query", "key", "value", "output")
        )
        self._normalize_dense = _normalization(model, "normalize_dense")
        self._inner = model.new_dense(model.width, "inner", "relu")
        self._outer = model.new_dense(model.width, "outer")
        self._drop_weights, self._drop_inner, self._drop_outer = (
            model.new_dropout() for _ in range(3)
        )

    def build(self, shape: Any, hidden_shape: Any = None) -> None:
        for layer in (
            self._normalize_query,
            self._query,
            self._key,
            self._value,
            self._output,
            self._normalize_dense,
            self._inner,
            self._outer,
        ):
            layer.build(shape)
        self.built = True

    def call(self, x: tf.Tensor, hidden: tf.Tensor, training: bool = False) -> tf.Tensor:
        query = self._normalize_query(x)
        y = query + self._attend(query, x, hidden, training)
        y = self._normalize_dense(y)
        inner = self._drop_inner(self._inner(y), training=training)
        return y + self._drop_outer(self._outer(inner), training=training)

    def _attend(
        self, query: tf.Tensor, x: tf.Tensor, hidden: tf.Tensor, training: bool
    ) -> tf.Tensor:
        queries, keys, values = (
            self._split(part) for part in (self._query(query), self._key(x), self._value(x))
        )
        scale = tf.cast((self.width // self.heads) ** -0.5, queries.dtype)
        weights = tf.nn.softmax(tf.matmul(queries * scale, keys, transpose_b=True) + hidden)
        weights = self._drop_weights(weights, training=training)
        heads = tf.transpose(tf.matmul(weights, values), [0, 2, 1, 3])
        return self._output(tf.reshape(heads, tf.shape(x)))

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        """From `(batch, length, width)` to `(batch, heads, length, width / heads)`."""
        length = x.shape[1]
        x = tf.reshape(x, [-1, length, self.heads, self.width // self.heads])
        return tf.transpose(x, [0, 2, 1, 3])
