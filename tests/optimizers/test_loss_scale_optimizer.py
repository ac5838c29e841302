import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.optimizers import SGD
from tfrec_efficient.optimizers import Adagrad
from tfrec_efficient.optimizers import LossScaleOptimizer

GRADIENT = tf.IndexedSlices(tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([2, 2]), (5, 2))


def scaled(gradient, factor):
    return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


def test_the_optimizer_inside_gets_the_gradient_of_the_unscaled_loss(implementation):
    plain, wrapped = (keras.Variable(np.ones((5, 2), "float32")) for _ in range(2))
    inside, alone = Adagrad(0.5), Adagrad(0.5)
    optimizer = LossScaleOptimizer(inside, initial_scale=1024.0)
    for _ in range(3):
        alone.apply([GRADIENT], [plain])
        optimizer.apply([scaled(GRADIENT, 1024.0)], [wrapped])
    np.testing.assert_array_equal(wrapped, plain)
    assert optimizer.scale_loss(1.0) == 1024.0
    assert int(optimizer.iterations) == 3


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", ["rows", "dense"])
def test_a_step_that_is_not_finite_is_skipped(implementation, in_graph, bad, where):
    table = keras.Variable(np.ones((5, 2), "float32"), name="embeddings")
    bias = keras.Variable(np.ones(3, "float32"), name="bias")
    inside = Adagrad(0.5)
    optimizer = LossScaleOptimizer(inside, initial_scale=8.0)
    optimizer.build([table, bias])
    watched = [table, bias, *inside.variables]
    before = [variable.numpy().copy() for variable in watched]

    def apply(rows, dense):
        optimizer.apply([scaled(GRADIENT, rows), tf.fill([3], dense)], [table, bias])

    apply = tf.function(apply) if in_graph else apply
    one = tf.constant(1.0)
    apply(
        tf.constant(bad) if where == "rows" else one, one if where == "rows" else tf.constant(bad)
    )
    for variable, old in zip(watched, before, strict=True):
        np.testing.assert_array_equal(variable, old)
    assert float(optimizer.dynamic_scale) == 4.0
    apply(one, one)
    assert np.any(table.numpy()[2] != 1.0)
    assert np.all(bias.numpy() != 1.0)
    assert int(optimizer.iterations) == 1


def test_the_scale_grows_after_good_steps(implementation):
    table = keras.Variable(np.ones((5, 2), "float32"))
    optimizer = LossScaleOptimizer(SGD(0.5), initial_scale=8.0, dynamic_growth_steps=2)
    scales = []
    for factor in (1.0, 1.0, 1.0, np.inf, 1.0):
        optimizer.apply([scaled(GRADIENT, factor)], [table])
        scales.append(float(optimizer.dynamic_scale))
    assert scales == [8.0, 16.0, 16.0, 8.0, 8.0]


def test_dense_variables_get_what_keras_gives_them(shared):
    def wrapped(module, wrap):
        return wrap(module.Adagrad(0.1), initial_scale=2.0**10, dynamic_growth_steps=3)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        shared.assert_same_on_dense_variables(
            wrapped(tfrec.optimizers, LossScaleOptimizer),
            wrapped(keras.optimizers, keras.optimizers.LossScaleOptimizer),
        )


def ops_in_a_step(optimizer):
    table = keras.Variable(np.ones((5, 2), "float32"))
    optimizer.build([table])

    @tf.function
    def step(values, ids):
        optimizer.apply([tf.IndexedSlices(values, ids, (5, 2))], [table])

    graph = step.get_concrete_function(
        tf.TensorSpec([None, 2], tf.float32), tf.TensorSpec([None], tf.int64)
    ).graph
    return {operation.type for operation in graph.get_operations()}


