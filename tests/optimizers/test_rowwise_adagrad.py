import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.optimizers import RowwiseAdagrad

ARGUMENTS = {"learning_rate": 0.125, "initial_accumulator_value": 0.25, "epsilon": 0.5}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_variables_that_are_no_tables_get_what_keras_gives_them(shared, dtype):
    shared.assert_same_on_dense_variables(
        RowwiseAdagrad(**ARGUMENTS), keras.optimizers.Adagrad(**ARGUMENTS), dtype
    )


@pytest.mark.parametrize("gradients", ["sparse", "dense"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_row_has_one_accumulator(implementation, shared, dtype, gradients):
    steps = shared.Steps(dim=19)
    accumulator = np.full(len(steps.table), 0.25)

    def update(table, step, row, gradient):
        accumulator[row] += np.mean(gradient**2)
        table[row] -= 0.125 * gradient / np.sqrt(accumulator[row] + 0.5)

    optimizer = RowwiseAdagrad(**ARGUMENTS)
    train = steps.train if gradients == "sparse" else steps.train_densely
    shared.assert_close(train(optimizer, dtype), steps.oracle(update))
    assert optimizer.variables[-1].shape == (30,)
    shared.assert_close(shared.as_float64(optimizer.variables[-1]), accumulator)


def test_rows_of_one_number_are_those_of_adagrad(implementation, shared):
    steps = shared.Steps(dim=1)
    expected = steps.train(tfrec.optimizers.Adagrad(**ARGUMENTS))
    shared.assert_close(steps.train(RowwiseAdagrad(**ARGUMENTS)), expected, 1e-7)


@pytest.mark.parametrize(
    ("name", "shape", "of_slot"),
    [
        ("embeddings", (6, 2), (6,)),
        ("user_embeddings", (6, 2), (6,)),
        ("kernel", (6, 2), (6, 2)),
        ("embeddings", (6,), (6,)),
        ("embeddings", (6, 2, 2), (6, 2, 2)),
    ],
)
def test_a_table_is_known_by_its_name_and_rank(implementation, name, shape, of_slot):
    """Others get Adagrad, of rows where their gradient is one of rows."""
    variable = keras.Variable(np.zeros(shape, "float32"), name=name)
    optimizer = RowwiseAdagrad(1.0, initial_accumulator_value=0.0, epsilon=0.0)
    values = np.arange(1.0, 1 + np.prod(shape[1:], dtype=int)).reshape((1, *shape[1:]))
    gradient = tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant([4]), shape)
    optimizer.apply([gradient], [variable])
    slot = optimizer.variables[-1]
    assert slot.shape == of_slot
    squares = values[0] ** 2 if of_slot == shape else np.mean(values**2)
    np.testing.assert_allclose(slot[4], squares, 1e-6)
    np.testing.assert_allclose(variable[4], -values[0] / np.sqrt(squares), 1e-6)
    assert not np.any(variable.numpy()[:4])


def test_tables_of_layers_are_known(implementation):
    optimizer = RowwiseAdagrad(0.1)
    collection = tfrec.EmbeddingBagCollection({"a": (5, 2)}, {"f": "a"})
    layers = [tfrec.EmbeddingBag(5, 2), keras.layers.Embedding(5, 2), collection]
    for layer in layers:
        layer.build()
    optimizer.build([weight for layer in layers for weight in layer.trainable_weights])
    assert [variable.shape for variable in optimizer.variables[2:]] == [(5,)] * 3


def test_a_model_trains_saves_and_goes_on(implementation, shared, tmp_path):
    model = shared.small_model()
    model.compile(RowwiseAdagrad(0.1), "mse", jit_compile=False)
    model.fit(shared.X, shared.Y, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "m.keras")
    revived = keras.saving.load_model(tmp_path / "m.keras")
    again = [
        m.fit(shared.X, shared.Y, shuffle=False, verbose=0).history["loss"]
        for m in (model, revived)
    ]
    assert again[0] == again[1]


def test_the_config_gives_back_the_optimizer():
    optimizer = RowwiseAdagrad(**ARGUMENTS, seed=3)
    assert RowwiseAdagrad.from_config(optimizer.get_config()).get_config() == optimizer.get_config()
