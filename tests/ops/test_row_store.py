"""The wrapper of a cached table; its rules are tested with the C++ core, its use with the layer."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.ops import _loader
from tfrec_efficient.ops.row_store import CachedTable
from tfrec_efficient.ops.row_store import InitialRows
from tfrec_efficient.ops.row_store import hold

DIM = 3
CONSTANT = InitialRows("constant", 0.5, 0.0, 0, [0.1])
INVALID = tf.errors.InvalidArgumentError


def make(folder, slots=4, rows=20, initial=CONSTANT, policy="lru", **arguments):
    """A table of three weights, and one number of state where `initial` has it."""
    slab = [tf.Variable(tf.zeros([slots, DIM]), trainable=False)]
    columns = {"weights": DIM}
    if initial.state:
        slab.append(tf.Variable(tf.zeros([slots]), trainable=False))
        columns["state"] = 1
    arguments = {"slab": slab, "columns": columns, "initial": initial, **arguments}
    return CachedTable(str(folder), policy=policy, rows=rows, **arguments), slab


def add(table, slab, ids, number):
    """Adds a number to rows, as a training step does."""
    slots, lease = table.lookup(tf.constant(ids, tf.int64))
    for slot in np.unique(slots):
        slab[0][slot].assign(slab[0][slot] + number)
    table.commit(lease)
    return slots.numpy().tolist()


def read(table, ids):
    return table.read(tf.constant(ids, tf.int64)).numpy().tolist()


def test_rows_are_where_lookups_say(tmp_path):
    table, slab = make(tmp_path / "table")
    slots, lease = table.lookup(tf.constant([[7, 3], [7, 9]], tf.int64), padding_id=9)
    assert slots.dtype == tf.int32
    assert slots.shape == (2, 2)
    slots = slots.numpy()
    assert slots[1, 1] == -1
    assert slots[0, 0] == slots[1, 0] != slots[0, 1]
    assert slab[0].numpy()[slots[0, 0]].tolist() == [0.5] * 3
    assert slab[1].numpy()[slots[0, 0]] == np.float32(0.1)
    slab[0].assign(tf.fill([4, DIM], 2.0))
    table.commit(lease)
    assert read(table, [7])[0] == [2.0, 2.0, 2.0, np.float32(0.1), 2.0, 0.0]
    assert read(table, [8])[0] == [0.5, 0.5, 0.5, np.float32(0.1), 0.0, 0.0]


def test_the_last_columns_count_lookups_and_checkpoints(tmp_path):
    table, slab = make(tmp_path / "table")
    add(table, slab, [1, 1, 2], 1.0)
    add(table, slab, [1], 1.0)
    table.checkpoint("{}")
    add(table, slab, [2, 2, 2, 2], 1.0)
    table.lookup(tf.constant([3], tf.int64))
    table.checkpoint("{}")
    assert [row[-2:] for row in read(table, [1, 2, 3])] == [[3.0, 1.0], [5.0, 2.0], [0.0, 0.0]]


def test_rows_that_leave_come_back_with_all_of_their_columns(tmp_path):
    table, slab = make(tmp_path / "table", slots=2)
    expected = np.full(20, 0.5)
    rng = np.random.default_rng(0)
    for _ in range(60):
        ids = rng.choice(20, 2, replace=False)
        add(table, slab, ids, 1.0)
        expected[ids] += 1
    assert np.array(read(table, range(20)))[:, 0].tolist() == expected.tolist()
    stats = table.stats()
    assert stats.rows_written > 60
    assert (stats.used_rows, stats.largest_batch, stats.width) == (2, 2, 6)


def test_a_lease_lasts_as_long_as_its_tensor(tmp_path):
    table, _ = make(tmp_path / "table", slots=2)
    _, lease = table.lookup(tf.constant([1, 2], tf.int64))
    with pytest.raises(INVALID, match="`cache_rows` must be so many that the rows of all batches"):
        table.lookup(tf.constant([3], tf.int64))
    del lease
    table.lookup(tf.constant([3, 4], tf.int64))


def test_hold_keeps_a_lease_until_a_value_is_there(tmp_path):
    table, slab = make(tmp_path / "table", slots=2)

    @tf.function
    def look(ids):
        slots, lease = table.lookup(ids)
        return hold(tf.gather(slab[0], slots), lease)

    for ids in ([1, 2], [3, 4], [5, 6]):
        assert look(tf.constant(ids, tf.int64)).numpy().tolist() == [[0.5] * 3] * 2


def test_a_lease_that_was_not_committed_changes_nothing(tmp_path):
    table, slab = make(tmp_path / "table", slots=2)
    table.lookup(tf.constant([1], tf.int64))
    slab[0].assign(tf.ones([2, DIM]))
    add(table, slab, [2, 3], 0.0)  # takes both slots
    assert read(table, [1])[0][:3] == [0.5] * 3


def test_a_lease_of_something_else_is_refused(tmp_path):
    table, _ = make(tmp_path / "table")
    with pytest.raises(INVALID, match="`lease` must be that of a lookup"):
        table.commit(tf.raw_ops.EmptyTensorList(element_shape=-1, max_num_elements=1,
                                                element_dtype=tf.float32))  # fmt: skip


def test_the_slab_keeps_what_somebody_else_has_read(tmp_path):
    table, slab = make(tmp_path / "table", slots=2)
    add(table, slab, [1, 2], 1.0)
    seen = slab[0].read_value()
    add(table, slab, [3, 4], 2.0)
    assert seen.numpy().tolist() == [[1.5] * 3] * 2


@pytest.mark.parametrize(("policy", "hits"), [("lru", 0), ("lfu", 4), ("static", 8)])
def test_policies(tmp_path, policy, hits):
    table, slab = make(tmp_path / "table", slots=32, rows=200, policy=policy)
    frequent, first = [0, 1, 2, 3], [8, 9, 10, 11]
    for ids in (range(32), frequent, frequent, frequent, *([row] for row in range(100, 160))):
        add(table, slab, ids, 0.0)
    before = table.stats().hits
    table.lookup(tf.constant([*frequent, *first], tf.int64))
    assert table.stats().hits - before == hits


def test_rows_are_announced_and_awaited(tmp_path):
    table, slab = make(tmp_path / "table", slots=4)
    first, second = tf.constant([1, 2], tf.int64), tf.constant([3, 4], tf.int64)
    table.prefetch(first, stream=5)
    table.prefetch(second, stream=5)
    table.prefetch(tf.constant([6], tf.int64), stream=5)  # for which there is no room
    assert table.stats().announced == 2
    assert table.stats().lookups == 0
    assert add(table, slab, [1, 2], 1.0) == [0, 1]
    stats = table.stats()
    assert (stats.awaited, stats.hits, stats.lookups, stats.rows_read) == (1, 2, 2, 4)
    table.forget(stream=4)
    table.forget(stream=5)
    add(table, slab, [3, 4], 1.0)
    assert table.stats().awaited == 1
    assert table.stats().hits == 4


def test_growing_and_resetting(tmp_path):
    table, slab = make(tmp_path / "table", rows=4)
    with pytest.raises(INVALID, match=r"`ids` must be in `\[0, 4\)`. Received: `ids\[1\]=4`"):
        table.lookup(tf.constant([0, 4], tf.int64))
    table.grow(5)
    assert table.stats().rows == 8  # twice as many
    table.grow(3)
    assert table.stats().rows == 8
    add(table, slab, [7, 1], 1.0)
    table.checkpoint("{}")
    table.reset(tf.constant([7], tf.int64))
    assert read(table, [7, 1])[0] == [0.5, 0.5, 0.5, np.float32(0.1), 0.0, 2.0]
    assert read(table, [1])[0][0] == 1.5
    _, lease = table.lookup(tf.constant([1], tf.int64))
    with pytest.raises(INVALID, match="No batch must be in use .* with 1 rows"):
        table.reset(tf.constant([7], tf.int64))
    del lease


def test_a_checkpoint_is_what_the_next_one_opens(tmp_path):
    table, slab = make(tmp_path / "table", header='{"n": 0}')
    assert json.loads(table.header()) == {"n": 0}
    add(table, slab, [1], 1.0)
    table.checkpoint('{"n": 1}')
    add(table, slab, [1], 1.0)
    with pytest.raises(INVALID, match="must be open once at a time"):
        make(tmp_path / "table", rows=None)
    table.close()
    table.close()
    table, _ = make(tmp_path / "table", rows=None)
    assert json.loads(table.header()) == {"n": 1}
    assert table.stats().checkpoints == 1
    assert read(table, [1])[0][0] == 1.5
    array = np.load(tmp_path / "table" / "rows.npy", mmap_mode="r")
    assert array.dtype.names == ("weights", "state", "lookups", "checkpoint", "checksum")
    assert array["weights"][1].tolist() == [1.5] * 3


def test_rows_begin_as_numpy_says(tmp_path):
    """The files leave out what was never written, hence this must never change."""

    def mix(bits):
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        return bits ^ (bits >> 31)

    def bits_of(seed, row, column):
        return mix((mix((seed + 0x9E3779B97F4A7C15 * (row + 1)) % 2**64) + column) % 2**64)

    seed, rows = 2**40 + 3, range(20)
    bits = [[bits_of(seed, row, column) for column in range(DIM)] for row in rows]
    uniform = InitialRows("uniform", -1.0, 3.0, seed, [])
    table, _ = make(tmp_path / "uniform", initial=uniform)
    expected = [[-1 + 4 * ((b >> 40) * 2.0**-24) for b in row] for row in bits]
    np.testing.assert_allclose(np.array(read(table, rows))[:, :DIM], expected, 1e-6)
    table, _ = make(tmp_path / "normal", initial=InitialRows("normal", 1.0, 2.0, seed, []))
    expected = [
        [
            1
            + 2
            * np.sqrt(-2 * np.log(((b >> 32) + 0.5) * 2.0**-32))
            * np.cos((b % 2**32) * 2.0**-32 * 2 * np.pi)
            for b in row
        ]
        for row in bits
    ]
    np.testing.assert_allclose(np.array(read(table, rows))[:, :DIM], expected, 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, r"`rows` must be in `\[1, "),
        ({"header": "no json"}, "`header` must be a JSON object"),
        ({"slots": 0}, r"`cache_rows` must be in `\[1, "),
        ({"columns": {"Weights": 3, "state": 1}}, "`columns` must have names of the form"),
    ],
)
def test_tables_that_cannot_be_made(tmp_path, arguments, message):
    with pytest.raises(INVALID, match=message):
        make(tmp_path / "table", **arguments)
    make(tmp_path / "table")


def test_a_table_of_another_width_is_refused(tmp_path):
    make(tmp_path / "table")[0].close()
    with pytest.raises(INVALID, match="must have the columns of the table and its opt"):
        make(tmp_path / "table", rows=None, initial=InitialRows("constant", 0.0, 0.0, 0, []))


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(INVALID, match="must be the folder of a row store"):
        make(tmp_path / "table", rows=None)


def test_a_table_is_closed_while_a_graph_of_tensorflow_1_is_built(tmp_path):
    table = make(tmp_path / "table")[0]
    with tf.Graph().as_default():
        table.close()
    with pytest.raises(tf.errors.FailedPreconditionError, match="The table must be open"):
        table.stats()


def test_a_closed_table_says_so(tmp_path):
    table, slab = make(tmp_path / "table")
    _, lease = table.lookup(tf.constant([1], tf.int64))
    table.close()
    for use in (
        lambda: read(table, [1]),
        lambda: table.lookup(tf.constant([1], tf.int64)),
        lambda: table.commit(lease),
        lambda: table.checkpoint("{}"),
        table.stats,
    ):
        with pytest.raises(tf.errors.FailedPreconditionError, match="The table must be open"):
            use()
    assert slab[0].shape == (4, DIM)


def test_without_the_native_library_there_is_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(_loader, "_LIBRARY", tmp_path / "none.so")
    _loader.load.cache_clear()
    try:
        with pytest.raises(ImportError, match="native ops of tfrec_efficient are not installed"):
            make(tmp_path / "table")
        with pytest.raises(ImportError, match="native ops of tfrec_efficient are not installed"):
            tfrec.ops.mapped_rows("rows.npy", tf.float32, (1, 1))
    finally:
        _loader.load.cache_clear()
