"""Finds, checks and loads the library of C++ ops, or says why it cannot."""

import functools
import json
import os
import sys
import types
import warnings
from pathlib import Path

import tensorflow as tf

_LIBRARY = Path(__file__).with_name("libtfrec_ops.so")
_PACKAGE = Path(__file__).parents[1]
_BUILD_INFO = Path(__file__).with_name("libtfrec_ops.json")

# In a checkout that the package was not installed from in place, Python finds the source first.
_WHY_ABSENT = (
    f" Python found the package in the checkout {Path(__file__).parents[2]}: run from another "
    "folder or, with g++ installed, install it in place with `pip install -e .`."
    if Path(__file__).parents[2].joinpath("setup.py").exists()
    else " No C++ compiler worked when it was built: install g++, then run "
    "`pip install --force-reinstall --no-deps .` in a checkout of the source."
)

_REMEDY = (
    "Build the ops again for the TensorFlow that is installed now, from a checkout of the source: "
    "`pip install --force-reinstall --no-deps .`. Or set TFREC_OPS=python to work without them."
)


def library_path() -> str:
    """Returns the path of the native op library.

    For programs that load ops themselves: `TF_LoadLibrary` of the C API, the op library option of
    the Triton TensorFlow backend, or `LD_PRELOAD`.

    Raises:
        ImportError: The package was installed without the native library.
    """
    if not _LIBRARY.exists():
        raise ImportError("The native ops of tfrec_efficient are not installed." + _WHY_ABSENT)
    return str(_LIBRARY)


def load_all() -> None:
    """Registers the native ops with TensorFlow, wherever native ops are used.

    A SavedModel names its ops, it does not carry them: call this before `tf.saved_model.load`
    where nothing else of this package has run yet. Calling it twice is harmless. Where the
    references are used, because the native library is not installed or `TFREC_OPS=python`, there
    is nothing to register, and a model that was saved with native ops does not load.

    Raises:
        ImportError: The library was built for another TensorFlow, or `TFREC_OPS=native` asks for
            one that is not installed.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> tfrec.ops.load_all()
    """
    native()


def native() -> types.ModuleType | None:
    """Returns the module of native ops, or None where the references are to be used."""
    mode = os.environ.get("TFREC_OPS", "")
    if mode == "python":
        return None
    if mode == "native" or (not mode and _is_installed()):
        return load()
    if mode:
        raise ValueError(
            'The environment variable `TFREC_OPS` must be "python", "native" or unset. '
            f'Received: TFREC_OPS="{mode}"'
        )
    _warn_once()
    return None


@functools.cache
def _is_installed() -> bool:
    return _LIBRARY.exists()


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "The native ops of tfrec_efficient are not installed, so its slower pure-TensorFlow "
        f"references are used; TFREC_OPS=python silences this warning.{_WHY_ABSENT}",
        RuntimeWarning,
        stacklevel=_level_of_caller(),
    )


def _level_of_caller() -> int:
    """How many frames up from the caller of this function the code of the user is."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


@functools.cache
def load() -> types.ModuleType:
    path = library_path()
    built_with = json.loads(_BUILD_INFO.read_text())["tensorflow"]
    if built_with.split(".")[:2] != tf.__version__.split(".")[:2]:
        raise ImportError(
            f"The native ops of tfrec_efficient were built with TensorFlow {built_with}, and "
            f"TensorFlow {tf.__version__} is running. {_REMEDY}"
        )
    try:
        return tf.load_op_library(path)
    except tf.errors.NotFoundError as error:
        if "undefined symbol" not in error.message:
            raise
        raise ImportError(
            f"The native ops of tfrec_efficient do not fit TensorFlow {tf.__version__} (they were "
            f"built with {built_with}): {error.message}. {_REMEDY}"
        ) from error
