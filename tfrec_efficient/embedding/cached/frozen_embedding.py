"""`FrozenEmbedding`: the rows of a `CachedEmbedding`, for serving."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import BagLayer
from tfrec_efficient.embedding._bags import flat_ids
from tfrec_efficient.embedding._bags import with_values
from tfrec_efficient.ops.gather_reduce import Combiner
from tfrec_efficient.ops.gather_reduce import gather_reduce
from tfrec_efficient.ops.row_store import mapped_rows

MANIFEST = "manifest.json"
DTYPES = ("float32", "float16", "int8")


def read_manifest(path: Path) -> dict[str, Any]:
    """What the folder of a frozen table holds, or ValueError."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        whole = {"version", "input_dim", "output_dim", "rows", "checkpoint"}
        if manifest["version"] == 1 and manifest["dtype"] in DTYPES and whole <= set(manifest):
            return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "`path` must be a folder that `CachedEmbedding.freeze` has made. "
            f"Received: {path}, with {error!r}"
        ) from error
    raise ValueError(f"`{file}` must be of version 1. Received: {manifest}")


class _Files(tf.saved_model.experimental.TrackableResource):
    """Assets, by name, as a resource: Keras exports no other ones."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        super().__init__()
        for name, path in paths.items():
            asset = tf.saved_model.Asset(str(path))
            setattr(self, name, asset)
            self._track_trackable(asset, name)

    def _create_resource(self) -> tf.Tensor:
        # Nobody asks what it is.
        return tf.raw_ops.AnonymousHashTable(key_dtype=tf.int64, value_dtype=tf.int64)


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class FrozenEmbedding(BagLayer):
    """Looks rows of a trained table up in files, without a cache, an optimizer or a lock.

    `CachedEmbedding.freeze` makes one, and the folder that it reads. The files become assets of a
    SavedModel: they are copied when it is exported and mapped when it is loaded, so neither takes
    memory for the table. In a `.keras` file is the path of the folder only.

    Where the folder holds some of the rows, every other id is given the default row. Where it holds
    all, an id outside `[0, input_dim)` is an error.

    Args:
        path: Folder of the frozen table.
        combiner: As for `CachedEmbedding`. Defaults to `"sum"`.
        padding_id: As for `CachedEmbedding`. Defaults to None.
        mask_zero: As for `CachedEmbedding`. Defaults to False.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        ids: As for `CachedEmbedding`.
        weights: As for `CachedEmbedding`.

    Raises:
        ValueError: The folder is none that `CachedEmbedding.freeze` has made.
        tf.errors.InvalidArgumentError: A file is not what it was.

    Example:
    >>> import os, tempfile
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> folder = tempfile.mkdtemp()
    >>> layer = tfrec.CachedEmbedding(
    ...     1000, 8, 100, os.path.join(folder, "table"), tfrec.optimizers.Adagrad()
    ... )
    >>> frozen = layer.freeze(os.path.join(folder, "frozen"), dtype="int8")
    >>> frozen(np.array([[1, 2, 3]])).shape
    TensorShape([1, 8])
    """

    def __init__(
        self,
        path: Any,
        combiner: Combiner | None = "sum",
        padding_id: int | None = None,
        mask_zero: bool = False,
        **kwargs: Any,
    ) -> None:
        self._manifest = read_manifest(Path(path))
        super().__init__(
            self._manifest["input_dim"],
            self._manifest["output_dim"],
            combiner,
            padding_id,
            mask_zero,
            **kwargs,
        )
        self.store_path = str(path)  # Keras has a `path` of its own

    def build(self, ids_shape: Any = None, weights_shape: Any = None) -> None:
        if self.built:
            return
        names = ["rows"]
        if self._manifest["dtype"] == "int8":
            names.append("scales")
        if self._manifest["rows"] is not None:
            names.append("ids")
        with tf.init_scope():
            self._files = _Files({name: Path(self.store_path) / f"{name}.npy" for name in names})
        self.built = True

    def call(self, ids: Any, weights: Any = None) -> Any:
        return self._pool_or_look_up(ids, weights, None)

    def _mapped(self, name: str, dtype: str, *shape: int) -> tf.Tensor:
        return mapped_rows(getattr(self._files, name).asset_path, tf.as_dtype(dtype), shape)

    def _pool(self, ids: Any, weights: Any, casting: Any) -> tf.Tensor:
        kept = self._manifest["rows"]
        count = (self.input_dim or 0) if kept is None else kept + 1  # behind them the default
        table = self._mapped("rows", self._manifest["dtype"], count, self.output_dim)
        places = flat_ids(ids)
        if kept is not None:
            places = _places(places, self._mapped("ids", "int64", kept), self.padding_id)
        padding_id = self.padding_id if kept is None else -1
        if self._manifest["dtype"] == "int8":
            scales = self._mapped("scales", "float32", count)
            table, places = _widened(table, scales, places, padding_id)
            padding_id = -1
        pooled = gather_reduce(
            table, with_values(ids, places), weights, self.combiner or "sum", padding_id
        )
        return tf.cast(pooled, tf.float32)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["input_dim"], config["output_dim"]  # the folder says them
        config["path"] = self.store_path
        return config


def _places(ids: tf.Tensor, kept: tf.Tensor, padding_id: int | None) -> tf.Tensor:
    """Where ids are among those that are kept; behind all where they are not, -1 for padding."""
    count = kept.shape[0]
    places = tf.searchsorted(kept, ids, out_type=tf.int64)
    is_kept = tf.gather(kept, tf.minimum(places, count - 1)) == ids
    places = tf.where(is_kept, places, count)
    return (
        places if padding_id is None else tf.where(ids == padding_id, tf.cast(-1, tf.int64), places)
    )


def _widened(
    table: tf.Tensor, scales: tf.Tensor, places: tf.Tensor, padding_id: int | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Only the rows that are looked up, in float32, and where they are among themselves."""
    is_row = tf.ones_like(places, tf.bool) if padding_id is None else places != padding_id
    unique, index = tf.unique(tf.boolean_mask(places, is_row))
    rows = tf.cast(tf.gather(table, unique), tf.float32) * tf.gather(scales, unique)[:, tf.newaxis]
    where = tf.where(is_row)
    index = tf.tensor_scatter_nd_update(
        tf.fill(tf.shape(places), tf.cast(-1, tf.int32)), where, index
    )
    return rows, index


def freeze_model(model: keras.Model, layers: Mapping[str, FrozenEmbedding]) -> keras.Model:
    """Returns a functional or sequential model with frozen layers in the place of others.

    Args:
        model: The model that was trained.
        layers: Frozen layers by the name of the layer whose place each takes.

    Returns:
        A model with the weights of all other layers, to `predict` with or to export.

    Raises:
        ValueError: The model has no layer of such a name.
    """
    missing = set(layers) - {layer.name for layer in model.layers}
    if missing:
        raise ValueError(
            f"`layers` must have names of layers of {model.name!r}. Received: {sorted(missing)}"
        )
    frozen = keras.models.clone_model(
        model,
        clone_function=lambda layer: (
            layers.get(layer.name) or layer.__class__.from_config(layer.get_config())
        ),
    )
    for layer in model.layers:
        if layer.name not in layers and layer.weights:  # inputs may have another name
            frozen.get_layer(layer.name).set_weights(layer.get_weights())
    return frozen
