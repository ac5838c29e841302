"""Lint, format and types are part of the tests, so that there is one command to remember."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check(*command):
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_ruff_finds_nothing():
    check("ruff", "check", ".")


def test_python_is_formatted():
    check("ruff", "format", "--check", ".")


def test_cpp_is_formatted():
    files = [p for f in ("custom_ops", "tests") for p in (ROOT / f).rglob("*")]
    files = [str(p) for p in files if p.suffix in {".cc", ".h", ".c", ".inc"}]
    assert files
    clang_format = Path(sys.executable).with_name("clang-format")
    run = subprocess.run(
        [clang_format, "--dry-run", "-Werror", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_types_hold():
    check("mypy")


def test_no_machine_path_or_unfinished_mark():
    folders = ("tfrec_efficient", "custom_ops", "tests", "examples", "benchmarks", "docs", "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*"), ROOT / ".ci" / "run"]
    for path in files:
        if path.is_file() and path.suffix not in {".so", ".pyc"} and path != Path(__file__):
            for word in ("TODO", "FIXME", "XXX", "/root/", "/home/"):
                assert word not in path.read_text(), f"{path}: {word}"
