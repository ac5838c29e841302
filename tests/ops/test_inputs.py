import subprocess
import sys
import types

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.ops._inputs import handle_on_cpu
from tfrec_efficient.ops._inputs import weight_dtype
from tfrec_efficient.testing.ops import implementation as use
from tfrec_efficient.testing.ops import implementations

COMBINERS = ("sum", "mean", "sqrtn")
TABLE = [[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]]


def as_ragged(bags, dtype):
    return tf.ragged.constant(bags, dtype=dtype, ragged_rank=1)


def as_sparse(bags, dtype):
    return as_ragged(bags, dtype).to_sparse()


@pytest.mark.parametrize("ids_dtype", ["int32", "int64"])
@pytest.mark.parametrize("layout", [as_ragged, as_sparse])
@pytest.mark.parametrize("combiner", COMBINERS)
def test_ragged_and_sparse_agree_with_stock_tensorflow(implementation, layout, combiner, ids_dtype):
    bags, weights = [[0, 1, 1], [], [3], []], [[1.0, 2.0, 0.5], [], [4.0], []]
    table = tf.constant(TABLE)
    for w in (None, layout(weights, "float32")):
        oracle = tf.nn.safe_embedding_lookup_sparse(
            table,
            as_sparse(bags, "int64"),
            None if w is None else as_sparse(weights, "float32"),
            combiner,
        )
        result = tfrec.ops.gather_reduce(table, layout(bags, ids_dtype), w, combiner)
        np.testing.assert_allclose(result, oracle, rtol=1e-6)


