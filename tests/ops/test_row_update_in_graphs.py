"""`row_update` in graphs, where it can gather the gradient while it goes; copies; threads."""

import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.ops.row_update import RULES
from tfrec_efficient.testing.ops import implementation as use
from tfrec_efficient.testing.ops import implementations

row_update = tfrec.ops.row_update
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


class Trained:
    """A table with its slots, always the same at the start."""

    def __init__(self, rule, shape, dtype="float32", seed=0):
        rng = np.random.default_rng(seed)
        self.rule = rule
        self.table = tf.Variable(tf.cast(rng.normal(size=shape), dtype))
        of_slot = shape[:1] if rule == "rowwise_adagrad" else shape
        wide = "float64" if dtype == "float64" else "float32"
        self.slots = [tf.Variable(rng.random(of_slot).astype(wide)) for _ in range(RULES[rule][0])]

    def update(self, gradient, **arguments):
        arguments.update(HYPERPARAMETERS[self.rule])
        row_update(self.table, gradient, self.rule, 0.1, self.slots, **arguments)

    @property
    def variables(self):
        return [self.table, *self.slots]

    def bits(self):
        return [tf.convert_to_tensor(v).numpy().tobytes() for v in self.variables]


def ancestors(operations):
    found, pending = set(), list(operations)
    while pending:
        op = pending.pop()
        if op not in found:
            found.add(op)
            pending += [tensor.op for tensor in op.inputs] + op.control_inputs
    return found


def passes_over_the_gradient(function, *arguments):
    """Whether the updates are there, and nothing that is run needs a gradient in memory."""
    graph = function.get_concrete_function(*arguments).graph
    stateful = [op for op in graph.get_operations() if op.op_def.is_stateful]
    needed = {op.type for op in ancestors([*stateful, *(t.op for t in graph.outputs)])}
    assert "TfrecEfficient>ResourceRowUpdate" in needed
    return "TfrecEfficient>GatherReduceGrad" not in needed


def check_graph_equals_eager(implementation, make, step, fused=True):
    """`step(*make())` in a graph gives the bits that it gives eagerly."""
    eager, in_graph = make(), make()
    step(*eager)
    run = tf.function(lambda: step(*in_graph))
    if implementation == "native" and fused is not None:
        assert passes_over_the_gradient(run) == fused
    start = [trained.bits() for trained in in_graph]
    run()
    for before, a, b in zip(start, eager, in_graph, strict=True):
        assert b.bits() != before
        if implementation == "native":
            assert a.bits() == b.bits()
        for x, y in zip(a.variables, b.variables, strict=True):  # stock ops fuse in graphs
            np.testing.assert_allclose(
                tf.cast(x, tf.float64),
                tf.cast(y, tf.float64),
                1e-5,
                1e-5 if x.dtype.size > 2 else 0.1,
            )


# ---- The graph path equals the eager path --------------------------------------------------------

LOOKUPS = {
    "dense": (lambda x: x, [[1, 4, 4], [9, 1, 0], [4, 4, 9]]),
    "ragged": (tf.ragged.constant, [[1, 4, 4, 0], [], [9, 1], [4]]),
}


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_a_gradient_straight_from_a_lookup_is_not_materialised(implementation, combiner):
    check_lookups(
        implementation, combiner, "float32", list(LOOKUPS) if combiner == "mean" else ["dense"]
    )


def check_lookups(implementation, combiner, dtype, layouts=tuple(LOOKUPS)):
    cases = list(itertools.product(layouts, [False, True], [None, 9]))
    rng = np.random.default_rng(1)
    weights = {  # of the lookups of each layout
        kind: layout([[float(w) for w in rng.integers(1, 9, len(bag))] for bag in bags])
        for kind, (layout, bags) in LOOKUPS.items()
    }

    def make():
        return [Trained(list(RULES)[i], (10, 19), dtype, i) for i, _ in enumerate(cases)]

    def step(*trained):
        for one, (kind, weighted, padding_id) in zip(trained, cases, strict=True):
            layout, bags = LOOKUPS[kind]
            w = weights[kind] if weighted else None
            with tf.GradientTape() as tape:
                pooled = tfrec.ops.gather_reduce(one.table, layout(bags), w, combiner, padding_id)
                loss = tf.reduce_sum(pooled**2)
            one.update(tape.gradient(loss, one.table), decay=0.01)

    check_graph_equals_eager(implementation, make, step)


