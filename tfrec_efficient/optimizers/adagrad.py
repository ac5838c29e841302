"""`Adagrad`: exact and sparse, a step costs what the batch costs."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.optimizers._row_optimizer import RowOptimizer


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class Adagrad(RowOptimizer, keras.optimizers.Adagrad):
    """Adagrad, which divides each step by the root of all squared gradients so far.

    A drop-in for `keras.optimizers.Adagrad`, and the same on dense variables. A table whose
    gradient arrives as `tf.IndexedSlices` has only the rows of that gradient updated, in place.
    The parts of one row are summed before they are squared, as in TensorFlow 1 and FBGEMM, where
    Keras adds up the squares of the parts and rewrites all rows at each step.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
            Defaults to 0.001.
        initial_accumulator_value: float. Defaults to 0.1.
        epsilon: float, added to the sum of squares under the root. Defaults to 1e-7.
        stochastic_rounding: bool. Whether tables narrower than float32 are rounded at random, in
            the mean to the exact value, so that small steps are not lost. Defaults to True.
        seed: int. Of that rounding. Defaults to 0.
        **kwargs: The other arguments of `keras.optimizers.Adagrad`; see `SGD`.

    Raises:
        ValueError: As for `SGD`.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> table = tf.Variable([[0.0]])
    >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [1.0]]), tf.constant([0, 0]))
    >>> optimizer = tfrec.optimizers.Adagrad(1.0, initial_accumulator_value=0.0)
    >>> optimizer.apply([gradient], [table])
    >>> optimizer.variables[-1].numpy().tolist()  # (1 + 1) ** 2
    [[4.0]]

    References:
        - Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
          Optimization", JMLR 2011.
        - See `tfrec_efficient.ops.row_update` for the formula.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        stochastic_rounding: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            initial_accumulator_value=initial_accumulator_value,
            epsilon=epsilon,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            **kwargs,
        )

    def _update_rows(
        self, gradient: tf.IndexedSlices, variable: tf.Variable, learning_rate: Any
    ) -> None:
        slots = [self._accumulators[self._get_variable_index(variable)]]
        self._apply_rule(gradient, variable, "adagrad", learning_rate, slots, epsilon=self.epsilon)
