"""The package as it is installed: with and without a compiler, and as README.md says."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tfrec_efficient as tfrec

ROOT = Path(__file__).parents[1]


def test_readme_and_ci_run_the_same_command():
    """The first line of the section is what a user types, and what CI runs."""
    section = (ROOT / "README.md").read_text().split("## Test")[1]
    command = re.search(r"```sh\n(.*)\n", section)[1]
    assert "pytest" in command
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_constraints_hold_the_declared_versions():
    """The tried set has what setup.cfg asks for, and one TensorFlow."""
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    declared = re.findall(r"^    ([a-z][\w-]+)[>=]", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert {"tensorflow", "keras", "scann", "matplotlib"} <= set(declared)
    assert set(declared) <= set(pinned)
    assert pinned["tensorflow"].startswith("2.20.")
    assert "tensorflow-cpu" not in pinned


def pip(*arguments, **environment):
    run = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory):
    """A folder into which the package was installed with a compiler that does not exist."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("copy") / "project"  # a build leaves files behind
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    pip("wheel", "--no-deps", f"--wheel-dir={wheels}", str(copy), CXX="/nonexistent")
    (wheel,) = wheels.iterdir()
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "libtfrec_ops" in name]
    pip("install", "--no-deps", f"--target={site}", str(wheel))
    return site


PROBE = """
import warnings
import tfrec_efficient as tfrec
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        result = tfrec.ops.gather_reduce([[1.0], [2.0]], [[0, 1]])
print(tfrec.__file__)
print("RESULT", result.numpy().tolist(), len([w for w in caught if "native ops" in str(w.message)]))
"""


def test_an_installation_without_compiler_works_with_one_warning(without_compiler, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(without_compiler)}
    environment.pop("TFREC_OPS", None)
    run = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert str(without_compiler) in run.stdout, run.stdout + run.stderr
    assert "RESULT [[3.0]] 1" in run.stdout, run.stdout + run.stderr


IMPORTS = """
import dask, distributed, keras_hub, matplotlib, scann, tensorflow_datasets, tensorflow_text
import ydf, ydf_tf
import tfrec_efficient as tfrec
tfrec.ops.load_all()
"""


def test_a_model_is_served_without_compiler(without_compiler, tmp_path):
    """The references export a model of stock ops, and examples/serve.py loads it."""
    environment = {**os.environ, "PYTHONPATH": str(without_compiler)}
    environment.pop("TFREC_OPS", None)
    export = """
import keras, numpy as np, tensorflow as tf, tfrec_efficient as tfrec
bag = tfrec.EmbeddingBag(5, 1, weights=np.arange(5.0)[:, np.newaxis])
archive = keras.export.ExportArchive()
archive.track(bag)
spec = {"ids": tf.TensorSpec([None, 2], "int64", "ids")}
archive.add_endpoint("predict", lambda x: {"probability": bag(x["ids"])}, [spec])
archive.write_out("model", verbose=False)
np.savez("requests.npz", ids=np.array([[1, 2], [3, 4]]))
"""
    serve = [ROOT / "examples" / "serve.py", "model", "requests.npz", "predictions.npy"]
    for command in (["-c", export], serve):
        run = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
    assert np.load(tmp_path / "predictions.npy").tolist() == [[3.0], [7.0]]


@pytest.mark.slow
def test_all_extras_live_in_one_environment(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    python = tmp_path / "empty" / "bin" / "python"

    def run(*command, **environment):
        done = subprocess.run(
            [python, *command],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "pip", "install", f"{ROOT}[all]")
    run("-m", "pip", "check")
    installed = dict(
        line.split("==") for line in run("-m", "pip", "freeze").split() if "==" in line
    )
    assert installed["tensorflow"].startswith("2.20.")
    assert "tensorflow-cpu" not in installed
    run("-c", IMPORTS)
    run("-c", "import tensorflow_recommenders", TF_USE_LEGACY_KERAS="1")


@pytest.mark.slow
def test_everything_passes_on_the_references():
    # Not `python -m pytest`, which would put this tree before the installed package.
    command = [Path(sys.executable).with_name("pytest"), "-q", "--deselect=tests/test_style.py"]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TFREC_OPS": "python"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


def test_version_of_the_installation():
    run = subprocess.run(
        [sys.executable, "-m", "pip", "show", "tfrec-efficient"], capture_output=True, text=True
    )
    assert f"Version: {tfrec.__version__}" in run.stdout
