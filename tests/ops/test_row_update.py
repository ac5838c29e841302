import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.ops.row_update import RULES
from tfrec_efficient.testing.ops import implementations

row_update = tfrec.ops.row_update
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "float64": 1e-12}
HYPERPARAMETERS = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9},
    "adagrad": {"epsilon": 0.1},
    "rowwise_adagrad": {"epsilon": 0.1},
    "adam": {"epsilon": 0.1, "one_minus_beta_1": 0.1, "one_minus_beta_2": 0.01, "alpha": 0.3},
    "amsgrad": {"epsilon": 0.1, "one_minus_beta_1": 0.1, "one_minus_beta_2": 0.01, "alpha": 0.3},
    "ftrl": {"learning_rate_power": -0.5, "l1": 0.1, "l2": 0.3, "l2_shrinkage": 0.01},
}


def slow_rule(rule, g, w, s, learning_rate, h):
    """The formulas of the docstring in float64; returns the row and its rows in the slots."""
    if rule == "sgd":
        return w - learning_rate * g, []
    if rule in ("momentum", "nesterov"):
        m = h["momentum"] * s[0] - learning_rate * g
        return w + (m if rule == "momentum" else h["momentum"] * m - learning_rate * g), [m]
    if rule in ("adagrad", "rowwise_adagrad"):
        a = s[0] + (g**2 if rule == "adagrad" else np.mean(g**2))
        return w - learning_rate * g / np.sqrt(a + h["epsilon"]), [a]
    if rule in ("adam", "amsgrad"):
        m = s[0] + h["one_minus_beta_1"] * (g - s[0])
        v = s[1] + h["one_minus_beta_2"] * (g**2 - s[1])
        u = v if rule == "adam" else np.maximum(s[2], v)
        return w - h["alpha"] * m / (np.sqrt(u) + h["epsilon"]), [m, v, u][: len(s)]
    p, n = -h["learning_rate_power"], s[0] + g**2
    z = s[1] + g + 2 * h["l2_shrinkage"] * w - (n**p - s[0] ** p) / learning_rate * w
    w = (np.clip(z, -h["l1"], h["l1"]) - z) / (n**p / learning_rate + 2 * h["l2"])
    return w, [n, z]


def slow_update(rule, table, slots, ids, values, learning_rate, decay, h):
    table, slots = table.copy(), [slot.copy() for slot in slots]
    for i in set(ids.tolist()):
        g = values[ids == i].sum(0)
        row = table[i] - decay * table[i]
        table[i], rows = slow_rule(rule, g, row, [s[i] for s in slots], learning_rate, h)
        for slot, of_row in zip(slots, rows, strict=True):
            slot[i] = of_row
    return table, slots


def slots_for(rule, shape, dtype, rng, wrap=tf.Variable):
    """Not negative, which sums of squares are not, and large enough to matter."""
    wide = "float64" if dtype == "float64" else "float32"
    of_slot = shape[:1] if rule == "rowwise_adagrad" else shape
    return [wrap(rng.random(of_slot).astype(wide)) for _ in range(RULES[rule][0])]


def as_float64(variable):
    return tf.cast(tf.convert_to_tensor(variable), tf.float64).numpy()


def bits(variables):
    return [tf.convert_to_tensor(variable).numpy().tobytes() for variable in variables]


# ---- Against the formulas ------------------------------------------------------------------------


@st.composite
def problems(draw):
    rows = draw(st.integers(1, 7))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "rule": draw(st.sampled_from(list(RULES))),
        "shape": (rows, *draw(st.sampled_from([(), (1,), (5,), (16,), (41,), (3, 2)]))),
        "ids": draw(st.lists(st.integers(0, rows - 1), max_size=12)),
        "ids_dtype": draw(st.sampled_from(["int32", "int64"])),
        "dtype": dtype,
        "decay": draw(st.sampled_from([0.0, 0.01])),
        "wrap": draw(st.sampled_from([tf.Variable, keras.Variable])),
        "in_graph": draw(st.sampled_from([False, False, False, True])),
    }


