import keras
import numpy as np
import pytest

from tfrec_efficient.llm.backbones import NextItNet

HISTORY = np.array([[1, 2, 3, 4, 5, 6, 7, 1, 3, 5], [7, 6, 5, 4, 3, 2, 1, 2, 4, 6]])


@pytest.mark.parametrize(("dilations", "kernel_size"), [((1,), 3), ((2, 1), 2), ((1, 4), 3)])
def test_convolutions_are_those_of_keras(dilations, kernel_size):
    model = NextItNet(7, 6, 10, dilations, kernel_size)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    weights = {v.path.split("/", 1)[1]: v.numpy() for v in model.trainable_variables}

    def convolve(x, rate, name):
        layer = keras.layers.Conv1D(6, kernel_size, dilation_rate=rate, padding="causal")
        layer.build(x.shape)
        kernel = weights[f"{name}/dense/kernel"].reshape(kernel_size, 6, 6)
        layer.set_weights([kernel, weights[f"{name}/dense/bias"]])
        y = layer(x).numpy()
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-8)
        y = y * weights[f"{name}/normalize/gamma"] + weights[f"{name}/normalize/beta"]
        return np.maximum(y, 0)

    x = weights["items/embeddings"][HISTORY]
    for block, dilation in enumerate(dilations):
        inner = convolve(x, dilation, f"convolution_{block}_1")
        x = x + convolve(inner, 2 * dilation, f"convolution_{block}_2")
    expected = x[:, -1] @ weights["project/kernel"] + weights["project/bias"]
    np.testing.assert_allclose(model.user_state(HISTORY), expected, atol=1e-4)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"`dilations\[1\]` must be a positive integer"):
        NextItNet(7, dilations=(1, 0))
    with pytest.raises(ValueError, match="`kernel_size` must be a positive integer"):
        NextItNet(7, kernel_size=0)
