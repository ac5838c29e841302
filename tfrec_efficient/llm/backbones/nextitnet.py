"""`NextItNet`: dilated causal convolutions over the history."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.backbones.cf_backbone import CFBackbone


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class NextItNet(CFBackbone):
    """Convolutional recommendation: residual blocks of dilated causal convolutions.

    Each block is `x + relu(normalize(convolve(relu(normalize(convolve(x))))))`, with dilations `d`
    and `2 * d`, and zeros wherever there is padding; the states are a projection of the last `x`.
    See `CFBackbone` for how it is used.

    Args:
        item_count: int. Number of items.
        width: int. Width of states and of the vectors of items. Defaults to 64.
        max_length: int. Items in a history. Defaults to 50.
        dilations: Integers. The dilation of each block. Defaults to `(1, 4, 1, 4)`.
        kernel_size: int. Places that a convolution reads. Defaults to 3.
        dropout: float in `[0, 1)`, of the vectors of the history. Defaults to 0.2.
        seed: int. Of the initial weights and of dropout. Defaults to 0.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> from tfrec_efficient.llm.backbones import NextItNet
    >>> NextItNet(item_count=5, max_length=4).user_state([[0, 0, 1, 2]]).shape
    TensorShape([1, 64])

    References:
        - Yuan et al., "A Simple Convolutional Generative Network for Next Item Recommendation",
          WSDM 2019, section 3 and figure 3b. Trained with the loss of `CFBackbone` instead of a
          softmax over all items; padding is kept at zero, which there is an item.
    """

    def __init__(
        self,
        item_count: int,
        width: int = 64,
        max_length: int = 50,
        dilations: Sequence[int] = (1, 4, 1, 4),
        kernel_size: int = 3,
        dropout: float = 0.2,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_sizes(kernel_size=kernel_size)
        for place, dilation in enumerate(dilations):
            check_sizes(**{f"dilations[{place}]": dilation})
        super().__init__(item_count, width, max_length, dropout, seed, **kwargs)
        self.dilations = tuple(dilations)
        self.kernel_size = kernel_size
        self._drop = self.new_dropout()
        self._convolutions = [
            _Convolution(self, rate, f"convolution_{block}_{rate // dilation}")
            for block, dilation in enumerate(dilations)
            for rate in (dilation, 2 * dilation)
        ]
        self._project = self.new_dense(width, "project")
        self.build()

    def build(self, inputs_shape: Any = None) -> None:
        if self.built:
            return
        self.build_tables()
        shape = (None, self.max_length, self.width)
        for convolution in self._convolutions:
            convolution.build(shape)
        self._project.build(shape)
        self.built = True

    def encode(self, vectors: tf.Tensor, is_item: tf.Tensor, training: bool) -> tf.Tensor:
        mask = tf.cast(is_item, vectors.dtype)[:, :, tf.newaxis]
        x = self._drop(vectors, training=training)
        for first, second in zip(self._convolutions[::2], self._convolutions[1::2], strict=True):
            x += second(first(x) * mask) * mask
        return self._project(x)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(dilations=self.dilations, kernel_size=self.kernel_size)
        return config


class _Convolution(keras.layers.Layer):
    """`relu(normalize(convolve(x)))`, causal, from `(batch, length, width)` to the same shape."""

    # Shifted copies and one matrix product: the CPU kernels of `Conv1D` have no gradient where
    # `dilation_rate` is above 1 but by detours through batches.

    def __init__(self, model: NextItNet, dilation: int, name: str) -> None:
        super().__init__(dtype=model.dtype_policy, name=name)
        self.shifts = [dilation * place for place in range(model.kernel_size - 1, -1, -1)]
        self._dense = model.new_dense(model.width, "dense")
        self._normalize = keras.layers.LayerNormalization(
            epsilon=1e-8, dtype=model.dtype_policy, name="normalize"
        )

    def build(self, shape: Any) -> None:
        self._dense.build((*shape[:-1], len(self.shifts) * shape[-1]))
        self._normalize.build(shape)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        length = x.shape[1]
        padded = tf.pad(x, [[0, 0], [self.shifts[0], 0], [0, 0]])
        start = self.shifts[0]
        seen = [padded[:, start - shift : start - shift + length] for shift in self.shifts]
        return tf.nn.relu(self._normalize(self._dense(tf.concat(seen, -1))))
