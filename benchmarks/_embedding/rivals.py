"""The rivals of a cell: this library, TensorFlow, Keras, and those in processes of their own."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

import _harness
import _workers
import keras
import tensorflow as tf

import tfrec_efficient as tfrec
from _embedding.cells import LEARNING_RATE
from _embedding.cells import OPTIMIZERS
from _embedding.cells import PATTERN_ROWS
from _embedding.cells import Cell
from _embedding.cells import Inputs

OURS = "tfrec.EmbeddingBag"
GATHER = "tf.gather + tf.reduce_sum"
LOOKUP = "tf.nn.embedding_lookup_sparse"
KERAS = "keras.layers.Embedding"
TORCH = "torch.nn.EmbeddingBag"
FBGEMM = "FBGEMM TBE"
CEILING_HUGE = "memory ceiling, huge pages"
CEILING_SMALL = "memory ceiling, 4 KiB pages"


@dataclasses.dataclass(frozen=True)
class Opened:
    """A rival that is ready for its turns, and what it says about itself."""

    measure: Callable[[int], dict[str, float]]
    about: dict[str, object]
    process: int


@dataclasses.dataclass(frozen=True)
class InProcess:
    """A rival of this process: what it does in a step, in pieces.

    Attributes:
        prepare: From ids `(tables, batch, hotness)` to what `pool` takes; is not timed.
        pool: The forward pass; returns `(batch, dim)` for each table, side by side or in a list.
        variables: The tables.
        apply: The optimizer: takes the gradients of `variables`, updates them.
    """

    prepare: Callable[[tf.Tensor], Sequence[tf.Tensor]]
    pool: Callable[..., list[tf.Tensor]]
    variables: list[tf.Variable]
    apply: Callable[[list[tf.IndexedSlices]], object]


def our_optimizer(name: str) -> keras.optimizers.Optimizer:
    """The optimizer of this library; for a forward pass, the one that updates the table before."""
    names = {
        "none": "SGD",
        "sgd": "SGD",
        "adagrad": "Adagrad",
        "rowwise_adagrad": "RowwiseAdagrad",
        "adam": "Adam",
    }
    return getattr(tfrec.optimizers, names[name])(learning_rate=LEARNING_RATE)


def keras_optimizer(name: str) -> keras.optimizers.Optimizer:
    """The optimizer of Keras."""
    names = {"none": "SGD", "sgd": "SGD", "adagrad": "Adagrad", "adam": "Adam"}
    return getattr(keras.optimizers, names[name])(learning_rate=LEARNING_RATE)


def tensorflow_optimizer(name: str) -> tf.compat.v1.train.Optimizer:
    """The optimizer of TensorFlow 1: its sparse updates are still the best of stock TensorFlow."""
    names = {"none": "GradientDescent", "sgd": "GradientDescent", "adagrad": "Adagrad"}
    kind = names.get(name, "Adam")
    return getattr(tf.compat.v1.train, f"{kind}Optimizer")(LEARNING_RATE)


def initializer(pattern: tf.Tensor) -> Callable[..., tf.Tensor]:
    """Makes the table that all rivals start from."""
    return lambda shape, dtype=None: tf.gather(pattern, tf.range(shape[0]) % len(pattern))


def _one_table(ids: tf.Tensor) -> list[tf.Tensor]:
    return [ids[0]]


def _ours(cell: Cell, pattern: tf.Tensor) -> InProcess:
    layer = tfrec.EmbeddingBag(cell.rows, cell.dim, embeddings_initializer=initializer(pattern))
    layer.build()
    optimizer = our_optimizer(cell.optimizer)
    return InProcess(
        prepare=_one_table,
        pool=lambda ids: [layer(ids)],
        variables=[layer.embeddings.value],
        apply=lambda gradients: optimizer.apply(gradients, [layer.embeddings]),
    )


def _keras(cell: Cell, pattern: tf.Tensor) -> InProcess:
    layer = keras.layers.Embedding(cell.rows, cell.dim, embeddings_initializer=initializer(pattern))
    layer.build()
    optimizer = keras_optimizer(cell.optimizer)
    return InProcess(
        prepare=_one_table,
        pool=lambda ids: [tf.reduce_sum(layer(ids), axis=1)],
        variables=[layer.embeddings.value],
        apply=lambda gradients: optimizer.apply(gradients, [layer.embeddings]),
    )


def _tensorflow(
    cell: Cell,
    pattern: tf.Tensor,
    prepare: Callable[[tf.Tensor], Sequence[tf.Tensor]],
    pool: Callable[..., tf.Tensor],
) -> InProcess:
    table = tf.Variable(initializer(pattern)((cell.rows, cell.dim)))
    optimizer = tensorflow_optimizer(cell.optimizer)
    return InProcess(
        prepare=prepare,
        pool=lambda *ids: [pool(table, *ids)],
        variables=[table],
        apply=lambda gradients: optimizer.apply_gradients([(gradients[0], table)]),
    )


def _gather(cell: Cell, pattern: tf.Tensor) -> InProcess:
    return _tensorflow(
        cell, pattern, _one_table, lambda table, ids: tf.reduce_sum(tf.gather(table, ids), axis=1)
    )


def _lookup(cell: Cell, pattern: tf.Tensor) -> InProcess:
    def prepare(ids):
        sparse = tf.RaggedTensor.from_tensor(ids[0]).to_sparse()
        return [sparse.indices, sparse.values, sparse.dense_shape]

    def pool(table, *parts):
        return tf.nn.embedding_lookup_sparse(table, tf.SparseTensor(*parts), None, combiner="sum")

    return _tensorflow(cell, pattern, prepare, pool)


def compile_step(rival: InProcess, inputs: Inputs, is_forward: bool) -> Callable[[int], object]:
    """The function that runs a step on a batch; the tables have seen a sparse update by then.

    Before its first sparse update a variable is read without copying, which no training sees.
    """
    batches = [rival.prepare(tf.constant(ids)) for ids in inputs.ids]
    upstream = tf.constant(inputs.upstream)
    rival.apply(
        [
            tf.IndexedSlices(tf.zeros((1, table.shape[1])), tf.constant([0]), table.shape)
            for table in rival.variables
        ]
    )

    @tf.function(jit_compile=False)
    def step(*ids):
        if is_forward:
            return rival.pool(*ids)
        with tf.GradientTape() as tape:
            pooled = rival.pool(*ids)
        grads = [tf.tile(upstream, [1, rows.shape[1] // upstream.shape[1]]) for rows in pooled]
        rival.apply(tape.gradient(pooled, rival.variables, output_gradients=grads))
        # Returned, or TensorFlow would leave the forward pass out: the gradient does not need it.
        return pooled

    concrete = step.get_concrete_function(*batches[0])
    return lambda batch: concrete(*batches[batch])


@contextlib.contextmanager
def open_in_process(
    name: str,
    make: Callable[[Cell, tf.Tensor], InProcess],
    cell: Cell,
    inputs: Inputs,
) -> Iterator[Opened]:
    """A rival of this process, checked."""
    rival = make(cell, tf.constant(inputs.pattern))
    pooled = rival.pool(*rival.prepare(tf.constant(inputs.ids[0])))
    inputs.check(name, sum(inputs.summary(table) for table in pooled))
    run = compile_step(rival, inputs, cell.is_forward)
    yield Opened(_harness.timed(run), {}, os.getpid())


@contextlib.contextmanager
def _open_worker(
    name: str,
    command: Callable[[], list[Path]],
    environment: dict[str, str],
    description: dict[str, object],
    cell: Cell,
    inputs: Inputs,
) -> Iterator[Opened]:
    with tempfile.TemporaryDirectory() as folder:
        facts = {
            "batches": _harness.BATCHES,
            "pattern_rows": PATTERN_ROWS,
            "learning_rate": LEARNING_RATE,
            **dataclasses.asdict(cell),
            **inputs.save(Path(folder)),
            **description,
        }
        worker = _workers.Worker(command(), facts, environment)
    try:
        inputs.check(name, worker.about.pop("pooled"))
        about = {**worker.about, "huge_page_bytes": _harness.huge_page_bytes(worker.pid)}
        yield Opened(worker.measure, about, worker.pid)
    finally:
        worker.close()


@dataclasses.dataclass(frozen=True)
class Rival:
    """A rival that has not been started.

    Attributes:
        peer: The flag that asks for it.
        optimizers: What it can do.
        open: From cell and inputs to a context manager that gives an `Opened`.
        temporaries: How many tables' worth of memory is resident besides table and slots, by
            optimizer, as measured at a million rows. It never comes back: see `children.py`.
    """

    peer: str
    optimizers: tuple[str, ...]
    open: Callable[[Cell, Inputs], contextlib.AbstractContextManager[Opened]]
    temporaries: dict[str, float] = dataclasses.field(default_factory=dict)

    def slots(self, cell: Cell) -> int:
        """How many arrays as large as the table its optimizer keeps."""
        if self.peer == "ceiling":
            return 0
        return {"adagrad": 1, "adam": 2}.get(cell.optimizer, 0)


def in_process(
    peer: str,
    name: str,
    make: Callable[[Cell, tf.Tensor], InProcess],
    temporaries: dict[str, float] | None = None,
) -> Rival:
    """A rival of this process."""
    optimizers = OPTIMIZERS if peer == "ours" else ("none", "sgd", "adagrad", "adam")
    return Rival(
        peer,
        optimizers,
        lambda cell, inputs: open_in_process(name, make, cell, inputs),
        temporaries or {},
    )


def _peer(peer, name, optimizers) -> Rival:
    return Rival(
        peer,
        optimizers,
        lambda cell, inputs: _open_worker(
            name,
            _workers.peer_command,
            _workers.peer_environment(),
            {"rival": peer},
            cell,
            inputs,
        ),
    )


def _ceiling(name, pages) -> Rival:
    def open_ceiling(cell, inputs):
        kind = "gather" if cell.is_forward else "update"
        description = {"kind": kind, "pages": pages}
        return _open_worker(name, _workers.ceiling_command, {}, description, cell, inputs)

    return Rival("ceiling", OPTIMIZERS, open_ceiling)


RIVALS = {
    OURS: in_process("ours", OURS, _ours),
    GATHER: in_process("tf", GATHER, _gather, {"adam": 6.7}),
    LOOKUP: in_process("tf", LOOKUP, _lookup, {"adam": 6.7}),
    KERAS: in_process(
        "keras", KERAS, _keras, {"none": 1.1, "sgd": 2.2, "adagrad": 3.4, "adam": 3.4}
    ),
    TORCH: _peer("torch", TORCH, ("none", "sgd", "adagrad", "adam")),
    FBGEMM: _peer("fbgemm", FBGEMM, ("none", "sgd", "adagrad", "rowwise_adagrad")),
    CEILING_HUGE: _ceiling(CEILING_HUGE, "huge"),
    CEILING_SMALL: _ceiling(CEILING_SMALL, "small"),
}
