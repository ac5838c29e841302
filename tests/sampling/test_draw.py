import itertools

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tfrec_efficient.sampling import Draws
from tfrec_efficient.sampling import Pass
from tfrec_efficient.sampling import _draw

STEPS = 10_000
WEIGHTS = {
    "few buckets": [0.1, 0.4, 0.1, 0.3, 0.4],
    "all different": [5.0, 1.0, 3.0, 2.0, 4.0],
    "with a zero": [1.0, 0.0, 2.0, 0.5, 1.0],
    "even": None,
    "skewed": [1.0, 2e-3, 1e-3, 1e-3, 5e-4],
    "extremely skewed": [3e-9, 1e-9, 1.0, 1e-9, 2e-9],
}


class Counting(np.random.Generator):
    """A generator that counts how often the exact draw over all samples asks it for noise."""

    def __init__(self, seed):
        super().__init__(np.random.PCG64(seed))
        self.noises = 0

    def gumbel(self, *args, **kwargs):
        self.noises += 1
        return super().gumbel(*args, **kwargs)


def p_value(counts, probabilities):
    """Of Pearson's chi-square test; the rarest outcomes, expected less than 5 times, are joined."""
    counts, expected = np.asarray(counts, float), np.asarray(probabilities) * np.sum(counts)
    assert (counts[expected == 0] == 0).all()
    order = np.argsort(expected)
    start = np.searchsorted(np.cumsum(expected[order]), 5)
    groups = np.maximum(np.arange(len(order)), start) - start
    counts, expected = (np.bincount(groups, values[order]) for values in (counts, expected))
    if len(counts) == 1:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(tf.math.igammac((len(counts) - 1) / 2, tf.constant(statistic, tf.float64) / 2))


def successive(weights, length):
    """The probability of every ordered draw of `length`, one after another from what is left."""
    weights, found = np.asarray(weights, float), {}
    for order in itertools.permutations(range(len(weights)), length):
        left, probability = weights.copy(), 1.0
        for sample in order:
            probability *= left[sample] / left.sum()
            left[sample] = 0.0
        found[order] = probability
    return found


def test_the_chi_square_test_fails_where_it_should():
    even = np.full(6, 1 / 6)
    assert p_value([1000, 1010, 990, 1005, 995, 1000], even) > 0.5
    assert p_value([1100, 1010, 990, 905, 995, 1000], even) < 0.01
    assert p_value([16, 4, 0, 0], [0.5, 0.498, 0.001, 0.001]) == pytest.approx(0.00729, abs=1e-5)
    assert p_value([16, 4], [0.5, 0.5]) == pytest.approx(0.00729, abs=1e-5)  # erfc(sqrt(3.6))


@pytest.mark.parametrize("rounds", [8, 1, 0])
@pytest.mark.parametrize("name", WEIGHTS)
def test_batches_are_drawn_one_after_another_without_replacement(name, rounds, monkeypatch):
    """All 60 ordered batches of 3 of 5, against their exact probabilities."""
    monkeypatch.setattr(_draw, "_ROUNDS", rounds)
    weights = None if WEIGHTS[name] is None else np.array(WEIGHTS[name])
    rng = Counting(7)
    drawn = _draw.draw(weights, 5, 3, STEPS, rng)
    if "skewed" in name or rounds == 0:
        assert rng.noises > STEPS / 3  # of the exact draw over all samples
    elif rounds == 8:
        assert rng.noises < STEPS / 100
    exact = successive(np.ones(5) if weights is None else weights, 3)
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    times = dict(zip(map(tuple, orders.tolist()), counts.tolist(), strict=True))
    assert set(times) <= set(exact)
    everything = [times.get(order, 0) for order in exact]
    assert p_value(everything, list(exact.values())) > 1e-4
    for place in range(3):
        counts = np.bincount(drawn[:, place], minlength=5)
        of_place = [sum(p for o, p in exact.items() if o[place] == i) for i in range(5)]
        assert p_value(counts, of_place) > 1e-4
    for pair in itertools.combinations(range(5), 2):
        within = np.isin(drawn, pair).sum(axis=1) == 2
        probability = sum(p for order, p in exact.items() if set(pair) <= set(order))
        assert p_value([within.sum(), (~within).sum()], [probability, 1 - probability]) > 1e-4


def test_steps_are_drawn_independently():
    """The first draws of neighbours, in all 25 pairs."""
    weights = np.array([0.1, 0.4, 0.1, 0.2, 0.2])
    first = _draw.draw(weights, 5, 2, 2 * STEPS, np.random.default_rng(1))[:, 0].reshape(-1, 2)
    counts = np.bincount(first[:, 0] * 5 + first[:, 1], minlength=25)
    assert p_value(counts, np.outer(weights, weights).ravel()) > 1e-4


