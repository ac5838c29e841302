"""The example that chooses a coreset runs; a few images are enough to see that."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "coreset.py"
TINY = ("--images=300", "--warmup-epochs=1", "--epochs=2")


@pytest.fixture
def run(tmp_path):
    if not Path(os.environ.get("TFREC_DATA_DIR", "/nowhere"), "cifar10n").is_dir():
        pytest.skip("cifar10n is not at hand")

    def run(*arguments):
        command = [sys.executable, "-W", "error::UserWarning", EXAMPLE, *TINY, *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def shares(printed):
    """The noise of the data, that of the choice, its size, and the accuracy."""
    found = re.search(r"wrong labels: (\S+)% of .*, (\S+)% of the (\S+) chosen images", printed)
    accuracy = re.search(r"^test accuracy: (\S+)%$", printed, re.MULTILINE)
    return float(found[1]), float(found[2]), int(found[3]), float(accuracy[1])


@pytest.mark.slow
def test_prune4rel_chooses_for_a_learner_that_corrects_labels(run):
    of_data, of_choice, chosen, accuracy = shares(run("--fraction=.3"))
    assert chosen == 90
    assert 30 < of_data < 60
    assert 0 < of_choice < 100
    assert 0 <= accuracy <= 100


@pytest.mark.slow
def test_a_plain_model_learns_from_a_uniform_choice(run):
    printed = run("--selector=uniform", "--learner=plain", "--labels=random_label1")
    of_data, of_choice, chosen, accuracy = shares(printed)
    assert chosen == 60
    assert 10 < of_data < 25
    assert 0 < of_choice < 40
    assert 0 <= accuracy <= 100


def test_missing_data_are_an_error_that_says_what_to_set():
    environment = {name: v for name, v in os.environ.items() if name != "TFREC_DATA_DIR"}
    command = [sys.executable, EXAMPLE]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert result.returncode == 1
    assert result.stderr.endswith("Set TFREC_DATA_DIR to the folder that holds cifar10n/.\n")


def test_the_code_is_short():
    code = re.sub(r'"""(.|\n)*?"""', "", EXAMPLE.read_text())
    lines = [line for line in code.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) <= 65
