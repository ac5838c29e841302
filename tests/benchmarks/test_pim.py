"""The cells of `benchmarks/pim.py`, at tiny sizes, and the program that stands for a simulator."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "pim"


@pytest.fixture(autouse=True)
def import_path(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cells(monkeypatch):
    """Models of two tables with 50 rows, and batches of 8."""
    from _pim import cells
    from _pim import models

    tiny = models.Shape(2, 50, 3, (4, 4), (4, 1), 64)
    monkeypatch.setattr(models, "SHAPES", dict.fromkeys(models.SHAPES, tiny))
    monkeypatch.setattr(
        cells, "DESIGN_CELLS", {name: (name.split("_")[0], 8) for name in cells.DESIGN_CELLS}
    )
    monkeypatch.setattr(cells, "OVERHEAD_ROWS", 50)
    monkeypatch.setattr(cells, "OVERHEAD_BAGS", (8, 3))
    return cells


@pytest.fixture
def run(cells, tmp_path, capsys):
    """Runs the program; returns what it printed, and the record of the cell."""

    def run(cell, *arguments):
        import pim

        pim.main(["--cell", cell, *arguments, f"--output={tmp_path / 'cells'}"])
        return capsys.readouterr().out, json.loads((tmp_path / f"cells/{cell}.json").read_text())

    return run


def test_a_design_cell_has_measured_parts_and_modelled_ones(run):
    printed, record = run("RM1_1024", "--rounds=3")
    assert set(record["host_parts_ms"]) == {
        "dense", "forward", "expand_coalesce", "scatter", "cast", "casted_step"
    }  # fmt: skip
    assert record["speedup"]["baseline_cpu"] == [1, 1, 1]
    assert record["device_reports"]["forward"]["counts"]["lookups"] == 2 * 8 * 3 * 4  # slices
    assert "casted_nmp" in printed
    host = {part: figures["median"] for part, figures in record["host_parts_ms"].items()}
    tables = host["forward"] + host["expand_coalesce"] + host["scatter"]
    reports = record["device_reports"]
    device = 1e3 * sum(reports[k]["seconds"]["total"] for k in ("forward", "backward", "update"))
    assert f"{tables / device:.1f}x with sorting done ahead" in printed.split("casted_nmp")[1]
    assert "host, measured: dense" in printed
    again, _ = run("RM1_1024")
    assert again == printed.replace("-- RM1_1024\n", "")


def test_a_step_is_the_sum_of_its_parts(cells):
    host = {"dense": 1, "forward": 2, "expand_coalesce": 4, "scatter": 8, "cast": 16,
            "casted_step": 32}  # fmt: skip
    device = {"forward": 0.1, "backward": 0.2, "update": 0.4, "scatter": 0.8}
    assert cells.step_seconds(host, device) == {
        "baseline_cpu": 1 + 2 + 4 + 8,
        "baseline_nmp": pytest.approx(1 + 0.1 + 4 + 0.8),
        "casted_cpu": 1 + 16 + 32,
        "casted_nmp": pytest.approx(1 + 0.7 + (16 - 0.7)),
    }
    sorted_meanwhile = cells.step_seconds({**host, "cast": 0.3}, device)
    assert sorted_meanwhile["casted_nmp"] == pytest.approx(1 + 0.7)


def test_all_parts_of_a_step_compute_one_gradient(cells):
    from _pim import models

    parts = models.HostParts(models.SHAPES["RM1"], 8, 2)
    before = [table.numpy() for table in parts.tables]
    parts.run("casted_step", 1)
    for table, old, ids in zip(parts.tables, before, parts.ids[1].numpy(), strict=True):
        dense = np.zeros_like(old)
        np.add.at(dense, ids.ravel(), np.repeat(parts.gradient, 3, axis=0))
        np.testing.assert_allclose(table, old - 1e-3 * dense, atol=1e-6)
    for name in parts.parts:
        parts.run(name, 0)
    flat = tf.IndexedSlices(
        tf.repeat(parts.gradient, 3, axis=0), tf.reshape(parts.ids[0][-1], [-1])
    )
    import tfrec_efficient as tfrec

    last = tfrec.ops.coalesce(flat).values[-1, 0]
    np.testing.assert_allclose(parts.parts["expand_coalesce"](tf.constant(0)), last, rtol=1e-5)


def test_ids_have_the_skew_that_the_documentation_names(cells):
    from _pim import models

    shape = models.Shape(1, 1000, 10, (), ())
    ids = models.batches_of(shape, 2000, 1)
    counts = np.sort(np.bincount(ids.ravel(), minlength=1000))[::-1]
    weights = np.arange(1, 1001) ** -1.05
    assert counts[:10].sum() / ids.size == pytest.approx(weights[:10].sum() / weights.sum(), 0.05)


def test_overhead_is_a_ratio_to_gather_reduce(run):
    printed, record = run("overhead", "--rounds=3")
    assert record["ratio"]["gather_reduce"] == [1, 1, 1]
    assert list(record["ratio"])[1:] == [
        "tables, reports off", "tables, reports on", "rows, reports off", "rows, reports on"
    ]  # fmt: skip
    assert "rows, reports on" in printed


def test_recorded_traffic_is_equal_byte_for_byte():
    record = json.loads((RESULTS / "traffic.json").read_text())
    for kinds in record["placements"].values():
        for sizes in kinds.values():
            assert sizes["counted"] == sizes["closed_form"] > 0


def test_recorded_points_are_those_that_the_model_gives_now(run):
    printed, record = run("validation")
    recorded = json.loads((RESULTS / "validation.json").read_text())
    for now, then in zip(record["points"], recorded["points"], strict=True):
        assert abs(now["difference"]) < 0.1
        assert now["modelled_gigabytes_per_second"] == pytest.approx(
            then["modelled_gigabytes_per_second"]
        )
    assert "sequential  256 B: recorded 16.6 GB/s, modelled 16.6 (+0.0%)" in printed


STAND_IN = """#!{python}
import json, pathlib, re, sys
config, trace, folder = (pathlib.Path(sys.argv[n]) for n in (1, 5, 7))
assert sys.argv[2:4] == ["-c", "60000"] and sys.argv[4] == "-t" and sys.argv[6] == "-o"
assert "tCCD_L = 8" in config.read_text() and "tRFC = 560" in config.read_text()
lines = trace.read_text().splitlines()
assert re.fullmatch("0x[0-9A-F]+ READ 0", lines[0])
(folder / "dramsim3.json").write_text(json.dumps({{"0": {{"num_reads_done": len(lines)}}}}))
"""


def test_a_simulator_that_is_at_hand_is_asked(run, tmp_path, monkeypatch):
    program = tmp_path / "simulator"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("TFREC_DRAM_SIMULATOR", str(program))
    printed, record = run("validation")
    assert [point["simulated_now"] for point in record["points"]] == pytest.approx(
        [20_000 * row / (60_000 * 0.63) for row in (64, 128, 256, 512, 256)]
    )
    assert "simulated now 33.9" in printed


if os.environ.get("TFREC_DRAM_SIMULATOR"):  # defined only where there is one to agree with

    @pytest.mark.parametrize("row_bytes", [64, 128, 256, 512])
    def test_the_model_agrees_with_the_simulator_at_hand(row_bytes):
        from _pim import simulator

        modelled = simulator.model("random", row_bytes)["modelled_gigabytes_per_second"]
        assert simulator.simulate("random", row_bytes) == pytest.approx(modelled, rel=0.1)


def test_pictures_are_drawn(run, tmp_path, cells):
    from _pim import picture

    found = {name: run(name, "--rounds=2")[1] for name in ("RM1_1024", "RM3_2048")}
    picture.draw_designs(found, tmp_path / "designs.svg")
    picture.draw_validation(run("validation")[1], tmp_path / "validation.svg")
    for name in ("designs", "validation"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
