import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.pim import PimEmbeddingBag
from tfrec_efficient.pim.pim_embedding_bag import KINDS
from tfrec_efficient.testing import run_layer_test

DEVICE = tfrec.PimDevice("test", ranks=4)
TABLES = tfrec.PimDevice("tables", 4, "table_aware", slices=2, pads_slices=True)
IDS = np.array([[0, 1, 8], [4, 4, 9]])


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn", None])
def test_a_good_citizen_of_keras(combiner):
    shape = (2, 3, 4) if combiner is None else (2, 4)
    run_layer_test(
        PimEmbeddingBag,
        {
            "input_dim": 10, "output_dim": 4, "device": DEVICE, "combiner": combiner,
            "padding_id": 9, "table_number": 3, "hot_ids": [1, 4], "rule": "adagrad",
        },
        IDS, shape, expected_num_weights=1,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["ragged", "sparse"])
def test_bags_of_any_size(layout):
    ids = tf.ragged.constant([[0, 1, 8], [], [4]], dtype=tf.int64)
    run_layer_test(
        PimEmbeddingBag,
        {"input_dim": 10, "output_dim": 4, "device": DEVICE},
        ids if layout == "ragged" else ids.to_sparse(),
        (3, 4),
        expected_num_weights=1,
        dtype_policies=("float32",),
    )


def trained(layer, ids, steps=3):
    model = keras.Sequential([keras.Input(ids.shape[1:], dtype="int64"), layer])
    model.compile(tfrec.optimizers.Adagrad(0.1), "mse")
    x = np.concatenate([ids] * steps)
    model.fit(x, np.ones((len(x), 4), "float32"), batch_size=len(ids), verbose=0, shuffle=False)
    return layer.embeddings.numpy()


def test_training_has_the_bits_of_an_embedding_bag():
    table = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")
    plain = tfrec.EmbeddingBag(10, 4, embeddings_initializer=keras.initializers.Constant(table))
    here = PimEmbeddingBag(
        10, 4, TABLES, embeddings_initializer=keras.initializers.Constant(table), rule="adagrad"
    )
    np.testing.assert_array_equal(trained(here, IDS), trained(plain, IDS))


def test_reports_add_up_over_the_steps_of_fit():
    layer = PimEmbeddingBag(10, 4, DEVICE, rule="adagrad")
    trained(layer, IDS, steps=3)
    once = tfrec.ops.pim_reports((10, 4), "float32", IDS, device=DEVICE, rule="adagrad")
    for kind, expected in zip(KINDS, once, strict=True):
        report = layer.reports()[kind]
        np.testing.assert_array_equal(report.counts, 3 * expected.counts)
        np.testing.assert_allclose(report.seconds, 3 * expected.seconds)
        np.testing.assert_allclose(report.joules, 3 * expected.joules)
        assert float(report.host_seconds) == pytest.approx(3 * float(expected.host_seconds))
    layer.reset_reports()
    assert not layer.reports()["forward"].counts.numpy().any()


def test_only_training_counts_and_what_is_frozen_has_no_update():
    layer = PimEmbeddingBag(10, 4, DEVICE)
    layer(IDS)
    layer(IDS, training=False)
    assert not layer.reports()["forward"].counts.numpy().any()
    layer.trainable = False
    layer(IDS, training=True)
    assert layer.reports()["forward"].counts.numpy().any()
    for kind in ("backward", "update"):
        assert not layer.reports()[kind].counts.numpy().any()


@pytest.mark.parametrize(
    ("combiner", "ids"),
    [
        (None, IDS[0]),
        (None, tf.ragged.constant([[0, 1], [8]], dtype=tf.int64)),
        ("sum", np.stack([IDS, IDS])),
        ("sum", tf.ragged.constant([[0, 1], [8]], dtype=tf.int64)),
    ],
)
def test_all_shapes_of_ids_are_counted(combiner, ids):
    layer = PimEmbeddingBag(10, 4, DEVICE, combiner)
    layer(ids, training=True)
    lookups = tf.size(ids.flat_values if isinstance(ids, tf.RaggedTensor) else ids)
    assert int(tf.reduce_sum(layer.reports()["forward"].lookups)) == lookups


def test_weights_and_castings_are_taken():
    layer = PimEmbeddingBag(10, 4, DEVICE, "mean")
    weights = tf.constant([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    casting = tfrec.ops.cast_indices(IDS)
    layer.build()
    expected = tfrec.ops.gather_reduce(layer.embeddings, IDS, weights, "mean")
    np.testing.assert_allclose(
        layer(IDS, weights, casting=casting, training=True), expected, rtol=1e-6
    )
    assert int(tf.reduce_sum(layer.reports()["forward"].link_bytes_in)) == 6 * 12


def test_replicas_count_together():
    # Collective operations of two devices of one process fail now and then.
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        layer = PimEmbeddingBag(10, 4, DEVICE)
        model = keras.Sequential([keras.Input((3,), dtype="int64"), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(IDS, np.ones((2, 4)), batch_size=2, verbose=0, shuffle=False)
    halves = [
        tfrec.ops.pim_reports((10, 4), "float32", half, device=DEVICE)[0].counts
        for half in (IDS[:1], IDS[1:])
    ]
    np.testing.assert_array_equal(layer.reports()["forward"].counts, halves[0] + halves[1])


def test_the_device_is_part_of_the_config():
    layer = PimEmbeddingBag(10, 64, tfrec.PimDevice.tensor_casting())
    revived = PimEmbeddingBag.from_config(json.loads(json.dumps(layer.get_config())))
    assert revived.device == layer.device


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "fast"}, "`device` must be a PimDevice. Received: device='fast'"),
        ({"rule": "magic"}, "`rule` must be one of .* Received: rule='magic'"),
        ({"hot_ids": [3, 1]}, r"`hot_ids` must be None or rising integers in `\[0, 10\)`"),
        ({"table_number": -1}, "`table_number` must be an integer, 0 or more. Received: table_num"),
        ({"hot_ids": [10]}, r"Received: hot_ids=\[10\]"),
        ({"hot_ids": [0.5]}, r"Received: hot_ids=\[0.5\]"),
        ({"input_dim": None}, "`input_dim` must be a positive integer. Received: input_dim=None"),
        ({"output_dim": 0}, "`output_dim` must be a positive integer"),
        ({"input_dim": 10**9}, "The table must fit the 8,589,934,592 bytes of a rank of test"),
        ({"device": dataclasses.replace(TABLES, pads_slices=False)}, "slices of 64 bytes or more"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        PimEmbeddingBag(**{"input_dim": 10, "output_dim": 16, "device": DEVICE, **arguments})


def test_bad_input():
    layer = PimEmbeddingBag(10, 4, DEVICE)
    with pytest.raises(ValueError, match="must be built before it has reports"):
        layer.reports()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be in `\[0, 10\)`. Received"):
        layer(np.array([[10]]), training=True)
