import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.ops.casting import cast_features


def slow_casting(ids, padding_id=None):
    """A stable sort, and the packing of the docstring in Python's integers."""
    flat = np.ravel(ids).astype(np.int64)
    bits = max(len(flat) - 1, 0).bit_length()
    order = [int(k) for k in np.argsort(flat, kind="stable")]
    pairs = [(int(flat[k]) << bits) | k for k in order if flat[k] != padding_id]
    return pairs + [-1] * (len(flat) - len(pairs))


# ---- The result ----------------------------------------------------------------------------------


def test_golden_values(implementation):
    # Four lookups need two bits: 7 at positions 0 and 3, 2 at positions 1 and 2.
    casting = tfrec.ops.cast_indices([[7, 2], [2, 7]])
    assert casting.dtype == tf.int64
    assert casting.numpy().tolist() == [[2 << 2 | 1, 2 << 2 | 2], [7 << 2 | 0, 7 << 2 | 3]]
    casting = tfrec.ops.cast_indices([[7, 2], [2, 7]], padding_id=2)
    assert casting.numpy().tolist() == [[7 << 2 | 0, 7 << 2 | 3], [-1, -1]]


@st.composite
def problems(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    dtype = draw(st.sampled_from(["int32", "int64"]))
    largest = draw(st.sampled_from([1, 5, 3000, 2**31 - 1] + [2**53] * (dtype == "int64")))
    size = int(np.prod(shape))
    padding_id = draw(st.sampled_from([None, -1, 0, 3, 2**40]))
    low = -1 if padding_id == -1 else 0
    ids = draw(st.lists(st.integers(low, largest), min_size=size, max_size=size))
    return np.array(ids, dtype).reshape(shape), padding_id


@hypothesis.given(problems())
@hypothesis.settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_agrees_with_a_stable_sort(implementation, problem):
    ids, padding_id = problem
    casting = tfrec.ops.cast_indices(ids, padding_id)
    assert casting.shape == ids.shape
    assert casting.numpy().ravel().tolist() == slow_casting(ids, padding_id)


@pytest.mark.parametrize("largest", [0, 1, 2**11 - 1, 2**11, 2**22, 2**40])
def test_agrees_with_a_stable_sort_over_many_threads_and_digits(implementation, largest):
    ids = np.random.default_rng(0).integers(0, largest + 1, (70_000, 2))
    ids[::7] = largest
    expected = slow_casting(ids, largest // 2)
    casting = tfrec.ops.cast_indices(ids, largest // 2)
    np.testing.assert_array_equal(casting.numpy().ravel(), expected)


def test_ids_that_rise_already_need_no_sorting(implementation):
    ids = np.arange(100_000) * 3
    np.testing.assert_array_equal(tfrec.ops.cast_indices(ids), slow_casting(ids))
    ids[50_001] = ids[50_000]  # and these do, by a hair
    ids[[70_000, 70_001]] = ids[[70_001, 70_000]]
    np.testing.assert_array_equal(tfrec.ops.cast_indices(ids), slow_casting(ids))


def test_ragged_and_sparse_ids_are_cast_by_their_flat_values(implementation):
    ragged = tf.ragged.constant([[7, 2], [], [2, 7, 0]], dtype=tf.int64)
    expected = slow_casting([7, 2, 2, 7, 0], 2)
    assert tfrec.ops.cast_indices(ragged, 2).numpy().tolist() == expected
    assert tfrec.ops.cast_indices(ragged.to_sparse(), 2).numpy().tolist() == expected
    deep = tf.ragged.constant([[[7, 2]], [[], [2, 7, 0]]])
    assert tfrec.ops.cast_indices(deep, 2).numpy().tolist() == expected


def test_works_in_graphs_and_pipelines_with_the_shape_of_the_ids(implementation):
    ids = np.array([[7, 2, 0], [2, 7, 5]])
    expected = np.reshape(slow_casting(ids), ids.shape)
    for spec in ([2, 3], [None, 3], [None, None], None):
        cast = tf.function(tfrec.ops.cast_indices, input_signature=[tf.TensorSpec(spec, tf.int64)])
        promised = cast.get_concrete_function().output_shapes
        assert promised.as_list() == spec if spec else promised.rank is None
        np.testing.assert_array_equal(cast(ids), expected)
    dataset = tf.data.Dataset.from_tensors(ids).repeat(3)
    dataset = dataset.map(tfrec.ops.cast_indices, num_parallel_calls=2)
    assert dataset.element_spec.shape == (2, 3)
    for casting in dataset:
        np.testing.assert_array_equal(casting, expected)


def test_features_of_one_table_are_cast_together(implementation):
    ids = [
        tf.constant([[5, 1], [0, 5]]),
        tf.constant([[8], [9]], tf.int64),
        tf.ragged.constant([[5], [3, 1]], dtype=tf.int32),
    ]
    castings = cast_features(ids, [0, None, 1], table_of=[0, 1, 0], num_tables=2)
    # Positions count on from feature to feature: 4 lookups, then 3.
    expected = [(1, 1), (3, 5), (5, 0), (5, 3), (5, 4)]
    assert castings[0].numpy().tolist() == [i << 3 | k for i, k in expected] + [-1, -1]
    assert castings[1].numpy().tolist() == [[8 << 1 | 0], [9 << 1 | 1]]


# ---- Bad ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_graph", [False, True])
def test_ids_that_have_no_casting(implementation, in_graph):
    cast = tf.function(tfrec.ops.cast_indices) if in_graph else tfrec.ops.cast_indices
    for ids, padding_id, message in (
        ([[0, 1], [-5, -7]], None, r"`ids` must not be negative. Received: `ids\[2, 0\]=-5`"),
        ([0, -1, -2], -1, r"`ids` must not be negative. Received: `ids\[2, 0\]=-2`"),
        ([-(2**31)], None, r"`ids` must not be negative. Received: `ids\[0, 0\]=-2147483648`"),
        ([2**63 - 1, 0], None, "`ids` up to 9223372036854775807 in 2 lookups do not pack into 63"),
        ([2**62, 0], None, "`ids` up to 4611686018427387904 in 2 lookups do not pack into 63"),
        ([2**61] + [0] * 4, None, "in 5 lookups do not pack into 63 bits; use a smaller batch"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            cast(tf.constant(ids), padding_id)
    for ids in ([0.5], [True], ["a"]):
        with pytest.raises(ValueError, match="`ids` must have dtype int32 or int64. Received: "):
            cast(tf.constant(ids))
    for padding_id in (0.5, "a", 2**63, -(2**63)):
        with pytest.raises(ValueError, match="`padding_id` must be None or an integer of 64 bits"):
            cast(tf.constant([1]), padding_id)


@pytest.mark.parametrize(("largest", "lookups"), [(2**63 - 1, 1), (2**62 - 1, 2), (2**60, 4)])
def test_ids_that_fit_to_the_last_bit(implementation, largest, lookups):
    ids = [0] * (lookups - 1) + [largest]
    casting = tfrec.ops.cast_indices(tf.constant(ids, tf.int64))
    assert casting.numpy().tolist() == slow_casting(ids)


def test_a_padding_id_too_large_for_the_dtype_is_no_ones_id(implementation):
    ids = tf.constant([3, 1], tf.int32)
    casting = tfrec.ops.cast_indices(ids, padding_id=3 + 2**32)
    assert casting.numpy().tolist() == slow_casting([3, 1])


def test_the_feature_with_a_negative_id_is_named(implementation):
    ids = [tf.constant([[1]]), tf.constant([[2, -3]])]
    for table_of, tables in (([0, 0], 1), ([0, 1], 2)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids\[1\]\[0, 1\]=-3`"):
            cast_features(ids, [None, None], table_of, tables)
