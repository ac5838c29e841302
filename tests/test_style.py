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
    for path in ROOT.rglob("*"):
        if path.suffix in {".py", ".cc", ".h", ".md", ".cfg", ".toml"} and path != Path(__file__):
            if any(
                part.startswith((".", "build", "quickstart_output"))
                for part in path.relative_to(ROOT).parts
            ):
                continue
            text = path.read_text()
            for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X", "/ro" + "ot/", "/ho" + "me/"):
                assert word not in text, f"{path}: {word}"
