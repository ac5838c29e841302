"""The PEP 517 backend of setuptools, plus one thing: it knows where TensorFlow is.

A build runs in an isolated environment. Compiling there against a TensorFlow that was downloaded
for the build would give ops that do not load in the one the user has. So the TensorFlow of the
environment that asked for the build is used, and one is required only where it has none.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)

REQUIREMENT = "tensorflow>=2.20,<2.21"


def installed_tensorflow():
    """Returns the site-packages folder that holds a TensorFlow of the right minor, or None."""
    # pip builds with the interpreter of the invoking environment and hides its packages; other
    # front ends name that environment in VIRTUAL_ENV. Last come the packages of the build itself.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if "VIRTUAL_ENV" in os.environ:
        folders.append(Path(os.environ["VIRTUAL_ENV"], "lib", version, "site-packages"))
    folders += [path for path in sys.path if path]
    for folder in folders:
        found = [*Path(folder).glob("tensorflow-2.20.*.dist-info")]
        found += Path(folder).glob("tensorflow_cpu-2.20.*.dist-info")
        if found and Path(folder, "tensorflow", "include").is_dir():
            return str(folder)
    return None


def tensorflow_flags():
    """Returns TensorFlow's version and the flags to compile and link an op library with it."""
    folder = installed_tensorflow()
    if folder is None:
        raise RuntimeError(f"{REQUIREMENT} is not installed")
    question = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import tensorflow as tf; "
        "print('FLAGS' + json.dumps({'version': tf.__version__, "
        "'compile': tf.sysconfig.get_compile_flags(), 'link': tf.sysconfig.get_link_flags()}))"
    )
    # Its own process: a build must not keep TensorFlow's libraries loaded. "-I" keeps the paths
    # of the isolated build, which may hold other versions of its dependencies, out of it.
    run = subprocess.run(
        [sys.executable, "-I", "-c", question, folder],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    answers = [line for line in run.stdout.splitlines() if line.startswith("FLAGS")]
    if run.returncode or not answers:
        raise RuntimeError(f"TensorFlow in {folder} does not import:\n{run.stderr[-2000:]}")
    return json.loads(answers[-1].removeprefix("FLAGS"))


def get_requires_for_build_wheel(config_settings=None):
    required = build_meta.get_requires_for_build_wheel(config_settings)
    return required if installed_tensorflow() else [*required, REQUIREMENT]


def get_requires_for_build_editable(config_settings=None):
    required = build_meta.get_requires_for_build_editable(config_settings)
    return required if installed_tensorflow() else [*required, REQUIREMENT]
