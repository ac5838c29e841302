"""The ops of `pim` in plain TensorFlow."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrec_efficient.ops._inputs import Bags
from tfrec_efficient.ops._inputs import checked
from tfrec_efficient.ops._inputs import text
from tfrec_efficient.ops._inputs import weight_dtype
from tfrec_efficient.ops._pim.counts import Layout
from tfrec_efficient.ops.casting import cast_tables
from tfrec_efficient.ops.gather_reduce import checked_lookups
from tfrec_efficient.ops.gather_reduce import divided
from tfrec_efficient.ops.gather_reduce import expand_ids
from tfrec_efficient.ops.gather_reduce import with_checked_castings


def sums_by_groups(
    table: Any,
    bags: Bags,
    combiner: str,
    padding_id: int | None,
    castings: Sequence[tf.Tensor],
    placed: dict[str, Any],
    hot_ids: tf.Tensor,
) -> tf.Tensor:
    """The same result, rules and gradient in plain TensorFlow."""
    lookups = checked_lookups(table, bags, padding_id, "")
    unique_ids = tf.sort(tf.unique(lookups.ids).y)
    rows = expand_ids(
        tf.cast(tf.gather(table, unique_ids), weight_dtype(table)), unique_ids, lookups
    )
    if lookups.weights is not None:
        rows *= lookups.weights[:, tf.newaxis]
    groups = placed["groups"]
    group = _groups_of(placed, bags, padding_id, checked_hot_ids(hot_ids))
    keys, partial_of = tf.unique(tf.cast(lookups.segments, tf.int64) * groups + group)
    partials = tf.math.unsorted_segment_sum(rows, partial_of, tf.size(keys))
    sums = tf.math.unsorted_segment_sum(partials, keys // groups, lookups.batch)
    output = tf.cast(divided(sums, lookups, combiner), table.dtype)
    if not castings:
        return output
    return with_checked_castings(output, cast_tables([bags], [padding_id], [0], 1), castings)


def checked_hot_ids(hot_ids: tf.Tensor) -> tf.Tensor:
    """Hot ids that rise and are not negative."""
    rises = hot_ids > tf.concat([[-1], hot_ids[:-1]], 0)

    def message() -> tf.Tensor:
        culprit = tf.argmin(tf.cast(rises, tf.int32))
        received = text("`hot_ids[", culprit, "]=", hot_ids[culprit], "`")
        return text("`hot_ids` must rise and not be negative. Received: ", received)

    return checked(hot_ids, tf.reduce_all(rises), message)


def _kept(bags: Bags, padding_id: int | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Ids and positions of the lookups that are not padding."""
    ids = tf.cast(tf.reshape(bags.ids, [-1]), tf.int64)
    positions = tf.range(tf.size(ids, tf.int64))
    if padding_id is None:
        return ids, positions
    keep = ids != padding_id
    return tf.boolean_mask(ids, keep), tf.boolean_mask(positions, keep)


