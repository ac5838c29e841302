"""What all optimizers of this room do with tables, around the rules that tell them apart."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.optimizers import FTRL
from tfrec_efficient.optimizers import SGD
from tfrec_efficient.optimizers import Adagrad
from tfrec_efficient.optimizers import Adam
from tfrec_efficient.optimizers import RowwiseAdagrad
from tfrec_efficient.testing.ops import implementation as use
from tfrec_efficient.testing.ops import implementations

OPTIMIZERS = {
    "sgd": lambda **kwargs: SGD(0.1, **kwargs),
    "momentum": lambda **kwargs: SGD(0.05, momentum=0.5, **kwargs),
    "adagrad": lambda **kwargs: Adagrad(0.1, **kwargs),
    "rowwise_adagrad": lambda **kwargs: RowwiseAdagrad(0.1, **kwargs),
    "adam": lambda **kwargs: Adam(0.05, **kwargs),
    "ftrl": lambda **kwargs: FTRL(0.1, **kwargs),
}


def rows(ids, values, count=6):
    values = tf.constant(values, tf.float32)
    return tf.IndexedSlices(values, tf.constant(ids), (count, *values.shape[1:]))


# ---- What Keras does to gradients and variables, done to rows ------------------------------------


class Pair:
    """A table and a dense variable under one optimizer, with gradients that repeat ids.

    Gradient descent moves no row without a gradient, so what Keras does with the gradient made
    dense is the oracle for all that happens before the rule.
    """

    def __init__(self):
        rng = np.random.default_rng(0)
        self.start = [rng.normal(size=shape).astype("float32") for shape in ((6, 3), (4,))]
        self.steps = [
            [rng.integers(0, 6, 5), *(rng.normal(size=s).astype("float32") for s in ((5, 3), (4,)))]
            for _ in range(4)
        ]

    def train(self, optimizer, densely=False, between=lambda optimizer: None):
        variables = [keras.Variable(value) for value in self.start]
        for ids, values, dense in self.steps:
            gradient = tf.IndexedSlices(tf.constant(values), tf.constant(ids), (6, 3))
            if densely:
                gradient = tf.convert_to_tensor(gradient)
            optimizer.apply([gradient, tf.constant(dense)], variables)
            between(optimizer)
        return [variable.numpy() for variable in variables]


def assert_as_keras(arguments, between=lambda optimizer: None):
    pair = Pair()
    ours = pair.train(SGD(**arguments), between=between)
    theirs = pair.train(keras.optimizers.SGD(**arguments), densely=True, between=between)
    for a, b, start in zip(ours, theirs, pair.start, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)
        assert np.any(a != start)


@pytest.mark.parametrize(
    "learning_rate",
    [0.5, lambda: 0.25, keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)],
    ids=["float", "callable", "schedule"],
)
def test_learning_rates(implementation, learning_rate):
    assert_as_keras({"learning_rate": learning_rate})


def test_a_learning_rate_that_is_set_between_steps(implementation):
    def halve(optimizer):
        optimizer.learning_rate = float(optimizer.learning_rate) / 2

    assert_as_keras({"learning_rate": 1.0}, between=halve)


@pytest.mark.parametrize(
    "limit",
    [
        {"clipnorm": 0.5},
        {"clipnorm": 1e6},
        {"clipvalue": 0.25},
        {"global_clipnorm": 0.5},
        {"global_clipnorm": 1e6},
    ],
    ids=str,
)
def test_clipping_is_that_of_the_gradient_made_dense(implementation, limit):
    assert_as_keras({"learning_rate": 1.0, **limit})


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float64", 1e-6)])
def test_one_norm_over_variables_of_two_dtypes(implementation, dtype, tolerance):
    """Which Keras refuses."""
    table = keras.Variable(np.zeros((6, 1)), dtype=dtype)
    bias = keras.Variable(np.zeros(1), dtype="float32")
    gradient = tf.IndexedSlices(tf.cast([[1.0], [2.0]], dtype), tf.constant([2, 2]), (6, 1))
    SGD(1.0, global_clipnorm=2.5).apply([gradient, tf.constant([4.0])], [table, bias])
    # The norm of (1 + 2, 4) is 5.
    np.testing.assert_allclose(tf.cast(table, tf.float64)[2], [-1.5], tolerance)
    np.testing.assert_allclose(bias, [-2.0], tolerance)


def test_a_norm_that_is_not_finite_spoils_every_variable_as_in_keras(implementation):
    ends = []
    for optimizer, convert in (
        (SGD(0.1, global_clipnorm=1.0), lambda gradient: gradient),
        (keras.optimizers.SGD(0.1, global_clipnorm=1.0), tf.convert_to_tensor),
    ):
        table, bias = (keras.Variable(np.ones(shape, "float32")) for shape in ((6, 1), (2,)))
        optimizer.apply([convert(rows([1], [[np.inf]])), tf.ones(2)], [table, bias])
        ends.append((table.numpy()[1], bias.numpy()))
    for ours, theirs in zip(*ends, strict=True):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.all(np.isnan(ends[0][1]))


@pytest.mark.parametrize("extra", [{}, {"clipnorm": 0.5}])
def test_a_loss_scale_factor_is_taken_out_again(implementation, extra):
    assert_as_keras({"learning_rate": 1.0, "loss_scale_factor": 8.0, **extra})
    assert SGD(loss_scale_factor=8.0).scale_loss(2.0) == 16.0


def test_a_variable_without_a_gradient_is_left_alone(implementation):
    optimizer = SGD(1.0, loss_scale_factor=2.0)
    table, other = (keras.Variable(np.ones((6, 1), "float32")) for _ in range(2))
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        optimizer.apply([rows([1], [[1.0]]), None], [table, other])
    assert table.numpy().ravel().tolist() == [1.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert np.all(other.numpy() == 1.0)
    assert optimizer.loss_scale_factor == 2.0


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_weight_decay_of_rows_with_a_gradient(implementation, kind):
    """`w -= w * decay * rate` and then the rule: as if the row had been smaller before."""
    gradient = rows([1, 3, 1], [[0.5, 1.0], [2.0, -1.0], [0.25, 0.0]])
    start = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    optimizer = OPTIMIZERS[kind](weight_decay=0.25)
    table = keras.Variable(start, name="embeddings")
    optimizer.apply([gradient], [table])
    shrunk = start.copy()
    shrunk[[1, 3]] *= 1 - 0.25 * float(optimizer.learning_rate)
    expected = keras.Variable(shrunk, name="embeddings")
    OPTIMIZERS[kind]().apply([gradient], [expected])
    np.testing.assert_allclose(table, expected, 1e-5, 1e-6)
    assert np.all(table.numpy()[[0, 2, 4, 5]] == start[[0, 2, 4, 5]])


@pytest.mark.parametrize("by", ["name", "variable"])
def test_tables_that_are_excluded_from_weight_decay(implementation, by):
    names = ("user_embeddings", "item_embeddings", "kernel")
    variables = [keras.Variable(np.ones((6, 1), "float32"), name=name) for name in names]
    optimizer = SGD(1.0, weight_decay=0.5)
    if by == "name":
        optimizer.exclude_from_weight_decay(var_names=["item"])
    else:
        optimizer.exclude_from_weight_decay(var_list=[variables[1]])
    gradient = rows([1], [[0.25]])
    optimizer.apply([gradient, gradient, tf.zeros((6, 1))], variables)
    assert [v.numpy()[:3].ravel().tolist() for v in variables] == [
        [1.0, 0.25, 1.0],
        [1.0, 0.75, 1.0],
        [0.5, 0.5, 0.5],
    ]


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [keras.Variable, tf.Variable])
@pytest.mark.parametrize(
    ("argument", "value"), [("gradient_accumulation_steps", 2), ("use_ema", True)]
)
def test_what_would_rewrite_every_row_is_refused(implementation, argument, value, wrap):
    table = wrap(np.ones((6, 1), "float32"), name="clicks")
    optimizer = Adagrad(0.1, **{argument: value})
    with pytest.raises(ValueError, match=f"`{argument}` would rewrite .* table `clicks.*={value}"):
        optimizer.apply([rows([1], [[1.0]])], [table])
    assert np.all(table.numpy() == 1.0)


def test_xla_is_refused_with_the_remedy(implementation, shared):
    model = shared.small_model(table="keras")
    model.compile(SGD(0.1), "mse", jit_compile=True)
    with pytest.raises(ValueError, match="Pass `jit_compile=False` to `model.compile` or `tf.func"):
        model.fit(shared.X, shared.Y, verbose=0)
    table, optimizer = keras.Variable(np.ones((6, 1), "float32")), SGD(0.1)
    optimizer.build([table])
    step = tf.function(lambda: optimizer.apply([rows([1], [[1.0]])], [table]), jit_compile=True)
    with pytest.raises(ValueError, match="Pass `jit_compile=False`"):
        step()
    dense = tf.function(lambda: optimizer.apply([tf.ones((6, 1))], [table]), jit_compile=True)
    dense()  # which is for Keras
    assert np.all(table.numpy() < 1.0)


def test_a_variable_that_the_optimizer_does_not_know(implementation):
    one, other = (keras.Variable(np.ones((6, 1), "float32")) for _ in range(2))
    optimizer = SGD(0.1)
    optimizer.build([one])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([rows([1], [[1.0]])], [other])


def test_ids_out_of_range_change_nothing(implementation):
    table = keras.Variable(np.ones((6, 1), "float32"))
    optimizer = Adam(0.1)
    optimizer.build([table])
    for ids in ([1, 6], [-1, 2]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="`ids` must"):
            optimizer.apply([rows(ids, [[1.0], [1.0]])], [table])
    assert np.all(table.numpy() == 1.0)
    assert not any(np.any(slot.numpy()) for slot in optimizer.variables[2:])


# ---- Narrow tables -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_slots_of_narrow_tables_are_wide(implementation, kind, dtype):
    for wrap in (keras.Variable, tf.Variable):
        table = wrap(np.ones((6, 2)), dtype=dtype, name="embeddings")
        optimizer = OPTIMIZERS[kind]()
        optimizer.apply([rows([1], [[1e-4, 1e-4]])], [table])
        slots = optimizer.variables[2:]
        assert {slot.dtype for slot in slots} <= {"float32"}
        assert len(slots) == {"sgd": 0, "momentum": 1, "adam": 2, "ftrl": 2}.get(kind, 1)


def narrow_table_after(steps=6, **arguments):
    table = keras.Variable(np.ones((300, 4)), dtype="bfloat16", name="embeddings")
    twin = keras.Variable(np.ones((300, 4)), dtype="bfloat16", name="embeddings")
    optimizer = SGD(2.0**-10, **arguments)
    gradient = tf.IndexedSlices(tf.ones((300, 4), tf.bfloat16), tf.range(300), (300, 4))
    for _ in range(steps):
        optimizer.apply([gradient, gradient], [table, twin])
    return tf.cast(table, tf.float64).numpy(), tf.cast(twin, tf.float64).numpy()


def test_small_steps_on_narrow_tables_are_not_lost(implementation):
    table, twin = narrow_table_after()
    # Each step is a quarter of the gap below 1.
    assert abs(table.mean() - (1 - 6 * 2.0**-10)) < 6 * 2.0**-8 / np.sqrt(table.size)
    assert np.any(table != twin)  # other tables, other bits
    nearest, _ = narrow_table_after(stochastic_rounding=False)
    assert np.all(nearest == 1.0)


def test_seeds_repeat_a_run(implementation):
    one, again, other = (narrow_table_after(seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


def test_each_step_rounds_anew(implementation):
    table, _ = narrow_table_after(steps=1)
    moved_first = table != 1.0
    table, _ = narrow_table_after(steps=2)
    assert 0.1 < np.mean((table != 1.0) & ~moved_first) < 0.3


# ---- Models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["bag", "keras"])
def test_models_of_all_kinds_train_as_with_keras(shared, table):
    """In gradient descent there is no difference but the order of sums."""
    expected = shared.fit(
        lambda: keras.optimizers.SGD(0.1), lambda: shared.small_model(table=table)
    )
    runs = [(name, "functional") for name in implementations()]
    runs += [(implementations()[0], kind) for kind in ("sequential", "subclassed")]
    for name, kind in runs:
        with use(name):
            outcome = shared.fit(lambda: SGD(0.1), lambda k=kind: shared.small_model(k, table))
        shared.assert_same_training(outcome, expected, 1e-5)


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_eager_steps_and_several_steps_in_one_call_change_nothing(
    model_implementation, shared, kind
):
    """But for roundings: in graphs, Grappler makes a product of x / sqrt(y) in dense updates."""
    expected = shared.fit(OPTIMIZERS[kind])
    tolerance = 1e-6 if model_implementation == "native" else 1e-5
    for arguments in ({"run_eagerly": True}, {"steps_per_execution": 3}):
        shared.assert_same_training(shared.fit(OPTIMIZERS[kind], **arguments), expected, tolerance)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("adagrad", {"weight_decay": 0.01}),
        pytest.param("adam", {}, marks=pytest.mark.slow),
        pytest.param("rowwise_adagrad", {}, marks=pytest.mark.slow),
        ("momentum", {"loss_scale_factor": 8.0}),
    ],
)
def test_two_replicas_equal_one(shared, kind, arguments):
    """They share ids, so parts of a row come from both."""
    strategy = shared.two_replicas()
    for name in implementations()[: 2 if kind == "adagrad" else 1]:
        with use(name):
            one, two = (
                shared.fit(lambda: OPTIMIZERS[kind](**arguments), strategy=of_run)
                for of_run in (None, strategy)
            )
        shared.assert_same_training(two, one, 1e-4)


def test_a_loss_scale_factor_is_taken_out_in_every_replica(implementation, shared):
    strategy = shared.two_replicas()
    with strategy.scope():
        table = keras.Variable(np.zeros((3, 1), "float32"), name="embeddings")
        optimizer = SGD(1.0, loss_scale_factor=8.0)
        optimizer.build([table])

    @tf.function
    def step():
        def of_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            ids = tf.stack([tf.cast(replica, tf.int32), 2])
            gradient = tf.IndexedSlices(tf.fill([2, 1], 8.0), ids, tf.constant([3, 1]))
            optimizer.apply([gradient], [table])

        strategy.run(of_replica)

    step()
    assert table.numpy().ravel().tolist() == [-1.0, -1.0, -2.0]


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_training_goes_on_from_a_file_as_if_nothing_had_happened(shared, kind, tmp_path):
    model = shared.small_model(dtype="bfloat16")  # whose rounding depends on the step
    model.compile(OPTIMIZERS[kind](), "mse", jit_compile=False)
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(shared.X, shared.Y, **arguments)
    model.save(tmp_path / "m.keras")
    revived = keras.saving.load_model(tmp_path / "m.keras")
    assert type(revived.optimizer) is type(model.optimizer)
    assert revived.optimizer.get_config() == model.optimizer.get_config()
    for m in (model, revived):
        m.fit(shared.X, shared.Y, **arguments)
    for a, b in zip(
        [*model.weights, *model.optimizer.variables],
        [*revived.weights, *revived.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(shared.as_float64(a), shared.as_float64(b))


def test_a_schedule_travels_with_the_config(implementation):
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 10)
    optimizer = Adam(schedule, clipnorm=2.0, weight_decay=0.5, name="mine")
    revived = Adam.from_config(optimizer.get_config())
    assert revived.get_config() == optimizer.get_config()
    assert (revived.name, revived.clipnorm, revived.weight_decay) == ("mine", 2.0, 0.5)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is Adam


MEMORY_PROBE = """
from pathlib import Path
import keras
import numpy as np
import tensorflow as tf
import tfrec_efficient as tfrec
from tfrec_efficient.optimizers import FTRL, SGD, Adagrad, Adam, LossScaleOptimizer, RowwiseAdagrad

