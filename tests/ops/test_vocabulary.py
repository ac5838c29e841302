"""The wrapper of a vocabulary; its rules are tested with the C++ core, its use with the layer."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.ops.row_store import Vocabulary

KEYS = np.array([5, -(2**63), 5, 2**63 - 1, 0])


def train(vocabulary, keys):
    rows, count = vocabulary.train(tf.constant(keys, tf.int64))
    return rows.numpy().tolist(), int(count)


def find(vocabulary, keys):
    return vocabulary.find(tf.constant(keys, tf.int64)).numpy().tolist()


def test_keys_get_rows_in_their_order():
    vocabulary = Vocabulary(1, 0, 0)
    assert train(vocabulary, KEYS) == ([1, 2, 1, 3, 4], 5)
    assert find(vocabulary, [0, 5, 6]) == [4, 1, 0]
    keys, rows = (part.numpy().tolist() for part in vocabulary.export())
    assert dict(zip(keys, rows, strict=True)) == {5: 1, -(2**63): 2, 2**63 - 1: 3, 0: 4}
    assert rows == sorted(rows)


def test_keys_are_counted():
    vocabulary = Vocabulary(3, 0, 0)
    assert train(vocabulary, [7, 7, 8]) == ([0, 0, 0], 1)
    assert find(vocabulary, [7, 7, 7]) == [0, 0, 0]
    assert train(vocabulary, [8, 7, 8]) == ([2, 1, 2], 3)  # by the row at the end


def test_rows_end_at_the_limit():
    vocabulary = Vocabulary(1, 0, 3)
    assert train(vocabulary, [1, 2, 3, 4]) == ([1, 2, 0, 0], 3)


def test_keys_expire_after_more_batches_than_their_age():
    vocabulary = Vocabulary(1, 1, 0)
    train(vocabulary, [1, 2, 3])
    train(vocabulary, [2])
    assert vocabulary.expire().numpy().tolist() == []
    train(vocabulary, [2])
    assert vocabulary.expire().numpy().tolist() == [1, 3]
    assert find(vocabulary, [1, 2, 3]) == [0, 2, 0]
    assert train(vocabulary, [9, 3, 8]) == ([1, 3, 4], 5)


def test_a_saved_one_goes_on_where_it_was():
    rng = np.random.default_rng(0)
    one = Vocabulary(2, 3, 0)
    for _ in range(10):
        train(one, rng.integers(0, 30, 8))
    one.expire()
    other = Vocabulary(2, 3, 0, saved=one.save())
    for _ in range(20):
        keys = rng.integers(0, 30, 8)
        assert train(one, keys) == train(other, keys)
        np.testing.assert_array_equal(one.expire(), other.expire())
    np.testing.assert_array_equal(one.save(), other.save())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved[:3], "The size of `vocabulary` must be"),
        (lambda saved: saved[:-1], "The size of `vocabulary` must be"),
        (lambda saved: np.where(np.arange(len(saved)) == 1, 0, saved), "as in a saved vocabulary"),
        (lambda saved: np.where(np.arange(len(saved)) == 2, 9, saved), "The version of"),
    ],
)
def test_saved_numbers_that_are_damaged(change, message):
    vocabulary = Vocabulary(1, 0, 0)
    train(vocabulary, KEYS)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        Vocabulary(1, 0, 0, saved=change(vocabulary.save().numpy()))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((0, 0, 0), "'min_count' of 0 must be at least minimum 1"),
        ((1, -1, 0), "'max_age' of -1 must be at least minimum 0"),
        ((1, 0, -1), "'max_rows' of -1 must be at least minimum 0"),
    ],
)
def test_bad_arguments(rule, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        Vocabulary(*rule)


def test_it_works_in_graphs_and_for_any_shape():
    vocabulary = Vocabulary(1, 0, 0)
    in_graph = tf.function(lambda keys: vocabulary.train(keys))
    for _ in range(2):
        rows, count = in_graph(tf.constant([[1, 2], [3, 1]], tf.int64))
        assert rows.numpy().tolist() == [[1, 2], [3, 1]]
        assert count == 4
    assert vocabulary.find(tf.zeros([0], tf.int64)).shape == (0,)
