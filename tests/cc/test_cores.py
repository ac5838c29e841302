"""Builds and runs the tests of the C++ cores, which need a compiler and no TensorFlow."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# These two hold what TensorFlow sees of an op, and need its headers.
CORES = [
    path
    for path in sorted(ROOT.glob("custom_ops/**/*.cc"))
    if path.name not in ("op.cc", "kernel.cc")
]
TESTS = sorted(Path(__file__).parent.glob("*_test.cc"))
FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-I", str(ROOT)),
    *("-Wall", "-Wextra", "-Werror"),
    # GCC 12.2 warns of its own AVX-512 header (GCC PR 105593), and clang of this warning's name.
    *("-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]


@pytest.fixture(scope="module")
def build():
    """Returns a function that runs the compiler, with the flags of all tests, for one output."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if not compiler or shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler: `{shlex.join(compiler)}` is not found; set CXX to one")

    def run_compiler(output, *arguments):
        command = [*compiler, *FLAGS, *map(str, arguments), "-o", str(output)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, f"{shlex.join(command)}\n{run.stderr}"
        return output

    return run_compiler


@pytest.fixture(scope="module")
def core_objects(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cores")
    return [build(folder / f"{n}-{core.stem}.o", "-c", core) for n, core in enumerate(CORES)]


def run(program):
    return subprocess.run([program], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.stem)
def test_core(test, build, core_objects, tmp_path):
    result = run(build(tmp_path / test.stem, test, *core_objects))
    assert result.returncode == 0, result.stderr


# `volatile`, or the compiler removes the fault before the sanitizers see it.
@pytest.mark.parametrize(
    ("body", "report"),
    [
        (
            "volatile int* volatile heap = new int[1]; heap[argc] = 0; delete[] heap;",
            "heap-buffer-overflow",
        ),
        ("volatile int large = 0x7fffffff; return large + argc == 0;", "signed integer overflow"),
    ],
    ids=["heap overflow", "signed overflow"],
)
def test_sanitizers_are_on(body, report, build, tmp_path):
    source = tmp_path / "faulty.cc"
    source.write_text(f"int main(int argc, char**) {{ {body} }}\n")
    result = run(build(tmp_path / "faulty", source))
    assert result.returncode != 0
    assert report in result.stderr