@pytest.mark.parametrize("cast", [False, True])
def test_several_features_of_several_tables(implementation, cast):
    ids = [[[1, 4], [4, 4]], [[0, 3], [3, 2]], [[4, 2], [9, 9]], [[5, 5], [4, 0]]]
    table_of = [0, 1, 0, 1]
    castings = None
    if cast:
        castings = tfrec.ops.casting.cast_features(ids, [None, 3, 9, None], table_of, 2)

    def make():
        return Trained("adagrad", (10, 17)), Trained("rowwise_adagrad", (6, 5))

    def step(a, b):
        with tf.GradientTape() as tape:
            pooled = tfrec.ops.gather_reduce_many(
                [a.table, b.table], ids, table_of, combiners=["mean", "sum", "sum", "sqrtn"],
                padding_ids=[None, 3, 9, None], castings=castings,
            )  # fmt: skip
            loss = tf.reduce_sum(pooled**2)
        for trained, gradient in zip((a, b), tape.gradient(loss, [a.table, b.table]), strict=True):
            trained.update(gradient)

    check_graph_equals_eager(implementation, make, step)


def test_several_features_of_one_table(implementation):
    def step(one):
        with tf.GradientTape() as tape:
            pooled = tfrec.ops.gather_reduce_many([one.table], [[[1, 4]], [[4, 4]]], [0, 0])
            loss = tf.reduce_sum(pooled**2)
        one.update(tape.gradient(loss, one.table))

    check_graph_equals_eager(implementation, lambda: [Trained("adam", (10, 17))], step)


def test_several_steps_in_a_loop(implementation):
    def step(one):
        for i in tf.range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tfrec.ops.gather_reduce(one.table, [[i, 4], [4, i]]) ** 2)
            one.update(tape.gradient(loss, one.table))

    # The stateful ops of a loop are in a graph of their own.
    check_graph_equals_eager(implementation, lambda: [Trained("adagrad", (10, 8))], step, None)


def changed(gradient, values=None, indices=None):
    return tf.IndexedSlices(
        gradient.values if values is None else values,
        gradient.indices if indices is None else indices,
        gradient.dense_shape,
    )


ON_THE_WAY = {
    "nothing": (lambda g: g, True),
    "identity": (lambda g: changed(g, tf.identity(g.values), tf.identity(g.indices)), True),
    "twice identity": (lambda g: changed(g, tf.identity(tf.identity(g.values))), True),
    "without a shape": (lambda g: tf.IndexedSlices(g.values, g.indices), True),
    "scaled": (lambda g: changed(g, g.values * 3), False),
    "clipped": (lambda g: changed(g, tf.clip_by_value(g.values, -0.5, 0.5)), False),
    "clipped by norm": (lambda g: tf.clip_by_norm(g, 0.5), False),
    "cast and back": (lambda g: changed(g, tf.cast(tf.cast(g.values, "half"), "float")), False),
    "other indices": (lambda g: changed(g, indices=g.indices + 1), False),
    "in another order": (lambda g: changed(g, indices=g.indices[::-1]), False),
    "partly": (lambda g: changed(g, g.values[:1], g.indices[:1]), False),
    "doubled": (
        lambda g: changed(g, tf.concat([g.values] * 2, 0), tf.concat([g.indices] * 2, 0)),
        False,
    ),
    "coalesced": (tfrec.ops.coalesce, False),
}


@pytest.mark.parametrize("how", list(ON_THE_WAY))
def test_what_happens_to_a_gradient_on_the_way_counts(implementation, how):
    change, fused = ON_THE_WAY[how]

    def step(one):
        with tf.GradientTape() as tape:
            pooled = tfrec.ops.gather_reduce(one.table, [[1, 4], [4, 7]], combiner="mean")
            loss = tf.reduce_sum(pooled**2)
        one.update(change(tape.gradient(loss, one.table)))

    # "coalesced" runs the gradient op once more, on a gradient, so only the result can be compared.
    check_graph_equals_eager(implementation, lambda: [Trained("sgd", (10, 4))], step, fused)