def test_gradients_are_not_made_dense_where_keras_makes_them(implementation):
    """To see whether they are finite, it scatters them over a tensor like the table."""
    assert not {"TensorScatterUpdate", "Fill"} & ops_in_a_step(LossScaleOptimizer(SGD(0.1)))
    with pytest.warns(RuntimeWarning):
        of_keras = ops_in_a_step(keras.optimizers.LossScaleOptimizer(SGD(0.1)))
    assert {"TensorScatterUpdate", "Fill"} <= of_keras


# ---- The one of Keras, and the one that is meant -------------------------------------------------


def test_wrapping_in_that_of_keras_warns_and_names_the_remedy(implementation):
    table = keras.Variable(np.ones((5, 2), "float32"))
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.5))
    with pytest.warns(RuntimeWarning, match="`tfrec_efficient.optimizers.LossScaleOptimizer`"):
        optimizer.apply([GRADIENT], [table])
    LossScaleOptimizer(SGD(0.5)).apply([GRADIENT], [table])  # warnings are errors here


def test_a_mixed_float16_model_warns_unless_it_is_wrapped_before(shared, mixed_float16):
    def fit(optimizer):
        model = shared.small_model()
        model.compile(optimizer, "mse", jit_compile=False)
        model.fit(shared.X, shared.Y, verbose=0)
        return model.optimizer

    with pytest.warns(RuntimeWarning, match="`tfrec_efficient.optimizers.LossScaleOptimizer`"):
        assert type(fit(SGD(0.1))) is keras.optimizers.LossScaleOptimizer
    wrapped = LossScaleOptimizer(SGD(0.1))
    assert fit(wrapped) is wrapped


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16", "float64"])
def test_models_train_as_without_scaling(model_implementation, shared, dtype):
    """In float32 and float64 the scale, a power of two, changes no bit of what is not fused."""
    outcomes = [
        shared.fit(optimizer, lambda: shared.small_model(dtype=dtype))
        for optimizer in (
            lambda: Adagrad(0.1, stochastic_rounding=False),
            lambda: LossScaleOptimizer(
                Adagrad(0.1, stochastic_rounding=False), initial_scale=2.0**6
            ),
        )
    ]
    shared.assert_same_training(*outcomes, 1e-6 if dtype in (None, "float64") else 2e-2)


def test_two_replicas_equal_one(model_implementation, shared):
    def optimizer():
        return LossScaleOptimizer(Adagrad(0.1))

    two = shared.fit(optimizer, strategy=shared.two_replicas())
    shared.assert_same_training(shared.fit(optimizer), two, 1e-5)


def test_saves_with_its_state(model_implementation, shared, tmp_path):
    model = shared.small_model()
    optimizer = LossScaleOptimizer(Adagrad(0.1), initial_scale=64.0, dynamic_growth_steps=3)
    model.compile(optimizer, "mse", jit_compile=False)
    model.fit(shared.X, shared.Y, batch_size=8, shuffle=False, verbose=0)
    model.save(tmp_path / "m.keras")
    revived = keras.saving.load_model(tmp_path / "m.keras")
    assert type(revived.optimizer) is LossScaleOptimizer
    assert type(revived.optimizer.inner_optimizer) is Adagrad
    assert float(revived.optimizer.dynamic_scale) == float(model.optimizer.dynamic_scale) == 128.0
    again = [
        m.fit(shared.X, shared.Y, shuffle=False, verbose=0).history["loss"]
        for m in (model, revived)
    ]
    assert again[0] == again[1]


def test_the_config_gives_back_the_optimizer():
    optimizer = LossScaleOptimizer(
        Adagrad(0.5), initial_scale=4.0, dynamic_growth_steps=7, name="x"
    )
    config = optimizer.get_config()
    revived = LossScaleOptimizer.from_config(dict(config))
    assert revived.get_config() == config
    assert isinstance(revived.inner_optimizer, Adagrad)
    with pytest.raises(ValueError, match="does not support `clipnorm`"):
        LossScaleOptimizer(Adagrad(0.5), clipnorm=1.0)
