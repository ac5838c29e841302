import json

import numpy as np
import pytest

from tfrec_efficient.coreset.by_neighbourhood import _greedy
from tfrec_efficient.coreset.by_neighbourhood._greedy import Choice


def counting_step(sizes):
    """A step that chooses 0, 1, 2 and so on, and writes down how many it was asked for."""

    def step(choice, more):
        sizes.append(more)
        picked = np.arange(len(choice.picked) + more)
        return Choice(picked, picked / 2, choice.coverage + more, choice.bounds - 1)

    return step


def test_steps_grow_until_they_take_long(monkeypatch):
    sizes = []
    monkeypatch.setattr(_greedy, "_FIRST_STEP", 1000)
    choice = _greedy.run(counting_step(sizes), Choice.empty(10), 50_000, None, 0)
    assert choice.picked.tolist() == list(range(50_000))
    assert sizes == [1000, 4000, 16000, 29000]
    monkeypatch.setattr(_greedy, "_STEP_SECONDS", 0.0)
    sizes.clear()
    _greedy.run(counting_step(sizes), Choice.empty(10), 1003, None, 0)
    assert sizes == [1000, 1, 1, 1]


def test_a_choice_that_is_long_enough_takes_no_step():
    sizes = []
    choice = Choice(np.arange(5), np.zeros(5), np.zeros(9), np.zeros(9))
    assert _greedy.run(counting_step(sizes), choice, 5, None, 0) is choice
    assert sizes == []


def test_a_choice_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    choice = Choice(
        rng.permutation(7)[:3], rng.normal(size=3), rng.normal(size=7), np.full(7, np.inf)
    )
    choice.save(tmp_path)
    again = Choice.load(tmp_path, 7)
    for name in ("picked", "gains", "coverage", "bounds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(choice, name))
    assert again.picked.dtype == np.int64


def test_where_nothing_was_saved_nothing_was_chosen(tmp_path):
    choice = Choice.load(tmp_path, 4)
    assert choice.picked.tolist() == choice.gains.tolist() == []
    assert choice.coverage.tolist() == [0] * 4
    assert choice.bounds.tolist() == [np.inf] * 4


def test_a_choice_of_other_samples_is_refused(tmp_path):
    Choice.empty(7).save(tmp_path)
    with pytest.raises(ValueError, match="not whole"):
        Choice.load(tmp_path, 8)


def test_every_step_is_saved(tmp_path):
    _greedy.run(counting_step([]), Choice.empty(10), 1500, tmp_path, 0)
    assert len(Choice.load(tmp_path, 10).picked) == 1500


def test_a_directory_belongs_to_one_choice(tmp_path):
    arrays = [np.arange(6.0), np.arange(3)]
    _greedy.claim(tmp_path / "a", {"scale": 1.0}, arrays)
    _greedy.claim(tmp_path / "a", {"scale": 1.0}, arrays)
    assert json.loads((tmp_path / "a" / "choice.json").read_text())["scale"] == 1.0
    with pytest.raises(ValueError, match="with scale=1.0, not 2.0"):
        _greedy.claim(tmp_path / "a", {"scale": 2.0}, arrays)
    with pytest.raises(ValueError, match="with data="):
        _greedy.claim(tmp_path / "a", {"scale": 1.0}, [np.arange(6.0), np.array([0, 2, 1])])
    (tmp_path / "a" / "choice.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON. Received: .*choice.json: "):
        _greedy.claim(tmp_path / "a", {"scale": 1.0}, arrays)
