"""Shows when lookups are sorted: beside the forward pass, or in the input pipeline.

    python benchmarks/casting_overlap.py

Traces training steps of one table with the profiler of TensorFlow, and prints when its ops ran.
Then times steps that cast by themselves against steps that get castings from `tf.data`, in turns.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import _harness
import keras
import numpy as np
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

import tfrec_efficient as tfrec

OPS = ("CastIndices", "ResourceGatherReduce", "ResourceRowUpdate")


def make_step(rows, dim, with_castings):
    """Returns a function that trains on one element of `make_dataset`."""
    layer = tfrec.EmbeddingBag(rows, dim)
    layer.build()
    dense = keras.layers.Dense(1)
    dense.build((None, dim))
    optimizer = tfrec.optimizers.Adagrad(0.01)
    variables = [layer.embeddings, *dense.trainable_variables]
    optimizer.build(variables)

    @tf.function
    def step(element):
        with tf.GradientTape() as tape:
            pooled = layer(element["ids"], casting=element["casting"] if with_castings else None)
            loss = tf.reduce_mean(dense(pooled) ** 2)
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    return step


def make_dataset(rows, batch, hotness, with_castings):
    """Returns an endless dataset of ids, with castings or without."""
    ids = np.random.default_rng(0).integers(0, rows, (8, batch, hotness))
    dataset = tf.data.Dataset.from_tensor_slices({"ids": ids}).repeat()
    if with_castings:
        dataset = dataset.apply(tfrec.data.cast_indices({"ids": "casting"}))
    return dataset.prefetch(2)


def trace(step, elements, steps):
    """Returns (op, start, end) of each of our ops in each of the steps, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(steps):
                step(next(elements)).numpy()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    found = []
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                for op in OPS:
                    if name.endswith(op) or f">{op}" in name:
                        start = line.timestamp_ns / 1e6 + event.offset_ps / 1e9
                        found.append((op, start, start + event.duration_ps / 1e9))
    return sorted(found, key=lambda event: event[1])


def print_trace(events):
    """Prints what ran when, and how much of the casting other ops of ours ran beside."""
    first = events[0][1]
    for op, start, end in events:
        print(f"  {op:24}{start - first:9.2f} to {end - first:9.2f} ms")
    shares = []
    for op, start, end in events:
        if op == "CastIndices":
            inside = sum(
                max(0.0, min(end, e) - max(start, s))
                for name, s, e in events
                if name != "CastIndices"
            )
            shares.append(inside / (end - start))
    print(f"share of CastIndices beside a forward pass or update: {statistics.mean(shares):.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--hotness", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    sizes = (arguments.rows, arguments.batch, arguments.hotness)
    print(_harness.describe_machine(_harness.machine()))
    runs = {}
    for name, with_castings in (("cast in tf.data", True), ("cast in the step", False)):
        step = make_step(arguments.rows, arguments.dim, with_castings)
        elements = iter(make_dataset(*sizes, with_castings))
        for _ in range(3):
            step(next(elements))
        print(f"\n{name}:")
        print_trace(trace(step, elements, 3))

        def _run(_, step=step, elements=elements):  # the dataset says which batch comes
            return step(next(elements)).numpy()

        runs[name] = _harness.timed(_run)
    timings = _harness.take_turns(runs, arguments.rounds)
    _harness.print_table("step time", "cast in tf.data", timings)
