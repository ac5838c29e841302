import itertools
import subprocess
import sys

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.testing import run_op_test
from tfrec_efficient.testing.ops import implementation as use
from tfrec_efficient.testing.ops import implementations

COMBINERS = ("sum", "mean", "sqrtn")
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5, "float64": 1e-12}

TABLE = [[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]]


def slow_gather_reduce(table, bags, weights, combiner, padding_id):
    """The formula of the docstring, one lookup at a time, in float64."""
    table = np.asarray(table, np.float64)
    output = np.zeros((len(bags), table.shape[1]))
    for b, bag in enumerate(bags):
        kept = [
            (i, weights[b][k] if weights else 1.0) for k, i in enumerate(bag) if i != padding_id
        ]
        total = sum((w * table[i] for i, w in kept), np.zeros(table.shape[1]))
        divisor = {
            "sum": 1.0,
            "mean": sum(w for _, w in kept),
            "sqrtn": np.sqrt(sum(w * w for _, w in kept)),
        }[combiner]
        output[b] = total / divisor if divisor else 0.0
    return output


def slow_gradients(table, bags, weights, combiner, padding_id, grads):
    """Rows get what the chain rule sends them; weights, central differences of the above."""
    arguments = (combiner, padding_id)
    row_grads = np.zeros(np.shape(table))
    for b, i in itertools.product(range(len(bags)), range(len(table))):
        # The result is linear in the table: what one row of ones gives is the slope.
        one_row = np.zeros((len(table), 1))
        one_row[i] = 1.0
        bag_weights = [weights[b]] if weights else None
        row_grads[i] += (
            slow_gather_reduce(one_row, [bags[b]], bag_weights, *arguments)[0] * grads[b]
        )
    weight_grads = []
    for b, bag in enumerate(bags if weights else []):
        for k in range(len(bag)):
            up, down = ([list(w) for w in weights] for _ in range(2))
            up[b][k] += 1e-6
            down[b][k] -= 1e-6
            difference = slow_gather_reduce(table, [bag], [up[b]], *arguments)
            difference -= slow_gather_reduce(table, [bag], [down[b]], *arguments)
            weight_grads.append(np.sum(difference * grads[b]) / 2e-6)
    return row_grads, weight_grads


# ---- One call of the harness: result, gradient of both arguments, bad input ----------------------


@pytest.mark.parametrize("combiner", COMBINERS)
def test_op(combiner):
    weights = [[1.0, 0.5, 2.0], [3.0, -1.0, 0.25]]
    ids = [[0, 1, 1], [3, 2, 9]]
    run_op_test(
        tfrec.ops.gather_reduce,
        differentiable={"table": TABLE, "weights": weights},
        arguments={"ids": ids, "combiner": combiner, "padding_id": 9},
        expected=slow_gather_reduce(TABLE, ids, weights, combiner, 9),
        bad_arguments=[
            ({"ids": [[0, 1, 4], [0, 0, 0]]}, "`ids[0, 2]=4`"),
            ({"ids": [[0, 1, 9], [-1, 0, 0]]}, "`ids[1, 0]=-1`"),
            ({"ids": [[0, 1, 9], [-1, 0, 0]]}, "must be in `[0, 4)` or `padding_id=9`"),
            ({"ids": [[0.0, 1.0, 1.0]]}, "`ids` must have dtype int32 or int64"),
            ({"ids": [0, 1, 1]}, "`ids` must have rank 2"),
            ({"table": [1.0, 2.0]}, "`table` must have rank 2"),
            ({"table": [[1, 2]]}, "`table` must have dtype"),
            ({"weights": [[1.0, 2.0]]}, "`weights` must have the shape of `ids`, (2, 3)"),
            ({"weights": [[1, 2, 3], [4, 5, 6]]}, "`weights` must have a floating point dtype"),
            ({"weights": [[1, 1, 1], [1, np.nan, 1.0]]}, "finite. Received: `weights[1, 1]=nan`"),
            ({"weights": [[1, 1, np.inf], [1, 1, 1.0]]}, "finite. Received: `weights[0, 2]=inf`"),
            ({"combiner": "max"}, "`combiner` must be"),
            ({"padding_id": 0.5}, "`padding_id` must be None or an integer"),
            ({"padding_id": 2**63}, "`padding_id` must be None or an integer"),
        ],
    )


def test_golden_values(implementation):
    ids, weights = [[0, 1], [3, 3], [2, 2]], [[1.0, 3.0], [0.5, 0.5], [1.0, -1.0]]
    results = [tfrec.ops.gather_reduce(TABLE, ids, weights, c).numpy().tolist() for c in COMBINERS]
    assert results[0] == [[7.0, 70.0], [8.0, 80.0], [0.0, 0.0]]
    assert results[1] == [[1.75, 17.5], [8.0, 80.0], [0.0, 0.0]]  # weights that cancel: zeros
    np.testing.assert_allclose(results[2][1], [8 / 0.5**0.5, 80 / 0.5**0.5], rtol=1e-6)


