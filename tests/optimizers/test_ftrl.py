import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.optimizers import FTRL

REGULARIZED = {
    "l1_regularization_strength": 0.25,
    "l2_regularization_strength": 0.5,
    "l2_shrinkage_regularization_strength": 0.125,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("arguments", [{}, {**REGULARIZED, "beta": 0.5}])
def test_dense_variables_get_what_keras_gives_them(shared, arguments, dtype):
    shared.assert_same_on_dense_variables(
        FTRL(0.1, **arguments), keras.optimizers.Ftrl(0.1, **arguments), dtype
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "arguments", [{}, REGULARIZED, {**REGULARIZED, "learning_rate_power": -0.75}]
)
def test_rows_get_what_tensorflow_1_gives_them(implementation, shared, arguments, dtype):
    steps = shared.Steps()
    v1 = tf.compat.v1.train.FtrlOptimizer(0.125, initial_accumulator_value=0.1, **arguments)
    result = steps.train(FTRL(0.125, initial_accumulator_value=0.1, **arguments), dtype)
    shared.assert_close(result, steps.train_in_v1(v1))


@pytest.mark.parametrize("arguments", [{}, {**REGULARIZED, "beta": 0.5}])
def test_where_every_row_has_one_gradient_keras_does_the_same(implementation, shared, arguments):
    steps = shared.Steps(steps=20, every_row_once=True)
    expected = steps.train_densely(keras.optimizers.Ftrl(0.125, **arguments))
    shared.assert_close(steps.train(FTRL(0.125, **arguments)), expected, 1e-6)


def test_weak_rows_stay_at_zero(implementation):
    table = keras.Variable(np.zeros((3, 2), "float32"))
    optimizer = FTRL(1.0, l1_regularization_strength=1.0)
    gradient = tf.IndexedSlices(tf.constant([[0.9, -3.0]]), tf.constant([1]))
    optimizer.apply([gradient], [table])
    assert table[1][0] == 0.0
    assert table[1][1] > 0.0
    assert not np.any(table.numpy()[[0, 2]])


def test_bad_arguments_meet_the_words_of_keras():
    with pytest.raises(ValueError, match="`learning_rate_power` needs to be negative or zero"):
        FTRL(learning_rate_power=0.5)
    with pytest.raises(ValueError, match="`l1_regularization_strength` needs to be positive"):
        FTRL(l1_regularization_strength=-1.0)


def test_the_config_gives_back_the_optimizer():
    optimizer = FTRL(0.5, **REGULARIZED, learning_rate_power=-0.25, beta=0.5, seed=3)
    revived = FTRL.from_config(optimizer.get_config())
    assert revived.get_config() == optimizer.get_config()
    assert (revived.beta, revived.learning_rate_power) == (0.5, -0.25)
