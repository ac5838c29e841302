"""`MatrixFactorization`: the mean of the factors of the history."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.backbones.cf_backbone import CFBackbone


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class MatrixFactorization(CFBackbone):
    """Asymmetric matrix factorization: the state of a user is the mean of factors of past items.

    Items have two vectors, one as an item to predict and one as an item of a history. The state
    after `t` items is the mean of the latter, `sum(y_1 ... y_t) / t`, whatever their order, so that
    users need no factors of their own. With `hidden_units` it goes through dense layers, the last
    of `width` units without an activation, which makes the model a neural one.
    See `CFBackbone` for how it is used.

    Args:
        item_count: int. Number of items.
        width: int. Width of states and of the vectors of items. Defaults to 64.
        max_length: int. Items in a history. Defaults to 50.
        hidden_units: Integers. Units of each hidden layer, with ReLU. None of them leaves the mean
            as it is. Defaults to `()`.
        dropout: float in `[0, 1)`, of the mean and of hidden layers. Defaults to 0.
        seed: int. Of the initial weights and of dropout. Defaults to 0.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> from tfrec_efficient.llm.backbones import MatrixFactorization
    >>> MatrixFactorization(item_count=5, max_length=4).user_state([[0, 0, 1, 2]]).shape
    TensorShape([1, 64])

    References:
        - Koren, "Factorization Meets the Neighborhood: a Multifaceted Collaborative Filtering
          Model", KDD 2008, section 4 (Asymmetric-SVD), with a mean instead of a sum over the square
          root of the length, and without biases and ratings.
        - He et al., "Neural Collaborative Filtering", WWW 2017, section 3.3. Their layers take user
          and item together; ours take the user alone, so that scores stay dot products.
    """

    separate_history = True

    def __init__(
        self,
        item_count: int,
        width: int = 64,
        max_length: int = 50,
        hidden_units: Sequence[int] = (),
        dropout: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        for place, units in enumerate(hidden_units):
            check_sizes(**{f"hidden_units[{place}]": units})
        super().__init__(item_count, width, max_length, dropout, seed, **kwargs)
        self.hidden_units = tuple(hidden_units)
        self._drops = [self.new_dropout() for _ in range(1 + len(hidden_units))]
        self._hidden = [
            self.new_dense(units, f"hidden_{i}", "relu") for i, units in enumerate(hidden_units)
        ]
        self._project = self.new_dense(width, "project") if hidden_units else None
        self.build()

    def build(self, inputs_shape: Any = None) -> None:
        if self.built:
            return
        self.build_tables()
        width = self.width
        for layer in self._hidden:
            layer.build((None, self.max_length, width))
            width = layer.units
        if self._project is not None:
            self._project.build((None, self.max_length, width))
        self.built = True

    def encode(self, vectors: tf.Tensor, is_item: tf.Tensor, training: bool) -> tf.Tensor:
        # In float32: half precision cannot count to a few hundred by sums.
        counts = tf.cumsum(tf.cast(is_item, tf.float32), axis=1)[:, :, tf.newaxis]
        sums = tf.cumsum(tf.cast(vectors, tf.float32), axis=1)
        x = tf.cast(tf.math.divide_no_nan(sums, counts), vectors.dtype)
        x = self._drops[0](x, training=training)
        for layer, drop in zip(self._hidden, self._drops[1:], strict=True):
            x = drop(layer(x), training=training)
        return x if self._project is None else self._project(x)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(hidden_units=self.hidden_units)
        return config
