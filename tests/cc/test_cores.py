"""Builds and runs the tests of the C++ cores, which need a compiler and no TensorFlow."""

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
    *("-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-pthread", "-I", str(ROOT)),
    *("-Wall", "-Wextra", "-Werror"),
    # GCC 12.2 warns of its own AVX-512 header (GCC PR 105593), and clang of such a warning's name.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
]
SANITIZERS = {
    "none": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
# What is compiled, and not what is run, takes minutes: twice as long with sanitizers. The cores are
# also tested through the ops, but for what becomes of files.
_ALWAYS = ("cached_table_test", "row_log_test", "row_store_test", "row_store_crash_test")
PROGRAMS = [
    *((test, "none") for test in TESTS if test.stem in _ALWAYS),
    *(pytest.param((test, "address"), marks=pytest.mark.slow) for test in TESTS),
    *(
        pytest.param((test, "thread"), marks=pytest.mark.slow)
        for test in TESTS
        if test.stem == "threads_test"
    ),
]


@pytest.fixture(scope="module")
def build():
    """Returns a function that runs the compiler, with the flags of all tests, for one output."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if not compiler or shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler: `{shlex.join(compiler)}` is not found; set CXX to one")

    def run_compiler(sanitizer, output, *arguments):
        flags = [*FLAGS, *SANITIZERS[sanitizer]]
        command = [*compiler, *flags, *map(str, arguments), "-o", str(output)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, f"{shlex.join(command)}\n{run.stderr}"
        return output

    return run_compiler


@pytest.fixture(scope="module")
def programs(build, request, tmp_path_factory):
    """The programs that this session is going to run, built by all processors meanwhile."""
    folder = tmp_path_factory.mktemp("cores")
    wanted = [
        item.callspec.params["program"]
        for item in request.session.items
        if item.path == Path(__file__) and item.originalname == "test_core"
    ]
    pool = ThreadPoolExecutor(os.cpu_count())
    objects = {
        sanitizer: [
            pool.submit(build, sanitizer, folder / f"{sanitizer}-{n}.o", "-c", core)
            for n, core in enumerate(CORES)
        ]
        for sanitizer in dict.fromkeys(sanitizer for _, sanitizer in wanted)
    }

    # Begins behind all objects, which therefore never wait for a program.
    def link(test, sanitizer):
        linked = [of_core.result() for of_core in objects[sanitizer]]
        return build(sanitizer, folder / f"{sanitizer}-{test.stem}", test, *linked)

    yield {program: pool.submit(link, *program) for program in wanted}
    pool.shutdown(cancel_futures=True)


def run(program):
    result = subprocess.run([program], capture_output=True, text=True, timeout=300)
    # Where the kernel scatters addresses more widely than the runtime of ThreadSanitizer can take.
    if "unexpected memory mapping" in result.stderr and shutil.which("setarch"):
        command = ["setarch", platform.machine(), "-R", program]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return result


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: f"{program[0].stem}-{program[1]}")
def test_core(program, programs):
    result = run(programs[program].result())
    assert result.returncode == 0, result.stderr


# `volatile`, or the compiler removes the fault before the sanitizers see it.
@pytest.mark.parametrize(
    ("sanitizer", "body", "report"),
    [
        (
            "address",
            "volatile int* volatile heap = new int[1]; heap[argc] = 0; delete[] heap;",
            "heap-buffer-overflow",
        ),
        (
            "address",
            "volatile int large = 0x7fffffff; return large + argc == 0;",
            "signed integer overflow",
        ),
        (
            "thread",
            "volatile int sum = argc; std::thread other([&] { sum = 1; }); sum = 2; other.join();",
            "data race",
        ),
    ],
    ids=["heap overflow", "signed overflow", "data race"],
)
def test_sanitizers_are_on(sanitizer, body, report, build, tmp_path):
    source = tmp_path / "faulty.cc"
    source.write_text(f"#include <thread>\nint main(int argc, char**) {{ {body} }}\n")
    result = run(build(sanitizer, tmp_path / "faulty", source))
    assert result.returncode != 0
    assert report in result.stderr
