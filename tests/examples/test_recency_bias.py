"""The examples with `RecencyBias` run; two epochs are enough to see that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfrec_efficient as tfrec

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path):
    try:
        tfrec.data.datasets.movielens_100k()
    except FileNotFoundError as error:
        pytest.skip(f"MovieLens-100K is not at hand: {error}")

    def run(script, *arguments):
        command = [sys.executable, EXAMPLES / script, *arguments]
        environment = {**os.environ, "KERAS_MAX_EPOCHS": "2"}
        result = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.slow
def test_the_example_compares_two_selectors_and_draws(run, tmp_path):
    printed = run("recency_bias.py")
    for name in ("RandomBatches", "RecencyBias"):
        _, _, accuracy = printed.partition(f"{name}: test accuracy ")
        assert 0.3 < float(accuracy.split()[0]) < 0.5
    assert printed.rsplit("hardest ratings: ", 1)[1].count(",") == 9
    assert "<svg" in (tmp_path / "recency_bias.svg").read_text()
    assert len((EXAMPLES / "recency_bias.py").read_text().splitlines()) < 40


@pytest.mark.slow
def test_the_quickstart_takes_a_selector(run):
    printed = run("quickstart.py", "1", "--selector", "recency")
    assert "share_moderate" in printed
    assert "a fresh process served it with equal predictions" in printed
