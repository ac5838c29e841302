import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.optimizers import Adagrad


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"initial_accumulator_value": 0.5, "epsilon": 0.01, "weight_decay": 0.01, "clipnorm": 1.0},
    ],
)
def test_dense_variables_get_what_keras_gives_them(shared, arguments, dtype):
    shared.assert_same_on_dense_variables(
        Adagrad(0.1, **arguments), keras.optimizers.Adagrad(0.1, **arguments), dtype
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rows_get_what_tensorflow_1_gives_them(implementation, shared, dtype):
    steps = shared.Steps()
    v1 = tf.compat.v1.train.AdagradOptimizer(0.125, initial_accumulator_value=0.1)
    result = steps.train(Adagrad(0.125, initial_accumulator_value=0.1, epsilon=0.0), dtype)
    shared.assert_close(result, steps.train_in_v1(v1))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_epsilon_is_added_under_the_root(implementation, shared, dtype):
    steps = shared.Steps()
    accumulator = np.full(steps.table.shape, 0.25)

    def update(table, step, row, gradient):
        accumulator[row] += gradient**2
        table[row] -= 0.125 * gradient / np.sqrt(accumulator[row] + 0.5)

    optimizer = Adagrad(0.125, initial_accumulator_value=0.25, epsilon=0.5)
    shared.assert_close(steps.train(optimizer, dtype), steps.oracle(update))
    shared.assert_close(shared.as_float64(optimizer.variables[-1]), accumulator)


def test_where_every_row_has_one_gradient_keras_does_the_same(implementation, shared):
    steps = shared.Steps(steps=10, every_row_once=True)
    expected = steps.train_densely(keras.optimizers.Adagrad(0.125))
    shared.assert_close(steps.train(Adagrad(0.125)), expected, 1e-7)


def test_the_parts_of_a_row_are_summed_before_they_are_squared(implementation):
    """Where Keras adds up the squares of the parts, to 2."""
    table = keras.Variable(np.zeros((2, 1), "float32"))
    optimizer = Adagrad(1.0, initial_accumulator_value=0.0, epsilon=0.0)
    gradient = tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]))
    optimizer.apply([gradient], [table])
    assert optimizer.variables[-1].numpy().tolist() == [[4.0], [0.0]]
    assert table.numpy().tolist() == [[-1.0], [0.0]]


def test_the_config_gives_back_the_optimizer():
    arguments = {"initial_accumulator_value": 0.5, "epsilon": 0.25, "seed": 3}
    optimizer = Adagrad(0.5, **arguments, stochastic_rounding=False)
    revived = Adagrad.from_config(optimizer.get_config())
    assert revived.get_config() == optimizer.get_config()
    for name, value in arguments.items():
        assert getattr(revived, name) == value
