import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tfrec_efficient.llm.candidate_questions import CandidateQuestions

SEQUENCES = [[1, 2, 3], [4, 5, 1, 2], [9, 8]]


@given(
    st.lists(st.lists(st.integers(1, 20), min_size=2, max_size=9), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_questions_are_fair(sequences, max_length, negatives, seed):
    questions = CandidateQuestions.draw(sequences, 20, max_length, negatives, seed)
    for items, history, candidates, target in zip(
        sequences, questions.history, questions.candidates, questions.target, strict=True
    ):
        seen = items[:-1][-max_length:]
        assert history.tolist() == [0] * (max_length - len(seen)) + seen
        assert candidates[target] == items[-1]
        wrong = np.delete(candidates, target)
        assert len(set(wrong.tolist())) == negatives and not set(wrong.tolist()) & set(items)
        assert (candidates >= 1).all() and (candidates <= 20).all()


def test_a_seed_repeats_and_another_differs():
    draws = [CandidateQuestions.draw(SEQUENCES * 9, 99, 3, seed=s).candidates for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_the_target_stands_everywhere():
    questions = CandidateQuestions.draw(SEQUENCES * 200, 30, 3, negatives=3)
    assert np.bincount(questions.target).min() > 100


def test_files_keep_questions(tmp_path):
    questions = CandidateQuestions.draw(SEQUENCES, 20, 3, 4)
    questions.save(tmp_path / "folder" / "questions.json")
    read = CandidateQuestions.load(tmp_path / "folder" / "questions.json")
    for name in ("history", "candidates", "target"):
        np.testing.assert_array_equal(getattr(questions, name), getattr(read, name))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["questions.json"]


@pytest.mark.parametrize("record", [[], {"version": 2}, {"version": 1, "target": [0]}])
def test_other_files_are_refused(tmp_path, record):
    (tmp_path / "other.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="`path` must hold questions"):
        CandidateQuestions.load(tmp_path / "other.json")


def test_hits_share_ties_out():
    questions = CandidateQuestions.draw(SEQUENCES, 20, 3, negatives=3)
    scores = np.zeros((3, 4))
    scores[0, questions.target[0]] = 1
    scores[1, (questions.target[1] + 1) % 4] = 1
    assert questions.hits(scores).tolist() == [1, 0, 0.25]


@pytest.mark.parametrize("scores", [np.zeros((3, 3)), np.full((3, 4), np.nan)])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ValueError, match=r"`scores` must be numbers of shape \(3, 4\)"):
        CandidateQuestions.draw(SEQUENCES, 20, 3, negatives=3).hits(scores)


def test_rows_are_taken():
    questions = CandidateQuestions.draw(SEQUENCES, 20, 3, 4).take([2, 0])
    assert questions.target_items.tolist() == [8, 3] and len(questions) == 2


def test_batches_hold_every_question_once():
    questions = CandidateQuestions.draw(SEQUENCES, 20, 3, 4)
    seen = []
    for inputs, target in questions.dataset(2, shuffle_seed=1):
        seen += np.take_along_axis(
            inputs["candidates"].numpy(), target.numpy()[:, None], 1
        ).tolist()
    assert sorted(seen) == [[2], [3], [8]]


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ([[1]], r"2 items or more. Received: `sequences\[0\]` of shape \(1,\)"),
        ([[1, 2], [0, 2]], r"Received: `sequences\[1\]\[0\]=0`"),
        ([[1, 21]], r"in `\[1, 20\]`. Received: `sequences\[0\]\[1\]=21`"),
        ([[1.5, 2.0]], "must be integers"),
        (
            [list(range(1, 18))],
            r"leave 4 items to draw from. Received: sequences\[0\], which leaves 3",
        ),
    ],
)
def test_sequences_that_do_not_do_are_refused(sequences, words):
    with pytest.raises(ValueError, match=words):
        CandidateQuestions.draw(sequences, 20, 3, negatives=4)


def test_a_target_that_is_no_candidate_is_refused():
    with pytest.raises(ValueError, match=r"`target` must be in `\[0, 2\)`. Received: 2 to 2"):
        CandidateQuestions(
            np.zeros((1, 3), np.int64), np.ones((1, 2), np.int64), np.array([2], np.int64)
        )


def test_a_target_that_is_padding_is_refused():
    candidates = np.array([[1, 0], [2, 0]], np.int64)
    with pytest.raises(ValueError, match=r"Received: candidates\[1, 1\]=0"):
        CandidateQuestions(np.zeros((2, 3), np.int64), candidates, np.array([0, 1], np.int64))


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`candidates` must be int64 with 2 axes and 1 rows"):
        CandidateQuestions(
            np.zeros((1, 3), np.int64), np.ones((2, 2), np.int64), np.array([0], np.int64)
        )