# ---- Layouts -------------------------------------------------------------------------------------


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
        (as_sparse([[0, 1], []], "int64"), as_sparse([[1.0], [2.0]], "float32"), "the indices and"),
        (tf.ragged.constant([[[0], [1]]]), None, "ragged rank 1"),
        (tf.SparseTensor([[1, 0], [0, 0]], [1, 1], [2, 1]), None, "use `tf.sparse.reorder`"),
        (tf.SparseTensor([[0, 0, 0]], [1], [1, 1, 1]), None, "Sparse `ids` must have rank 2"),
    ],
)
def test_layouts_that_do_not_fit(implementation, ids, weights, message):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        tfrec.ops.gather_reduce(TABLE, ids, weights)


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


# ---- Variables, gradients, graphs ----------------------------------------------------------------


@pytest.mark.parametrize("wrap", [tf.Variable, keras.Variable, tf.constant])
def test_gradient_is_coalesced_and_sorted(implementation, wrap):
    table = wrap(np.array(TABLE, np.float32))

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(getattr(table, "value", table) if wrap is keras.Variable else table)
            loss = tf.reduce_sum(tfrec.ops.gather_reduce(table, [[3, 0], [3, 3]]) * [[1.0], [10.0]])
        return tape.gradient(loss, table.value if wrap is keras.Variable else table)

    for run in (gradient, tf.function(gradient)):
        grads = run()
        assert isinstance(grads, tf.IndexedSlices)
        assert grads.indices.numpy().tolist() == [0, 3]
        assert grads.values.numpy().tolist() == [[1.0, 1.0], [21.0, 21.0]]
        assert grads.dense_shape.numpy().tolist() == [4, 2]


def test_tape_watches_a_variable_by_itself(implementation):
    table = tf.Variable(TABLE)

    @tf.function
    def look_up():
        return tfrec.ops.gather_reduce(table, [[1, 1]])

    for run in (look_up, lambda: tfrec.ops.gather_reduce(table, [[1, 1]])):
        with tf.GradientTape() as tape:
            result = run()
        assert tape.gradient(result, table).values.numpy().tolist() == [[2.0, 2.0]]
    with tf.GradientTape() as tape:
        frozen = tfrec.ops.gather_reduce(tf.Variable(TABLE, trainable=False), [[1]])
    assert not tape.watched_variables()
    assert frozen.numpy().tolist() == [[2.0, 20.0]]


def test_two_lookups_of_one_table_accumulate(implementation):
    table = tf.Variable(TABLE)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tfrec.ops.gather_reduce(table, [[0, 1]]))
        loss += tf.reduce_sum(tfrec.ops.gather_reduce(table, [[1, 2]]) * 10.0)
    dense = tf.convert_to_tensor(tape.gradient(loss, table))
    assert dense.numpy().tolist() == [[1.0] * 2, [11.0] * 2, [10.0] * 2, [0.0] * 2]


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


def test_a_result_too_large_to_have_a_shape_is_an_error(implementation):
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError)):
        tfrec.ops.gather_reduce(tf.zeros((0, 2**40)), tf.zeros((2**40, 0), tf.int64))


def test_a_cancelled_bag_stops_gradients_that_are_not_finite(implementation):
    table = tf.Variable(TABLE)
    with tf.GradientTape() as tape:
        pooled = tfrec.ops.gather_reduce(table, [[0, 1]], [[1.0, -1.0]], "mean")
    gradient = tape.gradient(pooled, table, output_gradients=tf.constant([[np.nan, np.inf]]))
    np.testing.assert_array_equal(gradient.values, np.zeros((2, 2)))


@pytest.mark.parametrize("through", ["map", "while_loop", "jacobian"])
def test_works_inside_other_machinery(implementation, through):
    table = tf.Variable(TABLE)
    if through == "map":
        data = tf.data.Dataset.from_tensors([[0, 1]]).map(
            lambda ids: tfrec.ops.gather_reduce(tf.constant(TABLE), ids)
        )
        assert next(iter(data)).numpy().tolist() == [[3.0, 30.0]]
    elif through == "while_loop":
        with tf.GradientTape() as tape:
            total = tf.while_loop(
                lambda i, _: i < 3,
                lambda i, x: (i + 1, x + tfrec.ops.gather_reduce(table, [[i]])),
                (tf.constant(0), tf.zeros((1, 2))),
            )[1]
        dense = tf.convert_to_tensor(tape.gradient(total, table))
        assert dense.numpy().tolist() == [[1.0] * 2] * 3 + [[0.0] * 2]
    else:
        with tf.GradientTape(persistent=True) as tape:
            pooled = tfrec.ops.gather_reduce(table, [[0, 1]])
        jacobian = tape.jacobian(pooled, table, experimental_use_pfor=False)
        assert jacobian.shape == (1, 2, 4, 2)


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


@pytest.mark.parametrize("dense", [True, False])
def test_static_shapes_in_a_graph(implementation, dense):
    spec = tf.TensorSpec([None, 3], tf.int64) if dense else tf.RaggedTensorSpec([7, None], tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([None, 8]), spec])
    def look_up(table, ids):
        result = tfrec.ops.gather_reduce(table, ids)
        assert result.shape.as_list() == [None if dense else 7, 8]
        return result

    look_up.get_concrete_function()


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