def test_a_check_on_the_way_is_not_passed_over(implementation):
    one = Trained("sgd", (10, 4))
    before = one.bits()

    @tf.function
    def step(limit):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tfrec.ops.gather_reduce(one.table, [[1, 4], [4, 7]]))
        gradient = tape.gradient(loss, one.table)
        small = tf.debugging.assert_less(gradient.values, limit, "The gradient is too large.")
        with tf.control_dependencies([small]):
            one.update(changed(gradient, tf.identity(gradient.values)))

    with pytest.raises(tf.errors.InvalidArgumentError, match="The gradient is too large"):
        step(tf.constant(1.5))
    assert one.bits() == before
    step(tf.constant(2.5))
    assert one.bits() != before


def test_a_change_on_the_way_is_not_lost():
    """The test above compares two paths; this one knows the answer."""
    for name in implementations():
        table = tf.Variable(tf.zeros((3, 1)))

        @tf.function
        def step(table=table):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tfrec.ops.gather_reduce(table, [[1, 1, 2]]))
            gradient = tape.gradient(loss, table)
            row_update(table, changed(gradient, gradient.values * 10), "sgd", 1.0)

        with use(name):
            step()
        assert table.numpy().tolist() == [[0.0], [-20.0], [-10.0]]


def test_two_lookups_of_one_table_in_one_step_add_up(implementation):
    def step(one):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tfrec.ops.gather_reduce(one.table, [[1, 4], [4, 7]]) ** 2)
            loss += tf.reduce_sum(tfrec.ops.gather_reduce(one.table, [[4], [4]]) * 3)
        one.update(tape.gradient(loss, one.table))

    check_graph_equals_eager(implementation, lambda: [Trained("adagrad", (10, 4))], step, False)


def test_gradients_that_change_tables(implementation):
    """The gradient of one table may be applied to another of its width."""

    def step(a, b):
        with tf.GradientTape() as tape:
            pooled = tfrec.ops.gather_reduce_many([a.table, b.table], [[[1]], [[2, 2]]], [0, 1])
            loss = tf.reduce_sum(pooled**2)
        of_a, of_b = tape.gradient(loss, [a.table, b.table])
        a.update(of_b)
        b.update(of_a)

    check_graph_equals_eager(
        implementation, lambda: [Trained("sgd", (5, 4)), Trained("sgd", (9, 4), seed=1)], step
    )


@pytest.mark.parametrize("dim", [1, 3, 5, 8])
def test_a_gradient_of_another_width_is_refused(implementation, dim):
    a, b, other = (Trained("sgd", shape) for shape in ((5, 4), (5, 4), (5, dim)))
    before = other.bits()

    def step():
        with tf.GradientTape() as tape:
            pooled = tfrec.ops.gather_reduce_many([a.table, b.table], [[[1]], [[2]]], [0, 1])
            loss = tf.reduce_sum(pooled)
        other.update(tape.gradient(loss, a.table))

    for run in (step, tf.function(step)):
        with pytest.raises(
            (ValueError, tf.errors.InvalidArgumentError), match="must have values of shape"
        ):
            run()
        assert other.bits() == before


def test_an_update_in_a_branch(implementation):
    def step(one):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tfrec.ops.gather_reduce(one.table, [[1, 4], [4, 7]]) ** 2)
        gradient = tape.gradient(loss, one.table)
        tf.cond(loss > 0, lambda: one.update(gradient), lambda: None)

    check_graph_equals_eager(implementation, lambda: [Trained("adagrad", (10, 4))], step, None)


@pytest.mark.parametrize("ids", [[[1, 10]], [[-1, 2]]])
def test_bad_ids_change_nothing_in_a_graph(implementation, ids):
    one = Trained("adagrad", (10, 4))
    before = one.bits()
    step = tf.function(lambda ids: train_on(one, ids))
    # A negative id is found by the casting, too, which runs at the same time.
    rule = r"`ids` must (be in `\[0, 10\)`|not be negative)"
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
        step(tf.constant(ids))
    assert one.bits() == before