@pytest.mark.parametrize("distinct", [3, 42, 70_000])
def test_first_draws_follow_the_weights(distinct):
    """With many samples in a bucket, and with more buckets than 16 bits count."""
    size = 80_000
    rng = np.random.default_rng(distinct)
    weights = 1.0 + rng.permutation(np.arange(size) % distinct) / distinct * 9.0
    drawn = _draw.draw(weights, size, 2, 200_000, rng)[:, 0]
    part = np.arange(size) % 97  # even within a bucket, and by weight between them
    expected = np.bincount(part, weights) / weights.sum()
    assert p_value(np.bincount(part[drawn], minlength=97), expected) > 1e-4
    decile = np.minimum(np.argsort(np.argsort(weights, kind="stable")) * 10 // size, 9)
    expected = np.bincount(decile, weights) / weights.sum()
    assert p_value(np.bincount(decile[drawn], minlength=10), expected) > 1e-4


@hypothesis.settings(deadline=None)
@hypothesis.given(st.data())
def test_a_batch_has_no_repeats_and_no_sample_without_weight(data):
    size = data.draw(st.integers(1, 12), "size")
    positive = data.draw(st.integers(1, size), "positive")
    batch_size = data.draw(st.integers(1, positive), "batch_size")
    steps = data.draw(st.integers(0, 4), "steps")
    weight = st.sampled_from([1e-300, 1e-12, 0.5, 1.0, 100.0])
    weights = data.draw(st.lists(weight, min_size=positive, max_size=positive), "weights")
    weights = data.draw(st.permutations([*weights, *[0.0] * (size - positive)]), "order")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    drawn = _draw.draw(np.array(weights), size, batch_size, steps, rng)
    assert drawn.shape == (steps, batch_size)
    assert drawn.dtype == np.int32
    for batch in drawn.tolist():
        assert len(set(batch)) == batch_size
        assert all(weights[sample] > 0 for sample in batch)


@pytest.mark.parametrize("weights", [None, np.array([1e-9, 1.0, 1e-6, 1e-3, 1.0, 1e-9])])
def test_a_batch_of_all_samples_holds_them_all(weights):
    drawn = _draw.draw(weights, 6, 6, 50, np.random.default_rng(0))
    assert (np.sort(drawn, axis=1) == np.arange(6)).all()
    assert len(np.unique(drawn, axis=0)) > 1  # in random order


def test_a_single_sample_can_be_drawn():
    assert _draw.draw(None, 1, 1, 3, np.random.default_rng(0)).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_same_seed_draws_the_same_batches(name):
    weights = None if WEIGHTS[name] is None else np.array(WEIGHTS[name])
    drawn = [_draw.draw(weights, 5, 3, 20, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_only_proportions_of_weights_matter():
    weights = np.array([1.0, 2.0, 4.0, 2.0, 1.0])
    a, b = (_draw.draw(w, 5, 3, 20, np.random.default_rng(0)) for w in (weights, weights * 2**-80))
    np.testing.assert_array_equal(a, b)


def test_weights_are_not_changed():
    weights = np.array([1.0, 1e-12, 1e-12, 1e-12])
    _draw.draw(weights, 4, 3, 10, np.random.default_rng(0))
    assert weights.tolist() == [1.0, 1e-12, 1e-12, 1e-12]


@pytest.mark.parametrize(
    ("weights", "received"),
    [
        ([1.0, 1.0, 0.0, 0.0], "0.0 to 1.0, 2 above 0"),
        ([1.0, 1.0, 1.0, -1.0], "-1.0 to 1.0, 3 above 0"),
        ([1.0, 1.0, 1.0, np.inf], "1.0 to inf, 4 above 0"),
        ([1.0, 1.0, 1.0, np.nan], "nan to nan, 3 above 0"),
    ],
)
def test_weights_that_do_not_fill_a_batch(weights, received):
    with pytest.raises(ValueError) as error:
        _draw.draw(np.array(weights), 4, 3, 1, np.random.default_rng(0))
    assert str(error.value) == (
        "`weights` must be finite, at least 0, and above 0 for 3 samples, which a batch holds. "
        f"Received: {received}"
    )


@pytest.mark.parametrize(("size", "batch_size", "steps"), [(10, 4, 3), (10, 5, 2), (10, 10, 1)])
def test_an_epoch_of_draws_has_as_many_batches_as_a_pass(size, batch_size, steps):
    for selection in (Draws(), Draws(np.arange(1.0, size + 1))):
        found = _draw.plan(selection, size, batch_size, np.random.default_rng(0), False).batches
        assert np.shape(found) == (steps, batch_size)
    found = _draw.plan(
        Pass(np.arange(size)), size, batch_size, np.random.default_rng(0), False
    ).batches
    assert len(found) == steps


def test_an_epoch_of_draws_follows_their_weights():
    weights = np.zeros(50)
    weights[[3, 7, 41]] = 1.0
    found = _draw.plan(Draws(weights), 50, 2, np.random.default_rng(0), False).batches
    assert set(np.ravel(found).tolist()) == {3, 7, 41}


@hypothesis.settings(deadline=None)
@hypothesis.given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 20), st.integers(0, 9))
def test_a_pass_shows_each_of_its_ids_once(shown, batch_size, seed):
    ids = np.array(sorted(shown))
    found = _draw.plan(Pass(ids), 61, batch_size, np.random.default_rng(seed), False).batches
    assert sorted(np.concatenate(found).tolist()) == ids.tolist()
    assert all(batch.dtype == np.int32 for batch in found)
    full, rest = divmod(len(ids), batch_size)
    assert [len(batch) for batch in found] == [batch_size] * full + [rest] * (rest > 0)


def test_a_pass_is_in_random_order_that_the_seed_decides():
    selection, found = Pass(np.arange(4)), {}
    for seed in range(6000):
        order = np.concatenate(
            _draw.plan(selection, 4, 3, np.random.default_rng(seed), False).batches
        )
        found[tuple(order.tolist())] = found.get(tuple(order.tolist()), 0) + 1
    assert p_value([found[order] for order in itertools.permutations(range(4))], [1 / 24] * 24) > (
        1e-4
    )
    again = [_draw.plan(selection, 4, 3, np.random.default_rng(5), False).batches for _ in range(2)]
    np.testing.assert_array_equal(np.concatenate(again[0]), np.concatenate(again[1]))