# ---- Properties ----------------------------------------------------------------------------------


@st.composite
def problems(draw):
    rows, dim = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 7, 16, 33]))
    dense = draw(st.booleans())
    lengths = [draw(st.integers(0, 6))] if dense else []
    batch = draw(st.integers(0, 5))
    lengths = lengths * batch if dense else [draw(st.integers(0, 6)) for _ in range(batch)]
    padding_id = draw(st.sampled_from([None, -1, 0, rows - 1]))
    low = -1 if padding_id == -1 else 0
    bags = [[draw(st.integers(low, rows - 1)) for _ in range(n)] for n in lengths]
    weights = None
    if draw(st.booleans()):
        quarters = st.integers(1, 12).map(lambda n: n / 4)  # exact in every dtype, no cancelling
        weights = [[draw(quarters) for _ in bag] for bag in bags]
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "shape": (rows, dim),
        "bags": bags,
        "weights": weights,
        "dense": dense,
        "combiner": draw(st.sampled_from(COMBINERS)),
        "padding_id": padding_id,
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "ids_dtype": draw(st.sampled_from(["int32", "int64"])),
        "as_variable": draw(st.booleans()),
    }


def check_against_the_formula(problem):
    rng = np.random.default_rng(problem["seed"])
    dtype, bags, weights = problem["dtype"], problem["bags"], problem["weights"]
    table = tf.cast(tf.constant(rng.normal(size=problem["shape"])), dtype)
    values = tf.cast(table, tf.float64).numpy()
    if problem["as_variable"]:
        table = tf.Variable(table)
    hotness = len(bags[0]) if bags else 0

    def layout(lists, dtype):
        if problem["dense"]:
            return tf.reshape(tf.constant(lists, dtype), (len(lists), hotness))
        return tf.ragged.constant(lists, dtype=dtype, ragged_rank=1)

    ids = layout(bags, problem["ids_dtype"])
    w = None if weights is None else layout(weights, "float32")
    arguments = {"combiner": problem["combiner"], "padding_id": problem["padding_id"]}
    grads = rng.integers(-2, 3, (len(bags), problem["shape"][1])).astype("float64")
    with tf.GradientTape() as tape:
        flat_weights = None if w is None else getattr(w, "flat_values", w)
        sources = [table] if w is None else [table, flat_weights]
        tape.watch(sources)
        result = tfrec.ops.gather_reduce(table, ids, w, **arguments)
        loss = tf.reduce_sum(tf.cast(result, tf.float64) * grads)
    gradient, *weight_gradients = tape.gradient(loss, sources)

    tolerance = TOLERANCE[dtype]
    expected = slow_gather_reduce(values, bags, weights, **arguments)
    assert result.dtype == dtype
    np.testing.assert_allclose(
        tf.cast(result, tf.float64), expected, tolerance, tolerance * 10, err_msg=str(problem)
    )
    kept = sorted({i for bag in bags for i in bag if i != problem["padding_id"]})
    assert gradient.indices.numpy().tolist() == kept
    row_oracle, weight_oracle = slow_gradients(values, bags, weights, grads=grads, **arguments)
    np.testing.assert_allclose(
        tf.cast(tf.convert_to_tensor(gradient), tf.float64),
        row_oracle,
        tolerance,
        tolerance * 10,
        err_msg=str(problem),
    )
    if weights is not None:
        np.testing.assert_allclose(
            tf.reshape(weight_gradients[0], [-1]),
            weight_oracle,
            1e-3,
            tolerance * 10 + 1e-4,
            err_msg=str(problem),
        )


@hypothesis.given(problems())
@hypothesis.settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_agrees_with_the_formula(implementation, problem):
    check_against_the_formula(problem)


@pytest.mark.slow
@hypothesis.given(problems())
@hypothesis.settings(
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_agrees_with_the_formula_many_times(implementation, problem):
    check_against_the_formula(problem)


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

    def test_a_second_derivative_says_that_there_is_none():
        table = tf.Variable(TABLE)
        grads = tf.Variable([[1.0, 1.0]])
        with use("native"), tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                pooled = tfrec.ops.gather_reduce(table, [[0, 1]])
            first = inner.gradient(pooled, table, output_gradients=tf.identity(grads))
        with pytest.raises(LookupError, match="can be differentiated once"):
            outer.gradient(first.values, grads)

    def test_the_gradient_of_weights_is_computed_only_on_demand():
        table = tf.Variable(TABLE)

        @tf.function
        def step(ids, weights, watch):
            with tf.GradientTape() as tape:
                if watch:
                    tape.watch(weights)
                pooled = tfrec.ops.gather_reduce(table, ids, weights)
            return tape.gradient(pooled, [table, weights] if watch else table)

        for watch in (False, True):
            with use("native"):
                graph = step.get_concrete_function(
                    tf.TensorSpec([2, 2], tf.int64), tf.TensorSpec([2, 2]), watch
                ).graph
            operations = {operation.type for operation in graph.get_operations()}
            assert ("TfrecEfficient>ResourceGatherReduceWeightGrad" in operations) == watch


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
