import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tfrec_efficient.data import temporal_split


def test_golden():
    users = [1, 2, 1, 1, 2, 1, 1]
    times = [9, 5, 1, 2, 5, 3, 4]
    train, test = temporal_split(users, times, 0.4)
    assert test.tolist() == [0, 6]  # two of user 1's five; user 2 has too few to give one
    assert train.tolist() == [1, 2, 3, 4, 5]


def test_of_equal_times_the_last_row_is_held_out():
    assert temporal_split([1, 1], [7, 7], 0.5)[1].tolist() == [1]


def test_rounding_of_the_fraction():
    assert len(temporal_split([1] * 100, range(100), 0.29)[1]) == 29


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40), st.floats(0.05, 0.95)
)
def test_nobody_is_trained_on_their_future(rows, fraction):
    users, times = np.array(rows, np.int64).reshape(-1, 2).T
    train, test = temporal_split(users, times, fraction)
    assert sorted([*train, *test]) == list(range(len(users)))
    for user in set(users):
        count = np.sum(users == user)
        held_out = test[users[test] == user]
        assert len(held_out) == np.floor(fraction * count + 1e-9)
        if len(held_out) and len(held_out) < count:
            assert times[train[users[train] == user]].max() <= times[held_out].min()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1]), "`user_ids` and `timestamps` must have the same shape"),
        (([[1]], [[1]]), "must have the same shape, `\\(n,\\)`. Received: shapes \\(1, 1\\)"),
        (([1], [1], 0), "`test_fraction` must be in"),
        (([1], [1], 1.0), "Received: test_fraction=1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        temporal_split(*arguments)
