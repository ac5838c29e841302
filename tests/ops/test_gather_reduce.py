import itertools

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


@pytest.mark.parametrize("dense", [True, False])
def test_static_shapes_in_a_graph(implementation, dense):
    spec = tf.TensorSpec([None, 3], tf.int64) if dense else tf.RaggedTensorSpec([7, None], tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([None, 8]), spec])
    def look_up(table, ids):
        result = tfrec.ops.gather_reduce(table, ids)
        assert result.shape.as_list() == [None if dense else 7, 8]
        return result

    look_up.get_concrete_function()


# ---- Castings ------------------------------------------------------------------------------------

CAST_IDS = [[3, 1, 1], [0, 3, 2]]


def gradient_with(casting, ids=None, table=None, **arguments):
    ids = tf.constant(CAST_IDS) if ids is None else ids
    table = tf.Variable(TABLE) if table is None else table
    with tf.GradientTape() as tape:
        pooled = tfrec.ops.gather_reduce(table, ids, casting=casting, **arguments)
        loss = tf.reduce_sum(pooled * tf.cast([[1.0], [0.1]], table.dtype))
    return tape.gradient(loss, table)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", ["dense", "ragged", "sparse"])
def test_a_casting_changes_no_bit_of_the_gradient(implementation, kind, dtype):
    rng = np.random.default_rng(0)
    ids = tf.ragged.constant([[3, 1, 9], [0, 3, 2]], dtype=tf.int64)
    ids = {"dense": ids.to_tensor, "ragged": lambda: ids, "sparse": ids.to_sparse}[kind]()
    table = tf.Variable(tf.cast(rng.normal(size=(5, 7)), dtype))
    casting = tfrec.ops.cast_indices(ids, padding_id=9)
    for combiner in COMBINERS:
        arguments = {"ids": ids, "table": table, "padding_id": 9, "combiner": combiner}
        plain, cast = gradient_with(None, **arguments), gradient_with(casting, **arguments)
        np.testing.assert_array_equal(cast.indices, plain.indices)
        assert_same_bits(cast.values, plain.values)
    in_graph = tf.function(lambda: gradient_with(casting, **arguments).values)()
    assert_same_bits(in_graph, plain.values)


def assert_same_bits(a, b):
    assert a.dtype == b.dtype
    assert tf.convert_to_tensor(a).numpy().tobytes() == tf.convert_to_tensor(b).numpy().tobytes()


BAD_CASTINGS = {
    "of other ids": lambda c: tfrec.ops.cast_indices([[3, 1, 1], [0, 3, 3]]),
    "shuffled": lambda c: tf.reverse(c, [1]),
    "truncated": lambda c: c[:1],
    "too long": lambda c: tf.concat([c, c], 0),
    "empty": lambda c: c[:0],
    "garbage": lambda c: c * 12345 + 7,
    "zeros": tf.zeros_like,
    "all padding": lambda c: tf.fill(c.shape, tf.constant(-1, tf.int64)),
    "very negative": lambda c: tf.fill(c.shape, tf.constant(-(2**63), tf.int64)),
    "very large": lambda c: tf.fill(c.shape, tf.constant(2**63 - 1, tf.int64)),
    "one pair twice": lambda c: tf.concat([c[:, :1], c[:, :1], c[:, 2:]], 1),
    "an id beyond the table": lambda c: tf.concat([c[:, :2], c[:, 2:] + (1 << 40)], 1),
    "a position beyond the lookups": lambda c: tf.concat([c[:, :2], c[:, 2:] | 7], 1),
}


@pytest.mark.parametrize("how", list(BAD_CASTINGS))
def test_a_wrong_casting_is_an_error_when_the_gradient_is_taken(implementation, how):
    casting = BAD_CASTINGS[how](tfrec.ops.cast_indices(CAST_IDS))
    table = tf.Variable(TABLE)
    pooled = tfrec.ops.gather_reduce(table, CAST_IDS, casting=casting)  # which does not use it
    np.testing.assert_array_equal(pooled, tfrec.ops.gather_reduce(table, CAST_IDS))
    for run in (
        lambda: gradient_with(casting, table=table),
        tf.function(lambda: gradient_with(casting, table=table).values),
    ):
        with pytest.raises(
            tf.errors.InvalidArgumentError,
            match="`casting` must be what `cast_indices` returns for these `ids`. Received: ",
        ):
            run()


def test_a_casting_with_another_padding_is_wrong(implementation):
    for made_with, used_with in ((None, 3), (3, None)):
        casting = tfrec.ops.cast_indices(CAST_IDS, made_with)
        with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
            gradient_with(casting, padding_id=used_with)


