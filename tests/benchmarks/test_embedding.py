import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_prints_every_rival_and_both_verdicts():
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "embedding.py", "--quick"]
        + ["--rows=500", "--dim=8", "--batch=16", "--hotness=4"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    kinds = ("forward", "forward + backward", "forward + backward, gradient coalesced")
    for title in kinds:
        assert f"{title}: 500 x 8 rows, 16 x 4 ids, uniform" in run.stdout
        assert f"{title} against the best of the others:" in run.stdout
    for rival in ("gather_reduce", "reduce_sum", "embedding_lookup_sparse", "layers.Embedding"):
        assert rival in run.stdout
    assert "TensorFlow 2.20" in run.stdout


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import embedding

    return embedding


def test_zipf_ids_are_skewed_and_spread_over_the_table(benchmark):
    ids = benchmark.draw_ids(1000, (100, 100), "zipf 1.05")
    counts = np.bincount(ids.ravel(), minlength=1000)
    assert ids.min() >= 0
    assert ids.max() < 1000
    assert np.sort(counts)[-10:].sum() > 0.3 * counts.sum()
    assert np.abs(np.argsort(counts)[-100:].mean() - 500) < 150  # not the low ids


def test_all_rivals_compute_the_same(benchmark):
    ids = benchmark.draw_ids(50, (4, 3), "uniform")
    rivals = benchmark.make_rivals(50, 8, ids)
    results = []
    for variable, forward in rivals.values():
        variable.assign(np.arange(400.0).reshape(50, 8))
        results.append(forward())
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0])
