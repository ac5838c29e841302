import itertools
import os
import signal
import subprocess
import sys
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.coreset.by_neighbourhood import _greedy
from tfrec_efficient.coreset.by_neighbourhood import _neighbourhoods


def problem(size=120, dim=8, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, size // 10), dim))
    embeddings = centres[rng.integers(0, len(centres), size)] + 0.3 * rng.normal(size=(size, dim))
    return {
        "embeddings": embeddings.astype(np.float32),
        "confidences": rng.uniform(0.2, 1, size),
        "labels": rng.integers(0, classes, size),
    }


def slow_weights(embeddings, confidences, threshold):
    """What the choice of row x adds to the coverage of column v."""
    units = embeddings.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    similarities = (0.5 + 0.5 * units @ units.T).astype(np.float32).astype(np.float64)
    similarities[similarities <= np.float32(threshold)] = 0
    return similarities * confidences[:, None]


def slow_choice(data, picks, threshold, gain, balanced, scale):
    """The formulas of the paper and of the authors' program, one pick after the other."""
    weights = slow_weights(data["embeddings"], data["confidences"], threshold)
    coverage, chosen, gains = np.zeros(len(weights)), [], []
    classes = sorted(set(data["labels"].tolist())) if balanced else [None]
    turns = itertools.cycle(classes)
    while len(chosen) < picks:
        turn = next(turns)
        members = [
            i
            for i in range(len(weights))
            if i not in chosen and (turn is None or data["labels"][i] == turn)
        ]
        if not members:
            continue

        def gain_of(i, coverage=coverage):
            if gain == "own":
                added = np.tanh((coverage[i] + data["confidences"][i]) / scale)
                return added - np.tanh(coverage[i] / scale)
            return (np.tanh((coverage + weights[i]) / scale) - np.tanh(coverage / scale)).sum()

        best = max(members, key=lambda i: (gain_of(i), -i))
        gains.append(gain_of(best))
        chosen.append(best)
        coverage = coverage + weights[best]
    return chosen, gains, np.tanh(coverage / scale).sum()


@pytest.mark.parametrize("gain", ["full", "own"])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_agrees_with_the_formulas(implementation, gain, balanced, scale):
    data = problem()
    selector = tfrec.Prune4Rel(50, 0.9, gain, balanced, scale, verbose=0).fit(**data)
    chosen, gains, objective = slow_choice(data, 50, 0.9, gain, balanced, scale)
    assert selector.indices_.tolist() == chosen
    np.testing.assert_allclose(selector.gains_, gains, rtol=1e-9, atol=1e-12)
    assert selector.objective_ == pytest.approx(objective)
    assert selector.similarity_threshold_ == np.float32(0.9)


def test_a_choice_by_hand():
    # Two equal points and one apart, with confidences 1, .5 and .8. First the pair gains
    # 2 tanh(1) by point 0 against 2 tanh(.5) and tanh(.8); then tanh(.8) beats what is left.
    embeddings = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    selector = tfrec.Prune4Rel(3, 0.9, balanced=False, verbose=0).fit(embeddings, [1, 0.5, 0.8])
    assert selector.indices_.tolist() == [0, 2, 1]
    expected = [2 * np.tanh(1), np.tanh(0.8), 2 * (np.tanh(1.5) - np.tanh(1))]
    np.testing.assert_allclose(selector.gains_, expected)
    assert selector.objective_ == pytest.approx(sum(expected))


@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.95]), st.booleans())
@hypothesis.settings(max_examples=25, deadline=None)
def test_the_objective_is_monotone_and_submodular(seed, threshold, balanced):
    data = problem(40, seed=seed)
    selector = tfrec.Prune4Rel(1.0, threshold, balanced=balanced, verbose=0).fit(**data)
    assert sorted(selector.indices_) == list(range(40))  # none twice
    assert (selector.gains_ >= 0).all()
    assert selector.objective_ == pytest.approx(selector.gains_.sum())
    if not balanced:
        assert (np.diff(selector.gains_) <= 1e-9).all()


