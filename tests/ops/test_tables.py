import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.ops._tables import handle_on_cpu
from tfrec_efficient.ops._tables import weight_dtype
from tfrec_efficient.testing.ops import implementations

TABLE = [[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]]


@pytest.mark.parametrize("wrap", [tf.Variable, keras.Variable, tf.constant, np.array, list])
def test_what_may_be_a_table(implementation, wrap):
    assert tfrec.ops.gather_reduce(wrap(TABLE), [[0, 3]]).numpy().tolist() == [[9.0, 90.0]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1, 2]], "`table` must have dtype float32, float16, bfloat16 or float64. .* int32"),
        (tf.Variable([[True]]), "`table` must have dtype .* Received: dtype bool"),
        (tf.Variable([1.0]), r"`table` must have rank 2. Received: shape \(1,\)"),
        (tf.Variable([[[1.0]]]), r"`table` must have rank 2. Received: shape \(1, 1, 1\)"),
        (keras.Variable(1.0), r"`table` must have rank 2. Received: shape \(\)"),
    ],
)
def test_what_may_not(implementation, table, message):
    with pytest.raises(ValueError, match=message):
        tfrec.ops.gather_reduce(table, [[0]])


def test_rows_are_summed_in_their_own_precision_or_in_float32():
    widths = {name: weight_dtype(tf.zeros([], name)).name for name in ("float16", "bfloat16")}
    assert set(widths.values()) == {"float32"}
    assert weight_dtype(tf.zeros([], tf.float32)) == tf.float32
    assert weight_dtype(tf.zeros([], tf.float64)) == tf.float64


def test_the_native_op_leaves_other_devices_to_stock_ops():
    variable = types.SimpleNamespace(
        device="/job:localhost/replica:0/task:0/device:GPU:0",
        synchronization=tf.VariableSynchronization.AUTO,
        handle="there",
    )
    assert handle_on_cpu(variable) is None
    variable.device = "/job:localhost/replica:0/task:0/device:CPU:0"
    assert handle_on_cpu(variable) == "there"


def test_a_keras_variable_is_not_cast_whole_in_a_mixed_precision_layer(implementation):
    class Pools(keras.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(4, 2), initializer="ones")

        def call(self, ids):
            return tfrec.ops.gather_reduce(self.table, ids)

    layer = Pools(dtype="mixed_float16")
    assert layer(np.array([[0, 1]])).dtype == tf.float32
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec([2, 2], tf.int64)).graph
    assert "ReadVariableOp" not in {operation.type for operation in graph.get_operations()}


def test_a_variable_that_replicas_sum_up(implementation):
    """Only the strategy knows its value, which is no single variable's."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        table = tf.Variable(
            tf.ones((2, 1)),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    strategy.run(lambda: table.assign(tf.ones((2, 1))))
    expected = tf.reduce_sum(tf.gather(table, [[0, 1]]), 1)
    np.testing.assert_array_equal(tfrec.ops.gather_reduce(table, [[0, 1]]), expected)


COPY_PROBE = """
from pathlib import Path
import tensorflow as tf
import tfrec_efficient as tfrec

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

def grown_by(read):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use
    before = peak()
    read()
    return peak() - before

table = tf.Variable(tf.zeros((1 << 20, 64)))  # 256 MB
with tf.GradientTape() as tape:
    loss = tf.reduce_sum(tfrec.ops.gather_reduce(table, [[0, 5]]))
table.scatter_sub(tape.gradient(loss, table))  # from here on, a dense read copies
small = grown_by(lambda: tfrec.ops.gather_reduce(table, [[0, 7]]))
copied = grown_by(lambda: tf.convert_to_tensor(table))
print("MEGABYTES", small, copied)
"""


def test_a_variable_is_read_without_copying_it(implementation):
    run = subprocess.run(
        [sys.executable, "-P", "-c", COPY_PROBE], capture_output=True, text=True, check=True
    )
    small, copied = map(float, run.stdout.split("MEGABYTES")[1].split())
    assert small < 16
    assert copied > 200  # what the first figure would be if the op read the variable densely


if "native" in implementations():

    def test_uninitialized_variable_is_refused():
        with pytest.raises((tf.errors.FailedPreconditionError, tf.errors.NotFoundError)):
            handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[4, 2])
            tfrec.ops._loader.load().tfrec_efficient_resource_gather_reduce(
                tables=[handle],
                ids=[[[0]]],
                row_splits=[tf.zeros([0], tf.int64)],
                weights=[tf.zeros([0])],
                castings=[],
                dtype=tf.float32,
                weighted=[False],
                combiners=["sum"],
                padding_ids=[-(2**63)],
                table_of=[0],
                dims=[-1],
            )
