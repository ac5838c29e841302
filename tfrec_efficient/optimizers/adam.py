"""`Adam`: lazy, only rows with a gradient move."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.optimizers._row_optimizer import RowOptimizer


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class Adam(RowOptimizer, keras.optimizers.Adam):
    """Adam that is lazy on tables.

    A drop-in for `keras.optimizers.Adam`, and the same on dense variables. A table whose gradient
    arrives as `tf.IndexedSlices` has only the rows of that gradient updated, in place, with the
    parts of one row summed first. The moments of a row decay when the row has a gradient; the
    correction of their bias counts all steps. Keras decays the moments of all rows, and moves all
    rows, at each step: another algorithm, as slow as the table is large. Where every row has a
    gradient in every step, the two are the same.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
            Defaults to 0.001.
        beta_1: float, decay of the first moment. Defaults to 0.9.
        beta_2: float, decay of the second moment. Defaults to 0.999.
        epsilon: float, added to the root of the second moment. Defaults to 1e-7.
        amsgrad: bool. Whether to divide by the largest second moment so far. Defaults to False.
        stochastic_rounding: bool. Whether tables narrower than float32 are rounded at random, in
            the mean to the exact value, so that small steps are not lost. Defaults to True.
        seed: int. Of that rounding. Defaults to 0.
        **kwargs: The other arguments of `keras.optimizers.Adam`; see `SGD`.

    Raises:
        ValueError: As for `SGD`.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> table = tf.Variable([[1.0], [1.0]])
    >>> gradient = tf.IndexedSlices(tf.constant([[3.0]]), tf.constant([1]))
    >>> tfrec.optimizers.Adam(0.5).apply([gradient], [table])
    >>> table.numpy().round(3).tolist()
    [[1.0], [0.5]]

    References:
        - Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, with the epsilon
          of the end of section 2, as in Keras. Laziness is as in the LazyAdam of TensorFlow
          Addons.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        stochastic_rounding: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            amsgrad=amsgrad,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            **kwargs,
        )

    def _update_rows(
        self, gradient: tf.IndexedSlices, variable: tf.Variable, learning_rate: Any
    ) -> None:
        index = self._get_variable_index(variable)
        slots = [self._momentums[index], self._velocities[index]]
        if self.amsgrad:
            slots.append(self._velocity_hats[index])
        # In float64: beta_2 to the power of a step must not be rounded before it is subtracted.
        step = tf.cast(self.iterations + 1, tf.float64)
        correction = tf.sqrt(1 - tf.pow(tf.constant(self.beta_2, tf.float64), step)) / (
            1 - tf.pow(tf.constant(self.beta_1, tf.float64), step)
        )
        self._apply_rule(
            gradient,
            variable,
            "amsgrad" if self.amsgrad else "adam",
            learning_rate,
            slots,
            epsilon=self.epsilon,
            one_minus_beta_1=1 - self.beta_1,
            one_minus_beta_2=1 - self.beta_2,
            alpha=tf.cast(learning_rate, tf.float64) * correction,
        )
