"""What is known of the samples among which a selector chooses, and the checks of it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

# Of an embedding. The squares of more, summed, would not be finite.
_LARGEST = np.float64(1e100)  # not the number of Python, which would be of the array's dtype
_FINITE = f"finite and no larger than {_LARGEST:g}"

# Entries that are looked at in one go: a megabyte of float64, which stays in the cache.
_ENTRIES = 1 << 17


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices that cover `rows` rows of `width` entries, so that a step needs little memory."""
    step = max(1, _ENTRIES // width)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Arrays with one row a sample, each None where it was not given.

    Args:
        embeddings: Real numbers of shape `(samples, dim)`.
        confidences: Numbers in `[0, 1]` of shape `(samples,)`.
        labels: Integers from 0 of shape `(samples,)`.
        probabilities: Numbers in `[0, 1]` of shape `(samples, classes)`.
        forgetting_events: Integers from 0 of shape `(samples,)`.
    """

    embeddings: np.ndarray | None = None
    confidences: np.ndarray | None = None
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    forgetting_events: np.ndarray | None = None

    def __len__(self) -> int:
        return next(len(array) for array in self._given().values())

    def _given(self) -> dict[str, np.ndarray]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: array for name, array in fields.items() if array is not None}

    def take(self, members: np.ndarray) -> "Samples":
        """The samples at some positions."""
        return Samples(**{name: array[members] for name, array in self._given().items()})

    def need(self, name: str) -> np.ndarray:
        """An array that is known to be there."""
        array = getattr(self, name)
        assert array is not None
        return array


def check_integer(name: str, value: Any, least: int) -> int:
    """An argument as an int.

    Raises:
        ValueError: It is no integer, or below `least`.
    """
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: {name}={value}"
        )
    return int(value)


def check_samples(needed: tuple[str, ...], **arrays: Any) -> Samples:
    """Checks the arguments of `fit`.

    Args:
        needed: Names of the arrays that must be there.
        arrays: The arrays by name, or None.

    Raises:
        ValueError: An array is missing, or breaks a rule of `Samples`.
    """
    given = {name: _as_array(name, array) for name, array in arrays.items() if array is not None}
    for name in needed:
        if name not in given:
            raise ValueError(f"`{name}` must be given. Received: {name}=None")
    if not given:
        raise ValueError("One of the arrays must be given, to say how many samples there are.")
    for name, array in given.items():
        _check_array(name, array)
    first, size = next((name, len(array)) for name, array in given.items())
    for name, array in given.items():
        if len(array) != size:
            raise ValueError(
                f"`{name}` must have as many rows as `{first}`. "
                f"Received: {len(array)} rows, and {size} of `{first}`"
            )
    if size == 0:
        raise ValueError(
            f"`{first}` must have a row at least. Received: shape {given[first].shape}"
        )
    if "labels" in given and "probabilities" in given:
        classes = given["probabilities"].shape[1]
        rule = f"below {classes}, which is how many columns `probabilities` has"
        _refuse("labels", given["labels"], lambda rows: rows >= classes, rule)
    return Samples(**given)


def _as_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"`{name}` must have no masked entries. Received: a masked array")
    return value if isinstance(value, np.memmap) else np.asarray(value)


def _check_array(name: str, array: np.ndarray) -> None:
    rank = 2 if name in ("embeddings", "probabilities") else 1
    if array.ndim != rank:
        raise ValueError(f"`{name}` must have rank {rank}. Received: shape {array.shape}")
    if rank == 2 and array.shape[1] == 0:
        raise ValueError(f"`{name}` must have a column at least. Received: shape {array.shape}")
    kinds = "iu" if name in ("labels", "forgetting_events") else "fiu"
    if array.dtype.kind not in kinds:
        wanted = "integers" if kinds == "iu" else "numbers"
        raise ValueError(f"`{name}` must be {wanted}. Received: dtype {array.dtype}")
    if kinds == "iu":
        _refuse(name, array, lambda rows: rows < 0, "at least 0")
    elif name == "embeddings":
        _refuse(name, array, lambda rows: ~(np.abs(rows) <= _LARGEST), _FINITE)
    else:
        _refuse(name, array, lambda rows: ~((rows >= 0) & (rows <= 1)), "in `[0, 1]`")


def _refuse(name: str, array: np.ndarray, is_wrong: Any, rule: str) -> None:
    """Raises the error of the first entry that is wrong."""
    for rows in blocks(len(array), math.prod(array.shape[1:])):
        wrong = is_wrong(np.asarray(array[rows]))
        if wrong.any():
            first = np.argwhere(wrong)[0]
            first[0] += rows.start
            position = ", ".join(map(str, first))
            raise ValueError(
                f"`{name}` must be {rule}. Received: {name}[{position}]={array[tuple(first)]}"
            )
