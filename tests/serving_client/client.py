"""Builds and drives `saved_model_client.c`: a stand-in for TensorFlow Serving, without Python.

Tests take the fixture `saved_model_client`, which `tests/conftest.py` offers:

    predictions = saved_model_client(model_dir, op_library, {"ids": ids, "genre": genres})

Test files cannot import each other under `--import-mode=importlib`, so it is loaded by path there.
"""

import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

_SOURCE = Path(__file__).with_name("saved_model_client.c")
_NO_LIBRARY = "-"


@pytest.fixture(scope="session")
def saved_model_client(tmp_path_factory):
    """Returns `predict` bound to a fresh build of the client."""
    if shutil.which(_compiler()[0]) is None:
        pytest.skip(f"no C compiler: {_compiler()[0]}")
    return functools.partial(predict, build_client(tmp_path_factory.mktemp("serving_client")))


def build_client(directory: Path) -> Path:
    """Compiles the client into `directory` and returns the path of the program."""
    client = Path(directory) / "saved_model_client"
    libraries = tf.sysconfig.get_lib()
    command = [*_compiler(), "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += ["-isystem", tf.sysconfig.get_include(), str(_SOURCE), "-o", str(client)]
    command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    command += ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    if shutil.which("ld.gold"):  # the default linker needs ten seconds for TensorFlow's gigabyte
        command.append("-fuse-ld=gold")
    _run(command)
    return client


def predict(
    client: Path,
    model_dir: Path,
    op_library: str | None,
    inputs: dict[str, np.ndarray],
    signature: str = "serving_default",
    output: str | None = None,
) -> np.ndarray:
    """Runs a signature, whose inputs and output go by the names that Keras gave them.

    `output` may be left out where the signature has only one.
    """
    input_tensors, output_tensors = signature_tensors(model_dir, signature)
    if output is None:
        (output,) = output_tensors
    inputs = {input_tensors[name]: values for name, values in inputs.items()}
    return run_client(client, model_dir, op_library, output_tensors[output], inputs)


def run_client(
    client: Path,
    model_dir: Path,
    op_library: str | None,
    output_tensor: str,
    inputs: dict[str, np.ndarray],
) -> np.ndarray:
    """Returns the output tensor as a flat float32 array; raises RuntimeError where there is none.

    `output_tensor` and the keys of `inputs` name tensors of the graph. `op_library=None` loads no
    custom ops.
    """
    command = [client, model_dir, op_library or _NO_LIBRARY, output_tensor]
    command += [f"{name}={_format(np.asarray(values))}" for name, values in inputs.items()]
    return np.array(_run(command).split(), np.float32)


def signature_tensors(
    model_dir: Path, signature: str = "serving_default"
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns which graph tensor stands behind each input and each output of a signature."""
    saved_model = saved_model_pb2.SavedModel.FromString(
        (Path(model_dir) / "saved_model.pb").read_bytes()
    )
    signatures = saved_model.meta_graphs[0].signature_def
    if signature not in signatures:  # a protobuf map would silently make one up
        raise KeyError(f"No signature {signature!r} in {sorted(signatures)}")
    inputs, outputs = signatures[signature].inputs, signatures[signature].outputs
    return (
        {name: tensor.name for name, tensor in inputs.items()},
        {name: tensor.name for name, tensor in outputs.items()},
    )


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["gcc"]


def _run(command: list) -> str:
    # TensorFlow logs every error that it also returns; unasked, stderr is left to the client.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(
            f"{Path(command[0]).name} ended with exit code {done.returncode}:\n{done.stderr}"
        )
    return done.stdout


def _format(values: np.ndarray) -> str:
    if values.dtype.kind in "OSU":
        kind = "string"
        texts = [x.decode() if isinstance(x, bytes) else str(x) for x in values.flat]
        for text in texts:
            if "," in text:
                raise ValueError(f"The client splits strings at commas. Received: {text!r}")
    elif values.dtype in (np.int32, np.int64):
        kind = values.dtype.name
        texts = [str(x) for x in values.flat]
    elif values.dtype == np.float32:
        kind = "float"
        texts = [f"{x:.9g}" for x in values.flat]
    else:
        raise ValueError(f"The client cannot read dtype {values.dtype}.")
    return f"{kind}[{','.join(map(str, values.shape))}]:{','.join(texts)}"
