import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.testing import run_dataset_transform_test


def evens(dataset):
    return dataset.filter(lambda x: x % 2 == 0)


def run(transform, expected, **kwargs):
    run_dataset_transform_test(transform, tf.data.Dataset.range(5), expected, **kwargs)


def test_right_transforms_pass():
    run(evens, [0, 2, 4])
    batches = [np.array([0, 1]), np.array([2, 3]), np.array([4])]
    run(lambda ds: ds.batch(2), batches, keeps_element_spec=False)
    run(lambda ds: ds.map(lambda x: {"a": x}).take(1), [{"a": 0}], keeps_element_spec=False)
    run(lambda ds: ds.take(0), [])


def test_a_transform_without_a_seed_is_found():
    def shuffle(dataset):
        return dataset.shuffle(5)

    tf.random.set_seed(1)
    with pytest.raises(AssertionError):
        run(shuffle, [int(x) for x in shuffle(tf.data.Dataset.range(5))])


@pytest.mark.parametrize(
    ("transform", "expected", "message"),
    [
        (evens, [0, 2], "Expected 2 elements. Received: 3"),
        (evens, [0, 2, 3], "Arrays are not equal"),
        (lambda ds: ds.map(lambda x: tf.cast(x, tf.int32)), [0, 1, 2, 3, 4], "element spec must"),
        (lambda ds: ds.map(lambda x: (x, x)).take(1), [(0, 0)], "element spec must stay"),
    ],
)
def test_each_vice_is_found(transform, expected, message):
    with pytest.raises(AssertionError, match=message):
        run(transform, expected)


def test_ragged_and_sparse_elements():
    ragged = tf.ragged.constant([[1, 2], [], [3]])
    for rows in (ragged, ragged.to_sparse()):
        dataset = tf.data.Dataset.from_tensors(rows)
        run_dataset_transform_test(lambda ds: ds, dataset, [rows])
    with pytest.raises((AssertionError, ValueError)):
        run_dataset_transform_test(
            lambda ds: ds, tf.data.Dataset.from_tensors(ragged), [tf.ragged.constant([[1, 2], [3]])]
        )


def test_other_elements_in_a_graph_are_found():
    def fickle(dataset):
        offset = tf.Variable(0, dtype=tf.int64)
        kept.append(offset)

        def count(x):
            return x + offset.assign_add(1) // 11  # right in both eager passes of five elements

        return dataset.map(count)

    kept = []
    with pytest.raises(AssertionError):
        run(fickle, [0, 1, 2, 3, 4])
