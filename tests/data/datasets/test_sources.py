import hashlib
import http.server
import threading
import zipfile

import pytest

from tfrec_efficient.data.datasets import _sources


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tfrec_efficient" / "datasets"


@pytest.fixture
def website(tmp_path):
    """A web server on this machine, over `tmp_path`; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def put_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_download_shows_a_progress_bar(website, tmp_path, cache, capsys):
    md5 = put_zip(tmp_path / "set.zip", {"set/a": "x" * 300_000, "set/b": "other"})
    folder = _sources.download_zip(f"{website}/set.zip", md5, "set", ["a"])
    assert folder == cache / "set"
    assert (folder / "a").read_text() == "x" * 300_000
    assert not (folder / "b").exists()
    captured = capsys.readouterr()
    assert f"Downloading {website}/set.zip" in captured.err
    assert "byte" in captured.out


def test_what_the_server_says_is_passed_on(website):
    with pytest.raises(OSError, match="404"):
        _sources.download_zip(f"{website}/absent.zip", "", "set", ["a"])


def test_a_whole_folder_of_another_process_is_kept(website, tmp_path, cache):
    md5 = put_zip(tmp_path / "set.zip", {"set/a": "new"})
    (cache / "set").mkdir(parents=True)
    (cache / "set" / "a").write_text("of the other process")
    _sources.download_zip(f"{website}/set.zip", md5, "set", ["a"])
    assert (cache / "set" / "a").read_text() == "of the other process"


def test_first_that_works(tmp_path):
    def fail():
        raise OSError("disk on fire")

    attempts = [("here", lambda: None), ("there", fail), ("last", lambda: tmp_path)]
    assert _sources.first_that_works("Set", attempts) == tmp_path
    with pytest.raises(FileNotFoundError) as error:
        _sources.first_that_works("Set", attempts[:2])
    assert str(error.value) == "Set was not found. Tried:\n  here: not there\n  there: disk on fire"


def test_an_incomplete_folder_is_replaced(website, tmp_path, cache):
    md5 = put_zip(tmp_path / "set.zip", {"set/a": "new"})
    (cache / "set").mkdir(parents=True)
    (cache / "set" / "other").write_text("left behind")
    _sources.download_zip(f"{website}/set.zip", md5, "set", ["a"])
    assert [path.name for path in (cache / "set").iterdir()] == ["a"]


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match="pip download no-such-package-of-tfrec-efficient==0 failed"):
        _sources.wheel_from_pypi("no-such-package-of-tfrec-efficient==0", "", "set", {})
