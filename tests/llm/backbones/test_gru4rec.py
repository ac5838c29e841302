import numpy as np
import pytest
from scipy.special import expit

from tfrec_efficient.llm.backbones import GRU4Rec

HISTORY = np.array([[0, 0, 3, 1, 2], [4, 5, 6, 7, 3]])


def test_states_are_those_of_the_formula():
    model = GRU4Rec(7, width=6, max_length=5, units=4, recurrent_layers=2)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    weights = {v.path.split("/", 1)[1]: v.numpy() for v in model.trainable_variables}
    table = weights["items/embeddings"]
    for row, items in zip(model.user_state(HISTORY), HISTORY, strict=True):
        xs = [table[item] for item in items if item]
        for layer in range(2):
            kernel, recurrent, bias = (
                next(w for path, w in weights.items() if path.startswith(f"gru_{layer}/")
                     and path.endswith(f"/{name}"))
                for name in ("kernel", "recurrent_kernel", "bias")
            )  # fmt: skip
            h, hs = np.zeros(4), []
            for x in xs:
                of_x = np.split(x @ kernel + bias[0], 3)
                of_h = np.split(h @ recurrent + bias[1], 3)
                update, reset = expit(of_x[0] + of_h[0]), expit(of_x[1] + of_h[1])
                h = update * h + (1 - update) * np.tanh(of_x[2] + reset * of_h[2])
                hs.append(h)
            xs = hs
        expected = xs[-1] @ weights["project/kernel"] + weights["project/bias"]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_padding_on_the_left_keeps_off_cudnn(monkeypatch):
    model = GRU4Rec(7, width=6, max_length=5)
    on_cpu = model.user_state(HISTORY)
    # As on a GPU, where Keras tries cuDNN first, which refuses such masks.
    monkeypatch.setattr("keras.src.backend.gru", lambda *arguments, **named: 1 / 0)
    np.testing.assert_array_equal(model.user_state(HISTORY), on_cpu)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="`units` must be a positive integer. Received: units=0"):
        GRU4Rec(7, units=0)
    with pytest.raises(ValueError, match="`recurrent_layers` must be a positive integer"):
        GRU4Rec(7, recurrent_layers=-1)
