import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.optimizers import SGD


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 0.01, "clipnorm": 0.5},
        {"global_clipnorm": 0.5, "loss_scale_factor": 4.0},
        {"clipvalue": 0.1, "use_ema": True},
        {"gradient_accumulation_steps": 2},
    ],
)
def test_dense_variables_get_what_keras_gives_them(shared, arguments, dtype):
    shared.assert_same_on_dense_variables(
        SGD(0.1, **arguments), keras.optimizers.SGD(0.1, **arguments), dtype
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rows_get_what_tensorflow_1_gives_them(implementation, shared, dtype):
    steps = shared.Steps()
    expected = steps.train_in_v1(tf.compat.v1.train.GradientDescentOptimizer(0.125))
    shared.assert_close(steps.train(SGD(0.125), dtype), expected)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_the_lazy_op_of_tensorflow(implementation, shared, nesterov, dtype):
    steps = shared.Steps()
    table, accumulator = tf.Variable(steps.table), tf.Variable(tf.zeros_like(steps.table))
    for gradient in steps.slices():
        rows = np.unique(gradient.indices)
        tf.raw_ops.ResourceSparseApplyKerasMomentum(
            var=table.handle,
            accum=accumulator.handle,
            lr=tf.constant(0.125, tf.float64),
            grad=tf.gather(tf.convert_to_tensor(gradient), rows),
            indices=rows,
            momentum=tf.constant(0.75, tf.float64),
            use_nesterov=nesterov,
        )
    result = steps.train(SGD(0.125, momentum=0.75, nesterov=nesterov), dtype)
    shared.assert_close(result, table.numpy())


@pytest.mark.parametrize("nesterov", [False, True])
def test_where_every_row_has_a_gradient_keras_does_the_same(implementation, shared, nesterov):
    steps = shared.Steps(steps=10, every_row_once=True)
    arguments = {"momentum": 0.75, "nesterov": nesterov, "weight_decay": 0.01}
    expected = steps.train_densely(keras.optimizers.SGD(0.125, **arguments))
    shared.assert_close(steps.train(SGD(0.125, **arguments)), expected, 1e-7)


def test_momentum_of_a_row_waits_for_the_row(implementation):
    table = keras.Variable(np.zeros((3, 1), "float32"))
    optimizer = SGD(1.0, momentum=0.5)
    for row in (1, 2, 2, 1):
        optimizer.apply([tf.IndexedSlices(tf.ones((1, 1)), tf.constant([row]))], [table])
    # Row 1: m = -1, then -1.5 though two steps lie between.
    assert table.numpy().tolist() == [[0.0], [-2.5], [-2.5]]
    assert optimizer.momentums[0].numpy().tolist() == [[0.0], [-1.5], [-1.5]]


def test_bad_arguments_meet_the_words_of_keras():
    with pytest.raises(ValueError, match=r"`momentum` must be a float between \[0, 1\]"):
        SGD(momentum=1.5)
    with pytest.raises(ValueError, match="not recognized"):
        SGD(beta_1=0.5)
    with pytest.raises(ValueError, match="Only one of `clipnorm`, `clipvalue`"):
        SGD(clipnorm=1.0, clipvalue=1.0)


def test_the_config_gives_back_the_optimizer():
    optimizer = SGD(0.5, momentum=0.25, nesterov=True, stochastic_rounding=False, seed=7)
    revived = SGD.from_config(optimizer.get_config())
    assert revived.get_config() == optimizer.get_config()
    assert (revived.momentum, revived.nesterov, revived.seed) == (0.25, True, 7)
    assert not revived.stochastic_rounding
