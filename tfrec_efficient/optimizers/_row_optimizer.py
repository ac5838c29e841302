"""What the optimizers of this room share: how a gradient of rows gets past Keras undensified."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# Says whether a graph is being traced for XLA, for which TensorFlow has no public function.
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from tfrec_efficient.ops.gather_reduce import coalesce
from tfrec_efficient.ops.row_update import row_update


class RowOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer that updates only the rows of a table that have a gradient.

    Put before the Keras optimizer among the bases of a class, which then implements `_update_rows`.
    Gradients that are dense tensors go to the Keras optimizer as they are. What Keras would do to
    all rows of a table is done to the rows that have a gradient (clipping, weight decay, loss
    scaling), or refused (gradient accumulation, moving averages).
    """

    loss_scale_factor: Any
    updates_rows_only = True

    def __init__(self, *args: Any, stochastic_rounding: bool, seed: int, **kwargs: Any) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
        super().__init__(*args, **kwargs)
        self.stochastic_rounding = stochastic_rounding
        self.seed = seed
        self._tables_of_step: frozenset[str] = frozenset()
        self._makes_tables_dense = False

    def _update_rows(
        self, gradient: tf.IndexedSlices, variable: tf.Variable, learning_rate: Any
    ) -> None:
        raise NotImplementedError

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        if GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
            raise ValueError(
                "The optimizers of tfrec_efficient update tables by a custom op, which XLA cannot "
                "compile. Pass `jit_compile=False` to `model.compile` or `tf.function`."
            )
        self._update_rows(gradient, variable, learning_rate)

    def _apply_rule(
        self,
        gradient: tf.IndexedSlices,
        variable: tf.Variable,
        rule: str,
        learning_rate: Any,
        slots: Sequence[Any] = (),
        **hyperparameters: Any,
    ) -> None:
        """`row_update` with what all optimizers have."""
        decay: Any = 0.0
        if self.weight_decay is not None and self._use_weight_decay(variable):
            decay = tf.cast(learning_rate, tf.float64) * self.weight_decay
        seed = None
        if self.stochastic_rounding and variable.dtype.size < 4:
            of_table = self.seed * 1_000_003 + self._get_variable_index(variable)
            seed = tf.cast(self._iterations, tf.int64) * 1_000_033 + of_table
        row_update(
            variable,
            gradient,
            rule,
            learning_rate,
            slots,
            decay=decay,
            rounding_seed=seed,
            **hyperparameters,
        )

    # ---- What Keras does around update_step ------------------------------------------------------

    def build(self, variables: Any) -> None:
        # Keras has no way to say that one optimizer wraps another; only the caller knows.
        caller = sys._getframe(1).f_locals.get("self")
        wrapper = keras.optimizers.LossScaleOptimizer
        is_stock = isinstance(caller, wrapper) and (
            type(caller).check_finite is wrapper.check_finite
        )
        self._makes_tables_dense = is_stock
        super().build(variables)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        if self.loss_scale_factor is not None:
            grads = [_Divisible.of(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
        super().apply(grads, trainable_variables)

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        tables = [
            variable
            for grad, variable in zip(grads, trainable_variables, strict=True)
            if isinstance(grad, tf.IndexedSlices)
        ]
        for name, value in (
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("use_ema", self.use_ema),
        ):
            if tables and value:
                raise ValueError(
                    f"`{name}` would rewrite every row of the table `{tables[0].name}` at each "
                    f"step, and is not supported with it. Received: {name}={value}"
                )
        if tables and self._makes_tables_dense:
            warnings.warn(
                "keras.optimizers.LossScaleOptimizer makes the gradient of each table dense to "
                "see whether it is finite. Wrap this optimizer in "
                "`tfrec_efficient.optimizers.LossScaleOptimizer` instead, before "
                "`model.compile`.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._tables_of_step = frozenset(self._var_key(variable) for variable in tables)
        super()._backend_apply_gradients(grads, trainable_variables)

    def _apply_weight_decay(self, variables: Any) -> None:
        # That of tables takes place in their update.
        super()._apply_weight_decay(
            [v for v in variables if self._var_key(v) not in self._tables_of_step]
        )

    def _clip_gradients(self, grads: Any) -> Any:
        limit = self.clipnorm or self.clipvalue or self.global_clipnorm or 0
        if limit <= 0 or not any(isinstance(grad, tf.IndexedSlices) for grad in grads):
            return super()._clip_gradients(grads)
        # Norms and limits are those of the gradient of a row, not of its parts.
        grads = [coalesce(grad) if isinstance(grad, tf.IndexedSlices) else grad for grad in grads]
        if self.global_clipnorm:
            scale = _global_scale(grads, self.global_clipnorm)
            return [_map_values(g, lambda v: v * tf.cast(scale, v.dtype)) for g in grads]
        if self.clipvalue:
            return [_map_values(g, lambda v: tf.clip_by_value(v, -limit, limit)) for g in grads]
        return super()._clip_gradients(grads)

    def add_variable(
        self, shape: Any, initializer: Any = "zeros", dtype: Any = None, **kwargs: Any
    ) -> Any:
        # The slots of a narrow table are as wide as its sums are: squares of gradients underflow.
        if dtype in ("float16", "bfloat16"):
            dtype = "float32"
        if isinstance(initializer, keras.initializers.Constant):
            # That of Keras multiplies ones: memory for two more tables, for a moment.
            value = initializer.value
            initializer = lambda shape, dtype: tf.fill(shape, tf.cast(value, dtype))  # noqa: E731
        return super().add_variable(shape, initializer, dtype, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(stochastic_rounding=self.stochastic_rounding, seed=self.seed)
        return config


class _Divisible(tf.IndexedSlices):
    """A gradient with the operator by which Keras takes the loss scale out of it again."""

    @classmethod
    def of(cls, grad: tf.IndexedSlices) -> tf.IndexedSlices:
        return cls(grad.values, grad.indices, grad.dense_shape)

    def __truediv__(self, scale: Any) -> tf.IndexedSlices:
        return _map_values(self, lambda values: values / tf.cast(scale, values.dtype))


def _map_values(grad: Any, function: Any) -> Any:
    if isinstance(grad, tf.IndexedSlices):
        return tf.IndexedSlices(function(grad.values), grad.indices, grad.dense_shape)
    return function(grad)


def _global_scale(grads: Sequence[Any], limit: float) -> tf.Tensor:
    """What to multiply coalesced gradients by, so that their joint norm is at most `limit`.

    Not tf.clip_by_global_norm, which wants one dtype.
    """
    squares = [
        tf.reduce_sum(tf.cast(g.values if isinstance(g, tf.IndexedSlices) else g, tf.float32) ** 2)
        for g in grads
    ]
    norm = tf.sqrt(tf.add_n(squares))
    # The last term is zero, or NaN where the norm is not finite, as in Keras.
    return limit * tf.minimum(1 / norm, 1 / limit) + (norm - norm)