@hypothesis.given(problems())
@hypothesis.settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_agrees_with_the_formula_and_touches_no_other_row(implementation, problem):
    rng = np.random.default_rng(problem["seed"])
    rule, shape, dtype, wrap = (problem[name] for name in ("rule", "shape", "dtype", "wrap"))
    # keras.Variable makes float64 of what it is given unless it is told.
    table = wrap(tf.cast(rng.normal(size=shape), dtype), dtype=dtype)
    slots = slots_for(rule, shape, dtype, rng)
    ids = np.array(problem["ids"], problem["ids_dtype"])
    values = tf.cast(rng.normal(size=(len(ids), *shape[1:])), dtype)
    before = as_float64(table), [as_float64(slot) for slot in slots]
    raw_before = [tf.convert_to_tensor(v).numpy() for v in (table, *slots)]

    def update(values, ids):
        gradient = tf.IndexedSlices(values, ids)
        row_update(
            table, gradient, rule, 0.1, slots, decay=problem["decay"], **HYPERPARAMETERS[rule]
        )

    (tf.function(update) if problem["in_graph"] else update)(values, tf.constant(ids))
    expected_table, expected_slots = slow_update(
        rule, *before, ids, as_float64(values), 0.1, problem["decay"], HYPERPARAMETERS[rule]
    )
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
        as_float64(table), expected_table, tolerance, tolerance * 4, err_msg=str(problem)
    )
    for slot, right in zip(slots, expected_slots, strict=True):
        np.testing.assert_allclose(
            as_float64(slot), right, tolerance, tolerance * 4, err_msg=str(problem)
        )
    others = np.setdiff1d(np.arange(shape[0]), ids)
    for variable, old in zip((table, *slots), raw_before, strict=True):
        new = tf.convert_to_tensor(variable).numpy()
        assert new[others].tobytes() == old[others].tobytes()


def test_golden_values(implementation):
    """Row 2 gets 1 + 2 = 3; worked by hand."""
    gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([2, 2]))
    for rule, slots, hyperparameters, row, of_slots in (
        ("sgd", [], {}, 8 - 0.5 * 3, []),
        ("momentum", [2.0], {"momentum": 0.5}, 8 - 0.5, [-0.5]),
        ("nesterov", [2.0], {"momentum": 0.5}, 8 - 0.25 - 1.5, [-0.5]),
        ("adagrad", [7.0], {"epsilon": 9.0}, 8 - 0.5 * 3 / 5, [16.0]),
        ("rowwise_adagrad", [7.0], {"epsilon": 9.0}, 8 - 0.5 * 3 / 5, [16.0]),
        (
            "ftrl",
            [16.0, 1.0],
            {"learning_rate_power": -0.5, "l1": 0.0, "l2": 0.0, "l2_shrinkage": 0.0},
            12 / 10,  # z = 1 + 3 - (5 - 4) / 0.5 * 8
            [25.0, -12.0],
        ),
    ):
        table = tf.Variable([[1.0], [1.0], [8.0]])
        shape = [3] if rule == "rowwise_adagrad" else [3, 1]
        variables = [tf.Variable(tf.fill(shape, value)) for value in slots]
        row_update(table, gradient, rule, 0.5, variables, **hyperparameters)
        np.testing.assert_allclose(table, [[1.0], [1.0], [row]], rtol=1e-6, err_msg=rule)
        for variable, before, after in zip(variables, slots, of_slots, strict=True):
            np.testing.assert_allclose(tf.reshape(variable, [-1]), [before, before, after])


def test_ftrl_with_another_power(implementation):
    rng = np.random.default_rng(0)
    table = tf.Variable(rng.normal(size=(4, 3)))
    slots = slots_for("ftrl", (4, 3), "float64", rng)
    h = {**HYPERPARAMETERS["ftrl"], "learning_rate_power": -0.7}
    ids, values = np.array([1, 3, 1]), rng.normal(size=(3, 3))
    arrays = table.numpy(), [slot.numpy() for slot in slots]
    expected, _ = slow_update("ftrl", *arrays, ids, values, 0.25, 0.0, h)
    gradient = tf.IndexedSlices(tf.constant(values), tf.constant(ids))
    row_update(table, gradient, "ftrl", 0.25, slots, **h)
    np.testing.assert_allclose(table, expected, 1e-12)


