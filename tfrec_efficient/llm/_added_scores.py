"""What is added to the scores of a language model, and how much of each."""

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

_MOST_STEPS = 100
_SMALL_STEP = 1e-8


def directions(vectors: Any) -> npt.NDArray[np.float32]:
    """Vectors less their mean, of length one; rows of zeros stay and do not count for the mean.

    Encoders of sentences put all texts of a catalogue into one corner, where all cosines are high.
    """
    vectors = np.asarray(vectors, np.float64)
    known = vectors.any(axis=1)
    if known.any():
        vectors = np.where(known[:, np.newaxis], vectors - vectors[known].mean(axis=0), 0.0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, where=lengths > 0, out=np.zeros_like(vectors)).astype("f4")


def products(state: tf.Tensor, vectors: Any) -> tf.Tensor:
    """Dot products of `(batch, d)` with `(batch, candidates, d)`."""
    return tf.einsum("bd,bcd->bc", state, tf.cast(vectors, tf.float32))


def likenesses(table: Any, history: tf.Tensor, candidates: tf.Tensor) -> list[tf.Tensor]:
    """The mean and the highest cosine of each candidate with the items of the history.

    Both have the shape `(batch, candidates)`, and are zero where the history is empty.
    """
    # (batch, candidates, max_length), and zero where either is padding.
    cosines = tf.matmul(table(candidates), table(history), transpose_b=True)
    is_item = tf.cast(history > 0, cosines.dtype)[:, tf.newaxis]
    mean = tf.math.divide_no_nan(tf.reduce_sum(cosines, 2), tf.reduce_sum(is_item, 2))
    # A cosine is at least -1, so that padding never is the highest but of an empty history.
    highest = tf.reduce_max(cosines - 2.0 * (1.0 - is_item), axis=2)
    return [mean, tf.where(tf.reduce_any(history > 0, 1, keepdims=True), highest, 0.0)]


def fitted_weights(
    scores: npt.NDArray, target: npt.NDArray, is_candidate: npt.NDArray
) -> npt.NDArray[np.float32]:
    """The weights of kinds of scores under which the right candidates are the likeliest.

    They maximise the posterior of a conditional logit with a standard normal prior over the weights
    of scores of unit variance, by Newton's method: the loss is convex.

    Args:
        scores: Array of shape `(questions, candidates, kinds)`.
        target: Integers of shape `(questions,)`.
        is_candidate: Booleans of shape `(questions, candidates)`.
    """
    scale = scores[is_candidate].std(axis=0)
    scale[scale == 0] = 1.0
    scores = np.where(is_candidate[..., np.newaxis], scores / scale, 0.0)
    rows = np.arange(len(scores))

    def likelihoods(weights: npt.NDArray) -> tuple[float, npt.NDArray]:
        logits = np.where(is_candidate, scores @ weights, -np.inf)
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        totals = shares.sum(axis=1, keepdims=True)
        loss = np.sum(np.log(totals[:, 0]) - logits[rows, target]) + weights @ weights / 2
        return float(loss), shares / totals

    weights = np.zeros(scores.shape[2])
    loss, shares = likelihoods(weights)
    for _ in range(_MOST_STEPS):
        expected = np.einsum("qc,qck->qk", shares, scores)
        gradient = (expected - scores[rows, target]).sum(axis=0) + weights
        around = np.einsum("qc,qck,qcl->kl", shares, scores, scores) - expected.T @ expected
        step = np.linalg.solve(around + np.eye(len(weights)), gradient)
        size = 1.0
        while (tried := likelihoods(weights - size * step))[0] > loss and size > _SMALL_STEP:
            size /= 2
        if tried[0] > loss:
            break
        weights, (loss, shares) = weights - size * step, tried
        if np.abs(step).max() < _SMALL_STEP:
            break
    return (weights / scale).astype(np.float32)
