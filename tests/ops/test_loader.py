import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings

import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.ops import _loader
from tfrec_efficient.testing.ops import implementations


@pytest.fixture
def loader(monkeypatch, tmp_path):
    """The loader with nothing cached, looking at a library that a test may put in place."""
    monkeypatch.setattr(_loader, "_LIBRARY", tmp_path / "libtfrec_ops.so")
    monkeypatch.setattr(_loader, "_BUILD_INFO", tmp_path / "libtfrec_ops.json")
    monkeypatch.delenv("TFREC_OPS", raising=False)
    caches = (_loader.load, _loader._is_installed, _loader._warn_once)
    for cached in caches:
        cached.cache_clear()
    yield _loader
    for cached in caches:
        cached.cache_clear()


def put_library(loader, tensorflow_version, source=""):
    """Compiles a library that says it was built with some TensorFlow."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler: {compiler[0]} is not found")
    command = [*compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(loader._LIBRARY)]
    subprocess.run(command, input=source, text=True, check=True)
    loader._is_installed.cache_clear()
    loader._BUILD_INFO.write_text(json.dumps({"tensorflow": tensorflow_version}))


def test_absent_library_warns_once_and_falls_back(loader):
    with pytest.warns(RuntimeWarning, match="pure-TensorFlow references are used"):
        assert loader.native() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loader.native() is None


def test_the_warning_points_at_the_caller(loader):
    with pytest.warns(RuntimeWarning) as caught:
        tfrec.ops.gather_reduce([[1.0]], [[0]])
    assert caught[0].filename == __file__


def test_python_is_forced_without_a_warning(loader, monkeypatch):
    monkeypatch.setenv("TFREC_OPS", "python")
    assert loader.native() is None


def test_native_is_forced(loader, monkeypatch):
    monkeypatch.setenv("TFREC_OPS", "native")
    with pytest.raises(ImportError, match="native ops of tfrec_efficient are not installed"):
        loader.native()


def test_load_all_follows_the_switch(loader, monkeypatch):
    with pytest.warns(RuntimeWarning, match="not installed"):
        loader.load_all()
    monkeypatch.setenv("TFREC_OPS", "native")
    with pytest.raises(ImportError, match="not installed"):
        loader.load_all()
    monkeypatch.setenv("TFREC_OPS", "python")
    loader.load_all()


def test_unknown_mode_is_refused(loader, monkeypatch):
    monkeypatch.setenv("TFREC_OPS", "fast")
    with pytest.raises(ValueError, match='`TFREC_OPS` must be.*Received: TFREC_OPS="fast"'):
        loader.native()


def test_another_tensorflow_is_named_with_the_remedy(loader):
    put_library(loader, "2.19.1")
    with pytest.raises(ImportError, match="built with TensorFlow 2.19.1, and TensorFlow 2.20") as e:
        loader.native()
    assert "pip install --force-reinstall" in str(e.value)


def test_another_patch_release_is_fine(loader):
    major, minor, _ = tf.__version__.split(".")
    put_library(loader, f"{major}.{minor}.99")
    assert loader.native() is not None


def test_undefined_symbol_is_turned_into_advice(loader):
    put_library(loader, tf.__version__, "void missing(); struct A { A() { missing(); } } a;")
    with pytest.raises(ImportError, match="undefined symbol: .*missing") as e:
        loader.load()
    assert "pip install --force-reinstall" in str(e.value)


def test_other_load_errors_pass(loader):
    put_library(loader, tf.__version__)
    loader._LIBRARY.write_bytes(b"not a library")
    with pytest.raises(tf.errors.NotFoundError):
        loader.load()


if "native" in implementations():

    def test_the_native_library_was_built():
        assert tfrec.ops.library_path().endswith("libtfrec_ops.so")

    def test_load_all_registers_ops_in_a_fresh_process():
        code = (
            "from tensorflow.python.framework import op_def_registry as registry\n"
            "import tfrec_efficient as tfrec\n"
            "assert registry.get('TfrecEfficient>GatherReduce') is None\n"
            "tfrec.ops.load_all()\n"
            "tfrec.ops.load_all()\n"
            "assert registry.get('TfrecEfficient>GatherReduce') is not None\n"
        )
        run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr

    def test_importing_the_package_loads_no_library():
        code = "import tfrec_efficient; print('libtfrec_ops' in open('/proc/self/maps').read())"
        run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
        assert run.stdout.strip() == "False", run.stderr
