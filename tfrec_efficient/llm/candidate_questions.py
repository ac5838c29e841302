"""`CandidateQuestions`: which of these comes next, asked of every recommender alike."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.backbones.sequences import checked_sequences

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CandidateQuestions:
    """Histories of users, with candidates of which one is what came next.

    The candidates are drawn once, from a seed, and saved, so that all recommenders are asked the
    same. No candidate comes twice in a question, and none of the wrong ones is known to the user.

    Attributes:
        history: int64 array of shape `(questions, max_length)`, padded with 0 on the left.
        candidates: int64 array of shape `(questions, candidates)`.
        target: int64 array of shape `(questions,)`: the place of the right candidate.

    Example:
    >>> from tfrec_efficient import llm
    >>> sequences = [[1, 2, 3], [4, 5, 1, 2]]
    >>> questions = llm.CandidateQuestions.draw(sequences, 9, max_length=3, negatives=4)
    >>> questions.history.tolist()
    [[0, 1, 2], [4, 5, 1]]
    >>> [row[place] for row, place in zip(questions.candidates.tolist(), questions.target)]
    [3, 2]
    """

    history: npt.NDArray[np.int64]
    candidates: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        count = len(self.target)
        for name, rank in (("history", 2), ("candidates", 2), ("target", 1)):
            value = getattr(self, name)
            if value.ndim != rank or len(value) != count or value.dtype != np.int64:
                raise ValueError(
                    f"`{name}` must be int64 with {rank} axes and {count} rows. "
                    f"Received: {value.dtype} of shape {value.shape}"
                )
        if count and not (0 <= self.target.min() <= self.target.max() < self.candidates.shape[1]):
            raise ValueError(
                f"`target` must be in `[0, {self.candidates.shape[1]})`. "
                f"Received: {self.target.min()} to {self.target.max()}"
            )
        if (self.target_items < 1).any():
            row = int(np.argmax(self.target_items < 1))
            raise ValueError(
                "`target` must be the place of an item, an id from 1. "
                f"Received: candidates[{row}, {self.target[row]}]={self.target_items[row]}"
            )

    @classmethod
    def draw(
        cls, sequences: Any, item_count: int, max_length: int, negatives: int = 19, seed: Any = 0
    ) -> "CandidateQuestions":
        """Asks for the last item of each sequence among uniform negatives.

        Args:
            sequences: The item ids of each user in the order of time, from 1; the last is asked
                for.
            item_count: int. Ids are in `[1, item_count]`.
            max_length: int. Histories are cut to their latest items.
            negatives: int. Wrong candidates, drawn without repetition from the items that are not
                in the sequence. Defaults to 19.
            seed: int, or list of int. Defaults to 0.

        Raises:
            ValueError: A size is no positive integer; there is no sequence; one has fewer than two
                items, ids that are no integers or out of range, or leaves too few items to draw
                from.
        """
        check_sizes(item_count=item_count, max_length=max_length, negatives=negatives)
        generator = np.random.default_rng(seed)
        of_all, row_splits = checked_sequences(sequences, item_count)
        count = len(row_splits) - 1
        history = np.zeros((count, max_length), np.int64)
        candidates = np.zeros((count, negatives + 1), np.int64)
        target = np.zeros(count, np.int64)
        for row, items in enumerate(np.split(of_all, row_splits[1:-1])):
            unknown = np.setdiff1d(np.arange(1, item_count + 1), items, assume_unique=False)
            if len(unknown) < negatives:
                raise ValueError(
                    f"`sequences` must leave {negatives} items to draw from. "
                    f"Received: sequences[{row}], which leaves {len(unknown)}"
                )
            seen = items[:-1][-max_length:]
            history[row, max_length - len(seen) :] = seen
            asked = np.append(generator.choice(unknown, negatives, replace=False), items[-1])
            order = generator.permutation(negatives + 1)
            candidates[row], target[row] = asked[order], int(np.argmax(order == negatives))
        return cls(history, candidates, target)

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Any) -> "CandidateQuestions":
        """The questions of some rows, given as an index, a slice or a mask."""
        return CandidateQuestions(self.history[rows], self.candidates[rows], self.target[rows])

    @property
    def target_items(self) -> npt.NDArray[np.int64]:
        """The right items, of shape `(questions,)`."""
        return self.candidates[np.arange(len(self)), self.target]

    def dataset(self, batch_size: int, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """Batches of inputs and targets for `CFLLMRecommender`, shuffled where a seed is given."""
        check_sizes(batch_size=batch_size)
        inputs = {"history": self.history, "candidates": self.candidates}
        dataset = tf.data.Dataset.from_tensor_slices((inputs, self.target))
        if shuffle_seed is not None:
            dataset = dataset.shuffle(len(self), seed=shuffle_seed)
        return dataset.batch(batch_size).prefetch(1)

    def hits(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """How far the right candidate comes first, of shape `(questions,)`.

        Where m candidates share the highest score and the right one is among them, 1 / m: its
        chance, and no gift to a scorer that is often undecided.

        Args:
            scores: Array of shape `(questions, candidates)`.

        Raises:
            ValueError: The shape is another, or a score is no number.
        """
        scores = np.asarray(scores, np.float64)
        if scores.shape != self.candidates.shape or np.isnan(scores).any():
            raise ValueError(
                f"`scores` must be numbers of shape {self.candidates.shape}. "
                f"Received: shape {scores.shape}, {int(np.isnan(scores).sum())} not a number"
            )
        first = scores == scores.max(axis=1, keepdims=True)
        return first[np.arange(len(self)), self.target] / first.sum(axis=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON file, under a temporary name first."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        record = {"version": _VERSION} | {name: c.tolist() for name, c in columns.items()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(record, file)
        os.replace(file.name, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CandidateQuestions":
        """Reads what `save` wrote.

        Raises:
            ValueError: The file is of another version, or no such file.
        """
        record = json.loads(Path(path).read_text())
        if not isinstance(record, dict) or record.pop("version", None) != _VERSION:
            raise ValueError(f"`path` must hold questions of version {_VERSION}. Received: {path}")
        columns = {name: np.array(column, np.int64) for name, column in record.items()}
        if set(columns) != {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"`path` must hold questions. Received: {path} with {sorted(columns)}")
        return cls(**columns)
