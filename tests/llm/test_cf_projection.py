import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.llm.cf_projection import CFProjection
from tfrec_efficient.testing import run_layer_test

VECTORS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


def by_hand(layer, vectors):
    weights = {w.path.split("/", 1)[1]: w.numpy() for w in layer.weights}
    hidden = vectors @ weights["expand/kernel"] + weights["expand/bias"]
    mean, variance = hidden.mean(-1, keepdims=True), hidden.var(-1, keepdims=True)
    hidden = (hidden - mean) / np.sqrt(variance + 1e-5)
    hidden = hidden * weights["normalize/gamma"] + weights["normalize/beta"]
    return hidden, weights


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu"])
def test_the_map_is_the_published_one(activation):
    layer = CFProjection(7, activation)
    tokens = layer(VECTORS).numpy()
    hidden, weights = by_hand(layer, VECTORS)
    if activation == "gelu":
        hidden = hidden * 0.5 * (1 + tf.math.erf(hidden / np.sqrt(2)).numpy())
    else:
        hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
    expected = hidden @ weights["project/kernel"] + weights["project/bias"]
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_the_paper_counts_the_weights_alike():
    user, item = CFProjection(576, "leaky_relu"), CFProjection(576, "gelu")
    user.build((None, 50))
    item.build((None, 128))
    # A layer of Keras has its normalization's weights beside the two dense layers of the report.
    assert user.count_params() == 362_880 and item.count_params() == 407_808


def test_soft_tokens_have_the_size_asked_for():
    tokens = CFProjection(7, rms=0.13)(VECTORS).numpy()
    np.testing.assert_allclose(np.sqrt((tokens**2).mean(-1)), 0.13, rtol=1e-4)


def test_a_vector_of_zeros_gives_finite_tokens_and_gradients():
    layer = CFProjection(7, rms=0.1)
    vectors = tf.Variable(tf.zeros([1, 5]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(vectors))
    gradient = tape.gradient(loss, vectors)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu", "relu"])
def test_it_is_a_keras_layer(activation):
    run_layer_test(
        CFProjection, {"width": 6, "activation": activation, "rms": 0.1}, VECTORS, (3, 4, 6), 6
    )


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "mixed_bfloat16"])
def test_it_follows_dtype_policies(policy):
    layer = CFProjection(6, rms=0.1, dtype=policy)
    assert layer(VECTORS).dtype == keras.dtype_policies.get(policy).compute_dtype


@pytest.mark.parametrize("width", [0, -1, 2.5, None])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(ValueError, match="`width` must be a positive integer. Received: width="):
        CFProjection(width)


@pytest.mark.parametrize("rms", [0, -0.1, float("inf"), float("nan")])
def test_a_size_that_is_none_is_refused(rms):
    with pytest.raises(ValueError, match="`rms` must be a positive number or None. Received: rms="):
        CFProjection(4, rms=rms)
