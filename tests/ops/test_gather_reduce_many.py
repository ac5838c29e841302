"""`gather_reduce_many`, for which separate calls of `gather_reduce` are the oracle; int8 tables."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.testing.ops import implementations

COMBINERS = ("sum", "mean", "sqrtn")
many = tfrec.ops.gather_reduce_many


def table_of_ones(rows, dim, dtype="float32"):
    return tf.Variable(tf.ones((rows, dim), dtype))


# ---- Against separate calls ----------------------------------------------------------------------


@st.composite
def problems(draw):
    num_tables = draw(st.integers(1, 3))
    num_features = draw(st.integers(num_tables, 5))
    table_of = list(range(num_tables))
    table_of += [draw(st.integers(0, num_tables - 1)) for _ in range(num_features - num_tables)]
    table_of = draw(st.permutations(table_of))
    batch = draw(st.integers(0, 4))
    features = [
        {
            "kind": draw(st.sampled_from(["dense", "ragged", "sparse"])),
            "dtype": draw(st.sampled_from(["int32", "int64"])),
            "weighted": draw(st.booleans()),
            "combiner": draw(st.sampled_from(COMBINERS)),
            "padding_id": draw(st.sampled_from([None, 0, 77])),
            "hotness": draw(st.integers(0, 4)),
        }
        for _ in range(num_features)
    ]
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "dtype": draw(st.sampled_from(["float32", "float64", "bfloat16", "float16"])),
        "dims": [draw(st.sampled_from([1, 3, 16, 20])) for _ in range(num_tables)],
        "table_of": table_of,
        "batch": batch,
        "features": features,
        "cast": draw(st.booleans()),
        "variables": draw(st.booleans()),
    }


def bags_of(feature, batch, rng):
    """Ids, weights and the tensor among the weights that has a gradient."""
    hotness = feature["hotness"]
    lengths = rng.integers(0, hotness + 1, batch)
    if feature["kind"] == "dense":
        lengths = np.full(batch, hotness)
    ids = rng.integers(0, 6, lengths.sum())
    if feature["padding_id"] == 77:
        ids[::3] = 77
    ids = tf.constant(ids, feature["dtype"])
    weights = tf.constant(rng.integers(1, 9, lengths.sum()) / 4, tf.float32)
    if feature["kind"] == "dense":
        ids, weights = (tf.reshape(x, (batch, hotness)) for x in (ids, weights))
        return ids, weights, weights
    ragged, w = (tf.RaggedTensor.from_row_lengths(x, lengths) for x in (ids, weights))
    if feature["kind"] == "ragged":
        return ragged, w, weights
    indices = ragged.with_values(tf.zeros_like(ids)).to_sparse().indices
    shape = (batch, max(hotness, 1))
    return tf.SparseTensor(indices, ids, shape), tf.SparseTensor(indices, weights, shape), weights


@hypothesis.given(problems())
@hypothesis.settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_one_call_equals_separate_calls(implementation, problem):
    rng = np.random.default_rng(problem["seed"])
    features, table_of, batch = problem["features"], problem["table_of"], problem["batch"]
    tables = [tf.cast(rng.normal(size=(6, dim)), problem["dtype"]) for dim in problem["dims"]]
    if problem["variables"]:
        tables = [tf.Variable(table) for table in tables]
    bags = [bags_of(feature, batch, rng) for feature in features]
    ids = [of_feature[0] for of_feature in bags]
    weights = [bags[i][1] if f["weighted"] else None for i, f in enumerate(features)]
    sources = [bags[i][2] for i, f in enumerate(features) if f["weighted"]]
    combiners = [feature["combiner"] for feature in features]
    padding_ids = [feature["padding_id"] for feature in features]
    width = sum(problem["dims"][t] for t in table_of)
    grads = tf.cast(rng.integers(-3, 4, (batch, width)), problem["dtype"])

    castings = None
    if problem["cast"]:
        castings = tfrec.ops.casting.cast_features(ids, padding_ids, table_of, len(tables))
    with tf.GradientTape() as tape:
        tape.watch([*tables, *sources])
        together = many(tables, ids, table_of, weights, combiners, padding_ids, castings)
    gradients = tape.gradient(together, [*tables, *sources], grads)
    with tf.GradientTape() as tape:
        tape.watch([*tables, *sources])
        apart = [
            tfrec.ops.gather_reduce(tables[t], ids[i], weights[i], combiners[i], padding_ids[i])
            for i, t in enumerate(table_of)
        ]
        apart = tf.concat(apart, 1)
    expected = tape.gradient(apart, [*tables, *sources], grads)

    assert together.dtype == problem["dtype"]
    assert_same_bits(together, apart)
    for number, table in enumerate(tables):
        gradient, right = gradients[number], expected[number]
        indices = gradient.indices.numpy().tolist()
        assert indices == sorted(set(indices))  # once for all features of the table
        if table_of.count(number) == 1:
            np.testing.assert_array_equal(indices, right.indices)
            assert_same_bits(gradient.values, right.values)
        else:
            assert set(indices) == set(right.indices.numpy().tolist())
            tolerance = {"float16": 5e-3, "bfloat16": 4e-2}.get(problem["dtype"], 1e-6)
            np.testing.assert_allclose(
                tf.cast(tf.convert_to_tensor(gradient), tf.float64),
                tf.cast(tf.convert_to_tensor(right), tf.float64),
                tolerance,
                tolerance * 10,
            )
        assert gradient.dense_shape.numpy().tolist() == table.shape.as_list()
    for gradient, right in zip(gradients[len(tables) :], expected[len(tables) :], strict=True):
        assert_same_bits(gradient, right)


def assert_same_bits(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert tf.convert_to_tensor(a).numpy().tobytes() == tf.convert_to_tensor(b).numpy().tobytes()


def test_golden_values(implementation):
    users = tf.Variable([[1.0], [2.0]])
    items = tf.Variable([[10.0, 20.0], [30.0, 40.0]])
    with tf.GradientTape() as tape:
        pooled = many(
            [users, items],
            [tf.constant([[1], [0]]), tf.constant([[0, 9], [1, 1]], tf.int64), [[0], [0]]],
            table_of=[0, 1, 0],
            combiners=["sum", "mean", "sum"],
            padding_ids=[None, 9, None],
        )
    assert pooled.numpy().tolist() == [[2.0, 10.0, 20.0, 1.0], [1.0, 30.0, 40.0, 1.0]]
    grads = tf.constant([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    of_users, of_items = tape.gradient(pooled, [users, items], grads)
    assert tf.convert_to_tensor(of_users).numpy().tolist() == [[54.0], [1.0]]
    assert tf.convert_to_tensor(of_items).numpy().tolist() == [[2.0, 3.0], [20.0, 30.0]]


if "native" in implementations():

    def test_any_number_of_features_is_one_op_forward_and_one_backward():
        tables = [table_of_ones(5, 2), table_of_ones(6, 3)]

        @tf.function
        def step(ids):
            with tf.GradientTape() as tape:
                pooled = many(tables, [ids] * 5, [0, 1, 0, 1, 1])
            return [gradient.values for gradient in tape.gradient(pooled, tables)]

        graph = step.get_concrete_function(tf.TensorSpec([None, 2], tf.int64)).graph
        ours = [op.type for op in graph.get_operations() if op.type.startswith("TfrecEfficient>")]
        assert sorted(op.removeprefix("TfrecEfficient>") for op in ours) == [
            "CastIndices",
            "GatherReduceGrad",
            "ResourceGatherReduce",
        ]


@pytest.mark.parametrize("variables", [True, False])
def test_static_shape_in_a_graph(implementation, variables):
    tables = [table_of_ones(5, 2), table_of_ones(6, 3)]

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int64)])
    def look_up(ids):
        read = tables if variables else [table.read_value() for table in tables]
        result = many(read, [ids, ids, ids], [0, 1, 0])
        assert result.shape.as_list() == [None, 7]
        return result

    assert look_up([[0, 1]]).numpy().tolist() == [[2.0] * 7]


# ---- Bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tables": []}, "`tables` and `ids` must not be empty. Received: 0 tables"),
        ({"ids": [], "table_of": []}, "must not be empty. Received: 2 tables, ids of 0 features"),
        ({"table_of": [0]}, "`table_of` must have an entry for each of the 2 features"),
        ({"table_of": [0, 0]}, r"`table_of` must be in `\[0, 2\)` and name every table. Received"),
        ({"table_of": [0, 2]}, r"name every table. Received: table_of=\[0, 2\]"),
        ({"table_of": [-1, 0]}, r"name every table. Received: table_of=\[-1, 0\]"),
        ({"weights": [None]}, "`weights` must have an entry for each of the 2 features. Received"),
        ({"combiners": ["sum"]}, "`combiners` must have an entry for each of the 2 features"),
        ({"combiners": ["sum", "max"]}, "`combiner` must be .* Received: combiner='max'"),
        ({"padding_ids": [1, 2, 3]}, "`padding_ids` must have an entry .* Received: 3 entries"),
        ({"padding_ids": [1, 0.5]}, "`padding_id` must be None or an integer of 64 bits"),
        ({"castings": [[0]]}, "`castings` must have an entry for each of the 2 tables. Received"),
        ({"scales": [1, 2, 3]}, "`scales` must have an entry for each of the 2 tables. Received"),
        ({"ids": [[[0]], [0]]}, "`ids` must have rank 2"),
        ({"ids": [[[0]], [[0.5]]]}, "`ids` must have dtype int32 or int64"),
        ({"weights": [None, [[1]]]}, "`weights` must have a floating point dtype"),
        ({"weights": [None, [[1.0, 2.0]]]}, "`weights` must have the shape of `ids`"),
    ],
)
def test_lists_that_do_not_fit(implementation, arguments, message):
    right = {
        "tables": [table_of_ones(3, 2), table_of_ones(3, 1)],
        "ids": [[[0]], [[0]]],
        "table_of": [0, 1],
    }
    many(**right)
    with pytest.raises(ValueError, match=message):
        many(**{**right, **arguments})


@pytest.mark.parametrize(
    "other",
    [tf.ones((3, 2)), table_of_ones(3, 2, "float64"), np.ones((3, 2))],
    ids=["tensor", "dtype", "array"],
)
def test_tables_of_two_kinds(implementation, other):
    with pytest.raises(ValueError, match="`tables` must be all variables or all tensors, of one"):
        many([table_of_ones(3, 2), other], [[[0]], [[0]]], [0, 1])


def test_widths_that_are_not_known(implementation):
    look_up = tf.function(
        lambda table: many([table], [[[0]], [[1]]], [0, 0]),
        input_signature=[tf.TensorSpec([3, None])],
    )
    if implementation == "python":
        assert look_up(tf.ones((3, 2))).numpy().tolist() == [[1.0] * 4]
        return
    # The gradient of the native op must know where features begin.
    with pytest.raises(ValueError, match="The widths of `tables` must be known where there are"):
        look_up(tf.ones((3, 2)))


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [[[0]], [[0, 3]]]}, r"`ids\[1\]` must be in `\[0, 3\)`.*: `ids\[1\]\[0, 1\]=3`"),
        ({"ids": [[[0, 5]], [[0]]]}, r"`ids\[0\]` must be in `\[0, 4\)`.*: `ids\[0\]\[0, 1\]=5`"),
        ({"padding_ids": [None, 7], "ids": [[[0]], [[-1]]]}, r"`ids\[1\]`.* or `padding_id=7`"),
        ({"ids": [[[0]], tf.ragged.constant([[0, 8]])]}, r"Received: `ids\[1\].values\[1\]=8`"),
        ({"weights": [None, [[np.nan]]]}, r"finite. Received: `weights\[1\]\[0, 0\]=-?nan`"),
        ({"weights": [[[np.inf]], None]}, r"finite. Received: `weights\[0\]\[0, 0\]=inf`"),
        (
            {"ids": [[[0]], tf.RaggedTensor.from_row_splits([0], [0, 2], validate=False)]},
            r"`row_splits\[1\]` must start at 0, .*, 1. Received: `row_splits\[1\]\[1\]=2`",
        ),
        ({"ids": [[[0]], [[0], [0]]]}, r"have as many bags, 1. Received: `ids\[1\]` with 2"),
        ({"ids": [[[0]], tf.ragged.constant([[0], []])]}, r"bags, 1. Received: `ids\[1\]` with 2"),
    ],
)
def test_a_fault_names_its_feature(implementation, in_graph, arguments, message):
    right = {
        "tables": [table_of_ones(4, 2), table_of_ones(3, 2)],
        "ids": [[[0]], [[0]]],
        "table_of": [0, 1],
    }

    def run():
        return many(**{**right, **arguments})

    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=message):
        (tf.function(run) if in_graph else run)()


def test_an_error_names_the_first_of_two_faulty_features(implementation):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids\[0\]\[1, 0\]=9`"):
        many([table_of_ones(3, 2)], [[[0], [9]], [[9], [9]]], [0, 0])


def test_castings_are_those_of_each_table(implementation):
    tables = [table_of_ones(4, 2), table_of_ones(4, 2)]
    ids = [[[0, 1]], [[2, 3]]]
    castings = [tfrec.ops.cast_indices(of_feature) for of_feature in ids]

    def gradient(castings):
        with tf.GradientTape() as tape:
            pooled = many(tables, ids, [0, 1], castings=castings)
        return tape.gradient(pooled, tables)[0].indices.numpy().tolist()

    assert gradient(castings) == [0, 1]
    with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
        gradient(castings[::-1])


# ---- Tables in int8 ------------------------------------------------------------------------------


def int8_table(rng, rows=6, dim=5):
    rows_in_int8 = rng.integers(-127, 128, (rows, dim), np.int8)
    scales = rng.random(rows).astype(np.float32) / 100
    variables = [tf.Variable(x, trainable=False) for x in (rows_in_int8, scales)]
    return variables, (rows_in_int8 * scales.astype(np.float64)[:, np.newaxis])


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("padding_id", [None, 2])
def test_int8_rows_count_as_their_values_times_their_scales(
    implementation, combiner, weighted, padding_id
):
    rng = np.random.default_rng(0)
    (table, scales), values = int8_table(rng, dim=35)
    ids = rng.integers(0, 6, (7, 4))
    weights = rng.integers(1, 9, ids.shape) / 4 if weighted else None
    w = np.ones(ids.shape) if weights is None else weights
    w = np.where(ids == (-1 if padding_id is None else padding_id), 0, w)
    divisors = {"sum": np.ones(7), "mean": w.sum(1), "sqrtn": np.sqrt((w**2).sum(1))}[combiner]
    expected = (w[:, :, np.newaxis] * values[ids]).sum(1) / divisors[:, np.newaxis]
    arguments = {"weights": weights, "combiner": combiner, "padding_id": padding_id}
    for of_ids in (tf.constant(ids), tf.constant(ids, tf.int32), tf.RaggedTensor.from_tensor(ids)):
        if weighted and isinstance(of_ids, tf.RaggedTensor):
            arguments["weights"] = tf.RaggedTensor.from_tensor(weights)
        result = tfrec.ops.gather_reduce(table, of_ids, scales=scales, **arguments)
        assert result.dtype == tf.float32
        np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


def test_int8_tables_in_one_call_and_in_a_graph(implementation):
    rng = np.random.default_rng(0)
    ((a, a_scales), a_values), ((b, b_scales), b_values) = (
        int8_table(rng, 6, 3 + i) for i in (0, 1)
    )
    look_up = tf.function(
        lambda ids: many([a, b], [ids, ids, ids], [1, 0, 1], scales=[a_scales, b_scales])
    )
    expected = [values[[1, 5]].sum(0) for values in (b_values, a_values, b_values)]
    np.testing.assert_allclose(look_up([[1, 5]])[0], np.concatenate(expected), 1e-5, 1e-6)


def test_int8_tables_without_what_they_need(implementation):
    (table, scales), _ = int8_table(np.random.default_rng(0))
    look_up = tfrec.ops.gather_reduce
    with pytest.raises(ValueError, match="`table` must have dtype .* Received: dtype int8"):
        look_up(table, [[0]])
    with pytest.raises(ValueError, match="with `scales` must be an int8 variable. Received: "):
        look_up(table_of_ones(6, 2), [[0]], scales=scales)
    with pytest.raises(ValueError, match="with `scales` must be an int8 variable. Received: "):
        look_up(tf.zeros((6, 2), tf.int8), [[0]], scales=scales)
    for bad in (tf.ones(6), [1.0] * 6, tf.Variable(tf.ones(5)), tf.Variable(tf.ones(7)),
                tf.Variable(tf.ones(6, tf.float64)), tf.Variable(tf.ones((6, 1)))):  # fmt: skip
        with pytest.raises(ValueError, match="`scales` must "):
            look_up(table, [[0]], scales=bad)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids` must be in `\[0, 6\)`"):
        look_up(table, [[6]], scales=scales)
