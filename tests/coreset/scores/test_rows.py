"""Files hold what memory would, and a killed run goes on with the same bits."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.coreset.scores._rows import Files


def test_files_hold_what_memory_would(tmp_path, shared):
    scores = shared.score(shared.small_model(), directory=tmp_path / "new" / "scores")
    shared.assert_same(scores, shared.score(shared.small_model()))
    for name in shared.FILES:
        assert isinstance(getattr(scores, name), np.memmap)
        array = np.load(tmp_path / "new" / "scores" / f"{name}.npy", allow_pickle=False)
        np.testing.assert_array_equal(array, getattr(scores, name))
    manifest = json.loads((tmp_path / "new" / "scores" / "manifest.json").read_text())
    assert manifest["format"] == "tfrec_efficient.warmup_scores"
    assert {name: manifest[name] for name in ("version", "rows", "dim", "classes")} == {
        "version": 1, "rows": shared.SIZE, "dim": 6, "classes": shared.CLASSES,
    }  # fmt: skip
    assert len(manifest["model"]) == len(manifest["data"]) == 64


def test_a_second_call_reads_the_files(tmp_path, shared):
    first = shared.score(shared.small_model(), directory=tmp_path)
    before = shared.contents(tmp_path)

    def refuse(x, y):
        tf.debugging.Assert(False, ["no example is seen again"])
        return x, y

    second = shared.score(shared.small_model(), directory=tmp_path, view=refuse, batch_size=2)
    shared.assert_same(second, first)
    assert shared.contents(tmp_path) == before


@pytest.mark.parametrize("rows", [0, 5, 20, 23])
def test_a_run_goes_on_behind_the_rows_that_are_counted(rows, tmp_path, shared):
    shared.score(shared.small_model(), directory=tmp_path)
    whole = shared.contents(tmp_path)
    shared.as_if_killed(tmp_path, rows, np.random.default_rng(rows))
    seen = []

    def watch(x, y):
        number = tf.numpy_function(lambda y: seen.append(0) or y, [y], y.dtype)
        return x, tf.ensure_shape(number, ())

    shared.score(shared.small_model(), directory=tmp_path, view=watch)
    assert len(seen) == shared.SIZE - rows
    assert shared.contents(tmp_path) == whole


def test_an_interrupted_run_keeps_every_batch(tmp_path, shared):
    def fail(x, y):
        tf.debugging.Assert(tf.reduce_any(x != shared.X[12]), ["row 12"])
        return x, y

    with pytest.raises(tf.errors.InvalidArgumentError, match="row 12"):
        shared.score(shared.small_model(), directory=tmp_path, view=fail)
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] in (0, 5, 10)
    shared.score(shared.small_model(), directory=tmp_path)
    whole = shared.contents(tmp_path)
    shared.score(shared.small_model(), directory=tmp_path / "whole")
    assert whole == shared.contents(tmp_path / "whole")


KILLED = """
import importlib.util, os, signal, sys
sys.path.insert(0, {root!r})
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
spec = importlib.util.spec_from_file_location("tests_of_scores", {file!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
module = sys.modules["tfrec_efficient.coreset.scores._rows"]
module._COMMIT_SECONDS = 0
append = module.Files.append

def append_or_die(files, block):
    if files.count == 10:  # after the rows of some files were written, and those of others not
        name, file = next(iter(files._files.items()))
        file.write(block[name].tobytes()[:-3])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    append(files, block)

module.Files.append = append_or_die
tests.score(tests.small_model(), directory={directory!r})
"""


def test_a_run_that_was_killed_goes_on(tmp_path, shared):
    code = KILLED.format(
        root=str(Path(__file__).parents[3]),
        file=shared.__file__,
        directory=str(tmp_path / "killed"),
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert json.loads((tmp_path / "killed" / "manifest.json").read_text())["rows"] == 10
    resumed = shared.score(shared.small_model(), directory=tmp_path / "killed")
    whole = shared.score(shared.small_model(), directory=tmp_path / "whole")
    # Rows of the other process may be rounded otherwise by TensorFlow; those of this one are not.
    for name in ("embeddings", "probabilities", "confidences"):
        one, other = getattr(resumed, name), getattr(whole, name)
        np.testing.assert_allclose(one, other, rtol=1e-5)
        np.testing.assert_array_equal(one[10:], other[10:])
    np.testing.assert_array_equal(resumed.labels, whole.labels)
    np.testing.assert_array_equal(resumed.fingerprints, whole.fingerprints)


def test_other_models_and_arguments_are_refused(tmp_path, shared):
    shared.score(shared.small_model(), directory=tmp_path)
    before = shared.contents(tmp_path)
    slightly = shared.small_model()
    slightly.weights[0].assign(slightly.weights[0] * (1 + 1e-6))
    for model, arguments, name in (
        (shared.small_model(seed=2), {}, "model"),
        (slightly, {}, "model"),
        (shared.small_model(), {"embedding_layer": "hidden"}, "embedding_layer"),
        (shared.small_model(), {"from_logits": True}, "from_logits"),
    ):
        message = f"scores of the same model and arguments, with {name}=.* Received: {name}="
        with pytest.raises(ValueError, match=message):
            shared.score(model, directory=tmp_path, **arguments)
    assert shared.contents(tmp_path) == before


def test_files_that_are_not_whole_are_refused(tmp_path, shared):
    shared.score(shared.small_model(), directory=tmp_path)
    shared.as_if_killed(tmp_path, 10, np.random.default_rng(0))
    path = tmp_path / "embeddings.npy"
    for damage in (lambda: os.truncate(path, 300), path.unlink):
        damage()
        message = f"10 rows that its manifest counts; .* Received: {re.escape(str(path))}"
        with pytest.raises(ValueError, match=message):
            shared.score(shared.small_model(), directory=tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="with version=1; .* Received: version=2 in"):
        shared.score(shared.small_model(), directory=tmp_path)
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(ValueError, match=f"must be JSON. Received: {re.escape(str(manifest))}: "):
        shared.score(shared.small_model(), directory=tmp_path)


def test_a_header_has_room_for_any_number_of_rows(tmp_path, shared):
    files = Files(tmp_path, {})
    files._about |= {"dim": 7, "classes": 3}
    sizes = set()
    for count in (0, 1, 10**6, 10**12):
        files.count = count
        sizes |= {len(files._header(name)) for name in shared.FILES}
    assert sizes == {128}
    files.count = 0
