"""Times `ops.gather_reduce` against what TensorFlow and Keras offer for pooled embeddings.

    python benchmarks/embedding.py --quick

One table of a million rows of 64 floats, 4096 bags of 32 ids, sum. Rivals take turns in one
process; each has a table of its own, which has seen one sparse update, as in training. Without
`--quick`, more rounds, and ids drawn from a Zipf distribution too.
"""

import argparse

import _harness
import keras
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

OURS = "tfrec.ops.gather_reduce"


def draw_ids(rows, shape, skew):
    """Uniform ids, or Zipf(1.05) ids of which the frequent ones lie anywhere in the table."""
    rng = np.random.default_rng(0)
    if skew == "uniform":
        return rng.integers(0, rows, shape)
    weights = np.arange(1, rows + 1) ** -1.05
    ranks = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(shape))
    return rng.permutation(rows)[np.minimum(ranks, rows - 1)]


def make_rivals(rows, dim, ids):
    """Returns functions from name to (variable, forward), where forward gives the pooled rows."""
    batch, hotness = ids.shape
    dense = tf.constant(ids)
    sparse = tf.RaggedTensor.from_uniform_row_length(tf.reshape(dense, [-1]), hotness).to_sparse()

    def table():
        return tf.Variable(tf.random.stateless_normal((rows, dim), seed=(0, 1)))

    layer = keras.layers.Embedding(rows, dim)
    layer.build()
    ours, gathered, looked_up = table(), table(), table()
    return {
        OURS: (ours, lambda: tfrec.ops.gather_reduce(ours, dense)),
        "tf.gather + tf.reduce_sum": (
            gathered,
            lambda: tf.reduce_sum(tf.gather(gathered, dense), axis=1),
        ),
        "tf.nn.embedding_lookup_sparse": (
            looked_up,
            lambda: tf.nn.embedding_lookup_sparse(looked_up, sparse, None, combiner="sum"),
        ),
        "keras.layers.Embedding + sum": (
            layer.embeddings.value,
            lambda: tf.reduce_sum(layer(dense), axis=1),
        ),
    }


def forward_and_backward(variable, forward, grads, coalesce):
    """The pooled rows, and the gradient as it comes or with each id once."""

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            pooled = forward()
        gradient = tape.gradient(pooled, variable, output_gradients=grads)
        if not coalesce:
            return pooled, gradient.indices, gradient.values
        unique = tf.unique(gradient.indices)
        rows = tf.size(unique.y)
        return pooled, unique.y, tf.math.unsorted_segment_sum(gradient.values, unique.idx, rows)

    return step.get_concrete_function()


def compare(rows, dim, batch, hotness, skew, rounds):
    """Runs and prints one comparison."""
    ids = draw_ids(rows, (batch, hotness), skew)
    grads = tf.random.stateless_normal((batch, dim), seed=(0, 2))
    rivals = make_rivals(rows, dim, ids)
    for variable, _ in rivals.values():
        variable.scatter_sub(tf.IndexedSlices(tf.zeros((1, dim)), [0]))
    # Stock gradients of a gather have an entry for each lookup, and leave it to the optimizer to
    # sum them. Only with that sum do all rivals do the same work.
    is_coalesced = {OURS, "tf.nn.embedding_lookup_sparse"}
    kinds = {
        "forward": {name: tf.function(forward) for name, (_, forward) in rivals.items()},
        "forward + backward": {
            name: forward_and_backward(*rival, grads, False) for name, rival in rivals.items()
        },
        "forward + backward, gradient coalesced": {
            name: forward_and_backward(*rival, grads, name not in is_coalesced)
            for name, rival in rivals.items()
        },
    }
    size = f"{rows:,} x {dim} rows, {batch} x {hotness} ids, {skew}"
    for title, runs in kinds.items():
        timings = _harness.take_turns(runs, rounds)
        _harness.print_table(f"{title}: {size}, median of {rounds} rounds", OURS, timings)
        others = [timing for name, timing in timings.items() if name != OURS]
        best = min(_harness.ratios(timings[OURS], timing)[0] for timing in others)
        print(f"{title} against the best of the others: {best:.2f}x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="uniform ids only, fewer rounds")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--hotness", type=int, default=32)
    arguments = vars(parser.parse_args())
    quick = arguments.pop("quick")
    _harness.print_machine()
    for skew in ("uniform",) if quick else ("uniform", "zipf 1.05"):
        compare(**arguments, skew=skew, rounds=11 if quick else 31)
