"""`RowwiseAdagrad`: Adagrad with one accumulator for a row of a table."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.optimizers._row_optimizer import RowOptimizer


class _DenseRowwiseAdagrad(keras.optimizers.Adagrad):
    """What Keras would have: row-wise Adagrad for dense gradients."""

    def add_variable_from_reference(
        self, reference_variable: Any, name: Any = None, initializer: Any = "zeros"
    ) -> Any:
        is_named = reference_variable.name.split(":")[0].endswith("embeddings")
        is_table = is_named and len(reference_variable.shape) == 2
        if name != "accumulator" or not is_table:
            return super().add_variable_from_reference(reference_variable, name, initializer)
        owner = getattr(reference_variable, "path", reference_variable.name)
        return self.add_variable(
            (reference_variable.shape[0],),
            initializer,
            reference_variable.dtype,
            name=f"{owner.replace('/', '_').replace(':', '_')}_{name}",
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        slot = self._accumulators[self._get_variable_index(variable)]
        if len(slot.shape) == len(variable.shape):
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = tf.cast(gradient, slot.dtype)
        self.assign_add(slot, tf.reduce_mean(gradient**2, axis=1))
        rate = tf.cast(learning_rate, slot.dtype) / tf.sqrt(slot + self.epsilon)
        self.assign_sub(variable, rate[:, tf.newaxis] * gradient)


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class RowwiseAdagrad(RowOptimizer, _DenseRowwiseAdagrad):
    """Adagrad whose memory for a table is one number a row.

    A table is a variable of rank 2 whose name ends in `embeddings`, as those of the embedding
    layers of Keras and of this library do. Its accumulator adds up the mean of the squared gradient
    of a row, `a += mean(g**2)`; the row moves by `learning_rate * g / sqrt(a + epsilon)`. Only rows
    with a gradient are touched, with the parts of one row summed first. All other variables get
    `keras.optimizers.Adagrad`, or `Adagrad` where their gradient is sparse.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
            Defaults to 0.001.
        initial_accumulator_value: float. Defaults to 0.1.
        epsilon: float, added to the accumulator under the root. Defaults to 1e-7.
        stochastic_rounding: bool. Whether tables narrower than float32 are rounded at random, in
            the mean to the exact value, so that small steps are not lost. Defaults to True.
        seed: int. Of that rounding. Defaults to 0.
        **kwargs: The other arguments of `keras.optimizers.Adagrad`; see `SGD`.

    Raises:
        ValueError: As for `SGD`.

    Example:
    >>> import keras
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> table = keras.Variable([[0.0, 0.0]], name="embeddings")
    >>> gradient = tf.IndexedSlices(tf.constant([[1.0, 3.0]]), tf.constant([0]))
    >>> optimizer = tfrec.optimizers.RowwiseAdagrad(1.0, initial_accumulator_value=0.0)
    >>> optimizer.apply([gradient], [table])
    >>> optimizer.variables[-1].numpy().tolist()  # (1**2 + 3**2) / 2
    [5.0]

    References:
        - The exact row-wise Adagrad of FBGEMM, which adds epsilon outside of the root.
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
        slot = self._accumulators[self._get_variable_index(variable)]
        rule = "adagrad" if len(slot.shape) == len(variable.shape) else "rowwise_adagrad"
        self._apply_rule(gradient, variable, rule, learning_rate, [slot], epsilon=self.epsilon)
