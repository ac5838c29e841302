import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.embedding._bags import flat_ids
from tfrec_efficient.embedding._bags import values_of
from tfrec_efficient.embedding._bags import with_values

DENSE = np.array([[[1, 2], [3, 4]]], np.int32)
RAGGED = tf.ragged.constant([[1, 2], [], [3]], dtype=tf.int32)
DEEP = tf.ragged.constant([[[1], [2, 3]], []], dtype=tf.int32)


@pytest.mark.parametrize(
    ("ids", "flat"),
    [
        (DENSE, [1, 2, 3, 4]),
        (RAGGED, [1, 2, 3]),
        (DEEP, [1, 2, 3]),
        (RAGGED.to_sparse(), [1, 2, 3]),
    ],
)
def test_ids_of_any_layout_are_flat_and_come_back(ids, flat):
    result = flat_ids(ids)
    assert result.dtype == tf.int64
    assert result.numpy().tolist() == flat
    back = with_values(ids, result * 10)
    assert type(back) is type(tf.convert_to_tensor(ids) if ids is DENSE else ids)
    assert values_of(back).dtype == tf.int64
    assert flat_ids(back).numpy().tolist() == [10 * value for value in flat]
    if ids is DENSE:
        np.testing.assert_array_equal(back, DENSE * 10)
    else:
        dense = ids.to_tensor() if ids is not DEEP and isinstance(ids, tf.RaggedTensor) else None
        if dense is not None:
            np.testing.assert_array_equal(back.to_tensor(), tf.cast(dense, tf.int64) * 10)


def test_values_of_dense_ids_keep_their_shape():
    np.testing.assert_array_equal(values_of(DENSE), DENSE)


def test_shapes_that_are_known_late():
    spec = tf.TensorSpec(None, tf.int32)
    double = tf.function(lambda ids: with_values(ids, 2 * flat_ids(ids)), input_signature=[spec])
    np.testing.assert_array_equal(double(DENSE), DENSE * 2)
