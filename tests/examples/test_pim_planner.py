"""The example that plans the quickstart runs, and its tables are those of the quickstart."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(folder, *arguments):
    command = [sys.executable, "-W", "error::UserWarning", EXAMPLES / "pim_planner.py", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_small_tables_stay_and_large_ones_go(tmp_path):
    printed = run(tmp_path, "--batch=1024")
    small, large = printed.split("1000 x the quickstart")
    assert "Nothing is worth offloading: buy nothing." in small
    assert re.search(r"^item_vector +1,683,000 +16 .* device$", large, re.MULTILINE)
    assert re.search(r"Buy \d+ ranks", large)
    assert (tmp_path / "pim_plan.svg").read_text().startswith("<?xml")


def test_the_tables_are_those_of_the_quickstart():
    quickstart = (EXAMPLES / "quickstart.py").read_text()
    planned = (EXAMPLES / "pim_planner.py").read_text()
    assert quickstart.count("tfrec.EmbeddingBag(") == 5
    assert len(re.findall(r'^ +\("\w+", "\w+", \d+\),$', planned, re.MULTILINE)) == 5
