"""The quickstart as a newcomer runs it: once for the whole module, in a folder of its own."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.testing.ops import implementations

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"
NATIVE = "native" in implementations()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    try:
        tfrec.data.datasets.movielens_100k()
    except FileNotFoundError as error:
        pytest.skip(f"MovieLens-100K is not at hand: {error}")
    folder = tmp_path_factory.mktemp("quickstart")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, QUICKSTART], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor: what else runs on the machine does not make the example slower by them.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return folder / "quickstart_output", result.stdout, seconds


def scores(name, printed):
    found = re.search(rf"^{name}: +test AUC (\S+), log loss (\S+)$", printed, re.MULTILINE)
    return float(found[1]), float(found[2])


def test_the_model_beats_the_honest_baseline(run):
    _, printed, seconds = run
    baseline_auc, baseline_loss = scores("baseline", printed)
    auc, loss = scores("model", printed)
    assert baseline_auc == pytest.approx(0.769, abs=5e-4)
    assert auc >= 0.79
    assert loss < baseline_loss
    assert seconds < 120
    assert "━" in printed  # the progress bar


def test_the_learning_curve_is_a_picture(run):
    picture = (run[0] / "learning_curve.svg").read_text()
    assert picture.startswith("<svg ")
    assert picture.count("<polyline ") == 2


def test_the_fresh_process_predicted_the_same(run):
    assert "a fresh process served it with equal predictions" in run[1]


def test_a_c_program_predicts_the_same(run, saved_model_client):
    """As TensorFlow Serving would: no Python, and the op linked in."""
    requests = {name: values[:100] for name, values in np.load(run[0] / "requests.npz").items()}
    library = tfrec.ops.library_path() if NATIVE else None
    served = saved_model_client(run[0] / "model", library, requests, "predict")
    np.testing.assert_allclose(served, np.load(run[0] / "predictions.npy")[:100], rtol=1e-5)


def test_unknown_users_items_and_genres_are_served(run):
    if NATIVE:
        tfrec.ops.load_all()
    model = tf.saved_model.load(str(run[0] / "model"))
    answer = model.signatures["predict"](
        user_id=tf.constant([-5, 10**12], tf.int64),
        item_id=tf.constant([0, 999_999], tf.int64),
        genres=tf.constant(["", "Telenovela|Comedy"]),
    )["probability"]
    assert np.all((answer.numpy() > 0) & (answer.numpy() < 1))


def test_the_code_is_short():
    text = QUICKSTART.read_text()
    code = re.sub(r'"""(.|\n)*?"""', "", text)
    lines = [line for line in code.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) < 60
