import collections
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tfrec_efficient.sampling import LabelHistory
from tfrec_efficient.sampling import LastLoss
from tfrec_efficient.sampling import ProbabilityMoments
from tfrec_efficient.sampling import _memory

ONE = np.array([0])


def history_of(samples, window=10, **kwargs):
    """A history of the label lists `samples`, one of each a sample."""
    history = LabelHistory(len(samples), window, **kwargs)
    for turn in range(max(len(labels) for labels in samples)):
        ids = np.array([i for i, labels in enumerate(samples) if turn < len(labels)])
        history.append(ids, np.float32([samples[i][turn] for i in ids]))
    return history


def entropy_of(votes):
    shares = [count / len(votes) for count in collections.Counter(votes).values()]
    return -sum(share * math.log(share) for share in shares)


def partitions(total, most):
    """All ways to write `total` as a sum, the largest part first."""
    if not total:
        yield []
    for part in range(min(total, most), 0, -1):
        for rest in partitions(total - part, part):
            yield [part, *rest]


def votes_of(partition):
    return [label for label, count in enumerate(partition) for _ in range(count)]


def random_appends(size, values, max_size=60):
    """Lists of `{id: value}`: what each append tells of different samples."""
    return st.lists(st.dictionaries(st.integers(0, size - 1), values), max_size=max_size)


def tell(memory, appended):
    memory.append(np.array(list(appended), np.int32), np.float32(list(appended.values())))


def restored(memory, empty):
    """What `memory` gives to `empty`, by way of copies, as from a file."""
    empty.restore({name: array.copy() for name, array in memory.arrays().items()})
    return empty


# ---- LabelHistory.


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3] * 5 + [7] * 5, math.log(2)),
        ([3, 7] * 5, math.log(2)),
        ([4] * 10, 0.0),
        (list(range(10)), math.log(10)),
        ([4], 0.0),
        ([4, 4, 4], 0.0),  # three votes, and no phantoms
        ([4, 0], math.log(2)),
        ([1, 2, 2], math.log(3) - 2 / 3 * math.log(2)),
    ],
)
def test_entropies_worked_by_hand(labels, expected):
    history = history_of([labels])
    assert history.entropy() == pytest.approx([expected], abs=1e-9)
    assert history.scores(10) == pytest.approx([expected / math.log(10)], abs=1e-9)


def test_samples_never_seen_have_no_entropy_no_score_and_no_hardness():
    history = LabelHistory(3, 10)
    history.append(np.array([1]), np.array([2]))
    for values in (history.entropy(), history.scores(5), history.hardness(np.array([2, 2, 2]))):
        assert np.isnan(values).tolist() == [True, False, True]
    assert history.votes().tolist() == [0, 1, 0]


def test_ten_votes_have_42_partitions_but_39_entropies():
    samples = [votes_of(partition) for partition in partitions(10, 10)]
    assert len(samples) == 42
    assert len(np.unique(history_of(samples).entropy())) == 39


@pytest.mark.parametrize("window", [3, 10, 17])
def test_the_order_of_votes_does_not_change_a_bit_of_the_entropy(window):
    rng = np.random.default_rng(0)
    for partition in partitions(window, window):
        votes = votes_of(partition)
        names = rng.permutation(window)[votes]  # which labels they are does not matter, either
        orders = [votes, *(rng.permutation(names).tolist() for _ in range(5))]
        assert len(set(history_of(orders, window).entropy().tolist())) == 1


def test_the_oldest_label_makes_room():
    history = history_of([[1, 1, 1]], window=3)
    expected = [math.log(3) - 2 / 3 * math.log(2), math.log(3), math.log(3), 0.0]
    # 1 1 2, 1 2 3, 2 3 4; then 4 4 4.
    for labels, entropy in zip([[2], [3], [4], [4, 4]], expected, strict=True):
        for label in labels:
            history.append(ONE, np.array([label]))
        assert history.votes().tolist() == [3]
        assert history.entropy() == pytest.approx([entropy], abs=1e-9)


