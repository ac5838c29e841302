"""The scores that are added to those of a language model, and the fit of their weights."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tfrec_efficient.llm import _added_scores


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 6), st.integers(1, 5))
def test_likenesses_are_those_of_a_loop(seed, batch, candidates, places):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(9, 3)).astype(np.float32)
    vectors[[0, 4]] = 0
    table = _added_scores.directions(vectors)
    history = generator.integers(0, 9, (batch, places))
    asked = generator.integers(0, 9, (batch, candidates))
    mean, highest = _added_scores.likenesses(
        lambda ids: tf.gather(tf.constant(table), ids), tf.constant(history), tf.constant(asked)
    )
    for row in range(batch):
        items = history[row][history[row] > 0]
        cosines = table[asked[row]] @ table[items].T
        if len(items) == 0:
            cosines = np.zeros((candidates, 1))
        np.testing.assert_allclose(mean[row], cosines.mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(highest[row], cosines.max(axis=1), atol=1e-5)


def test_directions_have_length_one_and_empty_texts_none():
    table = _added_scores.directions([[0, 0], [9, 1], [9, 3], [0, 0]])
    np.testing.assert_allclose(table, [[0, 0], [0, -1], [0, 1], [0, 0]])
    assert not _added_scores.directions(np.zeros((2, 3))).any()


def test_fitted_weights_are_where_the_gradient_of_the_posterior_vanishes():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(300, 5, 2)) * [1.0, 7.0]
    is_candidate = np.ones((300, 5), bool)
    is_candidate[::3, 4] = False
    utility = scores @ [2.0, -0.1] + generator.gumbel(size=(300, 5))
    target = np.where(is_candidate, utility, -np.inf).argmax(axis=1)
    fitted = _added_scores.fitted_weights(scores, target, is_candidate)
    np.testing.assert_allclose(fitted, [2.0, -0.1], rtol=0.35)

    scale = scores[is_candidate].std(axis=0)
    weights = tf.Variable(fitted * scale, dtype=tf.float64)
    with tf.GradientTape() as tape:
        logits = tf.linalg.matvec(tf.constant(scores / scale), weights)
        logits = tf.where(is_candidate, logits, -1e9)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits)
        posterior = tf.reduce_sum(losses) + tf.reduce_sum(weights**2) / 2
    assert np.abs(tape.gradient(posterior, weights)).max() < 1e-4


@pytest.mark.parametrize("scale", [0.0, 1e6])
def test_scores_without_spread_or_that_tell_all_keep_weights_finite(scale):
    scores = scale * np.tile(np.eye(3)[..., np.newaxis], (2, 1, 1))
    target = np.array([0, 1, 2, 0, 1, 2])
    scores = scores.reshape(6, 3, 1)
    weights = _added_scores.fitted_weights(scores, target, np.ones((6, 3), bool))
    assert np.isfinite(weights).all() and (weights > 0) == (scale > 0)
