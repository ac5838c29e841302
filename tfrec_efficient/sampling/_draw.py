"""The batches of an epoch, drawn from weights or passed through in random order. Pure NumPy."""

from typing import NamedTuple

import numpy as np

# Rounds in which a batch's repeats are drawn again before the exact draw over all samples.
_ROUNDS = 8


class Draws(NamedTuple):
    """An epoch of independent batches, each drawn without replacement.

    Attributes:
        weights: To what each sample's chance of being drawn is proportional, of shape `(size,)`;
            None draws evenly.
        sample_weight: Factors of each sample's loss, of shape `(size,)`, or None.
        normalize_batch: Whether `sample_weight` is scaled to a mean of 1 in every batch.
    """

    weights: np.ndarray | None = None
    sample_weight: np.ndarray | None = None
    normalize_batch: bool = False


class Pass(NamedTuple):
    """An epoch that shows each of `ids` once, in random order; its last batch may be smaller.

    Attributes:
        ids: The samples to show, of shape `(shown,)`.
        sample_weight: Factors of each sample's loss, of shape `(size,)`, or None.
    """

    ids: np.ndarray
    sample_weight: np.ndarray | None = None


class Plan(NamedTuple):
    """The batches of one epoch.

    Attributes:
        ids: Those of all batches, one after the other.
        factors: Of the losses of `ids`; or of no length, where losses are not weighted.
        batch_size: Ids in a batch, of which the last may have fewer.
    """

    ids: np.ndarray
    factors: np.ndarray
    batch_size: int

    @property
    def steps(self) -> int:
        """The number of batches."""
        return -(-len(self.ids) // self.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """The ids of one batch."""
        return self.ids[step * self.batch_size : (step + 1) * self.batch_size]

    @property
    def batches(self) -> list[np.ndarray]:
        """The ids of each batch."""
        return [self.batch(step) for step in range(self.steps)]


def plan(
    selection: Draws | Pass, size: int, batch_size: int, rng: np.random.Generator, weighs: bool
) -> Plan:
    """Makes the batches of an epoch: `ceil(size / batch_size)` of them for `Draws`."""
    _check(selection, size)
    if isinstance(selection, Pass):
        ids = rng.permutation(selection.ids).astype(np.int32)
    else:
        steps = -(-size // batch_size)
        ids = draw(selection.weights, size, batch_size, steps, rng).ravel()
    if not weighs:
        return Plan(ids, np.empty(0, np.float32), batch_size)
    if selection.sample_weight is None:
        return Plan(ids, np.ones(len(ids), np.float32), batch_size)
    factors = selection.sample_weight[ids].astype(np.float32)
    if isinstance(selection, Draws) and selection.normalize_batch:
        by_batch = factors.reshape(-1, batch_size)
        factors = (by_batch / by_batch.mean(axis=1, keepdims=True)).ravel()
    return Plan(ids, factors, batch_size)


def _check(selection: Draws | Pass, size: int) -> None:
    """Raises an error if what `select` returned does not fit the dataset."""
    arrays = {"sample_weight": selection.sample_weight}
    if isinstance(selection, Draws):
        arrays["weights"] = selection.weights
    else:
        ids = selection.ids
        is_right = ids.ndim == 1 and ids.dtype.kind in "iu" and 0 < len(ids) <= size
        if not is_right or ids.min() < 0 or ids.max() >= size or len(np.unique(ids)) < len(ids):
            raise ValueError(
                f"`Pass.ids` must be one or more different integers in `[0, {size})`. "
                f"Received: {ids.dtype} of shape {ids.shape}, {ids[:5]}"
            )
    for name, array in arrays.items():
        if array is not None and array.shape != (size,):
            raise ValueError(
                f"`{type(selection).__name__}.{name}` must have the shape ({size},). "
                f"Received: {array.shape}"
            )


def draw(
    weights: np.ndarray | None, size: int, batch_size: int, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws `steps` batches, without replacement within each, of shape `(steps, batch_size)`.

    Samples of one weight form a bucket. A draw is a bucket, by its share of all weight, and then
    one of its members, evenly; one that is already in the batch is drawn again. That is the
    distribution of drawing one after another without replacement, at the cost of the batch and not
    of all samples: where weights come from votes there are few buckets, and finding one of n takes
    log n comparisons.
    """
    if weights is None:
        weights = np.ones(size)
    positive = int((weights > 0).sum())
    if not np.isfinite(weights).all() or (weights < 0).any() or positive < batch_size:
        raise ValueError(
            f"`weights` must be finite, at least 0, and above 0 for {batch_size} samples, which a "
            f"batch holds. Received: {weights.min()} to {weights.max()}, {positive} above 0"
        )
    sampler = _Buckets(weights)
    drawn = sampler.draw(rng, steps * batch_size).reshape(steps, batch_size)
    ordered = np.sort(drawn, axis=1)
    for step in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1)):
        drawn[step] = _without_repeats(drawn[step], weights, sampler, rng)
    return drawn


class _Buckets:
    """The samples by their weight."""

    def __init__(self, weights: np.ndarray) -> None:
        # Sorting all samples takes seconds for millions; nearly all of few values are in a part.
        values = np.unique(weights[:: max(1, len(weights) >> 12)])
        bucket = np.searchsorted(values, weights)
        missing = weights[values.take(bucket, mode="clip") != weights]
        if len(missing):
            values = np.union1d(values, missing)
            bucket = np.searchsorted(values, weights)
        self._sizes = np.bincount(bucket)
        if len(values) <= 1 << 16:
            bucket = bucket.astype(np.uint16)  # NumPy sorts 16 bits by radix, in linear time
        self._members = np.argsort(bucket, kind="stable").astype(np.int32)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._cumulated = np.cumsum(values * self._sizes)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        point = rng.random(count) * self._cumulated[-1]
        # Rounding may put a point at the very end, where only the last bucket can be meant.
        bucket = np.searchsorted(self._cumulated[:-1], point, side="right")
        member = (rng.random(count) * self._sizes[bucket]).astype(np.int64)
        return self._members[self._starts[bucket] + member]


def _without_repeats(
    batch: np.ndarray, weights: np.ndarray, sampler: _Buckets, rng: np.random.Generator
) -> np.ndarray:
    wanted = len(batch)
    for _ in range(_ROUNDS):
        _, first = np.unique(batch, return_index=True)
        batch = batch[np.sort(first)]
        if len(batch) >= wanted:
            return batch[:wanted]
        batch = np.concatenate([batch, sampler.draw(rng, 2 * (wanted - len(batch)))])
    # Few samples hold nearly all weight. The largest of ln(weight) + Gumbel noise are a draw
    # without replacement too; it looks at all samples.
    _, first = np.unique(batch, return_index=True)
    batch = batch[np.sort(first)][:wanted]
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + rng.gumbel(size=len(weights))
    keys[batch] = -np.inf
    missing = wanted - len(batch)
    rest = np.argpartition(-keys, missing - 1)[:missing] if missing else batch[:0]
    return np.concatenate([batch, rest[np.argsort(-keys[rest])]]).astype(np.int32)
