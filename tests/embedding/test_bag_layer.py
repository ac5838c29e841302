import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import BagLayer
from tfrec_efficient.embedding._bag_layer import check_sizes


class Echo(BagLayer):
    """Pools ids themselves: each row is its id, `output_dim` times."""

    def __init__(self, combiner="sum", padding_id=None, mask_zero=False, **arguments):
        super().__init__(100, 2, combiner, padding_id, mask_zero, **arguments)
        self.pooled = []

    def _pool(self, ids, weights, casting):
        self.pooled.append((ids, weights))
        if isinstance(ids, tf.RaggedTensor | tf.SparseTensor):
            ids = ids.to_tensor() if isinstance(ids, tf.RaggedTensor) else tf.sparse.to_dense(ids)
        numbers = tf.cast(ids, tf.float32)
        if weights is not None:
            numbers *= tf.cast(weights, tf.float32)
        return tf.tile(tf.reduce_sum(numbers, 1, keepdims=True), [1, 2])

    def call(self, ids, weights=None):
        return self._pool_or_look_up(ids, weights, None)

    def compute_output_shape(self, ids_shape, weights_shape=None):
        return super().compute_output_shape(ids_shape)

    def compute_output_spec(self, ids, weights=None):
        return super().compute_output_spec(ids)


IDS = np.arange(24).reshape(2, 3, 4)


def test_bags_are_the_last_axis():
    layer = Echo()
    assert layer(IDS).shape == (2, 3, 2)
    np.testing.assert_array_equal(layer(IDS)[..., 0], IDS.sum(-1))
    assert layer.pooled[0][0].shape == (6, 4)
    np.testing.assert_array_equal(layer(IDS, IDS / 2)[..., 1], (IDS**2 / 2).sum(-1))


def test_without_a_combiner_each_id_is_a_bag():
    layer = Echo(None)
    np.testing.assert_array_equal(layer(IDS)[..., 1], IDS)
    assert layer.pooled[0][0].shape == (24, 1)
    ragged = tf.ragged.constant([[1, 2], [], [3]])
    looked_up = layer(ragged)
    assert isinstance(looked_up, tf.RaggedTensor)
    np.testing.assert_array_equal(looked_up.row_splits, ragged.row_splits)


def test_ragged_and_sparse_bags_are_pooled_as_they_are():
    layer = Echo()
    ragged = tf.ragged.constant([[1, 2], [], [3]])
    for ids in (ragged, ragged.to_sparse()):
        assert layer(ids)[:, 0].numpy().tolist() == [3, 0, 3]
        assert type(layer.pooled[-1][0]) is type(ids)


def test_shapes_that_are_known_late():
    layer = Echo()
    specs = [tf.TensorSpec([None] * 3, tf.int64), tf.TensorSpec([None] * 3)]
    pool = tf.function(lambda ids, weights: layer(ids, weights), input_signature=specs)
    np.testing.assert_array_equal(pool(IDS, np.ones(IDS.shape))[..., 0], IDS.sum(-1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have the shape of `ids`"):
        pool(IDS, np.ones((2, 4, 3)))


def test_half_precision_is_that_of_the_output_only():
    layer = Echo(dtype="mixed_bfloat16")
    assert layer(np.array([[99, 99, 99.0]])).dtype == tf.bfloat16
    assert layer.pooled[0][0].dtype == tf.int32 or layer.pooled[0][0].dtype == tf.int64


@pytest.mark.parametrize(("combiner", "shape"), [("mean", (2, 3, 2)), (None, (2, 3, 4, 2))])
def test_symbolic_shapes(combiner, shape):
    layer = Echo(combiner)
    assert layer.compute_output_shape(IDS.shape) == shape
    assert layer(keras.Input((3, 4), dtype="int64")).shape == (None, *shape[1:])


def test_the_config_has_what_the_layers_share():
    config = Echo("mean", np.int64(3)).get_config()
    shared = ("input_dim", "output_dim", "combiner", "padding_id", "mask_zero")
    assert [config[name] for name in shared] == [100, 2, "mean", 3, False]
    assert type(config["padding_id"]) is int


def test_masks():
    ids = tf.constant([[1, 0]])
    assert Echo(None, mask_zero=True).compute_mask(ids).numpy().tolist() == [[True, False]]
    assert Echo(None).compute_mask(ids) is None


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "3", np.int64(3)])
def test_sizes_are_positive_integers(size):
    with pytest.raises(ValueError, match="`rows` must be a positive integer. Received: rows="):
        check_sizes(columns=1, rows=size)
    check_sizes(columns=1, rows=2)


@pytest.mark.parametrize(
    ("arguments", "ids", "message"),
    [
        ({}, np.array([1]), "rank 2 or more"),
        ({"combiner": None}, tf.sparse.from_dense([[1]]), "Sparse `ids` need a combiner"),
        ({}, np.array([["a"]]), "`ids` must be integers; for strings"),
    ],
)
def test_bad_ids(arguments, ids, message):
    with pytest.raises(ValueError, match=message):
        Echo(**arguments)(ids)


def test_weights_need_a_combiner_and_the_shape_of_ids():
    with pytest.raises(ValueError, match="`weights` need a combiner"):
        Echo(None)(IDS, IDS)
    with pytest.raises(ValueError, match="must have the shape of `ids`, .*Received: shape"):
        Echo()(IDS, IDS[:, :, :2])


def test_a_layer_has_to_say_where_rows_lie():
    with pytest.raises(NotImplementedError):
        BagLayer(3, 2, "sum", None, False)._pool_or_look_up(np.array([[1]]), None, None)
