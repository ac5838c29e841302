"""What a `CachedEmbedding` trains: rows and the state of their optimizer, in memory and files."""

import json
import os
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.ops._inputs import as_tf
from tfrec_efficient.ops.row_store import CachedTable
from tfrec_efficient.ops.row_store import EvictionPolicy
from tfrec_efficient.ops.row_store import InitialRows
from tfrec_efficient.ops.row_store import Vocabulary

_VERSION = 1
# What rows no announced batch needs go first is a question of its own.
_EVICTION: dict[str, EvictionPolicy] = {
    "lookahead": "lfu",
    "lfu": "lfu",
    "lru": "lru",
    "static": "static",
}
POLICIES = tuple(_EVICTION)
_FIRST_ROWS = 1024  # of a table that grows with its vocabulary


class RowTable:
    """A slab of rows in memory, the optimizer that trains it, and the files behind it.

    Not part of what Keras and TensorFlow save, which would be the slab.
    """

    def __init__(
        self,
        path: Path,
        input_dim: int | None,
        output_dim: int,
        cache_rows: int,
        policy: str,
        initializer: keras.initializers.Initializer,
        optimizer: keras.optimizers.Optimizer,
        vocabulary: Mapping[str, int] | None,
        name: str,
    ) -> None:
        if optimizer.built:
            raise ValueError(
                "`optimizer` must be one that trains nothing else yet, nor was in a layer that "
                "could not be built. Received: an optimizer with "
                f"{len(optimizer.variables)} variables"
            )
        self.path = path
        self.optimizer = optimizer
        with tf.device("CPU:0"):
            # Not trainable: a tape would watch each read, and hand the gradient to the model.
            self.slab = tf.Variable(
                tf.zeros([cache_rows, output_dim]), trainable=False, name=f"{name}_embeddings"
            )
            optimizer.build([self.slab])
        own = {id(optimizer.iterations), id(optimizer._learning_rate)}
        slots = [variable for variable in optimizer.variables if id(variable) not in own]
        columns = {"weights": output_dim}
        state: list[float] = []
        for slot in slots:
            first = keras.ops.convert_to_numpy(slot[0]).reshape(-1)
            columns[slot.name.rpartition("embeddings")[2].lstrip(":0_")] = len(first)
            state.extend(first.tolist())
        facts: dict[str, Any] = {
            "version": _VERSION,
            "output_dim": output_dim,
            "optimizer": type(optimizer).__name__,
            "columns": columns,
            "initializer": _initial(initializer),
            "vocabulary": None if vocabulary is None else dict(vocabulary),
        }
        is_new = not (path / "header.json").exists()
        if not is_new:
            facts["initializer"] = _checked_facts(path, facts)["initializer"]
        self._facts = facts
        self.table = CachedTable(
            str(path),
            [self.slab, *map(as_tf, slots)],
            columns,
            InitialRows(**facts["initializer"], state=state),
            _EVICTION[policy],
            (input_dim or _FIRST_ROWS) if is_new else None,
            self._header(None),
        )
        # Graphs that have used the table may live on.
        weakref.finalize(self, self.table.close).atexit = False
        stats = self.table.stats()
        if input_dim is not None and stats.rows != input_dim:
            self.table.close()
            raise ValueError(
                f"`input_dim` must be {stats.rows}, the rows of the store `{path}`. "
                f"Received: input_dim={input_dim}"
            )
        header = json.loads(self.table.header())
        optimizer.iterations.assign(header["iterations"])
        self.vocabulary = None
        if vocabulary is not None:
            self.vocabulary = Vocabulary(**vocabulary, saved=_read_keys(path, header["keys"]))

    def _header(self, keys: Mapping[str, Any] | None) -> str:
        now = {"iterations": int(self.optimizer.iterations), "keys": keys}
        return json.dumps({**self._facts, **now})

    def is_trained_on(self) -> bool:
        """Whether rows were trained since the last checkpoint."""
        return int(self.optimizer.iterations) != json.loads(self.table.header())["iterations"]

    def flush(self) -> int:
        """Makes the rows as they are now the last checkpoint, and returns its number."""
        number = self.table.stats().checkpoints + 1
        keys = None
        if self.vocabulary is not None:
            # Raises while a batch is in use, which would be too late once rows are free for others.
            self.table.reset(tf.zeros([0], tf.int64))
            freed = self.vocabulary.expire()
            if len(freed) > 0:
                self.table.reset(freed)
            keys = _write_keys(self.path, f"keys-{number}.npy", self.vocabulary.save().numpy())
        self.table.checkpoint(self._header(keys))
        for file in self.path.glob("keys-*"):  # of checkpoints that are the last one no more
            if file.name != f"keys-{number}.npy":
                file.unlink()
        return number


def _initial(initializer: Any) -> dict[str, Any]:
    """The arguments of `InitialRows` that an initializer has an equal of."""
    kinds = keras.initializers
    if isinstance(initializer, kinds.Zeros | kinds.Ones | kinds.Constant):
        value = float(initializer((1,))[0])
        return {"kind": "constant", "first": value, "second": 0.0, "seed": 0}
    pairs = {
        kinds.RandomUniform: ("uniform", "minval", "maxval"),
        kinds.RandomNormal: ("normal", "mean", "stddev"),
    }
    if type(initializer) not in pairs or not isinstance(initializer.seed, int):
        raise ValueError(
            "`embeddings_initializer` must be Zeros, Ones, Constant, RandomUniform or "
            "RandomNormal, with an integer for a seed: rows are made when they are used first. "
            f"Received: {initializer!r}"
        )
    kind, *names = pairs[type(initializer)]
    first, second = (float(getattr(initializer, name)) for name in names)
    return {"kind": kind, "first": first, "second": second, "seed": initializer.seed}


def _checked_facts(path: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the header of a store says, where that is what the layer needs."""
    file = path / "header.json"
    try:
        found = json.loads(file.read_text())["user"]
        its = {name: found[name] for name in facts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`path` must be the folder of a CachedEmbedding. Received: `{file}` without its "
            f"header, {error!r}"
        ) from error
    # Two layers without a seed have different ones; the rows of the store keep theirs.
    seedless = [{**a, "initializer": {**a["initializer"], "seed": 0}} for a in (facts, its)]
    for name in facts:
        if seedless[0][name] != seedless[1][name]:
            raise ValueError(
                f"The store `{path}` was made with {name}={its[name]!r}. "
                f"Received: {name}={facts[name]!r}"
            )
    return its


def _write_keys(folder: Path, name: str, keys: np.ndarray) -> dict[str, Any]:
    """Writes what the header of a checkpoint refers to, before that is made."""
    part = folder / f"{name}.part"
    try:
        with part.open("wb") as file:
            np.save(file, keys)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(f"`{part}` cannot be written: {error}") from error
    part.rename(folder / name)
    return {"file": name, "checksum": zlib.crc32(keys.tobytes())}


def _read_keys(folder: Path, keys: Mapping[str, Any] | None) -> np.ndarray | None:
    if keys is None:
        return None
    file = folder / keys["file"]
    try:
        saved = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"`{file}` must hold the keys of the table. Received: {error}") from error
    checksum = zlib.crc32(saved.tobytes())
    if checksum != keys["checksum"]:
        raise ValueError(
            f"`{file}` must have the checksum {keys['checksum']}. Received: {checksum}"
        )
    return saved