SHAPE = (1 << 17, 64)  # 32 MB

def megabytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

def use_up_free_memory(held=[]):
    # TensorFlow keeps what it has freed, and a tensor made there would not be seen.
    grown = 0
    while grown < 31:
        before = megabytes("VmRSS")
        held.append(tf.ones(SHAPE))
        grown = megabytes("VmRSS") - before

bag = tfrec.EmbeddingBag(*SHAPE)
bag.build()
dense = keras.layers.Dense(1)
dense.build((None, 64))
variables = [bag.embeddings, *dense.trainable_weights]
ids = tf.constant(np.random.default_rng(0).integers(0, 1 << 17, (16, 4)))

def megabytes_of_a_step(optimizer):
    optimizer.build(variables)

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(dense(bag(ids)) ** 2)
        values = [variable.value for variable in variables]
        optimizer.apply(tape.gradient(loss, values), variables)

    in_graph = tf.function(step)
    step(), in_graph()
    use_up_free_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use
    before = megabytes("VmHWM")
    step(), in_graph()
    return megabytes("VmHWM") - before

for optimizer in (
    SGD(0.1), SGD(0.1, momentum=0.5), Adagrad(0.1), RowwiseAdagrad(0.1), Adam(0.1), FTRL(0.1),
    SGD(0.1, clipnorm=1.0), SGD(0.1, clipvalue=1.0), SGD(0.1, global_clipnorm=1.0),
    SGD(0.1, weight_decay=0.1), SGD(0.1, loss_scale_factor=2.0), LossScaleOptimizer(SGD(0.1)),
):
    print("MEGABYTES", megabytes_of_a_step(optimizer), optimizer.get_config())
print("KERAS", megabytes_of_a_step(keras.optimizers.Adagrad(0.1)))
"""

if "native" in implementations():

    def test_a_step_makes_nothing_as_large_as_the_table():
        with use("native"):
            run = subprocess.run(
                [sys.executable, "-P", "-c", MEMORY_PROBE], capture_output=True, text=True
            )
        assert run.returncode == 0, run.stderr
        lines = [line.split(" ", 2) for line in run.stdout.splitlines()]
        ours = {what: float(mb) for name, mb, what in (x for x in lines if x[0] == "MEGABYTES")}
        assert len(ours) == 12
        assert max(ours.values()) < 8, ours
        # What a step that is as large as the table would give.
        assert max(float(x[1]) for x in lines if x[0] == "KERAS") > 31
