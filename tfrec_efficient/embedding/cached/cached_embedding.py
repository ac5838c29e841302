"""`CachedEmbedding`: a Keras layer whose table is larger than memory."""

import itertools
import warnings
import weakref
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

# Orders what a function does, for which TensorFlow has no other public way than a function; and one
# within another loses updates to its optimization of graphs (2.20).
from tensorflow.python.framework.auto_control_deps import AutomaticControlDependencies

from tfrec_efficient.embedding._bag_layer import BagLayer
from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.embedding._bags import flat_ids
from tfrec_efficient.embedding._bags import values_of
from tfrec_efficient.embedding._bags import with_values
from tfrec_efficient.embedding.cached import _export
from tfrec_efficient.embedding.cached._row_table import POLICIES
from tfrec_efficient.embedding.cached._row_table import RowTable
from tfrec_efficient.embedding.cached.cache_report import CacheReport
from tfrec_efficient.embedding.cached.cache_report import report
from tfrec_efficient.embedding.cached.dynamic_vocabulary import DynamicVocabulary
from tfrec_efficient.embedding.cached.frozen_embedding import FrozenEmbedding
from tfrec_efficient.ops.gather_reduce import Combiner
from tfrec_efficient.ops.gather_reduce import gather_reduce
from tfrec_efficient.ops.row_store import TableStats
from tfrec_efficient.ops.row_store import hold

