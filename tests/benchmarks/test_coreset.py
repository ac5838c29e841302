"""The cells, the tables and the rivals of `benchmarks/coreset.py`, at tiny sizes."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import tfrec_efficient as tfrec

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def import_path(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the program; returns what it printed, and the records by name."""

    def run(*arguments):
        import coreset

        coreset.main([*arguments, f"--output={tmp_path / 'cells'}"])
        files = sorted((tmp_path / "cells").glob("*.json"))
        return capsys.readouterr().out, {f.stem: json.loads(f.read_text()) for f in files}

    return run


# ---- Speed and memory.


@pytest.fixture
def smaller(monkeypatch):
    """Divides by 50 how many samples there are, and how many are picked."""
    from _coreset import scale

    def fewer(name, place):
        function = getattr(scale, name)

        def call(*arguments, **options):
            arguments = list(arguments)
            arguments[place] //= 50
            return function(*arguments, **options)

        monkeypatch.setattr(scale, name, call)

    fewer("clusters", 0)
    fewer("one_product_per_pick", 3)
    fewer("as_published", 3)
    fewer("exact_rule", 3)

    def prune4rel(size_or_fraction, *arguments, **options):
        return tfrec.Prune4Rel(size_or_fraction // 50, *arguments, **options)

    monkeypatch.setattr(scale, "tfrec", types.SimpleNamespace(Prune4Rel=prune4rel, ops=tfrec.ops))
    return scale


@pytest.mark.parametrize("degree", [1.5, 10])
def test_the_slow_rules_are_that_of_own(degree):
    from _coreset import scale

    embeddings, confidences = scale.clusters(400, 16)
    threshold = scale.threshold_for(embeddings, degree)
    selector = tfrec.Prune4Rel(100, threshold, "own", balanced=False, verbose=0)
    picked = selector.fit(embeddings, confidences).indices_.tolist()
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert scale.one_product_per_pick(units, confidences, threshold, 100) == picked
    wide = embeddings.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    assert scale.exact_rule(wide, confidences, threshold, 100) == picked


def test_clusters_are_around_their_centres_and_repeat():
    from _coreset import scale

    embeddings, confidences = scale.clusters(3000, 64)
    assert embeddings.dtype == np.float32
    assert ((confidences >= 0.3) & (confidences < 1)).all()
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    # Of a cluster the cosine is about 1 / (1 + .5 ** 2), and of two it is about 0.
    near = (units[:200] @ units.T > 0.55).sum(axis=1)
    assert near.mean() == pytest.approx(31, abs=3)
    np.testing.assert_array_equal(scale.clusters(3000, 64)[0], embeddings)


def test_cells_of_scale_are_measured_recorded_and_not_measured_again(smaller, run, monkeypatch):
    asked = ("--scale", "--cell", "order", "objective", "--rounds=3")
    printed, records = run(*asked)
    assert list(records) == ["scale_objective", "scale_order"]
    assert {"load", "versions", "date"} <= set(records["scale_order"]["machine"])
    for degree in ("1.1", "23.3"):
        found = records["scale_order"][degree]
        assert found["same_order"] == 1
        assert found["own"]["ratio"] == [1, 1, 1]
        assert min(found["one_product"]["seconds"]) > 0
    for found in list(records["scale_objective"].values())[:3]:
        assert found["mean"]["full"] > found["mean"]["own"] > 0
        assert found["degree"]["full"] >= 1
    assert printed.count("100.00% of the picks in the same order") == 2
    assert printed.count("mean utility full 0.") == 3

    monkeypatch.setattr(smaller, "run", None)
    again, _ = run(*asked)
    assert again == printed.replace("-- scale_order\n", "").replace("-- scale_objective\n", "")


def test_a_cell_of_a_million_is_a_process_of_its_own(smaller, monkeypatch, capsys):
    import coreset

    coreset.main(["--million", "own"])  # what that process does
    *_, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["peak_gb"] > 0.01
    assert 0 < found["objective"] < 1
    assert found["mean_degree"] == pytest.approx(20, abs=1)

    asked = []

    def answer(command, stdout, text, check):
        asked.extend(command)
        return types.SimpleNamespace(stdout=f"a progress bar\n{line}\n")

    monkeypatch.setattr(subprocess, "run", answer)
    assert smaller.run("million_full", 7) == found
    assert asked == [sys.executable, BENCHMARKS / "coreset.py", "--million", "full"]


def test_the_table_of_scale_says_what_was_found(capsys):
    from _coreset import scale

    times = {"seconds": [2.0, 1.0, 3.0], "cpu_seconds": 2.5, "ratio": [15.24, 14.0, 16.0]}
    million = {"seconds": 600, "cpu_seconds": 900, "peak_gb": 2.345}
    scale.report(
        {
            "order": {
                "1.1": {
                    "same_order": 0.5,
                    "own": times,
                    "one_product": times,
                    "as_published": times,
                }
            },
            "peers": {"apricot": {**times, "objective": {"tanh": 12.3456, "inverse": 7.0}}},
            "million_full": {**million, "mean_degree": 20.04, "objective": 0.51},
        }
    )
    order, peer, of_million = capsys.readouterr().out.splitlines()
    assert "degree 1.1: 2.00 s (CPU 2.50 s); one product per pick takes 15.2x (14.0-16.0)" in order
    assert order.endswith("50.00% of the picks in the same order")
    assert "2000.0 ms (15.2x (14.0-16.0)); utility 12.346, as x / (1 + x) 7.000" in peer
    assert "full: 10.0 minutes (CPU 15.0), 2.35 GB at most, degree 20.0" in of_million


# ---- Rivals.

# They choose as the real ones do, one by one, and know no short cut.
FAKE_APRICOT = """
import numpy as np


class FeatureBasedSelection:
    def __init__(self, picks, concave, optimizer):
        assert optimizer == "lazy"
        self.picks, self.concave = picks, concave

    def fit(self, features):
        features = features.toarray()
        covered, self.ranking = np.zeros(features.shape[1]), np.zeros(0, int)
        for _ in range(self.picks):
            gains = self.concave(covered + features).sum(axis=1)
            gains[self.ranking] = -1
            self.ranking = np.append(self.ranking, gains.argmax())
            covered += features[self.ranking[-1]]
        return self
"""
FAKE_SUBMODLIB = """
class FeatureBased:
    inverse = "x / (1 + x)"

    def __init__(self, size, mode, features, columns, weights):
        assert mode == self.inverse and weights == [1.0] * columns
        self.features, self.size, self.fresh = features, size, True

    def maximize(self, optimizer, picks, *_):
        assert optimizer == "LazyGreedy" and self.fresh
        self.fresh, covered, picked = False, [0.0] * self.size, []

        def gain(i):
            parts = ((covered[j], covered[j] + value) for j, value in self.features[i])
            return sum(b / (1 + b) - a / (1 + a) for a, b in parts)

        for _ in range(picks):
            best = max((i for i in range(self.size) if i not in picked), key=gain)
            picked.append(best)
            for j, value in self.features[best]:
                covered[j] += value
        return [(i, 0.0) for i in picked]
"""


@pytest.mark.parametrize("peer", ["apricot", "submodlib"])
def test_the_peers_choose_of_the_same_problem(peer, tmp_path):
    import _workers
    from _coreset import scale

    (tmp_path / "apricot.py").write_text(FAKE_APRICOT)
    (tmp_path / "submodlib_cpp.py").write_text(FAKE_SUBMODLIB)
    embeddings, confidences = scale.clusters(60, 8, per=6)
    threshold = scale.threshold_for(embeddings, 5)
    graph = scale._neighbourhoods.exact_graph(embeddings, threshold, 60, None, 0)
    weights = graph.similarities * np.repeat(confidences, np.diff(graph.row_splits))
    problem = tmp_path / "problem.npz"
    np.savez(problem, splits=graph.row_splits, neighbours=graph.neighbours, weights=weights)
    command = [sys.executable, BENCHMARKS / "_coreset" / "peer.py"]
    cell = {"peer": peer, "problem": str(problem), "picks": 8}
    worker = _workers.Worker(command, cell, {"PYTHONPATH": str(tmp_path)})
    measured = [worker.measure(turn) for turn in range(2)]
    worker.close()
    assert all(set(turn) == {"wall", "cpu"} and turn["wall"] > 0 for turn in measured)

    added = np.zeros((60, 60))
    added[np.repeat(np.arange(60), np.diff(graph.row_splits)), graph.neighbours] = weights
    concave = {"apricot": np.tanh, "submodlib": lambda x: x / (1 + x)}[peer]
    picked = []
    for _ in range(8):
        reached = concave(added[picked].sum(axis=0) + added).sum(axis=1)
        reached[picked] = -1
        picked.append(int(reached.argmax()))
    assert worker.about["picked"] == picked


# Picks the first ones, in no time.
FAKE_PEER = """
import json, sys
cell = json.loads(sys.stdin.readline())
print(json.dumps({"ready": True, "picked": list(range(cell["picks"]))}), flush=True)
for line in sys.stdin:
    print(json.dumps({"wall": 1.0, "cpu": 0.5}), flush=True)
"""


def test_rivals_are_told_the_problem_and_judged_by_it(monkeypatch, tmp_path):
    import _workers
    from _coreset import scale

    (tmp_path / "fake.py").write_text(FAKE_PEER)
    monkeypatch.setattr(
        _workers, "peer_command", lambda packages, worker: [sys.executable, tmp_path / "fake.py"]
    )
    found = scale.run("peers", 2)
    assert list(found) == ["tfrec_efficient", "apricot", "submodlib"]
    ours, theirs = found["tfrec_efficient"], found["apricot"]
    assert theirs["seconds"][0] == 0.001
    assert theirs["cpu_seconds"] == 0.0005
    embeddings, confidences = scale.clusters(5000)
    threshold = scale.threshold_for(embeddings, 15)
    coverage = scale._neighbourhoods.neighbourhood_coverage(
        embeddings, confidences, np.arange(1000), threshold
    )
    assert theirs["objective"]["tanh"] == pytest.approx(np.tanh(coverage).sum(), rel=1e-5)
    inverse = (coverage / (1 + coverage)).sum()
    assert theirs["objective"]["inverse"] == pytest.approx(inverse, rel=1e-5)
    assert ours["objective"]["tanh"] > theirs["objective"]["tanh"]


# ---- Accuracy on CIFAR-10N.


@pytest.fixture
def few_images(monkeypatch):
    """The first 200 images of CIFAR-10N, and one epoch."""
    if not Path(os.environ.get("TFREC_DATA_DIR", "/nowhere"), "cifar10n").is_dir():
        pytest.skip("cifar10n is not at hand")
    import _cifar10n
    from _coreset import quality

    table = _cifar10n._table
    monkeypatch.setattr(_cifar10n, "_table", lambda name: table(name)[:200])
    for name in ("training", "test"):
        monkeypatch.setattr(_cifar10n, name, getattr(_cifar10n, name).__wrapped__)
    monkeypatch.setattr(quality, "EPOCHS", 4)
    monkeypatch.setattr(quality, "WARMUP_EPOCHS", 1)
    return _cifar10n


@pytest.mark.slow
def test_cells_of_quality_are_trained_recorded_and_not_trained_again(
    few_images, run, tmp_path, monkeypatch
):
    from _coreset import quality

    asked = ("--quality", "--noise=worse", "--method", "prune4rel", "--fraction=.2", "--seeds=1")
    printed, records = run(*asked)
    assert list(records) == [
        "sop_plus_worse_prune4rel_0.2_0", "standard_worse_prune4rel_0.2_0"
    ]  # fmt: skip
    _, labels = few_images.training()
    is_wrong = labels["worse"] != labels["clean"]
    for record in records.values():
        assert len(record["accuracy"]) == 2
        assert len(set(record["indices"])) == 40
        assert record["classes"] == np.bincount(labels["worse"][record["indices"]]).tolist()
        assert record["noise_of_choice"] == is_wrong[record["indices"]].mean()
        assert record["noise_of_data"] == is_wrong.mean()
        assert {"load", "versions", "date"} <= set(record["machine"])
    both = list(records.values())
    assert both[0]["indices"] == both[1]["indices"]  # the warm-up is shared
    cells = tmp_path / "cells"
    assert "<svg" in (cells / "quality.svg").read_text()
    assert (cells / "choice_worse.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(quality, "run", None)
    again, _ = run(*asked)
    assert again == printed[printed.index("\nstandard, worse") :]


def test_all_of_the_data_counts_for_one_fraction():
    from _coreset import quality

    cells = dict(quality.cells(["standard"], ["worse"], ["all", "margin"], [0.2, 0.4], 2))
    assert list(cells) == [
        "standard_worse_all_1.0_0", "standard_worse_margin_0.2_0", "standard_worse_margin_0.4_0",
        "standard_worse_all_1.0_1", "standard_worse_margin_0.2_1", "standard_worse_margin_0.4_1",
    ]  # fmt: skip
    assert cells["standard_worse_margin_0.4_1"] == ("standard", "worse", "margin", 0.4, 1)


def test_selectors_are_made_with_what_a_cell_says():
    from _coreset import quality

    selectors = {name: make() for name, make in quality.make_selectors(0.3, 7).items()}
    assert tuple(selectors) == quality.METHODS
    assert selectors.pop("all") is None
    assert {selector.size_or_fraction for selector in selectors.values()} == {0.3}
    assert {s.seed for s in selectors.values() if hasattr(s, "seed")} == {7}
    assert [name for name, s in selectors.items() if not s.balanced] == ["uniform"]


def test_the_table_of_quality_has_means_and_errors(capsys, tmp_path):
    from _coreset import quality

    def record(accuracy, noise):
        return {"accuracy": accuracy, "noise_of_choice": noise, "noise_of_data": 0.4}

    found = {
        ("standard", "worse", "all", 1.0, 0): record([0.6, 0.5], 0.4),
        ("standard", "worse", "margin", 0.2, 0): record([0.5, 0.3], 0.3),
        ("standard", "worse", "margin", 0.2, 1): record([0.3, 0.4], 0.2),
    }
    quality.report(found)
    title, shares, _, all_of_it, margin = capsys.readouterr().out.strip().splitlines()
    assert title == "standard, worse: 40.0% of the labels are wrong"
    assert shares.split("of the data")[:2] == [f"{'0.2':>38} ", f"{'1':>20} "]
    assert all_of_it.split() == ["all", *["50.0", "+-", "0.0", "60.0", "+-", "0.0", "40.0%"]]
    assert margin.split() == ["margin", *["35.0", "+-", "5.0", "45.0", "+-", "5.0", "25.0%"]]
    quality.draw(found, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


def test_views_keep_shapes_and_the_weak_one_moves_by_four_pixels():
    from _coreset import quality

    image = np.zeros((64, 32, 32, 3), "float32")
    image[:, 16, 20] = 1
    places = np.argwhere(quality.weak(image).numpy()[..., 0])
    assert places[:, 0].tolist() == list(range(64))
    assert set(places[:, 1]) <= set(range(12, 21))
    assert set(places[:, 2]) <= set(range(7, 25))  # 20 or, mirrored, 11; four to each side
    view = quality.strong(np.ones((64, 32, 32, 3), "float32")).numpy()
    assert view.shape == (64, 32, 32, 3)
    blank = (view == 0).all(axis=-1).sum(axis=(1, 2))
    assert blank.min() >= 8 * 8
    assert len(np.unique(view.max(axis=(1, 2)).round(4), axis=0)) > 60


# ---- Clicks of MovieLens.


@pytest.fixture
def few_clicks(monkeypatch):
    """40 users who rated 20 items each, of which every other one is good."""
    from _coreset import recommend

    users, items = np.divmod(np.arange(800), 20)
    ratings = {
        "user_id": users + 1,
        "item_id": items + 1,
        "rating": np.where(items % 2, 5.0, 2.0).astype(np.float32),
        "timestamp": np.random.default_rng(0).permutation(800),
    }
    found = types.SimpleNamespace(ratings=ratings)
    monkeypatch.setattr(tfrec.data.datasets, "movielens_1m", lambda: found)
    monkeypatch.setattr(recommend, "EPOCHS", 2)
    monkeypatch.setattr(recommend, "WARMUP_EPOCHS", 1)
    return recommend


def test_a_share_of_the_labels_to_train_on_is_wrong(few_clicks):
    ids, labels, right, test_ids, test_labels = few_clicks.ratings(0)
    assert len(labels) == len(right) == 640
    assert (labels != right).mean() == pytest.approx(0.2, abs=0.05)
    np.testing.assert_array_equal(right, 1 - ids["item"] % 2)
    np.testing.assert_array_equal(test_labels, 1 - test_ids["item"] % 2)
    assert np.bincount(test_ids["user"])[1:].tolist() == [4] * 40
    assert (few_clicks.ratings(1)[1] != labels).any()
    np.testing.assert_array_equal(few_clicks.ratings(0)[1], labels)
    uniform = tfrec.coreset.Uniform(320, seed=0).fit(labels=labels).indices_
    assert (labels != right)[uniform].mean() == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
def test_cells_of_clicks_are_trained_recorded_and_not_trained_again(
    few_clicks, run, tmp_path, monkeypatch
):
    asked = ("--recommend", "--method", "all", "prune4rel", "--fraction", ".2", ".4", "--seeds=1")
    printed, records = run(*asked)
    assert list(records) == [
        "recommend_all_1.0_0", "recommend_prune4rel_0.2_0", "recommend_prune4rel_0.4_0"
    ]  # fmt: skip
    assert [record["rows"] for record in records.values()] == [640, 128, 256]
    for record in records.values():
        assert len(record["auc"]) == 2
        assert 0 <= record["noise_of_choice"] <= 0.5
        assert record["noise_of_data"] == records["recommend_all_1.0_0"]["noise_of_choice"]
        assert {"load", "versions", "date"} <= set(record["machine"])
    assert "<svg" in (tmp_path / "cells" / "recommend.svg").read_text()

    monkeypatch.setattr(few_clicks, "run", None)
    again, _ = run(*asked)
    assert again == printed[printed.index("\nMovieLens-1M") :]


def test_the_area_counts_pairs():
    from _coreset import recommend

    # Of the pairs of a click and none, (.4, .3), (.9, .3), (.9, .4) are right, (.4, .4) is half.
    labels, guesses = np.array([0, 0, 1, 1]), np.array([0.3, 0.4, 0.4, 0.9])
    assert recommend.area_under_curve(labels, guesses) == 3.5 / 4
    assert recommend.area_under_curve(labels, -guesses) == 0.5 / 4


def test_the_least_share_lies_between_the_fractions():
    from _coreset import recommend

    areas = {0.2: 0.70, 0.4: 0.74, 0.8: 0.76, 1.0: 0.75}
    assert recommend.least_share(areas, 0.75) == pytest.approx(0.6)
    assert recommend.least_share(areas, 0.69) == 0.2
    assert recommend.least_share(areas, 0.77) is None


def test_the_table_of_clicks_says_how_much_can_be_dropped(capsys):
    from _coreset import recommend

    def record(auc, noise):
        return {"auc": auc, "noise_of_choice": noise, "noise_of_data": 0.2}

    found = {
        ("all", 1.0, 0): record([0.80, 0.70], 0.2),
        ("uniform", 0.2, 0): record([0.60, 0.60], 0.2),
        ("uniform", 0.2, 1): record([0.70, 0.64], 0.1),
        ("uniform", 0.6, 0): record([0.70, 0.70], 0.2),
    }
    recommend.report(found)
    printed = capsys.readouterr().out
    assert "20.0% of the labels are wrong" in printed
    lines = [line.split() for line in printed.splitlines()]
    uniform = "0.6200 +- 0.0200 0.6500 +- 0.0500 15.0% 0.7000 +- 0.0000 0.7000 +- 0.0000 20.0%"
    assert ["uniform", *uniform.split()] in lines
    # The last: .62 with .2, .70 with .6. The best: .65 with .2, .70 with .6 and .80 with all.
    assert lines[-1] == ["uniform", "1.00", "0.98"]
    assert ["uniform", "0.60", "0.57"] in lines
