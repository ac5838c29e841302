import json
import re

import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.ops._pim.counts import COUNTERS
from tfrec_efficient.pim import pim_report

DEVICE = tfrec.PimDevice.recnmp()


@pytest.fixture
def reports():
    ids = np.random.default_rng(0).integers(0, 100, (16, 4))
    names = ("forward", "backward", "update")
    made = tfrec.ops.pim_reports((100, 16), "float32", ids, device=DEVICE)
    return dict(zip(names, made, strict=True))


def test_counters_are_attributes(reports):
    for i, name in enumerate(COUNTERS):
        np.testing.assert_array_equal(
            getattr(reports["update"], name), reports["update"].counts[:, i]
        )
    with pytest.raises(AttributeError, match="'PimReport' has no attribute 'bites'"):
        _ = reports["update"].bites


def test_a_sum_is_one_after_the_other(reports):
    forward, update = reports["forward"], reports["update"]
    both = forward + update
    np.testing.assert_array_equal(both.counts, forward.counts + update.counts)
    np.testing.assert_allclose(both.seconds, forward.seconds + update.seconds)
    assert float(both.total_joules) == pytest.approx(
        float(forward.total_joules) + float(update.total_joules)
    )
    assert float(both.speedup) == pytest.approx(
        float(both.host_seconds) / float(both.total_seconds)
    )


def test_a_report_goes_through_functions_and_loops(reports):
    @tf.function
    def many(report):
        for _ in tf.range(3):
            report = report + report
        return report

    np.testing.assert_array_equal(many(reports["update"]).counts, 8 * reports["update"].counts)


def test_numbers_for_json(reports):
    forward = reports["forward"]
    numbers = json.loads(json.dumps(forward.as_dict()))
    assert numbers["counts"]["lookups"] == 64
    assert numbers["seconds"]["total"] == forward.term("total")
    assert list(numbers["joules"]) == list(pim_report.ENERGIES)
    assert numbers["imbalance"] >= 1


def test_the_table_has_a_line_for_each_report(reports):
    title, *lines = pim_report.summary_table(reports).splitlines()
    assert re.split(r"\s{2,}", title.strip())[:3] == ["MB moved", "opened", "device ms"]
    assert [line.split()[0] for line in lines] == ["forward", "backward", "update"]
    speedups = [float(line.split()[5].rstrip("x")) for line in lines]
    expected = [float(report.speedup) for report in reports.values()]
    np.testing.assert_allclose(speedups, expected, atol=0.06)


def test_where_nothing_was_done_nothing_is_faster():
    ids = tf.zeros((0, 1), tf.int64)
    nothing = tfrec.ops.pim_reports((100, 16), "float32", ids, device=DEVICE)[0]
    idle = tfrec.pim.PimReport(*(0 * field for field in pim_report.fields_of(nothing)))
    assert float(idle.speedup) == 1
    long = "a layer with a long name, backward"
    title, *lines = pim_report.summary_table({"idle": idle, long: nothing}).splitlines()
    assert {len(line) for line in lines} == {len(title)}
    assert "nan" not in lines[0]


def test_the_roofline_has_a_point_for_each_report_that_did_something(reports, tmp_path):
    nothing = tfrec.ops.pim_reports(
        (100, 16), "float32", tf.zeros((0, 1), tf.int64), device=DEVICE
    )[0]
    figure = tfrec.pim.plot_roofline(
        DEVICE, {**reports, "nothing": nothing}, tmp_path / "roofline.svg"
    )
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["RecNMP", "random rows on the host", "forward", "backward", "update"]
    assert (tmp_path / "roofline.svg").read_text().startswith("<?xml")
    device, *_ = figure.axes[0].lines
    assert max(device.get_ydata()) == DEVICE.ranks * DEVICE.alu_lanes * DEVICE.alu_hz
