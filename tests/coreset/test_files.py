import numpy as np
import pytest

from tfrec_efficient.coreset import _files


def test_an_array_comes_back(tmp_path):
    _files.save_array(tmp_path / "a.npy", np.arange(5))
    np.testing.assert_array_equal(_files.load_array(tmp_path / "a.npy"), np.arange(5))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _files.replace(path, fail)
    assert path.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_two_that_write_one_file_at_a_time_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"

    def write_while_another_does(temporary):
        temporary.write_text("ours")
        _files.replace(path, lambda other: other.write_text("theirs"))
        assert path.read_text() == "theirs"

    _files.replace(path, write_while_another_does)
    assert path.read_text() == "ours"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_is_written_is_on_the_same_disk_and_as_open_to_others_as_any_file(tmp_path):
    (tmp_path / "plain").write_text("")
    seen = []

    def write(temporary):
        seen.append(temporary)
        temporary.write_text("")

    _files.replace(tmp_path / "a.txt", write)
    assert tmp_path in seen[0].parents
    plain, ours = ((tmp_path / name).stat().st_mode for name in ("plain", "a.txt"))
    assert ours == plain


def test_a_folder_is_there_when_it_is_whole(tmp_path):
    def write(temporary):
        temporary.mkdir()
        (temporary / "a.txt").write_text("whole")
        assert not (tmp_path / "folder").exists()

    _files.replace(tmp_path / "folder", write)
    assert (tmp_path / "folder" / "a.txt").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        _files.load_array(tmp_path / "a.npy")


def test_a_manifest_comes_back(tmp_path):
    (tmp_path / "a.json").write_text('{"rows": 3}')
    assert _files.load_manifest(tmp_path / "a.json") == {"rows": 3}


@pytest.mark.parametrize(
    ("content", "rule", "received"),
    [
        (b"", "JSON", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"rows": 3', "JSON", "Expecting ',' delimiter: line 1 column 11 (char 10)"),
        (b'{"rows": "\xff"}', "JSON", "'utf-8' codec can't decode byte 0xff"),
        (b"[3]", "an object of JSON", "list"),
        (b"null", "an object of JSON", "NoneType"),
    ],
)
def test_a_manifest_that_is_broken(content, rule, received, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        _files.load_manifest(path)
    assert str(error.value).startswith(f"The manifest must be {rule}. Received: {path}: {received}")