def test_scalars_may_be_tensors_variables_and_numbers(implementation):
    gradient = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1]))
    for rate in (0.5, np.float32(0.5), tf.constant(0.5, tf.float64), tf.Variable(0.5)):
        table = tf.Variable(tf.ones((3, 2)))
        row_update(table, gradient, "sgd", rate, decay=tf.constant(0.25))
        assert table.numpy().tolist() == [[1.0, 1.0], [0.25, 0.25], [1.0, 1.0]]


def test_numbers_keep_all_their_digits_for_a_table_in_float64(implementation):
    table = tf.Variable([[1.0]], dtype=tf.float64)
    gradient = tf.IndexedSlices(tf.constant([[1.0]], tf.float64), tf.constant([0]))
    row_update(table, gradient, "sgd", 0.1)
    assert table.numpy().item() == 1.0 - 0.1


def test_many_rows_over_many_threads(implementation):
    rng = np.random.default_rng(0)
    table = tf.Variable(rng.normal(size=(50_000, 24)).astype("float32"))
    slot = tf.Variable(tf.ones((50_000, 24)))
    ids, values = rng.integers(0, 50_000, 80_000), rng.normal(size=(80_000, 24)).astype("float32")
    sums, before = np.zeros((50_000, 24)), table.numpy()
    np.add.at(sums, ids, values)
    expected = before - 0.1 * sums / np.sqrt(1 + sums**2)
    gradient = tf.IndexedSlices(tf.constant(values), tf.constant(ids))
    row_update(table, gradient, "adagrad", 0.1, [slot], epsilon=0.0)
    np.testing.assert_allclose(table, expected, 1e-5, 1e-6)
    np.testing.assert_allclose(slot, 1 + sums**2, 1e-5)
    untouched = np.setdiff1d(np.arange(50_000), ids)
    assert table.numpy()[untouched].tobytes() == before[untouched].tobytes()


@pytest.mark.parametrize("rule", list(RULES))
def test_no_gradient_changes_nothing(implementation, rule):
    rng = np.random.default_rng(0)
    for shape in ((3, 2), (0, 2)):
        table, slots = tf.Variable(rng.normal(size=shape)), slots_for(rule, shape, "float64", rng)
        before = bits([table, *slots])
        gradient = tf.IndexedSlices(tf.zeros((0, 2), tf.float64), tf.zeros([0], tf.int64))
        row_update(table, gradient, rule, 0.1, slots, decay=0.5, **HYPERPARAMETERS[rule])
        assert bits([table, *slots]) == before


def test_a_gradient_of_another_dtype_is_cast_as_keras_does(implementation):
    table = tf.Variable(tf.ones((3, 2), tf.float16))
    row_update(table, tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1])), "sgd", 0.5)
    assert table.numpy().tolist() == [[1.0, 1.0], [0.5, 0.5], [1.0, 1.0]]


# ---- Errors, after which nothing has changed -----------------------------------------------------


