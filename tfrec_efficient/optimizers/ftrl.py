"""`FTRL`: follow the regularised leader, on the rows of a table with a gradient."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.optimizers._row_optimizer import RowOptimizer


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class FTRL(RowOptimizer, keras.optimizers.Ftrl):
    """FTRL-Proximal, for sparse linear models and wide parts.

    A drop-in for `keras.optimizers.Ftrl`, and the same on dense variables. A table whose gradient
    arrives as `tf.IndexedSlices` has only the rows of that gradient updated, in place, with the
    parts of one row summed first.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
            Defaults to 0.001.
        learning_rate_power: float, not positive. Defaults to -0.5.
        initial_accumulator_value: float, not negative. Defaults to 0.1.
        l1_regularization_strength: float, not negative. Defaults to 0.
        l2_regularization_strength: float, not negative. Defaults to 0.
        l2_shrinkage_regularization_strength: float, not negative. Defaults to 0.
        beta: float. Defaults to 0.
        stochastic_rounding: bool. Whether tables narrower than float32 are rounded at random, in
            the mean to the exact value, so that small steps are not lost. Defaults to True.
        seed: int. Of that rounding. Defaults to 0.
        **kwargs: The other arguments of `keras.optimizers.Ftrl`; see `SGD`.

    Raises:
        ValueError: As for `SGD`.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> table = tf.Variable([[0.0], [0.0]])
    >>> gradient = tf.IndexedSlices(tf.constant([[0.5]]), tf.constant([1]))
    >>> tfrec.optimizers.FTRL(1.0, l1_regularization_strength=1.0).apply([gradient], [table])
    >>> table.numpy().tolist()  # below the threshold of l1
    [[0.0], [0.0]]

    References:
        - McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1.
        - See `tfrec_efficient.ops.row_update` for the formula.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float = 0.0,
        stochastic_rounding: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            learning_rate_power=learning_rate_power,
            initial_accumulator_value=initial_accumulator_value,
            l1_regularization_strength=l1_regularization_strength,
            l2_regularization_strength=l2_regularization_strength,
            l2_shrinkage_regularization_strength=l2_shrinkage_regularization_strength,
            beta=beta,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            **kwargs,
        )

    def _update_rows(
        self, gradient: tf.IndexedSlices, variable: tf.Variable, learning_rate: Any
    ) -> None:
        index = self._get_variable_index(variable)
        l2_of_beta = self.beta / (2.0 * tf.cast(learning_rate, tf.float64))
        self._apply_rule(
            gradient,
            variable,
            "ftrl",
            learning_rate,
            [self._accumulators[index], self._linears[index]],
            learning_rate_power=self.learning_rate_power,
            l1=self.l1_regularization_strength,
            l2=self.l2_regularization_strength + l2_of_beta,
            l2_shrinkage=self.l2_shrinkage_regularization_strength,
        )