def train_on(one, ids, casting=None):
    with tf.GradientTape() as tape:
        pooled = tfrec.ops.gather_reduce(one.table, ids, casting=casting)
        loss = tf.reduce_sum(pooled**2)
    one.update(tape.gradient(loss, one.table))


def test_a_wrong_casting_changes_nothing(implementation):
    one = Trained("adagrad", (10, 4))
    before = one.bits()
    casting = tfrec.ops.cast_indices([[1, 2]])
    step = tf.function(lambda ids, casting: train_on(one, ids, casting))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
        step(tf.constant([[1, 3]]), casting)
    assert one.bits() == before
    step(tf.constant([[1, 2]]), casting)
    assert one.bits() != before


# ---- Copies, readers and threads -----------------------------------------------------------------


def address(variable):
    """Where the values of a variable lie: a read shares them, unless it has to copy."""
    return np.asarray(memoryview(variable.read_value())).ctypes.data


THREADS_PROBE = """
import hashlib
import sys
import numpy as np
import tensorflow as tf
import tfrec_efficient as tfrec
from tfrec_efficient.ops.row_update import RULES

assert tf.config.threading.get_intra_op_parallelism_threads() == 0  # the environment decides
digest = hashlib.sha256()

def add(*values):
    for value in values:
        digest.update(tf.convert_to_tensor(value).numpy().tobytes())

rng = np.random.default_rng(0)
ids = tf.constant(rng.zipf(1.2, (16_000, 6)) % 5_000)  # some are hot
more_ids = tf.RaggedTensor.from_row_splits(tf.reshape(ids, [-1])[::-1], tf.range(0, 96_001, 6))
weights = tf.constant(rng.random((16_000, 6)), tf.float32)
add(tfrec.ops.cast_indices(ids), tfrec.ops.cast_indices(more_ids, padding_id=3))
H = {"momentum": 0.9, "epsilon": 0.1, "one_minus_beta_1": 0.1, "one_minus_beta_2": 0.01,
     "alpha": 0.3, "learning_rate_power": -0.5, "l1": 0.1, "l2": 0.3, "l2_shrinkage": 0.01}

def train(rule, dtype, combiner):
    table = tf.Variable(tf.cast(rng.normal(size=(5_000, 20)), dtype))
    shape = (5_000,) if rule == "rowwise_adagrad" else (5_000, 20)
    slots = [tf.Variable(tf.ones(shape)) for _ in range(RULES[rule][0])]
    with tf.GradientTape() as tape:
        tape.watch(weights)
        pooled = tfrec.ops.gather_reduce(table, ids, weights, combiner)
        pooled += tfrec.ops.gather_reduce(table, more_ids, None, combiner, padding_id=3)
        loss = tf.reduce_sum(tf.cast(pooled, tf.float32) ** 2)
    gradient, of_weights = tape.gradient(loss, [table, weights])
    tfrec.ops.row_update(table, gradient, rule, 0.01, slots, decay=0.001, rounding_seed=7,
                         **{name: H[name] for name in RULES[rule][1]})
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tfrec.ops.gather_reduce(table, ids, weights, combiner) ** 2)
    gradient = tape.gradient(loss, table)
    tfrec.ops.row_update(table, gradient, rule, 0.01, slots, rounding_seed=8,
                         **{name: H[name] for name in RULES[rule][1]})
    return [pooled, of_weights, gradient.values, table, *slots]

for i, rule in enumerate(RULES):
    dtype = ["float32", "bfloat16", "float16"][i % 3]
    combiner = ["sum", "mean", "sqrtn"][i % 3]
    add(*train(rule, dtype, combiner))
print("DIGEST", digest.hexdigest())
"""