def wrong(**arguments):
    """A good call of `"adagrad"` on a table (4, 2), with some of its arguments replaced."""
    defaults = {
        "ids": [1, 3],
        "values": tf.ones((2, 2)),
        "rule": "adagrad",
        "slots": [((4, 2), "float32")],
        "hyperparameters": {"epsilon": 0.5},
    }
    return {**defaults, **arguments}


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (wrong(rule="adamw"), r"`rule` must be one of \['adagrad', .*\]. Received: rule='adamw'"),
        (wrong(slots=[]), "`slots` of the rule 'adagrad' must be 1. Received: 0"),
        (wrong(slots=[((4, 2), "float32")] * 2), "rule 'adagrad' must be 1. Received: 2"),
        (wrong(slots=[((4, 1), "float32")]), r"`slots` .* of shape \(4, 2\). Received: .*\(4, 1\)"),
        (wrong(slots=[((9, 2), "float32")]), r"`slots` .* of shape \(4, 2\). Received: .*\(9, 2\)"),
        (wrong(slots=[((4,), "float32")]), r"`slots` .* of shape \(4, 2\). Received: .*\(4,\)"),
        (wrong(slots=[((4, 2), "float64")]), "`slots` .* must be float32 .* Received: float64"),
        (wrong(slots=[((4, 2), "float16")]), "`slots` .* must be float32 .* Received: float16"),
        (
            wrong(rule="rowwise_adagrad"),
            r"`slots` of the rule 'rowwise_adagrad' .* of shape \(4,\). Received: .*\(4, 2\)",
        ),
        (wrong(hyperparameters={}), r"takes the hyperparameters \['epsilon'\]. Received: \[\]"),
        (
            wrong(hyperparameters={"epsilon": 0.5, "beta": 1.0}),
            r"hyperparameters \['epsilon'\]. Received: \['beta', 'epsilon'\]",
        ),
        (wrong(ids=[1, 4]), r"`ids` must be in `\[0, 4\)`. Received: 4"),
        (wrong(ids=[2**40, 4]), r"`ids` must be in `\[0, 4\)`. Received: 1099511627776"),
        (wrong(ids=[1, -1]), r"`ids` must not be negative. Received: `ids\[1, 0\]=-1`"),
        (wrong(values=tf.ones((2, 3))), r"have values of shape \(2, 2\). Received: shape \(2, 3\)"),
        (wrong(values=tf.ones((3, 2))), r"have values of shape \(2, 2\). Received: shape \(3, 2\)"),
    ],
)
def test_a_bad_argument_changes_nothing(implementation, in_graph, arguments, message):
    table = tf.Variable(tf.random.stateless_normal((4, 2), [0, 0]))
    slots = [tf.Variable(tf.ones(shape, dtype)) for shape, dtype in arguments["slots"]]
    before = bits([table, *slots])

    def update():
        gradient = tf.IndexedSlices(arguments["values"], tf.constant(arguments["ids"], tf.int64))
        row_update(table, gradient, arguments["rule"], 0.1, slots, **arguments["hyperparameters"])

    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        (tf.function(update) if in_graph else update)()
    assert bits([table, *slots]) == before


def test_a_dense_gradient_is_refused(implementation):
    with pytest.raises(ValueError, match="`gradient` must be a tf.IndexedSlices. Received: Eager"):
        row_update(tf.Variable([[1.0]]), tf.constant([[1.0]]), "sgd", 0.1)


# ---- Rounding at random --------------------------------------------------------------------------

ROWS, DIM = 2048, 32


def stepped(dtype, value, step, seed, rows=ROWS, ids=None):
    """What a table of one value is after a step of SGD by `-step`, as float64."""
    table = tf.Variable(tf.cast(tf.fill((rows, DIM), value), dtype))
    ids = tf.range(rows) if ids is None else tf.constant(ids)
    # The gradient is a power of two, and the rate in float32, so that no other rounding happens.
    gradient = tf.IndexedSlices(tf.ones((len(ids), DIM), dtype), ids)
    row_update(table, gradient, "sgd", -step, rounding_seed=seed)
    return as_float64(table)


@pytest.mark.parametrize(
    ("dtype", "value", "gap"),
    [
        ("bfloat16", 1.5, 2.0**-7),
        ("bfloat16", -3.0, 2.0**-6),
        ("bfloat16", 1e30, None),
        ("float16", 1.5, 2.0**-10),
        ("float16", -5.0, 2.0**-8),
        ("float16", 2.0**-20, 2.0**-24),  # subnormal
    ],
)
@pytest.mark.parametrize("share", [0.25, 0.9, -0.4])
def test_rounding_at_random_is_right_in_the_mean(implementation, dtype, value, gap, share):
    value = float(tf.cast(tf.cast(value, dtype), tf.float64))
    if gap is None:
        gap = 2.0 ** (np.floor(np.log2(abs(value))) - 7)
    result = stepped(dtype, value, share * gap, seed=7)
    neighbour = value + np.sign(share) * gap
    moved = result == neighbour
    assert np.all(moved | (result == value))  # one of the two neighbours, and nothing else
    deviation = np.sqrt(abs(share) * (1 - abs(share)))
    for axis, count in ((None, ROWS * DIM), (0, ROWS), (1, DIM)):  # all, each column, each row
        spread = 6 * deviation / np.sqrt(count)
        assert np.all(np.abs(moved.mean(axis) - abs(share)) < spread)
    # What happens to an entry says nothing about the entries beside it.
    for shifted in (moved[1:], moved[:, 1:]):
        aside = moved[: len(shifted), : shifted.shape[1]]
        correlation = np.corrcoef(aside.ravel(), shifted.ravel())[0, 1]
        assert abs(correlation) < 6 / np.sqrt(aside.size)


