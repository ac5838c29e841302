"""Four model configurations of our own, and what a step of each spends on the host."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

SKEW = 1.05
DENSE_FEATURES = 13


@dataclasses.dataclass(frozen=True)
class Shape:
    """Tables of `rows` x `dim` floats, `hotness` lookups in each, and two stacks of layers."""

    tables: int
    rows: int
    hotness: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    dim: int = 64


# Not those of the paper, whose table was not at hand: as there, two that look up much, and two
# whose layers are large.
SHAPES = {
    "RM1": Shape(8, 500_000, 80, (128, 64), (128, 1)),
    "RM2": Shape(32, 200_000, 40, (128, 64), (128, 1)),
    "RM3": Shape(8, 500_000, 20, (512, 256, 64), (512, 256, 1)),
    "RM4": Shape(8, 500_000, 20, (1024, 1024, 64), (1024, 512, 1)),
}


def batches_of(shape, batch, count, seed=0):
    """Ids of zipf 1.05 for each table, `(count, tables, batch, hotness)`, permuted."""
    rng = np.random.default_rng(seed)
    mass = np.cumsum(np.arange(1, shape.rows + 1) ** -SKEW)
    permutation = rng.permutation(shape.rows)
    draws = rng.random((count, shape.tables, batch, shape.hotness)) * mass[-1]
    return permutation[np.minimum(np.searchsorted(mass, draws), shape.rows - 1)]


class HostParts:
    """The parts of a training step with SGD, each a function of the number of a batch.

    Tables follow each other, so that there is the expanded gradient of one of them at a time.
    """

    def __init__(self, shape, batch, count):
        self.shape, self.batch = shape, batch
        self.ids = tf.constant(batches_of(shape, batch, count))
        self.tables = [
            tf.Variable(tf.random.stateless_uniform((shape.rows, shape.dim), [0, t]))
            for t in range(shape.tables)
        ]
        self.gradient = tf.random.stateless_normal((batch, shape.dim), [1, 1])
        self.features = tf.random.stateless_normal((batch, DENSE_FEATURES), [1, 2])
        self.pooled = tf.random.stateless_normal((batch, shape.dim * shape.tables), [1, 3])
        x = keras.Input((DENSE_FEATURES,))
        pooled = keras.Input((shape.dim * shape.tables,))
        y = x
        for width in shape.bottom:
            y = keras.layers.Dense(width, "relu")(y)
        y = keras.layers.concatenate([y, pooled])
        for width in shape.top[:-1]:
            y = keras.layers.Dense(width, "relu")(y)
        self.model = keras.Model([x, pooled], keras.layers.Dense(shape.top[-1])(y))
        self.optimizer = keras.optimizers.SGD(1e-3)
        self.optimizer.build(self.model.trainable_variables)
        parts = ("dense", "forward", "expand_coalesce", "scatter", "cast", "casted_step")
        self.parts = {
            name: tf.function(getattr(self, f"_{name}"), reduce_retracing=True) for name in parts
        }
        # What the parts hand on to each other, of each batch.
        self._coalesced, self._castings = {}, {}

    def run(self, name, number):
        """Runs a part on a batch, and waits for it."""
        arguments = [tf.constant(number)]
        if name == "scatter":
            arguments = self._coalesced_of(number)
        elif name == "casted_step":
            arguments += [self._castings_of(number)]
        result = self.parts[name](*arguments)
        for tensor in tf.nest.flatten(result)[-1:]:
            tensor.numpy()

    def _coalesced_of(self, number):
        if number not in self._coalesced:
            unique = [np.unique(ids) for ids in self.ids[number].numpy()]
            self._coalesced[number] = [
                tf.ragged.constant(unique, dtype=tf.int64),
                tf.fill([max(map(len, unique)), self.shape.dim], 1e-4),
            ]
        return self._coalesced[number]

    def _castings_of(self, number):
        if number not in self._castings:
            self._castings[number] = self.parts["cast"](tf.constant(number))
        return self._castings[number]

    def _dense(self, number):
        with tf.GradientTape() as tape:
            tape.watch(self.pooled)
            loss = tf.reduce_mean(self.model([self.features, self.pooled]) ** 2)
        variables = self.model.trainable_variables
        *gradients, upstream = tape.gradient(loss, [v.value for v in variables] + [self.pooled])
        self.optimizer.apply(gradients, variables)
        return loss + tf.reduce_sum(upstream[:1])

    def _forward(self, number):
        ids = self.ids[number]
        outputs = [tfrec.ops.gather_reduce(table, ids[t]) for t, table in enumerate(self.tables)]
        return tf.add_n([output[0, 0] for output in outputs])

    def _expand_coalesce(self, number):
        last = tf.zeros([])
        for t in range(self.shape.tables):
            # One table at a time: what it takes is let go of before the next one begins.
            gradient = self.gradient + 1e-30 * last
            expanded = tf.repeat(gradient, self.shape.hotness, axis=0)
            flat = tf.IndexedSlices(expanded, tf.reshape(self.ids[number][t], [-1]))
            last = tfrec.ops.coalesce(flat).values[-1, 0]
        return last

    def _scatter(self, ids, values):
        for t, table in enumerate(self.tables):
            gradient = tf.IndexedSlices(values[: tf.size(ids[t])], ids[t])
            tfrec.ops.row_update(table, gradient, "sgd", 1e-3)
        return tf.size(ids.values)

    def _cast(self, number):
        return [tfrec.ops.cast_indices(self.ids[number][t]) for t in range(self.shape.tables)]

    def _casted_step(self, number, castings):
        """Forward, and the casted gather-reduce with the update in one pass, as `fit` runs it."""
        for t, table in enumerate(self.tables):
            with tf.GradientTape() as tape:
                pooled = tfrec.ops.gather_reduce(table, self.ids[number][t], casting=castings[t])
            gradient = tape.gradient(pooled, table, output_gradients=self.gradient)
            tfrec.ops.row_update(table, gradient, "sgd", 1e-3)
        return tf.constant(0)


def device_reports(parts, device, number=0):
    """What the tables of a step do in a device, one launch for all tables: by kind."""
    counts = {"forward": 0, "backward": 0, "update": 0, "scatter": 0}
    host = 0.0
    shape = (parts.shape.rows, parts.shape.dim)
    for t in range(parts.shape.tables):
        ids = parts.ids[number][t]
        reports = tfrec.ops.pim_reports(shape, "float32", ids, device=device, table_number=t)
        for kind, report in zip(("forward", "backward", "update"), reports, strict=True):
            counts[kind] += report.counts
            host += float(report.host_seconds)
        unique = tf.constant(np.unique(ids.numpy()))
        gradient = tf.IndexedSlices(tf.zeros((len(unique), parts.shape.dim)), unique)
        report = tfrec.ops.pim_scatter_update(
            parts.tables[t], gradient, "sgd", 0.0, device=device, table_number=t
        )
        counts["scatter"] += report.counts
    return {kind: device.report(of_kind, 0) for kind, of_kind in counts.items()}, host