@pytest.mark.parametrize("gain", ["full", "own"])
def test_is_permutation_equivariant(gain):
    data = problem(90)
    order = np.random.default_rng(1).permutation(90)
    whole = tfrec.Prune4Rel(40, 0.9, gain, verbose=0).fit(**data)
    moved = tfrec.Prune4Rel(40, 0.9, gain, verbose=0).fit(**{k: v[order] for k, v in data.items()})
    np.testing.assert_array_equal(order[moved.indices_], whole.indices_)


@pytest.mark.parametrize("gain", ["full", "own"])
def test_a_shorter_choice_is_the_beginning_of_a_longer_one(gain):
    data = problem()
    longer = tfrec.Prune4Rel(80, gain=gain, verbose=0).fit(**data)
    shorter = tfrec.Prune4Rel(0.25, gain=gain, verbose=0).fit(**data)
    np.testing.assert_array_equal(shorter.indices_, longer.indices_[:30])


def test_full_covers_more_than_own_and_both_more_than_chance():
    data = problem(2000, 32)
    objective = {
        gain: tfrec.Prune4Rel(0.05, 0.9, gain, verbose=0).fit(**data).objective_
        for gain in ("full", "own")
    }
    chance = np.random.default_rng(3).permutation(2000)[:100]
    coverage = _neighbourhoods.neighbourhood_coverage(
        data["embeddings"], data["confidences"], chance, 0.9
    )
    assert objective["full"] > objective["own"] * 1.02
    assert objective["full"] > np.tanh(coverage).sum() * 1.05


def test_classes_take_turns_as_long_as_they_have_samples():
    data = problem(60)
    data["labels"] = np.repeat([0, 1, 2], [40, 15, 5])
    selector = tfrec.Prune4Rel(30, verbose=0).fit(**data)
    of_picks = data["labels"][selector.indices_]
    assert of_picks[:15].tolist() == [0, 1, 2] * 5
    assert of_picks[15:25].tolist() == [0, 1] * 5
    assert np.bincount(of_picks).tolist() == [13, 12, 5]


def test_the_automatic_threshold_gives_twenty_neighbours():
    data = problem(800)
    selector = tfrec.Prune4Rel(10, verbose=0).fit(**data)
    assert selector.mean_degree_ == pytest.approx(20, rel=0.05)
    again = tfrec.Prune4Rel(10, selector.similarity_threshold_, verbose=0).fit(**data)
    np.testing.assert_array_equal(again.indices_, selector.indices_)


def test_the_cap_bounds_the_graph():
    data = problem()
    selector = tfrec.Prune4Rel(40, 0.0, max_degree=10, verbose=0).fit(**data)
    assert selector.capped_ == 1
    assert tfrec.Prune4Rel(40, 0.0, "own", verbose=0).fit(**data).capped_ is None


@pytest.mark.parametrize("gain", ["full", "own"])
def test_scann_chooses_the_same_among_few(gain):
    data = problem(300)
    exact = tfrec.Prune4Rel(100, 0.9, gain, verbose=0).fit(**data)
    found = tfrec.Prune4Rel(100, 0.9, gain, search="scann", verbose=0).fit(**data)
    assert found.recall_ == 1
    np.testing.assert_array_equal(found.indices_, exact.indices_)


def test_memory_mapped_and_half_precision_embeddings(tmp_path):
    data = problem()
    data["embeddings"] = data["embeddings"].astype(np.float16)
    np.save(tmp_path / "e.npy", data["embeddings"])
    mapped = {**data, "embeddings": np.load(tmp_path / "e.npy", mmap_mode="r")}
    a = tfrec.Prune4Rel(50, verbose=0).fit(**data)
    b = tfrec.Prune4Rel(50, verbose=0).fit(**mapped)
    np.testing.assert_array_equal(a.indices_, b.indices_)


