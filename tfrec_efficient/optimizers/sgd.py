"""`SGD`: stochastic gradient descent that touches only the rows of a table with a gradient."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.optimizers._row_optimizer import RowOptimizer


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class SGD(RowOptimizer, keras.optimizers.SGD):
    """Gradient descent, with momentum if asked for.

    A drop-in for `keras.optimizers.SGD`, and the same on dense variables. A table whose gradient
    arrives as `tf.IndexedSlices` has only the rows of that gradient updated, in place, with the
    parts of one row summed first. Momentum is lazy: that of a row decays when the row has a
    gradient, where Keras moves all rows at each step. So is weight decay.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
            Defaults to 0.01.
        momentum: float in `[0, 1]`. Defaults to 0.
        nesterov: bool. Whether to apply Nesterov momentum. Defaults to False.
        stochastic_rounding: bool. Whether tables narrower than float32 are rounded at random, in
            the mean to the exact value, so that small steps are not lost. Defaults to True.
        seed: int. Of that rounding. Defaults to 0.
        **kwargs: The other arguments of `keras.optimizers.SGD`: `weight_decay`, `clipnorm`,
            `clipvalue`, `global_clipnorm`, `loss_scale_factor`, `name`, and, for models without
            tables only, `use_ema` and `gradient_accumulation_steps`.

    Raises:
        ValueError: An argument breaks a rule; or, in the first step, a table meets
            `gradient_accumulation_steps`, `use_ema` or XLA.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> table = tf.Variable([[1.0], [1.0], [1.0]])
    >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([2, 2]))
    >>> tfrec.optimizers.SGD(0.5).apply([gradient], [table])
    >>> table.numpy().tolist()
    [[1.0], [1.0], [-0.5]]

    References:
        - See `tfrec_efficient.ops.row_update` for the formula.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        stochastic_rounding: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            **kwargs,
        )

    def _update_rows(
        self, gradient: tf.IndexedSlices, variable: tf.Variable, learning_rate: Any
    ) -> None:
        if self.momentum == 0:
            self._apply_rule(gradient, variable, "sgd", learning_rate)
            return
        rule = "nesterov" if self.nesterov else "momentum"
        slots = [self.momentums[self._get_variable_index(variable)]]
        self._apply_rule(gradient, variable, rule, learning_rate, slots, momentum=self.momentum)