@pytest.mark.parametrize(
    ("row_splits", "culprit"),
    [
        ([1, 2, 3], "row_splits[0]=1"),
        ([0, 2, 1, 3], "row_splits[2]=1"),
        ([0, 2], "row_splits[1]=2"),
        ([0, 9], "row_splits[1]=9"),
        ([0, -5, 3], "row_splits[1]=-5"),
    ],
)
def test_bad_row_splits(implementation, row_splits, culprit):
    splits = tf.constant(row_splits, tf.int64)
    ids = tf.RaggedTensor.from_row_splits([0, 1, 2], splits, validate=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`row_splits` must start at 0") as e:
        tfrec.ops.gather_reduce(TABLE, ids)
    assert culprit in str(e.value)


def test_flat_positions_in_errors_of_ragged_ids(implementation):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids.values\[2\]=4`"):
        tfrec.ops.gather_reduce(TABLE, tf.ragged.constant([[0], [1, 4]]))


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        (as_ragged([[0]], "int64"), [[1.0]], "`weights` must be a tf.RaggedTensor"),
        (as_sparse([[0]], "int64"), [[1.0]], "`weights` must be a tf.sparse.SparseTensor"),
        ([[0]], as_ragged([[1.0]], "float32"), "`weights` must be a dense tensor"),
        (as_ragged([[0, 1], []], "int64"), as_ragged([[1.0], [2.0]], "float32"), "the row splits"),
        (as_ragged([[0, 1]], "int64"), as_ragged([[1.0], [2.0]], "float32"), "the row splits"),
        (as_sparse([[0, 1], []], "int64"), as_sparse([[1.0], [2.0]], "float32"), "the indices and"),
        (as_sparse([[0, 1], []], "int64"), as_sparse([[1.0], []], "float32"), "the indices and"),
        (as_sparse([[0], [1]], "int64"), as_ragged([[1.0], [2.0]], "float32"), "tf.sparse.Sparse"),
        (as_ragged([[0], [1]], "int64"), tf.ragged.constant([[[1.0]], [[2.0]]]), "ragged rank 1"),
        (tf.ragged.constant([[[0], [1]]]), None, "ragged rank 1"),
        (tf.SparseTensor([[1, 0], [0, 0]], [1, 1], [2, 1]), None, "use `tf.sparse.reorder`"),
        (tf.SparseTensor([[0, 0, 0]], [1], [1, 1, 1]), None, "Sparse `ids` must have rank 2"),
    ],
)
def test_layouts_that_do_not_fit(implementation, ids, weights, message):
    in_graph = tf.function(lambda: tfrec.ops.gather_reduce(TABLE, ids, weights))
    for run in (lambda: tfrec.ops.gather_reduce(TABLE, ids, weights), in_graph):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
            run()


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_look_up(implementation, rows):
    table = tf.zeros((rows, 5))
    assert tfrec.ops.gather_reduce(table, tf.zeros((0, 4), tf.int64)).shape == (0, 5)
    assert (
        tfrec.ops.gather_reduce(table, tf.zeros((2, 0), tf.int32)).numpy().tolist() == [[0] * 5] * 2
    )
    empty = tf.ragged.constant([[], []], dtype=tf.int64, ragged_rank=1)
    assert tfrec.ops.gather_reduce(table, empty, combiner="sqrtn").numpy().tolist() == [[0] * 5] * 2
    no_bags = tf.RaggedTensor.from_row_splits(tf.zeros([0], tf.int64), tf.zeros([1], tf.int64))
    assert tfrec.ops.gather_reduce(table, no_bags).shape == (0, 5)
    with tf.GradientTape() as tape:
        tape.watch(table)
        result = tfrec.ops.gather_reduce(table, tf.zeros((2, 0), tf.int32))
    assert tape.gradient(result, table).values.shape == (0, 5)


def test_any_id_of_an_empty_table_is_out_of_range(implementation):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be in `\[0, 0\)`"):
        tfrec.ops.gather_reduce(tf.zeros((0, 5)), [[0]])


def test_padding_is_not_checked_counted_or_weighted(implementation):
    ids, weights = [[-1, 0, -1], [-1, -1, -1]], [[np.nan, 2.0, 5.0], [1.0, np.inf, 1.0]]
    result = tfrec.ops.gather_reduce(TABLE, ids, weights, "mean", padding_id=-1)
    assert result.numpy().tolist() == [[1.0, 10.0], [0.0, 0.0]]


def test_smallest_id_is_no_padding(implementation):
    ids = tf.constant([[-(2**63)]], tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be in"):
        tfrec.ops.gather_reduce(TABLE, ids)
    with pytest.raises(ValueError, match="padding_id"):
        tfrec.ops.gather_reduce(TABLE, ids, padding_id=-(2**63))


# ---- What a graph learns late --------------------------------------------------------------------


def test_unknown_rank_is_checked_when_it_is_known(implementation):
    look_up = tf.function(
        tfrec.ops.gather_reduce,
        input_signature=[tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.int64)],
    )
    assert look_up(TABLE, [[0, 1]]).numpy().tolist() == [[3.0, 30.0]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="`ids` must have rank 2"):
        look_up(TABLE, [0, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="`table` must have rank 2"):
        look_up([1.0, 2.0], [[0, 1]])


def test_unknown_shape_of_weights_is_checked_when_it_is_known(implementation):
    look_up = tf.function(
        lambda ids, weights: tfrec.ops.gather_reduce(TABLE, ids, weights),
        input_signature=[tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None, None])],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="`weights` must have the shape"):
        look_up([[0, 1]], [[1.0]])


# ---- Garbage -------------------------------------------------------------------------------------


@st.composite
def garbage(draw):
    """Input of any shape and value: ids out of range, broken row splits, weights of any shape."""
    small = st.integers(-3, 5)
    ids = draw(st.lists(small, max_size=8))
    row_splits = draw(st.lists(small, min_size=1, max_size=5))
    # Quarters add up without rounding, so that both agree on whether weights cancel.
    number = st.integers(-8, 8).map(lambda n: n / 4) | st.sampled_from([np.nan, np.inf])
    weights = draw(st.none() | st.lists(number, min_size=len(ids), max_size=len(ids)))
    return {
        "shape": (draw(st.integers(0, 4)), draw(st.integers(0, 3))),
        "ids": ids,
        "row_splits": row_splits,
        "weights": weights,
        "combiner": draw(st.sampled_from(COMBINERS)),
        "padding_id": draw(st.none() | small),
    }


def outcome(problem, name):
    """The result, or the first sentence of the error."""
    row_splits = tf.constant(problem["row_splits"], tf.int64)
    ids = tf.RaggedTensor.from_row_splits(
        tf.constant(problem["ids"], tf.int64), row_splits, validate=False
    )
    weights = problem["weights"]
    if weights is not None:
        weights = ids.with_flat_values(tf.constant(weights, tf.float32))
    table = tf.ones(problem["shape"])
    with use(name):
        try:
            result = tfrec.ops.gather_reduce(
                table, ids, weights, problem["combiner"], problem["padding_id"]
            )
        except tf.errors.InvalidArgumentError as error:
            message = str(error)
            return message[message.index("`") : message.rindex("`")].replace("-nan", "nan")
    return result.numpy()


def check_native_and_reference_agree(problem):
    native, reference = (outcome(problem, name) for name in ("native", "python"))
    if isinstance(native, str) or isinstance(reference, str):
        assert native == reference
    else:
        np.testing.assert_allclose(native, reference, 1e-5, 1e-6)


if len(implementations()) == 2:  # else TFREC_OPS forces one, and there is nothing to compare

    @hypothesis.given(garbage())
    @hypothesis.settings(max_examples=200, deadline=None)
    def test_garbage_meets_the_same_answer(problem):
        check_native_and_reference_agree(problem)

    @pytest.mark.slow
    @hypothesis.given(garbage())
    @hypothesis.settings(max_examples=10_000, deadline=None)
    def test_garbage_meets_the_same_answer_many_times(problem):
        check_native_and_reference_agree(problem)


# ---- Tables -------------------------------------------------------------------------------------


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
