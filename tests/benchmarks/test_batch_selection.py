"""The cells, the table and the picture of `benchmarks/batch_selection.py`, at tiny sizes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def need(data):
    if not Path(os.environ.get("TFREC_DATA_DIR", "/nowhere"), data).is_dir():
        pytest.skip(f"{data} is not at hand")


@pytest.mark.slow
# Only batches of one size for the residual network: see the top of the program.
@pytest.mark.parametrize(
    ("data", "selectors"),
    [
        ("mnist", ["random", "recency", "info_batch", "shuffle"]),
        ("cifar10", ["random", "recency"]),
    ],
)
def test_cells_are_trained_recorded_reported_and_not_trained_again(
    data, selectors, tmp_path, capsys, monkeypatch
):
    need({"mnist": "mnist", "cifar10": "cifar10n"}[data])
    import batch_selection

    def quick(which, load=batch_selection.load):
        train, (x, y) = load(which)
        return train, (x[:200], y[:200])

    monkeypatch.setattr(batch_selection, "load", quick)
    asked = [f"--data={data}", "--selector", *selectors]
    asked += ["--seeds=1", "--epochs=4", "--samples=256", f"--output={tmp_path}"]
    batch_selection.main(asked)
    printed = capsys.readouterr().out
    assert "best error %" in printed
    cells = [json.loads((tmp_path / data / f"{name}_0.json").read_text()) for name in selectors]
    assert [cell["selector"] for cell in cells] == selectors
    for cell in cells:
        assert len(cell["error"]) == len(cell["cpu"]) == 4
        assert all(0 <= error <= 100 for error in cell["error"])
        assert {"load", "versions", "date"} <= set(cell["machine"])
    random, recency, *_ = cells
    assert random["error"][0] == recency["error"][0]  # the warm-up is shared
    assert "<svg" in (tmp_path / f"{data}.svg").read_text()

    monkeypatch.setattr(batch_selection, "run", None)
    batch_selection.main(asked)
    assert "Epoch" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is of other settings than {'epochs': 3"):
        batch_selection.main([*asked, "--epochs=3"])


def test_all_selectors_are_known():
    import batch_selection

    made = {type(make()).__name__ for make in batch_selection.make_selectors(24, 6, 0).values()}
    assert made == {
        "RandomBatches", "RecencyBias", "ActiveBias", "OnlineBatchSelection", "InfoBatch",
        "SelfPaced", "SelectiveBackprop", "NoneType",
    }  # fmt: skip


def test_the_time_to_an_error_is_that_of_the_first_epoch_that_reaches_it():
    import batch_selection

    cell = {"error": [3.0, 2.0, 1.0], "cpu": [10.0, 10.0, 5.0]}
    assert batch_selection.seconds_to(cell, 2.0) == 20.0
    assert batch_selection.seconds_to(cell, 0.5) is None


def test_the_table_compares_seed_by_seed(capsys):
    import batch_selection

    def cell(errors):
        return {
            "error": errors,
            "cpu": [10.0, 10.0],
            "wall": [10.0, 10.0],
            "steps": [100, 100],
            "wall_of_test": [1.0, 1.0],
        }

    batch_selection.print_report(
        {
            "random": {0: cell([2.0, 1.0]), 1: cell([4.0, 3.0])},
            "recency": {0: cell([1.0, 0.5]), 1: cell([3.0, 4.0])},
        }
    )
    line = next(line for line in capsys.readouterr().out.splitlines() if "recency" in line)
    assert "1.750 +- 1.250" in line  # the best of .5 and 3
    assert "2.250 +- 1.750" in line  # the last
    assert " 0.875 " in line  # (.5 + 3) / (1 + 3)
    assert "100.00" in line  # ms of CPU a step
    assert "10 (-50 %) in 2 of 2" in line


def test_augmented_images_are_mirrored_and_moved():
    import batch_selection

    image = np.zeros((1, 32, 32, 3), "float32")
    image[:, 16, 20] = 1
    seen = set()
    for _ in range(60):
        moved, y = batch_selection.augment(np.repeat(image, 8, axis=0), np.arange(8))
        assert moved.shape == (8, 32, 32, 3)
        assert y.tolist() == list(range(8))
        for one in moved.numpy():
            ((row, column),) = np.argwhere(one[:, :, 0])
            seen.add((int(row), int(column)))
    rows, columns = zip(*seen, strict=True)
    assert (min(rows), max(rows)) == (12, 20)
    assert (min(columns), max(columns)) == (7, 24)  # 20 or, mirrored, 11; four to each side
