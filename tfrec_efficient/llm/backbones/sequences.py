"""`sequence_dataset`: what the collaborative-filtering models are trained on."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes


def sequence_dataset(
    sequences: Sequence[npt.ArrayLike],
    item_count: int,
    max_length: int,
    batch_size: int,
    negatives: int = 1,
    share_negatives: bool = False,
    seed: int = 0,
    shuffle: bool = True,
) -> tf.data.Dataset:
    """Makes batches of histories, the items that came next, and items that the user never had.

    A sequence `s` becomes one row: `history` is `s[:-1][-max_length:]`, left padded with 0, and
    `positives`, the item that followed each, is `s[1:][-max_length:]`, padded alike. Negatives are
    uniform among the items that are nowhere in `s`, with repeats. Each pass over the dataset has
    new negatives and a new order.

    Args:
        sequences: For each user, integers of shape `(length,)`, 2 or more: items from 1 to
            `item_count`, the earliest first.
        item_count: int. Number of items.
        max_length: int. Places in a row; the items before them are only kept from the negatives.
        batch_size: int. Rows in a batch, of which the last may have fewer.
        negatives: int. Negatives of each place. Defaults to 1.
        share_negatives: bool. Whether all places of a row have the same negatives, which makes
            many of them cheap. Defaults to False.
        seed: int. Equal seeds give equal datasets, where the global seed of TensorFlow is equal
            too. Defaults to 0.
        shuffle: bool. Whether users come in random order. Defaults to True.

    Returns:
        A `tf.data.Dataset` of dicts of int32: `"history"` and `"positives"` of shape
        `(batch, max_length)`, and `"negatives"` of shape `(batch, max_length, negatives)`, or
        `(batch, negatives)` if shared. Places of padding have negatives too; the loss of a
        `CFBackbone` ignores them.

    Raises:
        ValueError: An argument breaks a rule above, or a sequence has all items.

    Example:
    >>> from tfrec_efficient.llm.backbones import sequence_dataset
    >>> batches = sequence_dataset([[1, 2, 3]], item_count=4, max_length=3, batch_size=1)
    >>> for name, ids in next(iter(batches)).items():
    ...     print(name, ids.numpy().tolist())
    history [[0, 1, 2]]
    positives [[0, 2, 3]]
    negatives [[[4], [4], [4]]]

    References:
        - Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, section III-E,
          whose users have one row too.
    """
    check_sizes(
        item_count=item_count, max_length=max_length, batch_size=batch_size, negatives=negatives
    )
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
    items, row_splits = checked_sequences(sequences, item_count)
    free = _free_items(items, row_splits, item_count)
    flat, starts, ends = (
        tf.constant(items, tf.int32),
        tf.constant(row_splits[:-1], tf.int64),
        tf.constant(row_splits[1:], tf.int64),
    )

    def batch_of(users: tf.Tensor, seeds: tf.Tensor) -> dict[str, tf.Tensor]:
        places = tf.gather(ends, users)[:, tf.newaxis] - tf.range(max_length + 1, 0, -1, tf.int64)
        places = places[:, :max_length]
        is_item = places >= tf.gather(starts, users)[:, tf.newaxis]
        places = tf.where(is_item, places, tf.zeros_like(places))
        batch = tf.size(users)
        each = (batch, negatives) if share_negatives else (batch, max_length, negatives)
        drawn = _draw(free, users, each, seeds, item_count)
        return {
            "history": tf.where(is_item, tf.gather(flat, places), 0),
            "positives": tf.where(is_item, tf.gather(flat, places + 1), 0),
            "negatives": tf.ensure_shape(drawn, (None, *each[1:])),
        }

    users = tf.data.Dataset.range(len(row_splits) - 1)
    if shuffle:
        users = users.shuffle(len(row_splits) - 1, seed, reshuffle_each_iteration=True)
    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
    return (
        tf.data.Dataset.zip(users.batch(batch_size), seeds)
        .map(batch_of, tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


class _Free(NamedTuple):
    """Which items are not in a sequence, for all sequences.

    Attributes:
        counts: How many, of shape `(users,)`.
        below: For the distinct items of all sequences, in rising order within each: how many free
            ones are below, plus `user * (item_count + 1)`, so that the whole array rises.
        starts: Where those of each user start.
    """

    counts: tf.Tensor
    below: tf.Tensor
    starts: tf.Tensor


def _draw(free: _Free, users: tf.Tensor, shape: Any, seeds: tf.Tensor, item_count: int) -> Any:
    """Item number `n` of those that are free is `1 + n + (items taken that have <= n below)`."""
    per_user = [-1] + [1] * (len(shape) - 1)
    bits = tf.random.stateless_uniform(shape, seeds, None, None, tf.int64)
    numbers = tf.math.floormod(bits, tf.reshape(tf.gather(free.counts, users), per_user))
    keys = numbers + tf.reshape(users * (item_count + 1), per_user)
    taken = tf.searchsorted(free.below, tf.reshape(keys, [-1]), "right", tf.int64)
    taken = tf.reshape(taken, shape) - tf.reshape(tf.gather(free.starts, users), per_user)
    return tf.cast(1 + numbers + taken, tf.int32)


def _free_items(items: np.ndarray, row_splits: np.ndarray, item_count: int) -> _Free:
    users = np.repeat(np.arange(len(row_splits) - 1), np.diff(row_splits))
    # Pairs of user and item as one number each: sorts by user, then item, without repeats.
    pairs = np.unique(users * (item_count + 1) + items)
    users, items = np.divmod(pairs, item_count + 1)
    taken = np.bincount(users, minlength=len(row_splits) - 1)
    if (taken == item_count).any():
        user = int(np.argmax(taken == item_count))
        raise ValueError(
            "`sequences` must leave an item to draw as a negative. "
            f"Received: `sequences[{user}]` has all {item_count} items"
        )
    starts = np.cumsum(taken) - taken
    below = pairs - 1 - (np.arange(len(pairs)) - starts[users])
    return _Free(
        tf.constant(item_count - taken, tf.int64),
        tf.constant(below, tf.int64),
        tf.constant(starts, tf.int64),
    )


def checked_sequences(
    sequences: Sequence[npt.ArrayLike], item_count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All items one after the other, and where each sequence starts and ends."""
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("`sequences` must not be empty. Received: none")
    for index, array in enumerate(arrays):
        if array.ndim != 1 or len(array) < 2:
            raise ValueError(
                "`sequences` must have shape `(length,)` each, of 2 items or more. "
                f"Received: `sequences[{index}]` of shape {array.shape}"
            )
        if array.dtype.kind not in "iu":
            raise ValueError(
                "`sequences` must be integers. "
                f"Received: `sequences[{index}]` of dtype {array.dtype}"
            )
    row_splits = np.cumsum([0, *map(len, arrays)])
    items = np.concatenate([array.astype(np.int64) for array in arrays])
    outside = (items < 1) | (items > item_count)
    if outside.any():
        place = int(np.argmax(outside))
        user = int(np.searchsorted(row_splits, place, "right")) - 1
        raise ValueError(
            f"`sequences` must hold items in `[1, {item_count}]`. "
            f"Received: `sequences[{user}][{place - row_splits[user]}]={items[place]}`"
        )
    return items, row_splits
