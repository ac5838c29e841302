import time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tfrec_efficient.llm.backbones import sequence_dataset
from tfrec_efficient.llm.backbones.sequences import _draw
from tfrec_efficient.llm.backbones.sequences import _free_items

SEQUENCES = [np.arange(1, 9), [3, 1, 3], [2, 9], [7, 7, 7, 7, 7, 5]]


def epoch(dataset):
    return [{name: ids.numpy() for name, ids in batch.items()} for batch in dataset]


def joined(batches):
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


@settings(max_examples=25, deadline=None)
@given(
    sequences=st.lists(
        st.lists(st.integers(1, 9), min_size=2, max_size=12), min_size=1, max_size=7
    ),
    max_length=st.integers(1, 10),
    batch_size=st.integers(1, 4),
    negatives=st.integers(1, 3),
    share=st.booleans(),
    seed=st.integers(0, 5),
)
def test_rows_are_shifted_and_negatives_are_free(
    sequences, max_length, batch_size, negatives, share, seed
):
    dataset = sequence_dataset(
        sequences, 10, max_length, batch_size, negatives, share, seed, shuffle=False
    )
    batches = epoch(dataset)
    assert len(dataset) == len(batches) == -(-len(sequences) // batch_size)
    rows = joined(batches)
    places = () if share else (max_length,)
    assert rows["negatives"].shape == (len(sequences), *places, negatives)
    assert dataset.element_spec["negatives"].shape[1:] == (*places, negatives)
    assert all(spec.dtype == tf.int32 for spec in dataset.element_spec.values())
    for row, sequence in enumerate(sequences):
        for name, items in (("history", sequence[:-1]), ("positives", sequence[1:])):
            kept = items[-max_length:]
            assert rows[name][row].tolist() == [0] * (max_length - len(kept)) + kept
        drawn = set(rows["negatives"][row].ravel().tolist())
        assert not drawn & set(sequence)
        assert drawn <= set(range(1, 11))


def test_every_free_item_is_drawn_equally_often():
    dataset = sequence_dataset([[2, 3, 7], [1, 9]], 9, 1, 2, 20_000, share_negatives=True)
    of_user = joined(epoch(dataset))
    for history, drawn in zip(of_user["history"], of_user["negatives"], strict=True):
        free = [1, 4, 5, 6, 8, 9] if history[0] == 3 else [2, 3, 4, 5, 6, 7, 8]
        counts = np.bincount(drawn, minlength=10)
        assert np.flatnonzero(counts).tolist() == free
        # Five standard deviations of a count.
        expected = 20_000 / len(free)
        assert np.abs(counts[free] - expected).max() < 5 * expected**0.5


def test_free_item_n_is_found_for_every_n():
    items, row_splits = np.array([5, 2, 2, 1, 6, 1]), np.array([0, 3, 5, 6])
    free = _free_items(items, row_splits, 6)
    assert free.counts.numpy().tolist() == [4, 4, 5]
    drawn = _draw(free, tf.range(3, dtype=tf.int64), (3, 400), tf.constant([1, 2]), 6).numpy()
    assert [sorted(set(row)) for row in drawn.tolist()] == [
        [1, 3, 4, 6], [2, 3, 4, 5], [2, 3, 4, 5, 6]
    ]  # fmt: skip


def test_each_epoch_differs_and_equal_seeds_repeat_all_of_them():
    sequences = [[i, i + 1, i + 2] for i in range(1, 40)]

    def epochs(seed):
        dataset = sequence_dataset(sequences, 99, 2, 8, 3, seed=seed)
        return [joined(epoch(dataset)) for _ in range(2)]

    first, second = epochs(0)
    assert sorted(first["positives"].tolist()) == sorted(second["positives"].tolist())
    assert first["positives"].tolist() != second["positives"].tolist()
    of_first, of_second = (
        {tuple(h): n.tolist() for h, n in zip(rows["history"], rows["negatives"], strict=True)}
        for rows in (first, second)
    )
    assert sum(of_first[history] == of_second[history] for history in of_first) < 2
    for expected, received in zip((first, second), epochs(0), strict=True):
        for name, ids in expected.items():
            np.testing.assert_array_equal(received[name], ids)
    assert epochs(1)[0]["history"].tolist() != first["history"].tolist()


def test_without_shuffling_users_stay_in_order():
    dataset = sequence_dataset(SEQUENCES, 9, 3, 2, shuffle=False)
    for _ in range(2):
        assert joined(epoch(dataset))["positives"][:, -1].tolist() == [8, 3, 9, 5]


def test_a_large_dataset_takes_seconds():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 3707, n) for n in rng.integers(20, 312, 6040)]
    start = time.perf_counter()
    steps = sum(1 for _ in sequence_dataset(sequences, 3706, 200, 128, 100, True))
    assert steps == 48
    assert time.perf_counter() - start < 20  # 0.5 s on an idle core


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ([], "`sequences` must not be empty"),
        ([[1, 2], [3]], r"of 2 items or more. Received: `sequences\[1\]` of shape \(1,\)"),
        ([[[1, 2]]], r"Received: `sequences\[0\]` of shape \(1, 2\)"),
        ([[1, 2], [1.5, 2.0]], r"must be integers. Received: `sequences\[1\]` of dtype float64"),
        ([[1, 2], [4, 0]], r"items in `\[1, 9\]`. Received: `sequences\[1\]\[1\]=0"),
        ([[1, 2], [10, 3]], r"items in `\[1, 9\]`. Received: `sequences\[1\]\[0\]=10"),
        ([[1, 2], range(1, 10)], r"Received: `sequences\[1\]` has all 9 items"),
    ],
)
def test_bad_sequences_are_refused(sequences, words):
    with pytest.raises(ValueError, match=words):
        sequence_dataset(sequences, 9, 3, 2)


@pytest.mark.parametrize("name", ["item_count", "max_length", "batch_size", "negatives"])
def test_bad_sizes_are_refused(name):
    arguments = {"item_count": 9, "max_length": 3, "batch_size": 2, name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
        sequence_dataset(SEQUENCES, **arguments)


def test_a_seed_must_be_an_integer():
    with pytest.raises(ValueError, match="`seed` must be an integer. Received: seed=None"):
        sequence_dataset(SEQUENCES, 9, 3, 2, seed=None)