def test_zero_padding_counts_empty_slots_as_votes_for_class_0():
    labels = np.array([0, 1, 1, 1])
    history = history_of([[0, 0], [1] * 3, [1] * 12], window=10, zero_padded=True)
    assert history.votes().tolist() == [10, 10, 10]
    of_three = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert history.entropy() == pytest.approx([0.0, of_three, 0.0], abs=1e-9)
    assert history.hardness(labels[:3]) == pytest.approx([0.0, 0.7, 0.0])
    assert LabelHistory(1, 4, zero_padded=True).entropy().tolist() == [0.0]


def test_hardness_is_the_share_of_votes_that_are_not_the_label():
    samples = [[1, 1], [1, 2, 2, 0], [2], [2], []]
    history = history_of(samples, window=3)
    hardness = history.hardness(np.array([1, 2, 1, -1, 1], np.int8))
    assert hardness[:3] == pytest.approx([0.0, 1 / 3, 1.0])
    assert np.isnan(hardness[3:]).all()  # of an unknown label, and never seen


def test_a_label_above_255_widens_all_slots_and_loses_none():
    history = LabelHistory(2, 4)
    history.append(np.array([0, 1]), np.array([255, 254]))
    assert history.arrays()["ring"].dtype == np.uint8
    history.append(np.array([0]), np.array([256]))
    assert history.arrays()["ring"].dtype == np.uint16
    history.append(np.array([0, 1]), np.array([0, 254]))  # 256 is 0 in one byte
    assert history.arrays()["ring"].dtype == np.uint16
    assert history.entropy() == pytest.approx([math.log(3), 0.0], abs=1e-9)
    history.append(np.array([1]), np.array([65_536]))  # and 0 in two
    history.append(np.array([1]), np.array([0]))
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert history.entropy()[1] == pytest.approx(expected, abs=1e-9)
    assert history.hardness(np.array([0, 65_536])) == pytest.approx([2 / 3, 3 / 4])


def test_a_sample_takes_a_byte_a_label_and_one_more():
    arrays = LabelHistory(1000, 10).arrays()
    assert sum(array.nbytes for array in arrays.values()) == 11_000


@pytest.mark.parametrize("window", [127, 128, 200, 300])
def test_long_windows_wrap_as_short_ones_do(window):
    rng = np.random.default_rng(window)
    labels = rng.integers(0, 7, (3 * window + 5, 2))
    history = LabelHistory(2, window)
    for turn, row in enumerate(labels, 1):
        history.append(np.arange(2), row)
        if turn in (window - 1, window, window + 1, 2 * window - 1, 2 * window, 3 * window + 5):
            last = labels[max(0, turn - window) : turn].T.tolist()
            assert history.votes().tolist() == [len(last[0])] * 2
            expected = [entropy_of(votes) for votes in last]
            assert history.entropy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("zero_padded", [False, True])
@hypothesis.settings(deadline=None)
@hypothesis.given(st.data())
def test_a_history_is_what_lists_of_labels_give(zero_padded, data):
    size, window = 5, data.draw(st.integers(1, 20), "window")
    classes = data.draw(st.sampled_from([2, 3, 10, 300]), "classes")
    appends = data.draw(random_appends(size, st.integers(0, classes - 1)), "appends")
    given_labels = np.array(
        data.draw(st.lists(st.integers(-1, classes - 1), min_size=size, max_size=size), "labels")
    )
    history, lists = LabelHistory(size, window, zero_padded), [[] for _ in range(size)]
    for appended in appends:
        tell(history, appended)
        for sample, label in appended.items():
            lists[sample].append(label)
    votes = [labels[-window:] for labels in lists]
    if zero_padded:
        votes = [labels + [0] * (window - len(labels)) for labels in votes]
    assert history.votes().tolist() == [len(labels) for labels in votes]
    entropy = np.array([entropy_of(labels) if labels else np.nan for labels in votes])
    np.testing.assert_allclose(history.entropy(), entropy, rtol=0, atol=1e-9)
    scores = entropy / math.log(classes)
    np.testing.assert_allclose(history.scores(classes), scores, rtol=0, atol=1e-9)
    hardness = [
        np.mean(np.array(labels) != given) if labels and given >= 0 else np.nan
        for labels, given in zip(votes, given_labels, strict=True)
    ]
    np.testing.assert_allclose(history.hardness(given_labels), hardness, rtol=1e-12)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(1, 6), *[random_appends(3, st.integers(0, 300), max_size=12)] * 2)