def _is_hot(ids: tf.Tensor, hot_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether each id is hot, and where among the hot ids it would be."""
    places = tf.searchsorted(hot_ids, ids, out_type=tf.int64)
    found = tf.gather(tf.concat([hot_ids, [-1]], 0), places)
    return found == ids, places


def _home_of(placed: dict[str, Any], ids: tf.Tensor) -> tf.Tensor:
    if placed["by_table"]:
        return tf.fill(tf.shape(ids), tf.constant(placed["first_group"], tf.int64))
    return (ids + placed["first_group"]) % placed["groups"]


def _groups_of(
    placed: dict[str, Any], bags: Bags, padding_id: int | None, hot_ids: tf.Tensor
) -> tf.Tensor:
    ids, positions = _kept(bags, padding_id)
    is_hot, _ = _is_hot(ids, hot_ids)
    return tf.where(is_hot, positions % placed["groups"], _home_of(placed, ids))


def rank_events(
    layout: Layout, bags: Bags, padding_id: int | None, hot_ids: tf.Tensor, with_backward: bool
) -> tf.Tensor:
    """The same numbers in plain TensorFlow, by sorting where the native op keeps state."""
    hot_ids = checked_hot_ids(hot_ids)
    lookups = checked_lookups(tf.TensorSpec((layout.rows, 1)), bags, padding_id, "")
    with tf.control_dependencies([lookups.ids]):  # where ids are checked
        ids, _ = _kept(bags, padding_id)
    placed = layout.attributes
    bag_of = tf.cast(lookups.segments, tf.int64)
    batch = tf.cast(lookups.batch, tf.int64)
    is_hot, hot_place = _is_hot(ids, hot_ids)
    home = _home_of(placed, ids)
    behind = tf.size(hot_ids, tf.int64) + (ids if layout.by_table else ids // layout.groups)
    local_row = tf.where(is_hot, hot_place, behind)

    group = _groups_of(placed, bags, padding_id, hot_ids)
    columns = [_number(layout, group), _number_of_pairs(layout, group, bag_of, batch)]
    columns += _accesses(layout, group, local_row)
    if not with_backward:
        return tf.stack([*columns, *[tf.zeros([layout.groups], tf.int64)] * 7], 1)

    order = tf.argsort(ids, stable=True)
    copies = tf.where(is_hot, tf.constant(layout.groups, tf.int64), 1)
    of_lookup, group = _for_groups(copies, home)
    columns.append(_number(layout, group))
    columns.append(_number_of_pairs(layout, group, tf.gather(bag_of, of_lookup), batch))
    of_pair, group = _for_groups(tf.gather(copies, order), tf.gather(home, order))
    columns += _accesses(layout, group, tf.gather(tf.gather(bag_of, order), of_pair))
    rising = tf.gather(ids, order)
    is_first = tf.concat([tf.ones_like(rising[:1], tf.bool), rising[1:] != rising[:-1]], 0)
    unique = tf.boolean_mask(order, is_first)
    of_row, group = _for_groups(tf.gather(copies, unique), tf.gather(home, unique))
    columns.append(_number(layout, group))
    uncached = dataclasses.replace(layout, cached_rows=0)
    columns.append(_accesses(uncached, group, tf.gather(tf.gather(local_row, unique), of_row))[1])
    columns.append(_number(layout, tf.gather(home, unique)))
    return tf.stack(columns, 1)


def _for_groups(copies: tf.Tensor, home: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each entry once for its home, or for each group: the number of the entry, and the group."""
    entry = tf.repeat(tf.range(tf.size(copies, tf.int64)), copies)
    number = tf.range(tf.size(entry, tf.int64)) - tf.gather(tf.cumsum(copies) - copies, entry)
    return entry, tf.where(tf.gather(copies, entry) > 1, number, tf.gather(home, entry))


def _number(layout: Layout, group: tf.Tensor) -> tf.Tensor:
    return tf.math.unsorted_segment_sum(tf.ones_like(group), group, layout.groups)


def _number_of_pairs(
    layout: Layout, group: tf.Tensor, bag_of: tf.Tensor, batch: tf.Tensor
) -> tf.Tensor:
    """In each group, how many bags occur."""
    return _number(layout, tf.unique(group * batch + bag_of).y // tf.maximum(batch, 1))


def _accesses(layout: Layout, group: tf.Tensor, row: tf.Tensor) -> list[tf.Tensor]:
    """Cache hits and activations of each group."""
    hits = tf.zeros([layout.groups], tf.int64)
    if layout.cached_rows:
        hit = _repeats(group * layout.cached_rows + row % layout.cached_rows, row)
        hits = _number(layout, tf.boolean_mask(group, hit))
        group, row = tf.boolean_mask(group, ~hit), tf.boolean_mask(row, ~hit)
    page = row // layout.rows_per_page
    is_open = _repeats(group * layout.banks + page % layout.banks, page)
    opened = _number(layout, tf.boolean_mask(group, ~is_open))
    return [hits, opened * layout.pages_per_row]


def _repeats(place: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Whether the entry before, of those with the same place, has the same value."""
    order = tf.argsort(place, stable=True)
    place, value = tf.gather(place, order), tf.gather(value, order)
    same = (place[1:] == place[:-1]) & (value[1:] == value[:-1])
    same = tf.concat([tf.zeros_like(place[:1], tf.bool), same], 0)
    return tf.gather(same, tf.math.invert_permutation(order))
