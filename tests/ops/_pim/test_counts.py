"""Layouts and counts, worked by hand and against the closed forms of the traffic."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.ops._pim.counts import COUNTERS
from tfrec_efficient.ops._pim.counts import layout_of

DEVICE = tfrec.PimDevice("test", ranks=8, dram=tfrec.pim.DramTimings(page_bytes=1024, banks=4))


def reports(device, shape, ids, **arguments):
    return tfrec.ops.pim_reports(shape, "float32", ids, device=device, **arguments)


def total(report, name):
    return int(tf.reduce_sum(getattr(report, name)))


def test_a_layout_counts_in_whole_bursts():
    layout = layout_of(DEVICE, (100, 17), "float32")
    assert (layout.groups, layout.columns, layout.row_bytes) == (8, 17, 128)
    assert (layout.rows_per_page, layout.pages_per_row) == (8, 1)
    sliced = layout_of(dataclasses.replace(DEVICE, slices=4), (100, 65), "float64", 5)
    assert (sliced.groups, sliced.columns, sliced.row_bytes, sliced.first_group) == (2, 17, 192, 1)
    wide = layout_of(DEVICE, (100, 1000), "float32")
    assert (wide.rows_per_page, wide.pages_per_row) == (1, 4)
    cached = layout_of(dataclasses.replace(DEVICE, cache_bytes=1000), (9, 64), "float16")
    assert (cached.cached_rows, cached.sum_bytes) == (7, 4)


@pytest.mark.parametrize(
    ("shape", "number", "words"),
    [
        ((10, 32), 0, "`device` must cut rows into slices of 64 bytes or more. Received: rows of"),
        ((None, 128), 0, "`table` must have a static shape to be counted."),
        ((10, 128), -1, "`table_number` must be an integer, 0 or more. Received: table_number=-1"),
        ((10, 128), 0.5, "`table_number` must be an integer, 0 or more."),
        ((10,), 0, r"`table` must have rank 2. Received: shape \(10,\)"),
        ((10, 2, 64), 0, r"`table` must have rank 2. Received: shape \(10, 2, 64\)"),
        (tf.TensorShape(None), 0, "`table` must have a static shape to be counted. Received: "),
    ],
)
def test_what_has_no_layout(shape, number, words):
    sliced = dataclasses.replace(DEVICE, slices=8)
    with pytest.raises(ValueError, match=words):
        layout_of(sliced, shape, "float32", number)


def test_a_table_is_of_floats():
    words = "`table` must be float16, bfloat16, float32 or float64. Received: dtype='int32'"
    with pytest.raises(ValueError, match=words):
        layout_of(DEVICE, (10, 16), "int32")


@pytest.mark.parametrize("rule", ["sgd", "adam", "rowwise_adagrad"])
@pytest.mark.parametrize("dim", [1, 16, 65])
def test_the_host_does_the_same_whatever_the_placement(implementation, dim, rule):
    ids = np.random.default_rng(0).integers(0, 30, (40, 6))
    padded = dataclasses.replace(DEVICE, slices=8, pads_slices=True)
    expected, *others = (
        [float(of_op.host_seconds) for of_op in reports(device, (30, dim), ids, **arguments)]
        for device, arguments in (
            (DEVICE, {"rule": rule}),
            (padded, {"rule": rule}),
            (DEVICE, {"rule": rule, "hot_ids": [1, 2, 29]}),  # the host has no copies
        )
    )
    for other in others:
        np.testing.assert_allclose(other, expected)


def test_a_slice_without_columns_has_nothing_to_do(implementation):
    # 5 columns over 4 ranks are 2, 2, 1 and none.
    device = tfrec.PimDevice("test", ranks=4, slices=4, pads_slices=True)
    forward, backward, update = reports(device, (10, 5), [[1, 2, 3], [3, 3, 3]])
    assert forward.alu_operations.numpy().tolist() == [12, 12, 6, 0]
    assert forward.link_bytes_out.numpy().tolist() == [2 * 8, 2 * 8, 2 * 4, 0]
    assert backward.link_bytes_in.numpy().tolist() == [2 * 8 + 48, 2 * 8 + 48, 2 * 4 + 48, 0]
    for report in (forward, backward, update):
        assert report.bytes_read.numpy()[2] > 0
        assert not report.counts[3].numpy().any()


def test_a_narrower_last_slice_takes_fewer_bursts(implementation):
    device = tfrec.PimDevice("test", ranks=4, slices=4)
    forward, _, _ = reports(device, (10, 65), [[1]])  # 17, 17, 17 and 14 columns
    assert forward.bytes_read.numpy().tolist() == [128, 128, 128, 64]


def test_narrow_slices_waste_bursts_where_they_may():
    padded = dataclasses.replace(DEVICE, slices=8, pads_slices=True)
    forward, _, _ = reports(padded, (10, 32), [[1, 2]])
    assert total(forward, "bytes_read") == 2 * 8 * 64  # of which 256 are of use


def test_counts_by_hand(implementation):
    # Rows of 64 bytes over 8 ranks: row 8 is behind row 0, row 9 behind row 1.
    forward, backward, update = reports(
        DEVICE, (16, 16), [[0, 8, 9], [0, 0, -1]], padding_id=-1, rule="adagrad", weighted=True
    )
    expected = {
        "bytes_read": 256,
        "bytes_written": 0,
        "bursts": 4,
        "activations": 1,  # both rows are in one page
        "alu_operations": 4 * 16 * 2,
        "instructions": 4 + 2,
        "link_bytes_in": 4 * (8 + 4),
        "link_bytes_out": 2 * 64,
        "cache_hits": 0,
        "lookups": 4,
    }
    assert {name: int(getattr(forward, name)[0]) for name in COUNTERS} == expected
    assert forward.lookups.numpy().tolist() == [4, 1, 0, 0, 0, 0, 0, 0]
    assert backward.bytes_read.numpy()[:2].tolist() == [4 * 64, 64]
    assert backward.bytes_written.numpy()[:2].tolist() == [(2 + 2) * 64, (1 + 1) * 64]
    assert backward.link_bytes_in.numpy()[0] == 2 * 64 + 4 * 12
    assert backward.activations.numpy()[0] == 1 + 1 + 1  # gradients come, are read, rows are kept
    assert update.lookups.numpy()[:2].tolist() == [2, 1]
    assert update.bytes_read.numpy()[0] == 2 * 3 * 64  # rows, gradients, accumulators
    assert update.bytes_written.numpy()[0] == 2 * 2 * 64
    assert update.alu_operations.numpy()[0] == 2 * 16 * 7
    assert total(update, "link_bytes_in") == 0


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam", "rowwise_adagrad"])
@pytest.mark.parametrize("slices", [1, 4, 8])
@pytest.mark.parametrize("placement", ["row_interleave", "table_aware"])
def test_traffic_is_that_of_the_closed_forms_byte_for_byte(implementation, slices, placement, rule):
    bags, hotness, rows, dim = 40, 6, 30, 128
    row = 4 * dim
    ids = np.random.default_rng(0).integers(0, rows, (bags, hotness))
    device = dataclasses.replace(DEVICE, slices=slices, placement=placement)
    forward, backward, update = reports(device, (rows, dim), ids, rule=rule)
    lookups, unique = bags * hotness, len(np.unique(ids))
    state = {"sgd": 0, "adagrad": row, "adam": 2 * row, "rowwise_adagrad": 64 * slices}[rule]
    assert total(forward, "bytes_read") == lookups * row
    arrived = total(backward, "bytes_written") - unique * row
    groups = 8 // slices
    by_group = ids % groups if placement == "row_interleave" else np.zeros_like(ids)
    assert arrived == sum(len(set(bag)) for bag in by_group) * row
    # (N + 4 U) E with SGD: coalesce, N read and U written; update, 2 U read and U written.
    moved = sum(
        total(report, name)
        for report in (backward, update)
        for name in ("bytes_read", "bytes_written")
    )
    assert moved - arrived == (lookups + 4 * unique) * row + 2 * unique * state
    assert total(forward, "link_bytes_out") == arrived
    host = [float(report.host_seconds) * device.host_bandwidth for report in (forward, backward)]
    np.testing.assert_allclose(host, [(lookups + bags) * row, (lookups + unique) * row])


def test_a_gradient_from_the_host_is_written_before_it_is_read(implementation):
    gradient = tf.IndexedSlices(tf.ones((3, 16)), tf.constant([0, 8, 8]))
    there, here = (
        tfrec.ops.pim_scatter_update(
            tf.Variable(tf.ones((16, 16))), gradient, "sgd", 0.1, device=DEVICE, is_on_device=known
        )
        for known in (False, True)
    )
    assert total(there, "bytes_written") - total(here, "bytes_written") == 2 * 64
    assert total(there, "link_bytes_in") == 2 * (64 + 4)
    assert total(there, "bytes_read") == total(here, "bytes_read")
