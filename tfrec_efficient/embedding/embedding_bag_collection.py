"""`EmbeddingBagCollection`: many features, many tables, one op."""

from collections.abc import Mapping
from typing import Any
from typing import Literal

import keras
import tensorflow as tf

from tfrec_efficient.embedding._ids import check_dtype
from tfrec_efficient.embedding._ids import whole_numbers
from tfrec_efficient.ops._inputs import check_padding_id
from tfrec_efficient.ops.casting import cast_features
from tfrec_efficient.ops.gather_reduce import COMBINERS
from tfrec_efficient.ops.gather_reduce import Combiner
from tfrec_efficient.ops.gather_reduce import gather_reduce_many


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class EmbeddingBagCollection(keras.layers.Layer):
    """Looks the features of a batch up in their tables, all at once.

    One op reads all tables, and one computes the gradients of all, where a layer for each feature
    would pay for dozens of small ops. Features may share a table, which then gets one gradient.
    Each table is a variable of its own, of any size. The features are pooled as by `EmbeddingBag`.

    Args:
        tables: `(input_dim, output_dim)` of each table, by name.
        features: The name of the table of each feature, by the name of the feature. Gives the
            order of the output. A feature without an entry in `tables` is an error, as is a table
            without a feature.
        combiner: `"sum"`, `"mean"` or `"sqrtn"`, for all features or by the name of the feature.
            Defaults to `"sum"`.
        padding_id: int or None, for all features or by the name of the feature. Lookups of this id
            count as absent. Defaults to None.
        output_format: `"concat"` for one tensor of shape `(batch, sum of output_dim of the
            features)`, or `"dict"` for `(batch, output_dim)` by the name of the feature.
            Defaults to `"concat"`.
        embeddings_initializer: Initializer of all tables. Defaults to `"uniform"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        ids: The ids of every feature, by name: integers of shape `(batch,)` or
            `(batch, hotness)`, or a `tf.RaggedTensor` or `tf.sparse.SparseTensor` of rank 2.
        weights: Floating point tensors like the ids, by the name of the feature, for some features,
            or None.
        castings: What `cast_indices(ids)` of this layer returned for these ids, or None.

    Raises:
        tf.errors.InvalidArgumentError: An id is out of range or a weight is not finite.
        ValueError: An argument breaks a rule above.

    Example:
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> layer = tfrec.EmbeddingBagCollection(
    ...     tables={"user": (100, 8), "item": (1000, 16)},
    ...     features={"user": "user", "item": "item", "history": "item"},
    ...     combiner={"history": "mean"},
    ... )
    >>> ids = {"user": np.array([3]), "item": np.array([7]), "history": np.array([[1, 2, 3]])}
    >>> layer(ids).shape
    TensorShape([1, 40])

    References:
        - See `tfrec_efficient.ops.gather_reduce_many`.
    """

    built: bool

    def __init__(
        self,
        tables: Mapping[str, tuple[int, int]],
        features: Mapping[str, str],
        combiner: Combiner | Mapping[str, Combiner] = "sum",
        padding_id: int | None | Mapping[str, int | None] = None,
        output_format: Literal["concat", "dict"] = "concat",
        embeddings_initializer: Any = "uniform",
        **kwargs: Any,
    ) -> None:
        if not tables or set(features.values()) != set(tables):
            raise ValueError(
                "`features` must name every table of `tables` and no other. "
                f"Received: tables={sorted(tables)}, features={dict(features)}"
            )
        for name, sizes in tables.items():
            if len(sizes) != 2 or not all(
                isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sizes
            ):
                raise ValueError(
                    "`tables` must give two positive integers, `(input_dim, output_dim)`. "
                    f"Received: tables[{name!r}]={sizes}"
                )
        if output_format not in ("concat", "dict"):
            raise ValueError(
                '`output_format` must be "concat" or "dict". '
                f"Received: output_format={output_format!r}"
            )
        super().__init__(**kwargs)
        self.tables = {name: tuple(sizes) for name, sizes in tables.items()}
        self.features = dict(features)
        self.combiner = dict(combiner) if isinstance(combiner, Mapping) else combiner
        self.padding_id = dict(padding_id) if isinstance(padding_id, Mapping) else padding_id
        self.output_format = output_format
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.supports_jit = False  # XLA cannot compile custom ops
        self.autocast = False  # half precision would merge ids
        self._combiners = [self._of_feature("combiner", combiner, f, "sum") for f in features]
        self._padding_ids = [self._of_feature("padding_id", padding_id, f, None) for f in features]
        for value in self._combiners:
            if value not in COMBINERS:
                raise ValueError(
                    f'`combiner` must be "sum", "mean" or "sqrtn". Received: combiner={value!r}'
                )
        for value in self._padding_ids:
            check_padding_id(value)
        names = list(self.tables)
        self._table_of = [names.index(table) for table in self.features.values()]

    def _of_feature(self, argument: str, value: Any, feature: str, default: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        unknown = set(value) - set(self.features)
        if unknown:
            raise ValueError(f"`{argument}` must name features. Received: {sorted(unknown)}")
        return value.get(feature, default)

    def build(self, *shapes: Any, **more_shapes: Any) -> None:
        if self.built:
            return
        self.embeddings = {
            name: self.add_weight(
                name=f"{name}_embeddings",
                shape=sizes,
                initializer=self.embeddings_initializer.clone()
                if hasattr(self.embeddings_initializer, "clone")
                else self.embeddings_initializer,
                autocast=False,  # casting a table to the compute dtype would read all of it
            )
            for name, sizes in self.tables.items()
        }
        self.built = True

    def call(self, ids: Any, weights: Any = None, castings: Any = None) -> Any:
        ids = self._bags(ids)
        self._check_names("weights", weights or {}, self.features, optional=True)
        if castings is not None:
            self._check_names("castings", castings, self.tables)
            castings = [castings[table] for table in self.tables]
        pooled = gather_reduce_many(
            [self.embeddings[table] for table in self.tables],
            ids,
            self._table_of,
            [self._with_hotness((weights or {}).get(feature)) for feature in self.features],
            self._combiners,
            self._padding_ids,
            castings,
        )
        pooled = keras.ops.cast(pooled, self.compute_dtype)
        if self.output_format == "concat":
            return pooled
        parts = tf.split(pooled, [self.tables[t][1] for t in self.features.values()], axis=1)
        return dict(zip(self.features, parts, strict=True))

    def cast_indices(self, ids: Any) -> dict[str, tf.Tensor]:
        """Sorts the lookups of each table by id, ahead of the backward pass.

        Depends on ids only, so it can run in a `tf.data` pipeline; see
        `tfrec_efficient.ops.cast_indices`.

        Args:
            ids: As when the layer is called.

        Returns:
            int64 tensors by the name of the table, for the call argument `castings`.
        """
        castings = cast_features(
            self._bags(ids), self._padding_ids, self._table_of, len(self.tables)
        )
        return dict(zip(self.tables, castings, strict=True))

    def _bags(self, ids: Any) -> list[Any]:
        self._check_names("ids", ids, self.features)
        return [
            self._with_hotness(whole_numbers(ids[feature], self.tables[table][0]))
            for feature, table in self.features.items()
        ]

    def _with_hotness(self, values: Any) -> Any:
        if values is None or isinstance(values, tf.RaggedTensor | tf.SparseTensor):
            return values
        values = tf.convert_to_tensor(values)
        return values[:, tf.newaxis] if values.shape.rank == 1 else values

    def _check_names(
        self, argument: str, given: Any, expected: Any, optional: bool = False
    ) -> None:
        unknown = set(given) - set(expected)
        missing = set() if optional else set(expected) - set(given)
        if unknown or missing:
            raise ValueError(
                f"`{argument}` must have the keys {list(expected)}. Received: {list(given)}"
            )

    def compute_output_spec(self, ids: Any, weights: Any = None, castings: Any = None) -> Any:
        self._check_names("ids", ids, self.features)
        for feature, table in self.features.items():
            check_dtype(ids[feature], self.tables[table][0])
            if len(ids[feature].shape) not in (1, 2):
                raise ValueError(
                    "`ids` must have the shape `(batch,)` or `(batch, hotness)`. "
                    f"Received: `ids[{feature!r}]` of shape {tuple(ids[feature].shape)}"
                )
        batch = next(iter(ids.values())).shape[0]
        dims = {feature: self.tables[table][1] for feature, table in self.features.items()}
        if self.output_format == "concat":
            return keras.KerasTensor((batch, sum(dims.values())), dtype=self.compute_dtype)
        return {
            feature: keras.KerasTensor((batch, dim), dtype=self.compute_dtype)
            for feature, dim in dims.items()
        }

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            tables=self.tables,
            features=self.features,
            combiner=self.combiner,
            padding_id=self.padding_id,
            output_format=self.output_format,
            embeddings_initializer=keras.initializers.serialize(self.embeddings_initializer),
        )
        return config