# ---- Resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", ["full", "own"])
def test_a_run_that_was_stopped_goes_on_to_the_same_choice(monkeypatch, tmp_path, gain):
    data = problem(600)
    whole = tfrec.Prune4Rel(400, 0.9, gain, verbose=0).fit(**data)
    monkeypatch.setattr(_greedy, "_STEP_SECONDS", 0.0)
    first = tfrec.Prune4Rel(150, 0.9, gain, directory=tmp_path, verbose=0).fit(**data)
    np.testing.assert_array_equal(first.indices_, whole.indices_[:150])
    rest = tfrec.Prune4Rel(400, 0.9, gain, directory=tmp_path, verbose=0).fit(**data)
    np.testing.assert_array_equal(rest.indices_, whole.indices_)
    np.testing.assert_array_equal(rest.gains_, whole.gains_)
    assert rest.objective_ == whole.objective_
    # And a smaller budget is read from what is there.
    again = tfrec.Prune4Rel(150, 0.9, gain, directory=tmp_path, verbose=0).fit(**data)
    np.testing.assert_array_equal(again.indices_, first.indices_)
    assert again.objective_ == pytest.approx(first.objective_, rel=1e-5)


@pytest.mark.parametrize("gain", ["full", "own"])
def test_a_smaller_choice_of_a_saved_run_tells_what_a_run_of_its_own_tells(gain, tmp_path):
    data = problem(600)
    arguments = {"similarity_threshold": 0.6, "gain": gain, "max_degree": 10, "verbose": 0}
    alone = tfrec.Prune4Rel(50, **arguments).fit(**data)
    tfrec.Prune4Rel(200, directory=tmp_path, **arguments).fit(**data)
    prefix = tfrec.Prune4Rel(50, directory=tmp_path, **arguments).fit(**data)
    assert prefix.objective_ == pytest.approx(alone.objective_, rel=1e-9)
    assert (prefix.capped_, prefix.recall_) == (alone.capped_, alone.recall_)


def test_numbers_of_numpy_are_settings_like_others(tmp_path):
    selector = tfrec.Prune4Rel(
        np.int64(10), np.float32(0.5), scale=np.float32(2), max_degree=np.int64(9), verbose=0
    )
    selector.directory = tmp_path / "choice"
    selector.fit(**problem()).save(tmp_path / "chosen.npy")
    assert selector.get_config()["scale"] == 2.0


@pytest.mark.parametrize("factor", [1e-60, 1e60])
def test_rows_of_float64_may_have_any_length(factor):
    data = problem()
    expected = tfrec.Prune4Rel(10, 0.9, verbose=0).fit(**data).indices_
    data["embeddings"] = data["embeddings"].astype(np.float64) * factor
    found = tfrec.Prune4Rel(10, 0.9, verbose=0).fit(**data).indices_
    np.testing.assert_array_equal(found, expected)


_KILLED = """
import sys, time
import numpy as np
import tfrec_efficient as tfrec
from tfrec_efficient.coreset.by_neighbourhood import _greedy
_greedy._STEP_SECONDS, _greedy._FIRST_STEP = 0.0, 1000
step = tfrec.ops.choose_over_graph
def slowly(*arguments):
    time.sleep(0.05)
    return step(*arguments)
tfrec.ops.choose_over_graph = slowly
data = dict(np.load(sys.argv[1]))
tfrec.Prune4Rel(1.0, 0.9, directory=sys.argv[2], verbose=0).fit(**data)
"""


def test_a_killed_run_goes_on_to_the_same_choice(tmp_path):
    data = problem(1100)
    np.savez(tmp_path / "data.npz", **data)
    directory = tmp_path / "choice"
    # `-P`: what is installed, not this tree, which has no native library everywhere.
    command = [sys.executable, "-P", "-c", _KILLED, str(tmp_path / "data.npz"), str(directory)]
    process = subprocess.Popen(command)
    while not (directory / "choice.npy").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(_greedy.Choice.load(directory, 1100).picked) < 1100
    resumed = tfrec.Prune4Rel(1.0, 0.9, directory=directory, verbose=0).fit(**data)
    whole = tfrec.Prune4Rel(1.0, 0.9, verbose=0).fit(**data)
    np.testing.assert_array_equal(resumed.indices_, whole.indices_)
    np.testing.assert_array_equal(resumed.gains_, whole.gains_)


