"""`GRU4Rec`: gated recurrent units over the history."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.backbones.cf_backbone import CFBackbone


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class GRU4Rec(CFBackbone):
    """Recurrent recommendation: the state of the user is a projection of that of a GRU.

    The vectors of the history, with dropout, go through `recurrent_layers` layers of gated
    recurrent units, which skip padding, and a dense layer. See `CFBackbone` for how it is used.

    Args:
        item_count: int. Number of items.
        width: int. Width of states and of the vectors of items. Defaults to 64.
        max_length: int. Items in a history. Defaults to 50.
        units: int. Recurrent units of a layer. Defaults to 64.
        recurrent_layers: int. Recurrent layers. Defaults to 1.
        dropout: float in `[0, 1)`. Defaults to 0.2.
        seed: int. Of the initial weights and of dropout. Defaults to 0.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> from tfrec_efficient.llm.backbones import GRU4Rec
    >>> GRU4Rec(item_count=5, max_length=4).user_state([[0, 0, 1, 2]]).shape
    TensorShape([1, 64])

    References:
        - Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016,
          section 3. Trained on whole histories with the loss of `CFBackbone`, where theirs runs
          sessions side by side with a ranking loss. The projection is ours: it lets `units` differ
          from `width`.
    """

    def __init__(
        self,
        item_count: int,
        width: int = 64,
        max_length: int = 50,
        units: int = 64,
        recurrent_layers: int = 1,
        dropout: float = 0.2,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_sizes(units=units, recurrent_layers=recurrent_layers)
        super().__init__(item_count, width, max_length, dropout, seed, **kwargs)
        self.units = units
        self.recurrent_layers = recurrent_layers
        self._drop = self.new_dropout()
        self._recurrent = [self._new_recurrent(f"gru_{i}") for i in range(recurrent_layers)]
        self._project = self.new_dense(width, "project")
        self.build()

    def _new_recurrent(self, name: str) -> keras.layers.GRU:
        return keras.layers.GRU(
            self.units,
            return_sequences=True,
            kernel_initializer=keras.initializers.GlorotUniform(self.new_seed()),
            recurrent_initializer=keras.initializers.Orthogonal(seed=self.new_seed()),
            seed=self.new_seed(),
            use_cudnn=False,  # it takes no padding on the left
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, inputs_shape: Any = None) -> None:
        if self.built:
            return
        self.build_tables()
        width = self.width
        for layer in self._recurrent:
            layer.build((None, self.max_length, width))
            width = self.units
        self._project.build((None, self.max_length, width))
        self.built = True

    def encode(self, vectors: tf.Tensor, is_item: tf.Tensor, training: bool) -> tf.Tensor:
        x = self._drop(vectors, training=training)
        for layer in self._recurrent:
            x = layer(x, mask=is_item, training=training)
        return self._project(x)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(units=self.units, recurrent_layers=self.recurrent_layers)
        return config
