"""Row store: tables in files, whose hot rows lie in variables, and keys for their rows."""

import contextlib
import dataclasses
import threading
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal

import tensorflow as tf

from tfrec_efficient.ops import _loader
from tfrec_efficient.ops._inputs import NO_PADDING

EvictionPolicy = Literal["lru", "lfu", "static"]

# Or a tape would ask for the zeros of a lease.
tf.no_gradient("TfrecEfficient>CachedTableLookup")

_OWN_COLUMNS = 2


@dataclasses.dataclass(frozen=True)
class InitialRows:
    """What a row holds before it is written for the first time.

    Args:
        kind: `"constant"`, `"uniform"` or `"normal"`, of the weights.
        first: The constant, the least number, or the mean.
        second: The first number above all, or the standard deviation.
        seed: int. A weight depends on the seed, its row and its column only.
        state: What follows the weights, the same in each row.
    """

    kind: Literal["constant", "uniform", "normal"]
    first: float
    second: float
    seed: int
    state: Sequence[float]


@dataclasses.dataclass(frozen=True)
class TableStats:
    """What a table did since it was opened, and how large it is now.

    Attributes:
        rows: Rows of the table.
        width: Columns of a row in the file.
        checkpoints: Number of the last checkpoint.
        lookups: Lookups by batches.
        hits: Those of them whose row was in memory when the batch came.
        rows_read: Rows that were read from the files.
        rows_written: Rows that were written to the files.
        stall_nanoseconds: Time that batches waited for rows.
        announced: Batches that were announced, and held their rows.
        awaited: Batches that came as they were announced.
        used_rows: Rows in memory.
        bytes: Memory for the bookkeeping, besides the rows.
        largest_batch: The most rows of one batch.
    """

    rows: int
    width: int
    checkpoints: int
    lookups: int
    hits: int
    rows_read: int
    rows_written: int
    stall_nanoseconds: int
    announced: int
    awaited: int
    used_rows: int
    bytes: int
    largest_batch: int