def test_a_directory_of_other_data_is_refused(tmp_path):
    data = problem()
    tfrec.Prune4Rel(10, 0.9, directory=tmp_path, verbose=0).fit(**data)
    data["confidences"] = data["confidences"][::-1].copy()
    with pytest.raises(ValueError, match="`directory` must be empty, or hold the choice of the"):
        tfrec.Prune4Rel(10, 0.9, directory=tmp_path, verbose=0).fit(**data)
    with pytest.raises(ValueError, match="with similarity_threshold="):
        tfrec.Prune4Rel(10, 0.8, directory=tmp_path, verbose=0).fit(**problem())


# ---- Settings and bad input ----------------------------------------------------------------------


def test_what_it_prints(capsys):
    data = problem()
    tfrec.Prune4Rel(30, 0.9).fit(**data)
    printed = capsys.readouterr().out
    assert "120 samples, threshold 0.9000: " in printed
    assert "MB, 0.0 minutes" in printed
    assert "of the samples have more than max_degree=256" in printed
    tfrec.Prune4Rel(30, 0.9, verbose=0).fit(**data)
    assert capsys.readouterr().out == ""


def test_its_config_makes_it_again(tmp_path):
    selector = tfrec.Prune4Rel(0.5, 0.8, "own", False, 3.0, 7, "scann", tmp_path, 0)
    again = tfrec.Prune4Rel.from_config(selector.get_config())
    assert again.get_config() == selector.get_config()
    assert selector.get_config()["directory"] == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"similarity_threshold": 1.0},
            r"`similarity_threshold` must be in `\[0, 1\)` as float32, or \"auto\".",
        ),
        ({"similarity_threshold": 0.99999999}, "`similarity_threshold` must be in"),
        ({"similarity_threshold": None}, "`similarity_threshold` must be a number"),
        ({"scale": None}, "`scale` must be a number. Received: scale=None"),
        ({"similarity_threshold": "high"}, "Received: similarity_threshold=high"),
        ({"gain": "both"}, '`gain` must be "full" or "own". Received: gain=both'),
        ({"scale": 0}, "`scale` must be above 0, and finite. Received: scale=0"),
        ({"scale": float("nan")}, "`scale` must be above 0"),
        ({"max_degree": 0}, "`max_degree` must be an integer of at least 1"),
        ({"max_degree": 2.5}, "`max_degree` must be an integer of at least 1"),
        ({"search": "faiss"}, '`search` must be "exact" or "scann"'),
        ({"size_or_fraction": 0.0}, "`size_or_fraction` must be"),
        ({"size_or_fraction": 1.5}, "`size_or_fraction` must be"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfrec.Prune4Rel(**{"size_or_fraction": 10, **arguments})


def test_bad_data():
    data = problem()

    def fit(**changes):
        tfrec.Prune4Rel(10, verbose=0).fit(**{**data, **changes})

    embeddings = data["embeddings"].copy()
    embeddings[7] = 0
    with pytest.raises(ValueError, match=r"must not be zero.*Received: embeddings\[7\]"):
        fit(embeddings=embeddings)
    embeddings[7, 1] = np.nan
    with pytest.raises(
        ValueError,
        match=r"`embeddings` must be finite and no larger.*Received: embeddings\[7, 1\]",
    ):
        fit(embeddings=embeddings)
    with pytest.raises(ValueError, match=r"`confidences` must be in `\[0, 1\]`"):
        fit(confidences=data["confidences"] * 2)
    with pytest.raises(ValueError, match="`labels` must be given"):
        fit(labels=None)
    with pytest.raises(ValueError, match="`confidences` must have as many rows"):
        fit(confidences=data["confidences"][:-1])