if "native" in implementations():

    @pytest.fixture
    def native():
        with use("native"):
            yield

    @pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
    @pytest.mark.parametrize("combiner", ["sum", "sqrtn"])
    def test_nor_is_it_in_other_dtypes(native, combiner, dtype):
        check_lookups("native", combiner, dtype)

    @pytest.mark.parametrize("rule", list(RULES))
    def test_an_update_takes_place_where_the_table_lies(native, rule):
        one = Trained(rule, (1000, 16))
        step = tf.function(lambda ids: train_on(one, ids))
        step(tf.constant([[0, 1]]))  # what a variable starts with may belong to NumPy
        before = [address(variable) for variable in one.variables]
        for _ in range(3):
            train_on(one, tf.constant([[1, 2], [2, 900]]))
            step(tf.constant([[1, 2], [2, 900]]))
            tfrec.ops.gather_reduce(one.table, [[3, 4]])
            # A dense read in between shares the values too: it was not made to copy for good.
            assert [address(variable) for variable in one.variables] == before

    def test_whoever_holds_the_old_values_keeps_them(native):
        one = Trained("adagrad", (100, 16))
        held = [variable.read_value() for variable in one.variables]
        copies = [np.array(value) for value in held]
        step = tf.function(lambda ids: train_on(one, ids))
        for run in (lambda ids: train_on(one, ids), step):
            run(tf.constant([[1, 2]]))
        for value, copy, variable in zip(held, copies, one.variables, strict=True):
            np.testing.assert_array_equal(value, copy)
            assert np.any(variable.numpy() != copy)
        del held
        before = address(one.table)
        step(tf.constant([[1, 2]]))
        assert address(one.table) == before  # and only they cost a copy

    def test_a_dense_read_before_an_update_in_one_graph_sees_the_old_values(native):
        one = Trained("sgd", (10, 4))
        before = one.table.numpy()

        @tf.function
        def step():
            old = one.table.read_value()
            train_on(one, tf.constant([[1, 2]]))
            return old, one.table.read_value()

        old, new = step()
        np.testing.assert_array_equal(old, before)
        np.testing.assert_array_equal(new, one.table)
        assert np.any(new.numpy() != before)

    def test_readers_beside_a_trainer_see_whole_rows(native):
        """Rows are constant, and gradients too, so a row with two values in it was torn."""
        rows, dim = 32, 16_384
        table, slot = (tf.Variable(tf.ones((rows, dim))) for _ in range(2))
        ids = tf.range(rows)[:, tf.newaxis]
        steps, done, torn, seen = 150, threading.Event(), [], set()

        @tf.function
        def train(step):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tfrec.ops.gather_reduce(table, ids) * step)
            gradient = tape.gradient(loss, table)
            row_update(table, gradient, "adagrad", 0.1, [slot], epsilon=0.1)

        @tf.function
        def read():
            values = tfrec.ops.gather_reduce(table, ids)
            return tf.reduce_min(values, 1), tf.reduce_max(values, 1)

        read()
        train(tf.constant(1.0))
        places = address(table), address(slot)

        def reader():
            while not done.is_set():
                low, high = (values.numpy() for values in read())
                seen.update(low.tolist())
                if np.any(low != high):
                    torn.append((low, high))

        readers = [threading.Thread(target=reader) for _ in range(2)]
        for thread in readers:
            thread.start()
        try:
            for step in range(steps):
                train(tf.constant(1.0 + step))
        finally:
            done.set()
            for thread in readers:
                thread.join()
        assert not torn
        assert len(seen) > 10  # they did read while it trained
        assert (address(table), address(slot)) == places

    def test_two_trainers_of_one_table_lose_no_step(native):
        table = tf.Variable(tf.zeros((8, 64)))
        ids = tf.constant([[0, 1], [1, 7]])

        @tf.function
        def train():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tfrec.ops.gather_reduce(table, ids))
            row_update(table, tape.gradient(loss, table), "sgd", 1.0)

        train()
        table.assign(tf.zeros_like(table))
        threads = [threading.Thread(target=lambda: [train() for _ in range(100)]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(table[:, 0], [-200, -400, 0, 0, 0, 0, 0, -200])

    @pytest.mark.slow
    def test_bits_do_not_depend_on_the_number_of_threads(native):
        runs = [
            subprocess.Popen(
                [sys.executable, "-P", "-c", THREADS_PROBE],
                env={**os.environ, "TF_NUM_INTRAOP_THREADS": str(threads)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for threads in (1, 2, 4)
        ]
        outputs = [run.communicate() for run in runs]
        assert [run.returncode for run in runs] == [0, 0, 0], outputs
        digests = [out.split("DIGEST")[1] for out, _ in outputs]
        assert digests[0] == digests[1] == digests[2]
