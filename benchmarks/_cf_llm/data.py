"""Sequences with titles, and the questions that all methods are asked."""

import dataclasses
import gzip
import json
import os
from pathlib import Path

import numpy as np

from tfrec_efficient import data
from tfrec_efficient import llm

NAMES = ("ml-100k", "ml-1m", "amazon-beauty", "collm-ml1m")
SPLIT_BY_TIME = ("collm-ml1m",)
COLD_SHARE = 0.35
NEGATIVES = 19

# Fewer than this in all items, and the authors of the sequences left the attribute out.
_FEWEST_ITEMS_OF_AN_ATTRIBUTE = 5


@dataclasses.dataclass
class Sequences:
    """What users took, in the order of time; items are 1, 2, ... and have texts.

    Attributes:
        name: Of the data set.
        items: An int64 array for each user.
        titles: What a prompt calls the items.
        texts: What is written about them.
        words: Verb, past and noun for the prompt.
        max_length: How much of a history the backbone reads.
        later: Where the data set has a split of its own: what is asked in `"valid"` and `"test"`, a
            history and then what came next in each row. None asks for the last two items.
    """

    name: str
    items: list
    titles: list
    texts: list
    words: tuple
    max_length: int
    later: dict | None = None

    @property
    def item_count(self):
        """How many items have titles."""
        return len(self.titles)

    def of_training(self):
        """Without what is asked for: by default the last two items, to validate and to test on."""
        return self.items if self.later else [items[:-2] for items in self.items]

    def asked(self, split):
        """Rows whose last item is asked for; a backbone has learnt none of these."""
        if self.later:
            return self.later[split]
        return self.items if split == "test" else [items[:-1] for items in self.items]

    def few(self, count, seed):
        """With the sequences of so many users alone to learn from; all are still asked."""
        chosen = np.random.default_rng([seed, count]).permutation(len(self.items))[:count]
        return np.sort(chosen)


def load(name):
    """The sequences of a data set; users who lose two items of fewer than five are left out."""
    read = {"ml-100k": _ml_100k, "ml-1m": _ml_1m, "amazon-beauty": _beauty, "collm-ml1m": _collm}
    sequences = read[name]()
    if not sequences.later:
        sequences.items = [items for items in sequences.items if len(items) >= 5]
    return sequences


