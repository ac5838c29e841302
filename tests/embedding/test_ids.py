import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.embedding._ids import as_keys
from tfrec_efficient.embedding._ids import check_keys

IDS = np.array([[1, 2, 2], [4, 0, 0]])


class OneFeature(tfrec.EmbeddingBagCollection):
    def __call__(self, ids):
        return super().__call__({"ids": ids})


def bag(input_dim):
    return tfrec.EmbeddingBag(input_dim, 2, embeddings_initializer="zeros")


def collection(input_dim):
    return OneFeature({"table": (input_dim, 2)}, {"ids": "table"}, embeddings_initializer="zeros")


def filled(make):
    layer = make(5)
    layer.build()
    layer.weights[0].assign(np.random.default_rng(0).normal(size=(5, 2)))
    return layer


both = pytest.mark.parametrize("make", [bag, collection])


@both
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_small_integers(implementation, make, dtype):
    layer = filled(make)
    expected = layer(IDS)
    assert np.any(expected)
    np.testing.assert_array_equal(layer(IDS.astype(dtype)), expected)


@both
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_whole_numbers_in_float(implementation, make, dtype):
    """They are what keras.Sequential makes of ids."""
    layer = filled(make)
    np.testing.assert_array_equal(layer(tf.cast(IDS, dtype)), layer(IDS))
    np.testing.assert_array_equal(tf.function(layer)(tf.cast(IDS, dtype)), layer(IDS))
    for run in (layer, tf.function(layer)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="`ids` must be whole numbers"):
            run(tf.cast(IDS, dtype) + 0.5)


@both
def test_whole_numbers_in_ragged_and_sparse_float(implementation, make):
    layer = filled(make)
    ragged = tf.ragged.constant([[1, 2], [3], []], dtype=tf.int64)
    for ids in (ragged, ragged.to_sparse()):
        np.testing.assert_array_equal(layer(tf.cast(ids, tf.float32)), layer(ragged))
        with pytest.raises(tf.errors.InvalidArgumentError, match="`ids` must be whole numbers"):
            layer(tf.cast(ids, tf.float32) * 0.25)


@both
@pytest.mark.parametrize(
    ("dtype", "input_dim"),
    [("float16", 2**11), ("bfloat16", 2**8), ("float32", 2**24), ("float64", 2**24 + 1)],
)
def test_the_largest_table_that_a_float_dtype_can_address(implementation, make, dtype, input_dim):
    ids = tf.cast([[input_dim - 1]], dtype)
    assert int(tf.cast(ids, tf.int64)[0, 0]) == input_dim - 1
    assert make(input_dim)(ids).shape == (1, 2)
    if dtype == "float64":
        return
    message = f"`ids` of dtype {dtype} cannot tell the {input_dim + 1} rows apart. Pass integers"
    for value in (ids, keras.Input((None,), dtype=dtype)):
        with pytest.raises(ValueError, match=message):
            make(input_dim + 1)(value)


@both
def test_what_are_no_ids(implementation, make):
    for ids in (tf.constant([["a"]]), keras.Input((None,), dtype="string")):
        with pytest.raises(ValueError, match="put `keras.layers.StringLookup` or `keras.layers.H"):
            make(5)(ids)
    with pytest.raises(ValueError, match="`ids` must be integers; .* Received: dtype bool"):
        make(5)(np.array([[True]]))


def test_keys_are_numbers_as_they_are_and_hashes_of_strings():
    numbers = tf.constant([[-1, 3], [2**31 - 1, 0]], tf.int32)
    np.testing.assert_array_equal(as_keys(numbers), numbers)
    assert as_keys(numbers).dtype == tf.int64
    keys = as_keys(tf.constant(["alice", "bob", "alice", ""])).numpy()
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3
    assert keys.min() >= 0


def test_what_are_no_keys():
    for ids in (tf.constant(["a"]), tf.zeros((1,), tf.int32), tf.zeros((1,), tf.int64)):
        check_keys(ids, padding_id=None)
    check_keys(tf.zeros((1,), tf.int64), padding_id=0)
    with pytest.raises(ValueError, match="`padding_id` is a number, .* padding_id=0 and strings"):
        check_keys(tf.constant(["a"]), padding_id=0)
    for dtype in ("float32", "bool"):
        with pytest.raises(ValueError, match=f"be integers or strings. Received: dtype {dtype}"):
            check_keys(tf.zeros((1,), dtype), None)
