"""Runs a module of this folder in a process of its own.

The allocator that TensorFlow uses with oneDNN keeps memory that it has once had, so only the end of
a process frees that of a rival.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_BENCHMARKS = Path(__file__).parents[1]


def call(
    module: str, arguments: Mapping[str, object], environment: Mapping[str, str] | None = None
) -> dict:
    """Starts `module` with `arguments` as JSON; returns the JSON that it prints last."""
    paths = [str(_BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    # -P: with -m alone, a checkout that is the current folder would hide the installed package.
    run = subprocess.run(
        [sys.executable, "-P", "-m", module, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **(environment or {}),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
    )
    if run.returncode != 0:
        ended = f"by signal {-run.returncode}" if run.returncode < 0 else "with an error"
        raise RuntimeError(f"{module} ended {ended}; its last words:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])