def questions(sequences, split, count, seed, negatives=NEGATIVES):
    """The same for all methods: which rows are asked, and the candidates, come from the seed alone.

    Args:
        sequences: `Sequences`.
        split: `"train"`, `"valid"` or `"test"`. The first two ask different rows of those that are
            not of the test; in most data sets a row is a user.
        count: int. How many rows are asked.
        seed: int.
        negatives: int. Wrong candidates of each question.
    """
    rows = sequences.asked("test" if split == "test" else "valid")
    places = np.random.default_rng(seed).permutation(len(rows))
    # Those who are validated on come first, so that another count trains on the same users.
    validated, others = places[: len(places) // 5], places[len(places) // 5 :]
    asked = {"train": others, "valid": validated, "test": places}[split][:count]
    drawn = llm.CandidateQuestions.draw(
        [rows[place] for place in asked],
        sequences.item_count,
        sequences.max_length,
        negatives,
        seed=[seed, len(split)],
    )
    return asked, drawn


def cold_items(sequences):
    """The ids of the 35 % of items that training users met least, those they never met included."""
    counts = np.zeros(sequences.item_count + 1, np.int64)
    for items in sequences.of_training():
        np.add.at(counts, items, 1)
    order = np.lexsort((np.arange(1, len(counts)), counts[1:]))
    return 1 + order[: int(COLD_SHARE * sequences.item_count)]


def _folder(name):
    folder = os.environ.get("TFREC_DATA_DIR")
    if not folder or not Path(folder, name).is_dir():
        raise SystemExit(f"Set TFREC_DATA_DIR to a folder that has {name}.")
    return Path(folder, name)


def _ml_100k():
    movies = data.datasets.movielens_100k()
    ratings = movies.ratings
    # Of equal timestamps, the row further down counts as later: 44 % of the users have such a tie
    # in their last two.
    order = np.lexsort((np.arange(len(ratings["item_id"])), ratings["timestamp"]))
    items = [
        ratings["item_id"][order][ratings["user_id"][order] == user]
        for user in np.unique(ratings["user_id"])
    ]
    texts = [
        f"{title}, {genres.replace('|', ', ')}"
        for title, genres in zip(movies.items["title"], movies.items["genres"], strict=True)
    ]
    titles = movies.items["title"].tolist()
    return Sequences("ml-100k", items, titles, texts, ("watch", "watched", "movie"), 50)


def _ml_1m():
    folder = _folder("ml-1m")
    lines = (folder / "movies.dat").read_bytes().decode("iso-8859-1").splitlines()
    movies = [line.split("::") for line in lines]
    number = {int(movie[0]): place for place, movie in enumerate(movies, 1)}
    rows = gzip.decompress((folder / "full_sequences.tsv.gz").read_bytes()).decode().splitlines()
    items = [
        np.array([number[int(item)] for item in row.split("\t")[1].split()], np.int64)
        for row in rows
    ]
    texts = [f"{title}, {genres.replace('|', ', ')}" for _, title, genres in movies]
    titles = [title for _, title, _ in movies]
    return Sequences("ml-1m", items, titles, texts, ("watch", "watched", "movie"), 50)


def _collm():
    """The split by time of CoLLM's authors, of the movies that users liked."""
    folder = _folder("collm-ml1m")

    def rows(split):
        lines = gzip.decompress((folder / f"{split}.tsv.gz").read_bytes()).decode().splitlines()
        cells = [line.split("\t") for line in lines[1:]]
        return [(user, int(item), past) for user, item, label, _, _, past in cells if label == "1"]

    liked = {}
    for user, item, _ in rows("train"):
        liked.setdefault(user, []).append(item)
    later = {
        split: [
            np.array([*(int(one) for one in past.split() if one != "0"), item], np.int64)
            for _, item, past in rows(split)
        ]
        for split in ("valid", "test")
    }
    # Users whose first movie this is have no history to ask about.
    later = {split: [row for row in asked if len(row) > 1] for split, asked in later.items()}
    lines = (folder / "items.tsv").read_text("utf-8").splitlines()[1:]
    titles = [title for _, title in sorted((int(i), t) for i, t in (x.split("\t") for x in lines))]
    movies = (_folder("ml-1m") / "movies.dat").read_bytes().decode("iso-8859-1").splitlines()
    genres = {title: kinds for _, title, kinds in (movie.split("::") for movie in movies)}
    texts = [f"{title}, {genres[title].replace('|', ', ')}" for title in titles]
    items = [np.array(row, np.int64) for row in liked.values()]
    words = ("watch", "watched", "movie")
    return Sequences("collm-ml1m", items, titles, texts, words, 50, later)


def _beauty():
    """Products have no titles here: they are called by their categories and brands."""
    folder = _folder("amazon-beauty-s3rec")

    def read(name):
        return gzip.decompress((folder / name).read_bytes()).decode()

    items = [
        np.array(row.split()[1:], np.int64) for row in read("Beauty.txt.gz").strip().split("\n")
    ]
    maps = json.loads(read("datamaps.json.gz"))
    # The two files number attributes differently: the sequences' own numbering leaves out those of
    # fewer than five items, in the order of the other. The counts of all 637 agree.
    kept = [
        maps["id2attribute"][number]
        for number in sorted(maps["id2attribute"], key=int)
        if maps["attributeid2num"][number] >= _FEWEST_ITEMS_OF_AN_ATTRIBUTE
    ]
    attributes = json.loads(read("Beauty_item2attributes.json.gz"))
    titles = [
        ", ".join(kept[number - 1] for number in attributes.get(str(item), []))
        for item in range(1, 1 + max(sequence.max() for sequence in items))
    ]
    return Sequences("amazon-beauty", items, titles, titles, ("buy", "bought", "item"), 20)
