"""The example that recommends in words runs to its end within a quarter of an hour."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "cf_llm.py"


@pytest.mark.slow
def test_it_trains_both_stages_and_recommends_in_words(tmp_path):
    if not Path(os.environ.get("TFREC_DATA_DIR", "/nowhere"), "ml-100k").is_dir():
        pytest.skip("ml-100k is not at hand")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    hits, of_sasrec = map(
        float, re.search(r"Hit@1 of 20: (\S+), of SASRec alone (\S+)", result.stdout).groups()
    )
    # Sixty questions, so a difference of less than .1 says nothing.
    assert hits > 0.2 and hits > of_sasrec - 0.1
    scores = re.findall(r"^ +(-?\d+\.\d\d)  \S.*$", result.stdout, re.MULTILINE)
    assert re.search(r'^Recommender: Try "', result.stdout, re.MULTILINE) and len(scores) == 10
    assert sorted(map(float, scores), reverse=True) == [float(score) for score in scores]
    assert (tmp_path / "cf_llm_output" / "recommender.keras").stat().st_size < 50e6
    assert (tmp_path / "cf_llm_output" / "model" / "saved_model.pb").exists()
    # Of the processors, two for a quarter of an hour: others who use them do not change that much.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1800
