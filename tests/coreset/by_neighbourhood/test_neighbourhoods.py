import builtins
import itertools

import numpy as np
import pytest

from tfrec_efficient.coreset.by_neighbourhood import _neighbourhoods


def clusters(size, dim=16, spread=0.3, per=10, seed=0):
    """Embeddings around random centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, size // per), dim))
    noise = spread * rng.normal(size=(size, dim))
    return (centres[rng.integers(0, len(centres), size)] + noise).astype(np.float32)


def slow_similarities(embeddings):
    units = embeddings.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return (0.5 + 0.5 * units @ units.T).astype(np.float32)


def rows_of(graph):
    return [
        dict(zip(graph.neighbours[a:b], graph.similarities[a:b], strict=True))
        for a, b in zip(graph.row_splits[:-1], graph.row_splits[1:], strict=True)
    ]


# ---- The threshold -------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2.5, 20, 150])
def test_the_threshold_gives_the_degree_that_was_asked_for(degree):
    embeddings = clusters(200)
    sample = _neighbourhoods.SimilaritySample(embeddings)
    threshold = sample.threshold_for(degree)
    similarities = slow_similarities(embeddings)
    np.fill_diagonal(similarities, 1)
    # All 200 rows are sampled, so this is the degree itself, but for those of equal similarity.
    assert (similarities > threshold).sum(axis=1).mean() == pytest.approx(degree, abs=0.02)
    assert sample.degrees(threshold).mean() == pytest.approx(degree, abs=0.02)


def test_a_degree_above_the_size_means_everything():
    assert _neighbourhoods.SimilaritySample(clusters(30)).threshold_for(30) == 0


def test_equal_rows_leave_a_threshold_below_one():
    sample = _neighbourhoods.SimilaritySample(np.ones((50, 4), np.float32))
    threshold = sample.threshold_for(3)
    assert 0 <= threshold < 1
    assert (sample.degrees(threshold) == 50).all()


def test_a_large_sample_takes_fewer_rows(monkeypatch):
    monkeypatch.setattr(_neighbourhoods, "_SAMPLED_PAIRS", 1000)
    sample = _neighbourhoods.SimilaritySample(clusters(200))
    assert sample.similarities.shape == (5, 200)
    assert (sample.similarities[np.arange(5), sample.rows] == 1).all()


def test_the_sample_does_not_depend_on_the_size_of_blocks(monkeypatch):
    embeddings = clusters(100)
    whole = _neighbourhoods.SimilaritySample(embeddings)
    monkeypatch.setattr(_neighbourhoods, "_ROWS", 7)
    blocks = _neighbourhoods.SimilaritySample(embeddings)
    np.testing.assert_allclose(blocks.similarities, whole.similarities, atol=1e-6)


# ---- The graph -----------------------------------------------------------------------------------


def test_the_exact_graph_is_that_of_all_pairs(monkeypatch):
    monkeypatch.setattr(_neighbourhoods, "_ROWS", 37)
    embeddings = clusters(150)
    graph = _neighbourhoods.exact_graph(embeddings, 0.9, 1000, None, 0)
    similarities = slow_similarities(embeddings)
    for i, row in enumerate(rows_of(graph)):
        wanted = np.flatnonzero(similarities[i] > np.float32(0.9))
        assert sorted(row) == wanted.tolist()
        np.testing.assert_array_equal([row[j] for j in wanted], similarities[i, wanted])
    assert graph.capped == 0
    assert graph.recall == 1


def test_the_cap_is_reported():
    embeddings = clusters(150)
    degrees = (slow_similarities(embeddings) > np.float32(0.9)).sum(axis=1)
    graph = _neighbourhoods.exact_graph(embeddings, 0.9, 5, None, 0)
    assert np.diff(graph.row_splits).max() == 5
    assert graph.capped == pytest.approx((degrees > 5).mean())


def test_a_graph_goes_on_behind_the_rows_that_were_saved(monkeypatch, tmp_path):
    monkeypatch.setattr(_neighbourhoods, "_ROWS", 50)
    embeddings = clusters(180)
    whole = _neighbourhoods.exact_graph(embeddings, 0.9, 20, None, 0)
    search, calls = _neighbourhoods.ops.neighbour_graph, []

    def stop_at_the_third(*arguments):
        calls.append(arguments[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return search(*arguments)

    monkeypatch.setattr(_neighbourhoods.ops, "neighbour_graph", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        _neighbourhoods.exact_graph(embeddings, 0.9, 20, tmp_path, 0)
    again = _neighbourhoods.exact_graph(embeddings, 0.9, 20, tmp_path, 0)
    assert calls == [0, 50, 100, 100, 150]
    for name in ("row_splits", "neighbours", "similarities"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_a_part_that_is_not_whole_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setattr(_neighbourhoods, "_ROWS", 50)
    embeddings = clusters(100)
    whole = _neighbourhoods.exact_graph(embeddings, 0.9, 20, tmp_path, 0)
    _neighbourhoods._part_path(tmp_path, 50, "degrees").unlink()
    again = _neighbourhoods.exact_graph(embeddings, 0.9, 20, tmp_path, 0)
    np.testing.assert_array_equal(again.neighbours, whole.neighbours)


# ---- ScaNN ---------------------------------------------------------------------------------------


def test_scann_finds_the_exact_graph_of_few_rows():
    embeddings = clusters(300)
    sample = _neighbourhoods.SimilaritySample(embeddings)
    found = _neighbourhoods.scann_graph(embeddings, 0.9, 40, sample, None, 0)
    exact = _neighbourhoods.exact_graph(embeddings, 0.9, 40, None, 0)
    np.testing.assert_array_equal(found.row_splits, exact.row_splits)
    np.testing.assert_array_equal(found.neighbours, exact.neighbours)
    np.testing.assert_allclose(found.similarities, exact.similarities, atol=1e-6)
    assert found.recall == 1
    assert found.capped == exact.capped == 0


def test_scann_tells_what_it_missed(monkeypatch):
    monkeypatch.setattr(_neighbourhoods, "_TIMED", 500)  # so that it searches a tree
    embeddings = clusters(3000, dim=32, spread=0.6)
    sample = _neighbourhoods.SimilaritySample(embeddings)
    threshold = sample.threshold_for(12)
    found = _neighbourhoods.scann_graph(embeddings, threshold, 64, sample, None, 0)
    exact = _neighbourhoods.exact_graph(embeddings, threshold, 64, None, 0)
    share = len(found.neighbours) / len(exact.neighbours)
    assert 0.3 < share <= 1
    assert found.recall == pytest.approx(share, abs=0.1)
    every = rows_of(found)
    assert all(i in row for i, row in enumerate(every))


def test_a_row_that_its_equals_pushed_out_keeps_itself():
    rows = np.array([4, 5])
    found = np.array([[1, 2, 3], [5, 6, 7]])
    similarities = np.array([[1.0, 1.0, 1.0], [0.99, 0.8, 0.7]])
    lengths, neighbours, kept, _ = _neighbourhoods._as_part(rows, found, similarities, 0.75)
    assert lengths.tolist() == [3, 2]
    assert neighbours.tolist() == [1, 2, 4, 5, 6]
    assert kept.tolist() == pytest.approx([1, 1, 1, 1, 0.8])


def test_scann_that_is_missing_is_named(monkeypatch):
    real = builtins.__import__

    def without_scann(name, *arguments, **options):
        if name == "scann":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_scann)
    with pytest.raises(ImportError, match=r"tfrec-efficient\[retrieval\]"):
        _neighbourhoods._import_scann()


# ---- What a choice covers ------------------------------------------------------------------------


def test_coverage_of_any_choice():
    embeddings = clusters(2000)
    rng = np.random.default_rng(1)
    confidences = rng.uniform(size=2000)
    chosen = rng.permutation(2000)[:300]
    similarities = slow_similarities(embeddings)[:, chosen].astype(np.float64)
    similarities[similarities <= 0.9] = 0
    coverage = _neighbourhoods.neighbourhood_coverage(embeddings, confidences, chosen, 0.9)
    np.testing.assert_allclose(coverage, similarities @ confidences[chosen], atol=1e-4)


def test_speed_is_a_number_of_pairs():
    assert _neighbourhoods.pairs_per_second(clusters(100), 0.9) > 1000


def test_scann_that_looks_at_too_few_rows_gives_no_neighbour_twice(monkeypatch):
    monkeypatch.setattr(_neighbourhoods, "_TIMED", 500)
    embeddings = clusters(1200, dim=32, spread=0.6)
    sample = _neighbourhoods.SimilaritySample(embeddings)
    found = _neighbourhoods.scann_graph(embeddings, 0.5, 1000, sample, None, 0)
    for begin, end in itertools.pairwise(found.row_splits):
        assert (np.diff(found.neighbours[begin:end]) > 0).all()


def test_scann_goes_on_with_what_it_found(monkeypatch, tmp_path):
    monkeypatch.setattr(_neighbourhoods, "_TIMED", 500)
    monkeypatch.setattr(_neighbourhoods, "_ROWS", 700)
    embeddings = clusters(2000, dim=32, spread=0.6)
    sample = _neighbourhoods.SimilaritySample(embeddings)
    whole = _neighbourhoods.scann_graph(embeddings, 0.7, 64, sample, tmp_path, 0)
    monkeypatch.setattr(_neighbourhoods, "_searcher", None)  # there is nothing left to search
    again = _neighbourhoods.scann_graph(embeddings, 0.7, 64, sample, tmp_path, 0)
    np.testing.assert_array_equal(again.neighbours, whole.neighbours)
    assert (again.recall, again.capped) == (whole.recall, whole.capped)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_the_threshold_does_not_depend_on_the_length_of_rows(factor):
    rows = clusters(300)
    sample = _neighbourhoods.SimilaritySample((rows * np.float32(factor)).astype(np.float32))
    exact = _neighbourhoods.SimilaritySample(rows)
    assert sample.threshold_for(10) == pytest.approx(exact.threshold_for(10), rel=1e-5)


def test_equal_rows_are_neighbours_of_each_other():
    rows = np.repeat(np.random.default_rng(0).normal(size=(1, 128)).astype("float32"), 300, axis=0)
    sample = _neighbourhoods.SimilaritySample(rows)
    assert (sample.degrees(sample.threshold_for(20)) == 300).all()