def test_rounding_below_a_power_of_two_where_neighbours_are_nearer(implementation):
    result = stepped("bfloat16", 1.0, -0.25 * 2.0**-8, seed=7)
    moved = result == 1 - 2.0**-8
    assert np.all(moved | (result == 1))
    assert abs(moved.mean() - 0.25) < 6 * 0.44 / np.sqrt(result.size)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_repeats_with_a_seed(implementation, dtype):
    gap = 2.0 ** (-7 if dtype == "bfloat16" else -10)
    one, again, other = (stepped(dtype, 1.0, gap / 2, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert 0.4 < np.mean(one != other) < 0.6
    nearest = stepped(dtype, 1.0, gap / 4, None)
    assert np.all(nearest == 1.0)  # the step is lost


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_steps_too_small_for_the_dtype_add_up(implementation, dtype):
    gap = 2.0 ** (-7 if dtype == "bfloat16" else -10)
    table = tf.Variable(tf.ones((512, 16), dtype))
    gradient = tf.IndexedSlices(tf.ones((512, 16), dtype), tf.range(512))
    for step in range(50):
        row_update(table, gradient, "sgd", -gap / 10, rounding_seed=step)
    moved = as_float64(table) - 1
    spread = np.sqrt(50 * 0.1 * 0.9 / moved.size)
    assert abs(moved.mean() / gap - 5) < 6 * spread


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_does_not_overflow_or_invent(implementation, dtype):
    limit = float(tf.as_dtype(dtype).max)
    assert np.all(stepped(dtype, limit, 0.0, seed=3) == limit)
    assert np.all(stepped(dtype, 0.0, 0.0, seed=3) == 0.0)
    assert np.all(stepped(dtype, 1.5, 0.0, seed=3) == 1.5)  # exact values stay
    result = stepped(dtype, limit, limit / 2**14, seed=3)
    assert np.all(np.isfinite(result))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_tables_take_no_notice_of_a_rounding_seed(implementation, dtype):
    np.testing.assert_array_equal(
        stepped(dtype, 1.0, 1e-9, seed=1, rows=4), stepped(dtype, 1.0, 1e-9, seed=None, rows=4)
    )


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_rounds_at_random(implementation, rule):
    """Many rows with the same history differ by one gap at most, and in the mean not at all."""
    rng = np.random.default_rng(0)
    shape = (ROWS, 19)  # of a width that fills no register
    table = tf.Variable(tf.fill(shape, tf.cast(0.7, tf.bfloat16)))
    row = as_float64(table)[0, 0]
    slots = [tf.Variable(tf.fill(s.shape, 0.5)) for s in slots_for(rule, shape, "bfloat16", rng)]
    gradient = tf.IndexedSlices(tf.fill(shape, tf.cast(0.25, tf.bfloat16)), tf.range(ROWS))
    row_update(table, gradient, rule, 0.013, slots, rounding_seed=5, **HYPERPARAMETERS[rule])
    exact, _ = slow_rule(
        rule, np.array([0.25]), row, [0.5] * len(slots), 0.013, HYPERPARAMETERS[rule]
    )
    result = as_float64(table)
    values = np.unique(result)
    assert len(values) == 2
    assert values[0] < exact.item() < values[1]
    gap = values[1] - values[0]
    assert gap <= 2.0**-7
    assert abs(result.mean() - exact.item()) < 6 * 0.5 * gap / np.sqrt(result.size)


if "native" in implementations():

    def test_the_random_bits_of_a_row_do_not_depend_on_its_company():
        with tfrec.testing.ops.implementation("native"):
            alone = stepped("bfloat16", 1.0, 2.0**-8, seed=1, ids=[900])[900]
            among = stepped("bfloat16", 1.0, 2.0**-8, seed=1)[900]
        np.testing.assert_array_equal(alone, among)