class CachedTable:
    """A table in the files of a folder, as many of whose rows lie in memory as there is room for.

    A row is the weights, then the state of an optimizer, in float32, and two columns that the table
    keeps itself: how many lookups the row was trained for, and the number of the checkpoint that
    first holds the row as it is. `rows.npy` in the folder has the rows as they were at the last
    checkpoint, `header.json` what they are.

    The memory is variables of the caller, the slab, between which the columns of a row are divided.
    A lookup finds the slots of rows, and makes room for those that are not there. The rows stay in
    their slots for as long as its lease lives, and are written back to the files later where
    `commit` ended the lease.

    There is no reference in plain TensorFlow: this needs the native library.

    Args:
        folder: Where the store is, or is to be made.
        slab: float32 variables of shape `(cache_rows, ...)`: the weights and the slots of an
            optimizer.
        columns: Names and widths of the columns of the slab, as the files have them.
        initial: What rows hold that were never written.
        policy: Which row has to go: `"lru"`, `"lfu"`, or `"static"`.
        rows: Rows of a new store, or None to open one that is there. Defaults to None.
        header: Text of a JSON object, which the new store keeps. Defaults to `"{}"`.

    Raises:
        ImportError: The native library is not installed.
        tf.errors.InvalidArgumentError: The store cannot be made or opened: it is open already, was
            damaged, has rows of another width.
    """

    def __init__(
        self,
        folder: str,
        slab: Sequence[tf.Variable],
        columns: Mapping[str, int],
        initial: InitialRows,
        policy: EvictionPolicy,
        rows: int | None = None,
        header: str = "{}",
    ) -> None:
        self._slab = list(slab)
        dim = slab[0].shape[1]
        self.width = dim + len(initial.state) + _OWN_COLUMNS
        columns = {**columns, "lookups": 1, "checkpoint": 1}
        ops = _native()
        with tf.init_scope(), tf.device("CPU:0"):
            self._table = ops.tfrec_efficient_open_cached_table(
                folder=folder,
                new_rows=-1 if rows is None else rows,
                new_header=header,
                cache_rows=slab[0].shape[0],
                initial=[initial.first, initial.second],
                initial_state=tf.constant(initial.state, tf.float32, [len(initial.state)]),
                seed=initial.seed,
                dim=dim,
                policy=policy,
                initializer=initial.kind,
                columns=list(columns),
                widths=list(columns.values()),
            )

    def _handles(self) -> dict[str, Any]:
        return {"table": self._table, "slab": [variable.handle for variable in self._slab]}

    def lookup(self, ids: tf.Tensor, padding_id: int | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """The slots of rows, as int32 of the shape of `ids`, and a lease on them.

        Args:
            ids: int64 tensor.
            padding_id: int or None. The slot of this id is -1. Defaults to None.

        Raises:
            tf.errors.InvalidArgumentError: An id is out of range, there is no room for the rows, or
                a file fails.
        """
        return _native().tfrec_efficient_cached_table_lookup(
            **self._handles(), ids=ids, padding_id=_padding(padding_id)
        )

    def commit(self, lease: tf.Tensor) -> None:
        """Ends a lease on rows that were changed."""
        _native().tfrec_efficient_cached_table_commit(**self._handles(), lease=lease)

    def prefetch(self, ids: tf.Tensor, stream: int, padding_id: int | None = None) -> None:
        """Brings rows to memory, and holds them there until these very ids are looked up.

        Without an effect where batches before hold too many of the slots.

        Args:
            ids: int64 tensor.
            stream: int. Batches of one stream come in the order in which they are prefetched: one
                that comes tells that those before will not.
            padding_id: As for `lookup`. Defaults to None.
        """
        _native().tfrec_efficient_cached_table_prefetch(
            **self._handles(), ids=ids, padding_id=_padding(padding_id), stream=stream
        )

    def forget(self, stream: int) -> None:
        """Batches of a stream that did not come yet never will."""
        _native().tfrec_efficient_cached_table_forget(**self._handles(), stream=stream)

    def checkpoint(self, header: str) -> None:
        """Makes the rows as they are now the last checkpoint, with a new header."""
        _native().tfrec_efficient_cached_table_checkpoint(**self._handles(), header=header)

    def read(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows as they are now, `(ids, width)`. They do not come to memory.

        Args:
            ids: int64 tensor of rank 1. Ids that rise are fast.
        """
        return _native().tfrec_efficient_cached_table_read(
            **self._handles(), ids=ids, width=self.width
        )

    def reset(self, ids: tf.Tensor) -> None:
        """Gives rows their initial values again; an error, and no more, while a batch is in use."""
        _native().tfrec_efficient_cached_table_reset(**self._handles(), ids=ids)

    def grow(self, rows: Any) -> None:
        """Adds rows until there are at least so many."""
        _native().tfrec_efficient_cached_table_grow(**self._handles(), rows=rows)

    def stats(self) -> TableStats:
        return TableStats(*self._stats()[0].numpy().tolist())

    def header(self) -> str:
        """The header of the last checkpoint."""
        return self._stats()[1].numpy().decode()

    def _stats(self) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.init_scope():
            return _native().tfrec_efficient_cached_table_stats(**self._handles())

    def close(self) -> None:
        """Closes the store, at its last checkpoint; it may be closed already."""
        with tf.init_scope():
            is_eager = tf.executing_eagerly()
            if is_eager:
                self._close()
        if not is_eager:
            # Collected while a graph of TensorFlow 1 is the default one, which is that of a thread.
            thread = threading.Thread(target=self._close)
            thread.start()
            thread.join()

    def _close(self) -> None:
        with contextlib.suppress(tf.errors.FailedPreconditionError):
            _native().tfrec_efficient_cached_table_close(**self._handles())


class Vocabulary:
    """Rows for keys of 64 bits that nobody has counted before.

    Row 0 belongs to all keys that have no row of their own. There is no reference in plain
    TensorFlow: this needs the native library.

    Args:
        min_count: int. A key has a row when it was counted so often.
        max_age: int. A key that was in none of so many batches is forgotten by `expire`; 0 is for
            never.
        max_rows: int. The table has no more; keys wait then. 0 is for no limit.
        saved: What `save` returned, or None for a new one. Defaults to None.

    Raises:
        ImportError: The native library is not installed.
        tf.errors.InvalidArgumentError: `saved` is damaged.
    """

    def __init__(self, min_count: int, max_age: int, max_rows: int, saved: Any = None) -> None:
        with tf.init_scope(), tf.device("CPU:0"):
            self._handle = _native().tfrec_efficient_open_vocabulary(
                saved=tf.zeros([0], tf.int64) if saved is None else saved,
                min_count=min_count,
                max_age=max_age,
                max_rows=max_rows,
            )

    def train(self, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Counts a batch of keys; returns their rows, and how many rows the table must have."""
        return _native().tfrec_efficient_vocabulary_train(vocabulary=self._handle, keys=keys)

    def find(self, keys: tf.Tensor) -> tf.Tensor:
        """The rows of keys, which are not counted."""
        return _native().tfrec_efficient_vocabulary_find(vocabulary=self._handle, keys=keys)

    def expire(self) -> tf.Tensor:
        """Forgets keys that are too old, and returns the rows that they had, to be reset."""
        return _native().tfrec_efficient_vocabulary_expire(vocabulary=self._handle)

    def save(self) -> tf.Tensor:
        """All that there is to know, as int64 numbers."""
        return _native().tfrec_efficient_vocabulary_save(vocabulary=self._handle)

    def export(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The keys that have a row, and these rows, which ascend."""
        return _native().tfrec_efficient_vocabulary_export(vocabulary=self._handle)


def mapped_rows(path: Any, dtype: tf.DType, shape: Sequence[int]) -> tf.Tensor:
    """Returns the array in an `.npy` file as a tensor, in place.

    Pages of the file come to memory when something reads them, and can be given up again: a table
    larger than memory can be looked up in. In a SavedModel, let `path` be a `tf.saved_model.Asset`.
    There is no reference in plain TensorFlow: this needs the native library.

    Args:
        path: Text, or a scalar tensor of it. The file must not change while it is in use.
        dtype: float32, float16, int8 or int64.
        shape: The shape of the array.

    Raises:
        ImportError: The native library is not installed.
        tf.errors.InvalidArgumentError: The file cannot be read, or holds another array.

    Example:
    >>> import os, tempfile
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> path = os.path.join(tempfile.mkdtemp(), "table.npy")
    >>> np.save(path, np.array([[1, 2], [3, 4]], np.float32))
    >>> table = tfrec.ops.mapped_rows(path, tf.float32, (2, 2))
    >>> tfrec.ops.gather_reduce(table, [[0, 1]]).numpy().tolist()
    [[4.0, 6.0]]
    """
    return _native().tfrec_efficient_mapped_rows(path=path, dtype=dtype, shape=shape)


def hold(value: tf.Tensor, lease: tf.Tensor) -> tf.Tensor:
    """`value`, before which `lease` does not end."""
    return _native().tfrec_efficient_hold(value=value, lease=lease)


def _native() -> Any:
    # There is no other way to keep a table out of memory than this library.
    return _loader.load()


def _padding(padding_id: int | None) -> int:
    return NO_PADDING if padding_id is None else padding_id
