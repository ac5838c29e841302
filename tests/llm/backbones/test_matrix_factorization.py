import numpy as np
import pytest

from tfrec_efficient.llm.backbones import MatrixFactorization

HISTORY = np.array([[0, 0, 3, 1, 2], [4, 5, 6, 7, 3]])


def test_the_state_is_the_mean_of_factors_of_their_own():
    model = MatrixFactorization(7, width=6, max_length=5)
    factors = model._items_of_history.embeddings.numpy()
    expected = [factors[[3, 1, 2]].mean(0), factors[[4, 5, 6, 7, 3]].mean(0)]
    np.testing.assert_allclose(model.user_state(HISTORY), expected, rtol=1e-5)
    assert np.abs(factors - model.item_vectors(np.arange(8))).max() > 1e-3


def test_hidden_layers_come_after_the_mean():
    model = MatrixFactorization(7, width=6, max_length=5, hidden_units=(5, 4))
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    weights = {v.path.split("/", 1)[1]: v.numpy() for v in model.trainable_variables}
    x = weights["items_of_history/embeddings"][HISTORY[1]].mean(0)
    for name in ("hidden_0", "hidden_1"):
        x = np.maximum(x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"], 0)
    expected = x @ weights["project/kernel"] + weights["project/bias"]
    np.testing.assert_allclose(model.user_state(HISTORY)[1], expected, atol=1e-5)
    assert model.from_config(model.get_config()).hidden_units == (5, 4)


def test_long_histories_are_averaged_exactly_in_half_precision():
    model = MatrixFactorization(1000, width=2, max_length=600, dtype="bfloat16")
    table = model._items_of_history.embeddings
    table.assign(np.ones(table.shape))
    state = model.user_state(np.arange(1, 601)[np.newaxis]).numpy()
    np.testing.assert_array_equal(state.astype("float32"), [[1.0, 1.0]])


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"`hidden_units\[0\]` must be a positive integer"):
        MatrixFactorization(7, hidden_units=(0,))