_streams = itertools.count()


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class CachedEmbedding(BagLayer):
    """Looks rows up in a table that lies in files, and keeps those in use in memory.

    Ids and outputs are those of `EmbeddingBag`. Of the `input_dim` rows, `cache_rows` lie in
    memory; all others are in the files of `path`, each with the state of its optimizer. Where
    `dataset.apply(layer.prefetch(depth))` reads the batches ahead, the rows of coming ones are
    brought to memory while the model works on those before, and stay there until they are updated.
    Without it, a batch waits for its rows. Training gives the same bits either way, and the same as
    an `EmbeddingBag` with this optimizer, whatever is kept in memory; but with `clipnorm`, whose
    sum over rows is rounded in the order of their slots.

    The layer trains its rows itself, with an optimizer of its own, during the backward pass: they
    are in no `trainable_weights`, and gradients that are clipped, accumulated or scaled by the
    optimizer of the model do not pass there; a model that is compiled with a loss scale is refused
    when it is trained by `fit`. Each call is a step: put all ids of a table into one. The only
    weight is a `hook` that stays 0; with `trainable=False` the rows stay, too.

    What Keras saves of the layer is a reference to the files, and each time that it does, as
    `keras.callbacks.BackupAndRestore` and `ModelCheckpoint` do, the layer makes a checkpoint, as
    `flush` does; `tf.train.Checkpoint` makes none. Rows go back to a checkpoint only by opening the
    store again: `load_weights` warns, and `EarlyStopping(restore_best_weights=True)` brings back
    the other weights only. Callbacks that set a learning rate set that of the model. The files
    always hold the last one, whole, at whatever instant the process ends or the disk fills up. A
    store is open once at a time: `close` it, or let the layer go, before another one opens it, such
    as that of a model that is loaded. `rows.npy` there can be read by `numpy.load(path,
    mmap_mode="r")`, and `header.json` says what it holds.

    The layer needs the native library, local files, one process and one replica. It is trained in
    float32; it may compute in `mixed_bfloat16`. To serve it, see `freeze`.

    Args:
        input_dim: int. Rows of the table; ids are in `[0, input_dim)`. None with a `vocabulary`.
        output_dim: int. Width of a row.
        cache_rows: int. Rows in memory: at least those of a batch, and `depth + 2` times as many to
            look ahead. Each takes 4 bytes a weight and a number of optimizer state, and 28 more.
        path: Folder of the store. It is made where there is none, in a folder that is there.
        optimizer: One of `tfrec_efficient.optimizers`, of this layer only. Its `iterations` are
            saved with the rows; its learning rate is what it is given.
        policy: What goes when another row comes. `"lookahead"`: rows that no announced batch needs,
            the less used ones first. `"lfu"`: less used ones first. `"lru"`: the one used longest
            ago. `"static"`: the first rows that came stay. Only the first one can `prefetch`.
            Defaults to `"lookahead"`.
        combiner: `"sum"`, `"mean"`, `"sqrtn"`, or None to look up without pooling.
            Defaults to `"sum"`.
        embeddings_initializer: Zeros, Ones, Constant, RandomUniform or RandomNormal. The numbers of
            a row depend on its id and the seed only, and not on when it is used first. A store
            keeps the seed that it was made with. Defaults to `"uniform"`.
        padding_id: int or None. Lookups of this id count as absent; without a combiner they give
            zeros. Defaults to None.
        mask_zero: bool. As for `EmbeddingBag`. Defaults to False.
        vocabulary: `DynamicVocabulary` or None. With one, ids are strings or any integers, and the
            table grows. Defaults to None.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        ids: As for `EmbeddingBag`; with a vocabulary, strings or any integers.
        weights: As for `EmbeddingBag`.
        training: bool or None. With a vocabulary, whether ids are counted. Defaults to None.

    Raises:
        ImportError: The native library is not installed.
        ValueError: An argument breaks a rule above, or the store was made with others.
        tf.errors.InvalidArgumentError: An id is out of range; the rows of one batch do not fit into
            `cache_rows`; the store is open already, or damaged; or a file cannot be read or
            written. After a failure in the middle of training, open the store again.

    Example:
    >>> import os, tempfile
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> layer = tfrec.CachedEmbedding(
    ...     input_dim=1_000_000,
    ...     output_dim=8,
    ...     cache_rows=100,
    ...     path=os.path.join(tempfile.mkdtemp(), "users"),
    ...     optimizer=tfrec.optimizers.Adagrad(0.1),
    ... )
    >>> layer(np.array([[1, 2, 3], [999_999, 4, 4]])).shape
    TensorShape([2, 8])
    >>> dataset = tf.data.Dataset.from_tensors((np.array([[1, 2], [3, 4]]), np.zeros((2, 8))))
    >>> next(iter(dataset.apply(layer.prefetch(depth=2))))[0].shape
    TensorShape([2, 2])
    >>> layer.flush()
    1

    References:
        - Kwon and Rhu, "Training Personalized Recommendation Systems from (GPU) Scratch: Look
          Forward not Backwards" (ScratchPipe), ISCA 2022: rows of known batches are always there.
          Here rows are held, and not counted, and the slow side is a file.
    """

    def __init__(
        self,
        input_dim: int | None,
        output_dim: int,
        cache_rows: int,
        path: Any,
        optimizer: Any,
        policy: Literal["lookahead", "lfu", "lru", "static"] = "lookahead",
        combiner: Combiner | None = "sum",
        embeddings_initializer: Any = "uniform",
        padding_id: int | None = None,
        mask_zero: bool = False,
        vocabulary: DynamicVocabulary | None = None,
        **kwargs: Any,
    ) -> None:
        check_sizes(cache_rows=cache_rows)
        if policy not in POLICIES:
            raise ValueError(f"`policy` must be one of {POLICIES}. Received: policy={policy!r}")
        if isinstance(optimizer, dict):  # of a config
            optimizer = keras.optimizers.deserialize(optimizer)
        if isinstance(vocabulary, dict):
            vocabulary = keras.saving.deserialize_keras_object(vocabulary)
        if (input_dim is None) != isinstance(vocabulary, DynamicVocabulary):
            raise ValueError(
                "Either `input_dim` must be a number of rows, or `vocabulary` a DynamicVocabulary. "
                f"Received: input_dim={input_dim!r}, vocabulary={vocabulary!r}"
            )
        if not getattr(optimizer, "updates_rows_only", False):
            raise ValueError(
                "`optimizer` must be one of `tfrec_efficient.optimizers`, which leave rows without "
                f"a gradient alone. Received: {optimizer!r}"
            )
        for option in ("gradient_accumulation_steps", "use_ema"):
            if getattr(optimizer, option):
                raise ValueError(
                    f"`optimizer` must be one without `{option}`, which would rewrite every row at "
                    f"each step. Received: {option}={getattr(optimizer, option)}"
                )
        super().__init__(input_dim, output_dim, combiner, padding_id, mask_zero, **kwargs)
        if self.variable_dtype != "float32" or self.compute_dtype == "float16":
            raise ValueError(
                "`dtype` must be a policy with variables in float32, and not mixed_float16: the "
                "gradients of rows do not pass by the optimizer that takes the loss scale out of "
                f"them. Received: dtype={self.dtype_policy.name!r}"
            )
        self.cache_rows = cache_rows
        self.store_path = str(path)  # Keras has a `path` of its own
        # Nobody may save its variables, which are the rows in memory: not TensorFlow, which would
        # be told by an assignment, nor Keras, which looks through all that `__dir__` names.
        object.__setattr__(self, "optimizer", optimizer)
        self.policy = policy
        self.vocabulary = vocabulary
        self._streams: list[int] = []  # of `prefetch`
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name != "optimizer"]

    def build(self, ids_shape: Any = None, weights_shape: Any = None) -> None:
        if self.built:
            return
        strategy = tf.distribute.get_strategy()
        if tf.distribute.has_strategy() and not isinstance(
            strategy, tf.distribute.OneDeviceStrategy
        ):
            raise ValueError(
                "`CachedEmbedding` must be built for one replica, without a strategy or with "
                "OneDeviceStrategy: the rows in memory are those of one process. Received: "
                f"{type(strategy).__name__} with {strategy.num_replicas_in_sync} replicas"
            )
        # A tape asks for the gradient of this one, which is 0, and so comes by the rows.
        self.hook = self.add_weight(name="hook", shape=(), initializer="zeros")
        # A thread of its own has no graph around it, nor a scope in which Keras only tries a model
        # out and makes no variables: either may be where a model without an `Input` is built.
        with futures.ThreadPoolExecutor(1) as thread:
            self._rows = thread.submit(self._make_rows, strategy).result()
        self.built = True

    def _make_rows(self, strategy: tf.distribute.Strategy) -> RowTable:
        with strategy.scope():
            return RowTable(
                Path(self.store_path),
                self.input_dim,
                self.output_dim,
                self.cache_rows,
                self.policy,
                self.embeddings_initializer,
                self.optimizer,
                None if self.vocabulary is None else self.vocabulary.rule(),
                self.name,
            )

    def call(self, ids: Any, weights: Any = None, training: bool | None = None) -> Any:
        if training is not False:  # None in a model that passes it to no layer
            self._refuse_loss_scale()
        if self.vocabulary is not None:
            ids = self._rows_of(ids, bool(training))
        return self._pool_or_look_up(ids, weights, None)

    def _refuse_loss_scale(self) -> None:
        # Rows would be trained on gradients that nobody divides by the scale again.
        model = self._get_call_context().entry_layer
        optimizer = getattr(model, "optimizer", None)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                f"The model of `{self.name}` must be compiled without a loss scale, which the "
                "gradients of its rows would keep: use `mixed_bfloat16` for `mixed_float16`. "
                f"Received: {optimizer!r}"
            )

    def _rows_of(self, keys: Any, training: bool) -> Any:
        """Where the rows of keys are, with -1 for padding."""
        keys = self._as_ids(keys)
        values, vocabulary = values_of(keys), self._rows.vocabulary
        assert vocabulary is not None
        if self.padding_id is not None:
            is_key = values != self.padding_id
            where, shape = tf.where(is_key), tf.shape(values)
            values = tf.boolean_mask(values, is_key)
        if training:
            rows, count = vocabulary.train(values)
            self._rows.table.grow(count)
        else:
            rows = vocabulary.find(values)
        if self.padding_id is not None:
            absent = tf.fill(shape, tf.cast(-1, tf.int64))
            rows = tf.tensor_scatter_nd_update(absent, where, rows)
        return with_values(keys, rows)

    @property
    def _padding_row(self) -> int | None:
        return (
            -1 if self.vocabulary is not None and self.padding_id is not None else self.padding_id
        )

    def _pool(self, ids: Any, weights: Any, casting: Any) -> tf.Tensor:
        rows = self._rows
        slots, lease = rows.table.lookup(flat_ids(ids), self._padding_row)
        bags = with_values(ids, slots)
        padding_id = None if self.padding_id is None else -1
        values = [] if weights is None else [values_of(weights)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([rows.slab, *values])
            of_bags = with_values(weights, values[0]) if values else None
            output = gather_reduce(rows.slab, bags, of_bags, self.combiner or "sum", padding_id)

        trains = self.trainable
        # TensorFlow keeps gradients of graphs for ever, and would keep the store open with them.
        reference = weakref.ref(rows)

        @tf.custom_gradient
        def trained(hook: tf.Tensor, *values: tf.Tensor) -> Any:
            def train(upstream: tf.Tensor) -> Any:
                rows = reference()
                assert rows is not None, "The layer is gone, and its rows with it."
                if not trains:
                    of_values = tape.gradient(output, values, upstream) if values else ()
                    return tf.zeros_like(hook), *(hold(value, lease) for value in of_values)
                of_rows, *of_values = tape.gradient(output, [rows.slab, *values], upstream)
                rows.optimizer.apply([of_rows], [rows.slab])
                rows.table.commit(lease)
                return tf.zeros_like(hook), *of_values

            def gradient(upstream: tf.Tensor) -> Any:
                graph = tf.compat.v1.get_default_graph()
                if tf.executing_eagerly() or graph._add_control_dependencies:
                    return train(upstream)
                # The graph of the gradient of a function, in which nothing has an order.
                with AutomaticControlDependencies() as order:
                    return [order.mark_as_return(result) for result in train(upstream)]

            return hold(output, lease), gradient

        return trained(tf.convert_to_tensor(self.hook), *values)

    # ---- Looking ahead ---------------------------------------------------------------------------

    def prefetch(
        self, depth: int = 2, ids: Callable[..., Any] | None = None
    ) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
        """Returns a transform that brings the rows of coming batches to memory, for `apply`.

        Put it last. It changes no element, and reads `depth` batches ahead, as
        `dataset.prefetch(depth)` does. Rows of `depth + 1` batches are held; where `cache_rows`
        are fewer, some batches are not read ahead, and wait for their rows. What it does is lost
        where the ids change on the way to the layer.

        Args:
            depth: int. Batches ahead. Defaults to 2.
            ids: Function of an element, as of `dataset.map`, that returns what the layer will be
                called with. Defaults to the first part of an element, its inputs.

        Raises:
            ValueError: The policy of the layer is another one, or `depth` is not positive.
        """
        check_sizes(depth=depth)
        if self.policy != "lookahead":
            raise ValueError(
                '`prefetch` needs `policy="lookahead"`, by which rows of coming batches stay. '
                f"Received: policy={self.policy!r}"
            )
        self.build()
        table, stream = self._rows.table, next(_streams)
        # Iterators that nobody goes on with would hold their rows for ever.
        self._streams = streams = [*self._streams, stream]

        def announce(*element: Any) -> Any:
            found = ids(*element) if ids else element[0]
            if self.vocabulary is None:
                rows = self._as_ids(found)
            else:
                rows = self._rows_of(found, training=False)
            table.prefetch(flat_ids(rows), stream, self._padding_row)
            return element if len(element) > 1 else element[0]

        def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
            def begin(_: tf.Tensor) -> tf.data.Dataset:
                for before in streams:  # batches that iterators before did not come to
                    table.forget(before)
                return dataset.map(announce)

            ahead = tf.data.Dataset.range(1).flat_map(begin)
            size = tf.get_static_value(dataset.cardinality())
            if size is not None and size != tf.data.UNKNOWN_CARDINALITY:
                ahead = ahead.apply(tf.data.experimental.assert_cardinality(size))
            return ahead.prefetch(depth)

        return transform

    # ---- Files -----------------------------------------------------------------------------------

    def flush(self) -> int:
        """Makes the rows as they are now the last checkpoint, and returns its number.

        With a vocabulary, keys that are too old are forgotten before.

        Raises:
            tf.errors.InvalidArgumentError: A file cannot be written. The checkpoint before this one
                is whole.
        """
        self.build()
        return self._rows.flush()

    def close(self) -> None:
        """Closes the store at its last checkpoint; what changed since is dropped.

        The layer is of no use afterwards, and another one can open the store.
        """
        if self.built:
            self._rows.table.close()

    def stats(self) -> TableStats:
        """What the table did since it was opened: lookups, hits, rows moved, time lost."""
        self.build()
        return self._rows.table.stats()

    def save_own_variables(self, store: Any) -> None:
        """Makes a checkpoint of the table, and saves its number: Keras does not see the rows."""
        super().save_own_variables(store)
        store["checkpoint"] = np.array(self.flush())

    def load_own_variables(self, store: Any) -> None:
        """Warns where the rows are not those of the checkpoint that the weights were saved with."""
        store = {key: store[key] for key in store.keys()}  # noqa: SIM118, which has no iterator
        saved = int(store.pop("checkpoint")[()])
        super().load_own_variables(store)
        now = self.stats().checkpoints
        is_trained_on = self._rows.is_trained_on()
        message = (
            f"The weights belong to checkpoint {saved} of the table `{self.store_path}`, which is "
            f"at {now}"
        )
        if now < saved:
            raise ValueError(f"{message}: it was replaced by an older one.")
        if now > saved or is_trained_on:
            warnings.warn(
                f"{message}{', and was trained since' if is_trained_on else ''}. A table keeps its "
                "last checkpoint only, and goes back to that when it is opened; the rows that "
                "changed since are newer than the other weights.",
                RuntimeWarning,
                stacklevel=2,
            )

    def read_rows(self, ids: Any) -> tf.Tensor:
        """The weights of rows as they are now, `(ids, output_dim)`; they do not come to memory.

        Args:
            ids: Integers: numbers of rows, also where the layer has a vocabulary.
        """
        self.build()
        ids = tf.reshape(tf.cast(ids, tf.int64), [-1])
        return self._rows.table.read(ids)[:, : self.output_dim]

    # ---- Serving ---------------------------------------------------------------------------------

    def freeze(
        self, path: Any, rows: Any = None, dtype: str = "float32", verbose: int = 0
    ) -> FrozenEmbedding:
        """Writes the table for serving, and returns the layer that reads it.

        Makes a checkpoint, and then goes through the rows a block at a time: neither this, nor
        exporting a model with the new layer, nor loading it, takes memory for the table. Put the
        new layer into the place of this one by `freeze_model`.

        Args:
            path: Folder to make.
            rows: None for all of them; a number, for so many that had the most lookups; or ids. All
                other ids get one row, the mean of the trained rows that are left out. With a
                vocabulary, all keys that have a row, or so many of them, and others get row 0.
                Defaults to None.
            dtype: `"float32"`, `"float16"`, or `"int8"` with a scale for each row.
                Defaults to `"float32"`.
            verbose: 1 for a progress bar. Defaults to 0.

        Raises:
            ValueError: An argument breaks a rule above, or a row is not finite in this dtype.
        """
        self.build()
        self.flush()
        vocabulary = self._rows.vocabulary
        _export.freeze(
            self._rows.table,
            Path(path),
            self._rows.table.stats().rows,
            self.output_dim,
            rows,
            dtype,
            verbose,
            None if vocabulary is None else tuple(part.numpy() for part in vocabulary.export()),
        )
        return FrozenEmbedding(path, self.combiner, self.padding_id, self.mask_zero, name=self.name)

    def export_changes(self, path: Any, since: int, verbose: int = 0) -> int:
        """Writes the rows that changed after a checkpoint, for `apply_changes`.

        Makes a checkpoint first.

        Args:
            path: Folder to make.
            since: int. A checkpoint: what `flush` returned, or the one of a frozen table.
            verbose: 1 for a progress bar. Defaults to 0.

        Returns:
            How many rows there are.

        Raises:
            ValueError: `since` is no checkpoint so far, or the layer has a vocabulary: what its
                rows mean changes, too, hence freeze the table anew.
        """
        if self.vocabulary is not None:
            raise ValueError(
                "`export_changes` needs a table without a vocabulary, of which `freeze` makes all "
                f"anew. Received: vocabulary={self.vocabulary!r}"
            )
        self.build()
        self.flush()
        return _export.write_changes(
            self._rows.table, Path(path), self.input_dim or 0, self.output_dim, since, verbose
        )

    def report(self, verbose: int = 0) -> CacheReport:
        """Which share of the rows takes which share of the lookups, and how many to keep in memory.

        Reads all rows once. Print what it returns, or `plot` it.

        Args:
            verbose: 1 for a progress bar. Defaults to 0.
        """
        self.build()
        table = self._rows.table
        return report(table, table.stats().rows, self.cache_rows, verbose)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            cache_rows=self.cache_rows,
            path=self.store_path,
            optimizer=keras.optimizers.serialize(self.optimizer),
            policy=self.policy,
            vocabulary=keras.saving.serialize_keras_object(self.vocabulary),
            embeddings_initializer=keras.initializers.serialize(self.embeddings_initializer),
        )
        return config


def cached_layers(model: keras.Model) -> list[CachedEmbedding]:
    """The layers of a model, and of the models in it, that have a table in files."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, CachedEmbedding)]
