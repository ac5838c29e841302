"""The example of a table that does not fit, on fewer batches."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfrec_efficient.testing.ops import implementations

# Two processes train, and one is killed: most of a minute.
pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "cached_embedding.py"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    if "native" not in implementations():
        pytest.skip("the native library was not built")
    result = subprocess.run(
        [sys.executable, EXAMPLE, "--batches=80"],
        cwd=tmp_path_factory.mktemp("example"),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_it_is_killed_and_goes_on_at_its_last_checkpoint(printed):
    first, killed, second = printed.splitlines()[:3]
    assert first == "0 of 80 batches were trained before."
    assert killed == "The first process was killed."
    assert second == "40 of 80 batches were trained before."


def test_it_learns_and_every_row_is_there_in_time(printed):
    (epoch,) = re.findall(r"^40/40 - .*$", printed, re.MULTILINE)
    figures = dict(re.findall(r"(\w+): ([\d.e+-]+)", epoch))
    assert float(figures["hit_rate"]) == 1
    assert float(figures["auc"]) > 0.55


def test_it_stays_within_its_budget(printed):
    (taken,) = re.findall(r"([\d,]+) bytes were taken, of 200,000,000", printed)
    assert 25e6 < int(taken.replace(",", "")) < 200e6


def test_what_it_serves_is_a_small_part_of_the_table(printed):
    (size,) = re.findall(r"with the most ratings take ([\d,]+) bytes", printed)
    assert 100_000 * 32 < int(size.replace(",", "")) < 10_000_000
