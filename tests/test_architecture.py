"""The house keeps its shape: who may import whom, how large a file may grow, what has a test."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tfrec_efficient"
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))

# A room may import from itself and from the rooms named here; README.md draws the same picture.
USES = {
    "ops": set(),
    "coreset": {"ops"},
    "data": {"ops"},
    "embedding": {"ops"},
    "llm": {"data", "embedding"},
    "optimizers": {"ops"},
    "pim": {"ops", "embedding"},
    "sampling": set(),
    "testing": set(),
}


def rooms_imported_by(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "tfrec_efficient" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
                yield parts[1]


def test_every_room_is_known():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(USES)


@pytest.mark.parametrize("path", [path for path in MODULES if len(path.parts) > 2], ids=str)
def test_rooms_import_only_what_they_may(path):
    room = path.parts[1]
    assert set(rooms_imported_by(path)) <= USES[room] | {room}


def sources():
    for pattern in ("tfrec_efficient/**/*.py", "custom_ops/**/*", "tests/**/*", "examples/*.py",
                    "benchmarks/*.py", "tools/*"):  # fmt: skip
        yield from (p for p in ROOT.glob(pattern) if p.suffix in {".py", ".cc", ".h", ".c", ".inc"})


def test_no_file_is_too_long():
    assert {p: n for p in sources() if (n := len(p.read_text().splitlines())) > 600} == {}


def test_no_folder_is_too_full():
    folders = {path.parent for path in MODULES}
    assert {f: n for f in folders if (n := sum(p.parent == f for p in MODULES)) > 9} == {}


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=str)
def test_every_module_has_a_test_that_mirrors_it(path):
    if path.name == "version.py":
        return
    mirrored = ROOT / "tests" / Path(*path.parts[1:-1]) / f"test_{path.name.lstrip('_')}"
    assert mirrored.exists()


def test_op_families_have_the_same_names_in_both_languages():
    families = {path.name for path in (ROOT / "custom_ops").iterdir()} - {"common"}
    wrappers = {p.stem for p in (PACKAGE / "ops").glob("[a-z]*.py")}
    assert families == wrappers
