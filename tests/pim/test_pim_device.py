import dataclasses
import json

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.ops._pim.counts import COUNTERS

PRESETS = ("tensor_casting", "tensordimm", "recnmp", "trim", "upmem")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_json_and_says_where_its_figures_come_from(preset, tmp_path):
    device = getattr(tfrec.PimDevice, preset)()
    assert tfrec.PimDevice.from_json(device.to_json()) == device
    device.save(tmp_path / "device.json")
    assert tfrec.PimDevice.from_json((tmp_path / "device.json").read_text()) == device
    assert device.sources
    assert hash(device) == hash(getattr(tfrec.PimDevice, preset)())
    report, _, _ = tfrec.ops.pim_reports((1000, 64), "float32", [[1, 2, 3]], device=device)
    assert report.counts.shape == (device.ranks, len(COUNTERS))
    assert float(report.total_seconds) > 0


def test_each_figure_has_its_source_or_is_called_assumed():
    lines = tfrec.PimDevice.tensor_casting().describe().splitlines()
    assert "ranks = 32: Tensor Casting, HPCA 2021, table I (quoted)" in lines
    assert "alu_hz = 1000000000.0: assumed" in lines
    assert any(line.startswith("dram.t_faw = 34: 819.2 GB/s over 32 ranks") for line in lines)
    arguments = len(dataclasses.fields(tfrec.PimDevice)) - 3  # name, sources, dram
    assert len(lines) == arguments + len(dataclasses.fields(tfrec.pim.DramTimings))


def test_the_pool_of_tensor_casting_has_the_bandwidth_of_the_paper():
    device = tfrec.PimDevice.tensor_casting()
    assert device.bandwidth == pytest.approx(819.2e9, rel=0.01)  # a clock of .63 for .625 ns
    assert (device.groups, device.banks, device.burst_bytes, device.page_bytes) == (8, 16, 64, 8192)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ranks": 0}, "`ranks` must be an integer above 0. Received: ranks=0"),
        ({"link_bandwidth": -1.0}, "`link_bandwidth` must be a finite number above 0. Received: "),
        ({"host_watts": -1.0}, "`host_watts` must be a finite number, 0 or more. Received: "),
        ({"cache_bytes": 0.5}, "`cache_bytes` must be an integer, 0 or more. Received: "),
        ({"slices": 3}, "`slices` must divide `ranks`, 8. Received: slices=3"),
        ({"placement": "columns"}, "`placement` must be one of .* Received: placement='columns'"),
        ({"ranks": 1 << 40}, "`ranks` must be at most 1048576. Received: ranks=1099511627776"),
        ({"cache_bytes": 1 << 60}, "`cache_bytes` must be at most 1099511627776. Received: "),
        ({"name": None}, "`name` must be a string. Received: name=None"),
        ({"sources": []}, r"`sources` must be a mapping. Received: sources=\[\]"),
        ({"dram": {}}, "`dram` must be a DramTimings. Received: dram={}"),
        ({"sources": {"rank": "x"}}, r"`sources` must be by names .* Received: \['rank'\]"),
    ],
)
def test_a_device_that_cannot_exist(arguments, words):
    with pytest.raises(ValueError, match=words):
        tfrec.PimDevice(**{"name": "test", "ranks": 8, **arguments})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "`format` must be 1. Received: format=2"),
        ({"ranks": 0}, "`ranks` must be an integer above 0"),
        ({"colour": "red"}, "`text` must be the JSON of a PimDevice"),
    ],
)
def test_json_that_is_no_device(change, words):
    text = json.dumps({**json.loads(tfrec.PimDevice.recnmp().to_json()), **change})
    with pytest.raises(ValueError, match=words):
        tfrec.PimDevice.from_json(text)
    for text in ("{", "[]", '"ab"', "3", "null", '{"format": 1, "name": "x", "ranks": 1}', b"\xff"):
        with pytest.raises(ValueError, match="`text` must be the JSON of a PimDevice"):
            tfrec.PimDevice.from_json(text)


def test_tables_that_do_not_fit():
    device = tfrec.PimDevice("test", ranks=4, rank_bytes=1 << 20)
    assert device.bytes_of_table((4 * 1024, 64), "float32") == 1024 * 256
    device.check_fits((4 * 4096, 64), "float32")
    words = r"must fit the 1,048,576 bytes of a rank of test. Received: shape \(16384, 64\), 2 arr"
    with pytest.raises(ValueError, match=words):
        device.check_fits((4 * 4096, 64), "float32", copies=2)
    with pytest.raises(ValueError, match="take 1,056,768 bytes"):
        device.check_fits((4 * 4096, 64), "float32", hot_rows=32)
    whole = dataclasses.replace(device, placement="table_aware")
    assert whole.bytes_of_table((4096, 64), "float32") == 1 << 20


def counts(device, **of_ranks):
    columns = [of_ranks.get(name, [0] * device.ranks) for name in COUNTERS]
    return tf.constant(np.stack(columns, 1), tf.int64)


def test_each_term_by_hand():
    device = tfrec.PimDevice(
        "test", ranks=2, alu_lanes=2, alu_hz=100.0, instruction_hz=50.0, link_bandwidth=10.0,
        launch_seconds=3.0, host_bandwidth=5.0, host_watts=7.0,
    )  # fmt: skip
    report = device.report(
        counts(device, alu_operations=[400, 100], instructions=[100, 200],
               link_bytes_in=[30, 10], link_bytes_out=[15, 5]), 50
    )  # fmt: skip
    expected = {"dram": 0, "alu": 2, "instructions": 4, "link": 6, "combine": 4, "launch": 3}
    assert {name: report.term(name) for name in expected} == expected
    assert report.term("total") == 4 + 6 + 4 + 3
    assert (float(report.host_seconds), float(report.host_joules)) == (10, 70)
    assert float(report.joules[1]) == pytest.approx(500e-12)
    assert float(report.joules[2]) == pytest.approx(60 * 40e-12)
    assert float(report.joules[3]) == pytest.approx(17 * 2 * device.dram.idle_watts())


def test_the_busiest_rank_is_what_is_waited_for():
    device = tfrec.PimDevice("test", ranks=2)
    even = device.report(counts(device, bytes_read=[6400, 6400], activations=[9, 9]), 0)
    skewed = device.report(counts(device, bytes_read=[12736, 64], activations=[17, 1]), 0)
    assert skewed.term("dram") > 1.9 * even.term("dram")
    assert float(skewed.joules[0]) == pytest.approx(float(even.joules[0]))
    assert float(skewed.imbalance) == pytest.approx(12736 / 6400)


@pytest.mark.slow
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.integers(0, 9), st.sampled_from([32, 64, 128]))
def test_more_ranks_never_slow_a_balanced_load(seed, dim):
    ids = np.random.default_rng(seed).permutation(4096).reshape(64, 64)  # each row once
    seconds = [
        tfrec.ops.pim_reports(
            (4096, dim), "float32", ids, device=tfrec.PimDevice("test", ranks)
        )[0].term("dram")
        for ranks in (1, 2, 4, 8, 16)
    ]  # fmt: skip
    assert seconds == sorted(seconds, reverse=True)


def test_energy_is_additive():
    device = tfrec.PimDevice.recnmp()
    dynamic = [float(device.report(counts(device, bytes_read=[64 * n] * 8, activations=[n] * 8,
                                          alu_operations=[n] * 8, link_bytes_in=[n] * 8), 0)
               .joules[:3].numpy().sum()) for n in (3, 5, 8)]  # fmt: skip
    assert dynamic[0] + dynamic[1] == pytest.approx(dynamic[2])