@hypothesis.given(data=st.data())
@hypothesis.settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_a_casting_with_any_entry_changed_is_wrong(implementation, data):
    ids = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
    casting = tfrec.ops.cast_indices([ids]).numpy()
    at = data.draw(st.integers(0, len(ids) - 1))
    casting[0, at] ^= data.draw(st.integers(1, 2**63 - 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
        gradient_with(casting, ids=tf.constant([ids]))


def test_a_casting_travels_through_a_saved_model(implementation, tmp_path):
    module = tf.Module()
    module.table = tf.Variable(TABLE)
    spec = tf.TensorSpec([None, None], tf.int64)
    module.step = tf.function(
        lambda ids, casting: gradient_with(casting, ids, module.table).values,
        input_signature=[spec, spec],
    )
    ids = tf.constant(CAST_IDS, tf.int64)
    expected = gradient_with(None).values
    tf.saved_model.save(module, str(tmp_path))
    revived = tf.saved_model.load(str(tmp_path))
    casting = tfrec.ops.cast_indices(ids)
    np.testing.assert_array_equal(revived.step(ids, casting), expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
        revived.step(ids[::-1], casting)


# ---- Coalesce ------------------------------------------------------------------------------------


@hypothesis.given(data=st.data())
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_coalesce_sums_what_belongs_together(implementation, data):
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    shape = data.draw(st.sampled_from([(), (1,), (5,), (3, 2)]))
    ids = data.draw(st.lists(st.integers(0, 6), max_size=12))
    ids = np.array(ids, data.draw(st.sampled_from(["int32", "int64"])))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = rng.integers(-8, 9, (len(ids), *shape))
    expected = np.zeros((7, *shape))
    np.add.at(expected, ids, values)  # whole numbers, which are exact in every dtype
    result = tfrec.ops.coalesce(
        tf.IndexedSlices(tf.constant(values, dtype), tf.constant(ids), tf.constant([7, *shape]))
    )
    assert result.values.dtype == dtype
    assert result.indices.dtype == ids.dtype
    assert result.indices.numpy().tolist() == sorted(set(ids.tolist()))
    assert result.dense_shape.numpy().tolist() == [7, *shape]
    np.testing.assert_array_equal(tf.cast(result.values, tf.float64), expected[result.indices])


def test_coalesce_in_a_graph_of_unknown_shapes(implementation):
    coalesce = tf.function(
        tfrec.ops.coalesce,
        input_signature=[tf.IndexedSlicesSpec([None, 2], indices_shape=[None], dtype=tf.float32)],
    )
    result = coalesce(tf.IndexedSlices(tf.ones((3, 2)), tf.constant([7, 2, 7], tf.int64)))
    assert result.indices.numpy().tolist() == [2, 7]
    assert result.values.numpy().tolist() == [[1.0, 1.0], [2.0, 2.0]]


def test_coalesce_refuses_a_negative_index(implementation):
    gradient = tf.IndexedSlices(tf.ones((2, 1)), tf.constant([4, -1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must not be negative"):
        tfrec.ops.coalesce(gradient)


def test_coalesce_of_the_gradient_of_a_keras_embedding(implementation):
    layer = keras.layers.Embedding(6, 3)
    ids = tf.constant([[5, 1, 5], [1, 5, 0]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(ids) * tf.reshape(tf.range(18.0), (2, 3, 3)))
    gradient = tape.gradient(loss, layer.embeddings.value)
    coalesced = tfrec.ops.coalesce(gradient)
    assert coalesced.indices.numpy().tolist() == [0, 1, 5]
    np.testing.assert_array_equal(tf.convert_to_tensor(coalesced), tf.convert_to_tensor(gradient))


def test_two_lookups_in_one_step_coalesce_exactly(implementation):
    table = tf.Variable(TABLE)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tfrec.ops.gather_reduce(table, [[0, 1]]))
        loss += tf.reduce_sum(tfrec.ops.gather_reduce(table, [[1, 2]], combiner="mean") * 10.0)
        loss += tf.reduce_sum(tf.gather(table, [2, 2]))
    coalesced = tfrec.ops.coalesce(tape.gradient(loss, table))
    assert coalesced.indices.numpy().tolist() == [0, 1, 2]
    assert coalesced.values.numpy().tolist() == [[1.0] * 2, [6.0] * 2, [7.0] * 2]


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


if "native" in implementations():

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
