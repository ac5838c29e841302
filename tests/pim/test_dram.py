"""The closed form against what a cycle-level simulator was recorded to do, and by hand."""

import dataclasses
import json
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.pim import DramTimings

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "benchmarks/_pim/dramsim3.json").read_text())
CHANNEL = DramTimings(ranks=2)  # as the simulated one
TABLE_BYTES = 1 << 28


def counted(order, row_bytes, seed=0, lookups=20_000):
    """Bursts and activations as the op counts them, of one rank."""
    rows = TABLE_BYTES // row_bytes
    device = tfrec.PimDevice("channel", 1, dram=CHANNEL)
    ids = np.random.default_rng(seed).integers(0, rows, lookups)
    if order == "sequential":
        ids = np.arange(lookups)
    report, _, _ = tfrec.ops.pim_reports(
        (rows, row_bytes // 4), "float32", ids[:, np.newaxis], device=device
    )
    return report


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "point", RECORDED["points"], ids=lambda p: f"{p['order']}-{p['row_bytes']}"
)
def test_bandwidth_is_within_a_tenth_of_the_simulator(point, seed):
    report = counted(point["order"], point["row_bytes"], seed)
    bandwidth = int(report.bytes_read[0]) / report.term("dram") / 1e9
    assert bandwidth == pytest.approx(point["gigabytes_per_second"], rel=0.1)
    if point["order"] == "random":
        per_row = int(report.activations[0]) / int(report.lookups[0])
        assert per_row == pytest.approx(point["activations_per_row"], abs=0.03)
        # The simulator's channel is idle for no cycle of the time that the reads take.
        idle = CHANNEL.idle_watts() * report.term("dram")
        per_byte = (float(report.joules[0]) + idle) / int(report.bytes_read[0])
        printed = point["mw_cycles_per_byte"] * CHANNEL.clock_ns * 1e-12
        assert per_byte == pytest.approx(printed, rel=0.05)


def test_rows_in_order_are_slower_than_rows_at_random():
    in_order, random = counted("sequential", 256), counted("random", 256)
    assert in_order.term("dram") > 1.3 * random.term("dram")


def test_terms_by_hand():
    memory = DramTimings(t_rfc=0, queue=0, t_rp=2, t_rcd=3, t_ccd_l=8)
    cycle = 0.63e-9
    assert float(memory.busy_seconds(10, 0, 0)) == pytest.approx(80 * cycle)  # one bank group
    assert float(memory.busy_seconds(10, 0, 4)) == pytest.approx((80 + 4 * 5) * cycle)
    queued = dataclasses.replace(memory, queue=40)
    assert float(queued.busy_seconds(1000, 0, 100)) == pytest.approx(4000 * cycle)
    assert float(queued.busy_seconds(10, 0, 10)) == pytest.approx(10 * 34 / 4 * cycle)  # t_faw
    two = dataclasses.replace(queued, ranks=2)
    assert float(two.busy_seconds(1000, 0, 100)) == pytest.approx((4000 + 50) * cycle)
    refreshed = dataclasses.replace(queued, t_rfc=6240)
    assert float(refreshed.busy_seconds(1000, 0, 100)) == pytest.approx(8000 * cycle)
    # Four times the queue is read, and as much written: the bus turns four times each way.
    turned = float(queued.busy_seconds(160, 160, 0)) - float(queued.busy_seconds(320, 0, 0))
    assert turned == pytest.approx(4 * (22 - 16 + 1 + 16 + 12) * cycle)
    assert memory.bandwidth == pytest.approx(64 / (4 * cycle))


@hypothesis.given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**5)
)
def test_more_to_do_never_takes_less_time(read, written, activations, more):
    memory = DramTimings()
    activations = min(activations, read + written)
    before = float(memory.busy_seconds(read, written, activations))
    assert before <= float(memory.busy_seconds(read + more, written, activations))
    assert before <= float(memory.busy_seconds(read, written + more, activations))
    assert before >= (read + written) * 64 / memory.bandwidth * 0.999


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"clock_ns": 0}, "`clock_ns` must be a finite number above 0. Received: clock_ns=0"),
        ({"t_rp": -1}, "`t_rp` must be a finite number, 0 or more. Received: t_rp=-1"),
        ({"banks": 2.5}, "`banks` must be an integer above 0. Received: banks=2.5"),
        ({"volts": float("nan")}, "`volts` must be a finite number"),
        ({"burst_bytes": True}, "`burst_bytes` must be an integer above 0"),
        ({"t_rfc": 20_000}, "`t_rfc` must be below `t_refi`, 12480. Received: t_rfc=20000"),
        ({"page_bytes": 32}, "`page_bytes` must be at least `burst_bytes`, 64. Received: page_"),
        ({"banks": 1 << 30}, "`banks` must be at most 1048576. Received: banks=1073741824"),
        ({"volts": 10**400}, "`volts` must be a finite number"),
        ({"t_ccd_l": 2}, "`t_ccd_l` must be at least `t_ccd_s`, 4. Received: t_ccd_l=2"),
    ],
)
def test_memory_that_cannot_exist(arguments, words):
    with pytest.raises(ValueError, match=words):
        DramTimings(**arguments)
