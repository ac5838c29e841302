import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.optimizers import Adam

ARGUMENTS = {"learning_rate": 0.125, "beta_1": 0.75, "beta_2": 0.96875, "epsilon": 0.01}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("arguments", [{}, {"amsgrad": True, "weight_decay": 0.01}])
def test_dense_variables_get_what_keras_gives_them(shared, arguments, dtype):
    shared.assert_same_on_dense_variables(
        Adam(0.1, **arguments), keras.optimizers.Adam(0.1, **arguments), dtype
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_rows_without_a_gradient_wait(implementation, shared, amsgrad, dtype):
    steps = shared.Steps(lookups=12)
    m, v, u = (np.zeros(steps.table.shape) for _ in range(3))

    def update(table, step, row, gradient):
        m[row] = 0.75 * m[row] + 0.25 * gradient
        v[row] = 0.96875 * v[row] + 0.03125 * gradient**2
        u[row] = np.maximum(u[row], v[row])
        rate = 0.125 * np.sqrt(1 - 0.96875 ** (step + 1)) / (1 - 0.75 ** (step + 1))
        table[row] -= rate * m[row] / (np.sqrt(u[row] if amsgrad else v[row]) + 0.01)

    optimizer = Adam(**ARGUMENTS, amsgrad=amsgrad)
    shared.assert_close(steps.train(optimizer, dtype), steps.oracle(update))


def test_where_every_row_has_a_gradient_tensorflow_1_does_the_same(implementation, shared):
    steps = shared.Steps()
    for ids, _ in steps.steps:
        ids[:] = np.arange(25) % 10  # duplicates, and ten rows in each step
    steps.table = steps.table[:10]
    v1 = tf.compat.v1.train.AdamOptimizer(*ARGUMENTS.values())
    shared.assert_close(steps.train(Adam(**ARGUMENTS)), steps.train_in_v1(v1))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_where_every_row_has_a_gradient_keras_does_the_same(implementation, shared, amsgrad):
    steps = shared.Steps(steps=10, every_row_once=True)
    expected = steps.train_densely(keras.optimizers.Adam(**ARGUMENTS, amsgrad=amsgrad))
    shared.assert_close(steps.train(Adam(**ARGUMENTS, amsgrad=amsgrad)), expected, 1e-7)


def test_the_correction_of_bias_is_exact_after_many_steps(implementation):
    """beta_2 to the power of a step, in float32, would be off by 1e-4 in the first steps."""
    table = keras.Variable(np.zeros((1, 1), "float32"))
    optimizer = Adam(1.0, epsilon=0.0)
    gradient = tf.IndexedSlices(tf.ones((1, 1)), tf.constant([0]))
    for step in range(1, 4):
        optimizer.apply([gradient], [table])
        # With a constant gradient both moments are corrected to 1, and each step is 1.
        np.testing.assert_allclose(table.numpy(), [[-step]], rtol=3e-7)
    optimizer.iterations.assign(1_000_000)
    before = table.numpy().copy()
    optimizer.apply([gradient], [table])
    assert np.all(np.isfinite(table.numpy()))
    assert np.any(table.numpy() != before)


def test_the_config_gives_back_the_optimizer():
    optimizer = Adam(**ARGUMENTS, amsgrad=True, seed=3)
    revived = Adam.from_config(optimizer.get_config())
    assert revived.get_config() == optimizer.get_config()
    assert revived.amsgrad