def test_a_restored_history_goes_on_as_the_first(window, before, after):
    history = LabelHistory(3, window)
    for appended in before:
        tell(history, appended)
    other = restored(history, LabelHistory(3, window))
    for appended in after:
        tell(history, appended)
        tell(other, appended)
    np.testing.assert_array_equal(other.votes(), history.votes())
    np.testing.assert_array_equal(other.entropy(), history.entropy())
    np.testing.assert_array_equal(other.hardness(np.arange(3)), history.hardness(np.arange(3)))


def test_samples_are_compared_in_blocks_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 3, rng.integers(0, 9)).tolist() for _ in range(23)]
    history = history_of(samples, window=6)
    whole = history.entropy()
    for block in (1, 5, 22, 23):
        monkeypatch.setattr(_memory, "_BLOCK", block)
        np.testing.assert_array_equal(history.entropy(), whole)


# ---- LastLoss.


@hypothesis.settings(deadline=None)
@hypothesis.given(random_appends(4, st.floats(0, 50, width=32)))
def test_the_last_loss_is_kept(appends):
    memory, last = LastLoss(4), {}
    for appended in appends:
        tell(memory, appended)
        last |= appended
    expected = np.float32([last.get(sample, np.nan) for sample in range(4)])
    other = restored(memory, LastLoss(4))
    for values in (memory.loss, memory.scores(3), memory.hardness(np.arange(4)), other.loss):
        np.testing.assert_array_equal(values, expected)


# ---- ProbabilityMoments.


@hypothesis.settings(deadline=None)
@hypothesis.given(random_appends(3, st.floats(0, 1, width=32)))
def test_moments_are_those_of_all_draws(appends):
    memory, draws = ProbabilityMoments(3), [[] for _ in range(3)]
    for appended in appends:
        tell(memory, appended)
        for sample, value in appended.items():
            draws[sample].append(value)
    variance = [np.var(values) if values else 0.0 for values in draws]
    deviation = [np.std(values) if values else np.nan for values in draws]
    one_less_mean = [1 - np.mean(values) if values else np.nan for values in draws]
    for found in (memory, restored(memory, ProbabilityMoments(3))):
        assert found.count.tolist() == [len(values) for values in draws]
        np.testing.assert_allclose(found.variance(), variance, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.scores(3), deviation, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.hardness(np.arange(3)), one_less_mean, atol=1e-5)


def test_moments_worked_by_hand():
    memory = ProbabilityMoments(3)
    for values in ([0.5, 0.25], [0.5, 0.75], [0.5, 0.5]):
        memory.append(np.array([2, 0]), np.float32(values))
    assert memory.count.tolist() == [3, 0, 3]
    assert memory.mean.tolist() == [0.5, 0.0, 0.5]
    assert memory.variance() == pytest.approx([1 / 24, 0.0, 0.0])  # of 1/4, 3/4 and 1/2


def test_moments_stay_precise_over_many_draws():
    values = np.random.default_rng(0).uniform(0.989, 0.991, 20_000).astype(np.float32)
    memory = ProbabilityMoments(1)
    for value in values:
        memory.append(ONE, value[None])
    assert memory.variance() == pytest.approx([np.var(values.astype(float))], rel=0.01)


# ---- What `BatchSelector.log` counts.


def counted(memory, classes):
    scores = memory.scores(classes)
    counts, _ = np.histogram(scores[~np.isnan(scores)], memory.score_edges)
    return counts.sum()


@pytest.mark.parametrize("window", [1, 2, 4, 9, 10, 16])
def test_every_uncertainty_is_within_the_edges_of_the_histogram(window):
    for classes in range(2, window + 2):
        samples = [votes_of(p) for p in partitions(window, window) if len(p) <= classes]
        assert counted(history_of(samples, window), classes) == len(samples)


def test_every_deviation_is_within_the_edges_of_the_histogram():
    """In float32 that of zeros and ones may be above 1/2."""
    memory = ProbabilityMoments(256)
    for turn in range(8):
        bits = (np.arange(256) >> turn) & 1
        memory.append(np.arange(256), bits.astype(np.float32))
        assert counted(memory, 2) == 256


def test_every_loss_is_within_the_edges_of_the_histogram():
    memory = LastLoss(5)
    memory.append(np.arange(4), np.float32([0, 1e-9, 0.5, 3e38]))
    assert counted(memory, 2) == 4
