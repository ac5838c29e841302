"""`LossScaleOptimizer`: that of Keras, without making the gradients of tables dense."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Scales the loss dynamically, for training in float16.

    The same as `keras.optimizers.LossScaleOptimizer`, except that it looks at the values of a
    `tf.IndexedSlices` to see whether a gradient is finite, where Keras makes it a tensor as large
    as the table at each step. Keras wraps optimizers in its own where the policy is
    `mixed_float16`, unless they are wrapped already.

    Args:
        inner_optimizer: The optimizer that gets the gradients of the unscaled loss.
        initial_scale: float. Defaults to 2**15.
        dynamic_growth_steps: int. After so many steps without an infinite gradient the scale
            doubles; after a step with one it halves. Defaults to 2000.
        name: str or None. Defaults to None.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> optimizer = tfrec.optimizers.LossScaleOptimizer(tfrec.optimizers.Adagrad(0.1))
    >>> optimizer.initial_scale
    32768.0
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inner_optimizer, initial_scale, dynamic_growth_steps, name, **kwargs)

    def check_finite(self, grads: Any) -> tf.Tensor:
        values = [
            grad.values if isinstance(grad, tf.IndexedSlices) else grad
            for grad in grads
            if grad is not None
        ]
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])
