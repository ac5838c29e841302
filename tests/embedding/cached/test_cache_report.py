import numpy as np
import pytest

from tfrec_efficient.embedding import CacheReport
from tfrec_efficient.embedding.cached import _export


def train(shared, layer, ids):
    shared.trainer(layer)(np.array(ids))


def test_against_a_count_by_hand(shared, store, monkeypatch):
    monkeypatch.setattr(_export, "_BLOCK_BYTES", 4 * 10 * 7)  # seven rows
    layer = shared.cached(store, cache_rows=4)
    batches = shared.batches(12, batch=1)
    for ids in batches:
        train(shared, layer, ids)
    layer(np.array([[39, 39, 39]]))  # looked at, and not trained
    report = layer.report()
    counts = np.sort(np.bincount(np.ravel(batches), minlength=40))[::-1]
    covered = np.cumsum(counts) / 36
    for rows in range(41):
        exact = 0 if rows == 0 else covered[rows - 1]
        assert report.covered_by(rows) == pytest.approx(exact, abs=1e-12)
    assert report.input_dim == 40
    assert report.rows[-1] == 40
    assert report.coverage[-1] == 1.0
    assert report.cache_rows == 4
    stats = layer.stats()
    assert report.hit_rate == stats.hits / 39
    assert report.largest_batch == 3
    least = int(np.argmax(covered >= 0.95 - 1e-12)) + 1
    assert report.recommended_rows == max(least, 9)


def test_a_few_rows_that_take_all_are_recommended(shared, store):
    layer = shared.cached(store)
    for _ in range(19):
        train(shared, layer, [[1], [2]])
    train(shared, layer, [[3], [4]])
    assert layer.report().recommended_rows == 6  # three batches
    layer.flush()
    layer.close()
    opened = shared.cached(store)
    report = opened.report()
    assert report.recommended_rows == 2  # which take 95 % of 40 lookups
    assert (report.hit_rate, report.largest_batch) == (0.0, 0)


def test_a_table_that_was_never_trained(shared, store):
    report = shared.cached(store).report()
    assert report.recommended_rows == 1
    assert report.covered_by(40) == 0.0
    assert "40 rows, 20 of them in memory: 0.0% of the lookups" in str(report)


def test_it_prints_what_it_knows():
    report = CacheReport(1000, np.array([10, 1000]), np.array([0.5, 1.0]), 20, 0.75, 6, 321)
    text = str(report)
    assert "1,000 rows, 20 of them in memory: 75.0% of the lookups found their row there." in text
    assert "        1.00%              50.0%" in text
    assert "      100.00%             100.0%" in text
    assert "Recommended: cache_rows=321" in text


def test_it_is_plotted(tmp_path):
    report = CacheReport(1000, np.array([10, 1000]), np.array([0.5, 1.0]), 20, 0.75, 6, 321)
    figure = report.plot(tmp_path / "coverage.png")
    assert (tmp_path / "coverage.png").stat().st_size > 1000
    (axes,) = figure.axes
    curve, now, recommended = axes.lines
    np.testing.assert_allclose(curve.get_xdata(), [0.01, 1.0])
    np.testing.assert_allclose(curve.get_ydata(), [0.5, 1.0])
    assert now.get_xdata()[0] == 0.02
    assert recommended.get_xdata()[0] == 0.321
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["now", "recommended"]


def test_a_progress_bar(shared, store, capsys):
    layer = shared.cached(store)
    layer.report()
    assert capsys.readouterr().out == ""
    layer.report(verbose=1)
    assert "40/40" in capsys.readouterr().out
