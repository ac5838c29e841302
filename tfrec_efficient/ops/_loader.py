"""Finds, checks and loads the library of C++ ops, or says why it cannot."""

import functools
import json
import os
import types
import warnings
from pathlib import Path

import tensorflow as tf

_LIBRARY = Path(__file__).with_name("libtfrec_ops.so")
_BUILD_INFO = Path(__file__).with_name("libtfrec_ops.json")

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
        raise ImportError(
            "The native ops of tfrec_efficient are not installed: no C++ compiler worked when the "
            "package was built. Install g++, then run `pip install --force-reinstall --no-deps .` "
            "in a checkout of the source."
        )
    return str(_LIBRARY)


def load_all() -> None:
    """Registers every native op with TensorFlow.

    A SavedModel names its ops, it does not carry them: call this before `tf.saved_model.load`
    where nothing else of this package has run yet. Calling it twice is harmless.

    Raises:
        ImportError: The native library is not installed, or was built for another TensorFlow.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> tfrec.ops.load_all()  # doctest: +SKIP
    """
    load()


def native() -> types.ModuleType | None:
    """Returns the module of native ops, or None where the references are to be used."""
    mode = os.environ.get("TFREC_OPS", "")
    if mode == "python":
        return None
    if mode == "native" or (not mode and _LIBRARY.exists()):
        return load()
    if mode:
        raise ValueError(
            'The environment variable `TFREC_OPS` must be "python", "native" or unset. '
            f'Received: TFREC_OPS="{mode}"'
        )
    _warn_once()
    return None


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "The native ops of tfrec_efficient are not installed, so its slower pure-TensorFlow "
        "references are used. Install g++ and reinstall the package to have them; set "
        "TFREC_OPS=python to silence this warning.",
        RuntimeWarning,
        stacklevel=4,
    )


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
