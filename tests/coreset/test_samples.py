import tracemalloc

import numpy as np
import pytest

from tfrec_efficient.coreset import _samples
from tfrec_efficient.coreset._samples import Samples
from tfrec_efficient.coreset._samples import check_integer
from tfrec_efficient.coreset._samples import check_samples


def refusal(needed=(), **arrays):
    with pytest.raises(ValueError) as error:
        check_samples(needed, **arrays)
    return str(error.value)


@pytest.mark.parametrize(
    ("rows", "width", "ends"),
    [(0, 5, []), (3, 5, [3]), (40, 5, [20, 40]), (41, 5, [20, 40, 41]), (2, 999, [1, 2])],
)
def test_blocks_cover_all_rows_once(monkeypatch, rows, width, ends):
    monkeypatch.setattr(_samples, "_ENTRIES", 100)
    slices = list(_samples.blocks(rows, width))
    assert [part.stop for part in slices] == ends
    assert [part.start for part in slices] == [0, *ends][: len(ends)]


def test_what_was_given_can_be_had(shared):
    arrays = shared.samples()
    samples = check_samples(("labels",), **arrays)
    assert len(samples) == 60
    for name, array in arrays.items():
        assert samples.need(name) is array
    assert len(Samples(forgetting_events=np.arange(3))) == 3


def test_what_was_not_given_is_none(shared):
    samples = check_samples((), labels=[0, 1], confidences=None)
    assert samples.labels.tolist() == [0, 1]
    assert samples.embeddings is samples.confidences is samples.probabilities is None


def test_members_are_taken_of_all_arrays(shared):
    arrays, members = shared.samples(), np.array([7, 3, 59])
    taken = check_samples((), **arrays).take(members)
    assert len(taken) == 3
    for name, array in arrays.items():
        assert taken.need(name).tolist() == array[members].tolist()
    assert Samples(labels=arrays["labels"]).take(members).embeddings is None


def test_arrays_on_disk_are_not_read_into_memory(shared, tmp_path):
    arrays = shared.on_disk(shared.samples(20_000, 128), tmp_path)
    tracemalloc.start()
    samples = check_samples((), **arrays)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20  # of ten megabytes
    assert isinstance(samples.embeddings, np.memmap)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8"])
def test_bounds_are_allowed(dtype):
    check_samples(
        (),
        embeddings=np.array([[-1e4], [1e4]] if dtype[0] == "f" else [[0], [9]], dtype),
        confidences=np.array([0, 1], dtype),
        probabilities=np.array([[1, 0], [0, 1]], dtype),
        labels=np.array([0, 1], "uint8"),
        forgetting_events=np.array([0, 99], "int16"),
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "One of the arrays must be given, to say how many samples there are."),
        ({"labels": 3}, "`labels` must have rank 1. Received: shape ()"),
        ({"labels": [[0], [1]]}, "`labels` must have rank 1. Received: shape (2, 1)"),
        ({"embeddings": [1.0]}, "`embeddings` must have rank 2. Received: shape (1,)"),
        (
            {"probabilities": np.ones((2, 1, 1))},
            "`probabilities` must have rank 2. Received: shape (2, 1, 1)",
        ),
        (
            {"embeddings": np.ones((3, 0))},
            "`embeddings` must have a column at least. Received: shape (3, 0)",
        ),
        (
            {"embeddings": np.ones((0, 3))},
            "`embeddings` must have a row at least. Received: shape (0, 3)",
        ),
        ({"labels": np.ones(0, int)}, "`labels` must have a row at least. Received: shape (0,)"),
        ({"labels": [0.0, 1.0]}, "`labels` must be integers. Received: dtype float64"),
        ({"labels": [True, False]}, "`labels` must be integers. Received: dtype bool"),
        ({"labels": ["a"]}, "`labels` must be integers. Received: dtype <U1"),
        ({"embeddings": [[1j]]}, "`embeddings` must be numbers. Received: dtype complex128"),
        ({"confidences": [None]}, "`confidences` must be numbers. Received: dtype object"),
        ({"labels": [0, 2, -1]}, "`labels` must be at least 0. Received: labels[2]=-1"),
        (
            {"forgetting_events": [-3]},
            "`forgetting_events` must be at least 0. Received: forgetting_events[0]=-3",
        ),
        (
            {"embeddings": [[0.0, 1.0], [2.0, np.nan]]},
            "`embeddings` must be finite and no larger than 1e+100. Received: embeddings[1, 1]=nan",
        ),
        (
            {"embeddings": [[-np.inf]]},
            "`embeddings` must be finite and no larger than 1e+100. "
            "Received: embeddings[0, 0]=-inf",
        ),
        ({"confidences": [1.5]}, "`confidences` must be in `[0, 1]`. Received: confidences[0]=1.5"),
        (
            {"confidences": [0.5, np.nan]},
            "`confidences` must be in `[0, 1]`. Received: confidences[1]=nan",
        ),
        (
            {"probabilities": [[0.5, -0.5]]},
            "`probabilities` must be in `[0, 1]`. Received: probabilities[0, 1]=-0.5",
        ),
        (
            {"embeddings": [[1.0], [2.0]], "labels": [0, 0, 0]},
            "`labels` must have as many rows as `embeddings`. "
            "Received: 3 rows, and 2 of `embeddings`",
        ),
        (
            {"labels": [0, 3, 2], "probabilities": np.ones((3, 2))},
            "`labels` must be below 2, which is how many columns `probabilities` has. "
            "Received: labels[1]=3",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused(arrays, message):
    assert refusal(**arrays) == message


def test_what_is_needed_must_be_there():
    message = "`labels` must be given. Received: labels=None"
    assert refusal(("embeddings", "labels"), embeddings=[[1.0]], labels=None) == message
    assert refusal(("labels",)) == message


def test_faults_are_found_beyond_the_first_block(monkeypatch):
    monkeypatch.setattr(_samples, "_ENTRIES", 10)
    embeddings = np.ones((100, 3))
    embeddings[[50, 77], [2, 0]] = np.nan
    assert refusal(embeddings=embeddings).endswith("Received: embeddings[50, 2]=nan")
    labels = np.zeros(100, int)
    labels[[31, 99]] = -1, -2
    assert refusal(labels=labels).endswith("Received: labels[31]=-1")


def test_masked_entries_are_refused():
    with pytest.raises(ValueError, match="`confidences` must have no masked entries"):
        check_samples((), confidences=np.ma.masked_array([0.5, 0.6], [True, False]))


def test_a_matrix_is_an_array():
    class Matrix(np.ndarray):
        pass

    samples = check_samples((), embeddings=np.ones((1, 2)).view(Matrix))
    assert type(samples.embeddings) is np.ndarray


def test_numbers_whose_squares_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"`embeddings` must be finite and no larger than 1e\+100"):
        check_samples((), embeddings=np.full((2, 3), 1e200))


def test_integers_are_checked():
    assert type(check_integer("k", np.int64(3), 3)) is int
    for value in (2, 3.0, True, None, "3"):
        with pytest.raises(ValueError) as error:
            check_integer("k", value, 3)
        assert str(error.value) == f"`k` must be an integer of at least 3. Received: k={value}"
