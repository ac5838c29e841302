"""Casting: sorts lookups by id, ahead of the gradient that needs them so."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrec_efficient.ops import _loader
from tfrec_efficient.ops._inputs import NO_PADDING
from tfrec_efficient.ops._inputs import Bags
from tfrec_efficient.ops._inputs import as_bags
from tfrec_efficient.ops._inputs import check_ids_dtype
from tfrec_efficient.ops._inputs import check_padding_id
from tfrec_efficient.ops._inputs import checked
from tfrec_efficient.ops._inputs import first_entry
from tfrec_efficient.ops._inputs import of_one_dtype
from tfrec_efficient.ops._inputs import text


def cast_indices(ids: Any, padding_id: int | None = None) -> tf.Tensor:
    """Sorts lookups by id: the part of the gradient of `gather_reduce` that needs ids only.

    Hand the result to `gather_reduce(..., casting=...)` or to a layer, with the same ids: their
    backward pass then does not sort. Computed in a `tf.data` pipeline, the sorting takes place
    while the step before is still running; see `tfrec_efficient.data.cast_indices`. Without it, the
    backward pass casts by itself, beside the forward pass inside a `tf.function`.

    Entry k is `(id << bits) | position` for the k-th lookup in the order of ids, where `position`
    counts all lookups, `bits` is the number of bits that hold any position, and lookups of one id
    keep their order. Padding is left out; -1 fills the end.

    Args:
        ids: int32 or int64, not negative: a tensor of any shape, a `tf.RaggedTensor` or a
            `tf.sparse.SparseTensor`.
        padding_id: int or None. As in `gather_reduce`. Defaults to None.

    Returns:
        An int64 tensor of the shape of `ids`, or of its flat values where `ids` are ragged or
        sparse.

    Raises:
        ValueError: `ids` are not integers of 32 or 64 bits, or `padding_id` is no integer.
        tf.errors.InvalidArgumentError: An id is negative, or ids and positions need more than 63
            bits.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> tfrec.ops.cast_indices(tf.constant([[7, 2], [2, 7]])).numpy().tolist()
    [[9, 10], [28, 31]]

    References:
        - Kwon, Lee and Rhu, "Tensor Casting: Co-Designing Algorithm-Architecture for Personalized
          Recommendation Training", HPCA 2021, section IV-A, algorithm 2. One array of packed pairs
          holds what are two arrays there.
    """
    check_padding_id(padding_id)
    if isinstance(ids, tf.RaggedTensor):
        ids = ids.flat_values
    elif isinstance(ids, tf.SparseTensor):
        ids = ids.values
    ids = tf.convert_to_tensor(ids)
    check_ids_dtype(ids)
    flat = tf.reshape(ids, [-1, 1])
    bags = Bags(flat, tf.zeros([0], tf.int64), None)
    casting = cast_tables([bags], [padding_id], [0], 1)[0]
    return tf.ensure_shape(tf.reshape(casting, tf.shape(ids)), ids.shape)


def cast_features(
    ids: Sequence[Any],
    padding_ids: Sequence[int | None],
    table_of: Sequence[int],
    num_tables: int,
) -> list[tf.Tensor]:
    """Casts the ids of several features, in any of the kinds that `gather_reduce_many` takes."""
    bags = [as_bags(of_feature, None, tf.float32) for of_feature in ids]
    return cast_tables(of_one_dtype(bags), padding_ids, table_of, num_tables)


def cast_tables(
    bags: Sequence[Bags],
    padding_ids: Sequence[int | None],
    table_of: Sequence[int],
    num_tables: int,
) -> list[tf.Tensor]:
    """Casts the lookups of several features, feature i of which looks up in table `table_of[i]`."""
    module = _loader.native()
    if module is not None:
        return module.tfrec_efficient_cast_indices(
            ids=[feature.ids for feature in bags],
            table_of=table_of,
            padding_ids=[NO_PADDING if p is None else int(p) for p in padding_ids],
            num_tables=num_tables,
        )
    castings = []
    for table in range(num_tables):
        features = [i for i, of in enumerate(table_of) if of == table]
        ids = [
            _checked_ids(bags[i].ids, padding_ids[i], f"[{i}]" if len(bags) > 1 else "")
            for i in features
        ]
        kept = [_is_kept(bags[i].ids, padding_ids[i]) for i in features]
        casting = _reference(tf.concat(ids, 0), tf.concat(kept, 0))
        if len(features) == 1:
            casting = tf.reshape(casting, tf.shape(bags[features[0]].ids))
        castings.append(casting)
    return castings


def _is_kept(ids: tf.Tensor, padding_id: int | None) -> tf.Tensor:
    flat = tf.cast(tf.reshape(ids, [-1]), tf.int64)
    return tf.ones_like(flat, tf.bool) if padding_id is None else flat != padding_id


def _checked_ids(ids: tf.Tensor, padding_id: int | None, index: str) -> tf.Tensor:
    flat = tf.reshape(ids, [-1])
    good = ~_is_kept(ids, padding_id) | (flat >= 0)
    hotness = None if ids.shape.rank == 1 else tf.shape(ids)[1]
    flat = checked(
        flat,
        tf.reduce_all(good),
        lambda: text(
            f"`ids{index}` must not be negative. Received: ",
            first_entry(f"ids{index}", flat, good, hotness),
        ),
    )
    return tf.cast(flat, tf.int64)


def _reference(ids: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    total = tf.size(ids, tf.int64)
    bits = _bits_of(total - 1)
    positions = tf.boolean_mask(tf.range(total), kept)
    ids = tf.boolean_mask(ids, kept)
    largest = tf.reduce_max(tf.concat([ids, [-1]], 0))
    ids = checked(
        ids,
        _bits_of(largest) + bits <= 63,
        lambda: text(
            "`ids` up to ", largest, " in ", total, " lookups do not pack into 63 bits; "
            "use a smaller batch or a smaller table.",
        ),
    )  # fmt: skip
    pairs = tf.sort(tf.bitwise.bitwise_or(tf.bitwise.left_shift(ids, bits), positions))
    return tf.concat(
        [pairs, tf.fill([total - tf.size(pairs, tf.int64)], tf.constant(-1, tf.int64))], 0
    )


def _bits_of(value: tf.Tensor) -> tf.Tensor:
    """Bits needed to write `value`; none for zero and below."""
    powers = tf.constant([1 << bit for bit in range(63)], tf.int64)
    return tf.reduce_sum(tf.cast(value >= powers, tf.int64))
