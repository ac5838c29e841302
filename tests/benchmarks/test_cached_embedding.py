"""The cells, the traces and the rivals of `benchmarks/cached_embedding.py`, at tiny sizes."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def import_path(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tiny(monkeypatch):
    """2,000 rows and batches of 16 x 4."""
    from _cached import cells
    from _cached import traces

    monkeypatch.setattr(traces, "BATCH", 16)
    monkeypatch.setattr(traces, "HOTNESS", 4)
    monkeypatch.setattr(cells, "ROWS", 2000)
    monkeypatch.setattr(cells, "DIM", 8)
    monkeypatch.setattr(cells, "ROW_BYTES", 4 * 17)
    monkeypatch.setattr(cells, "STEPS", 3)
    return cells


@pytest.fixture
def run(tiny, tmp_path, capsys):
    """Runs the program; returns what it printed, and the record of the cell."""

    def run(cell, *arguments):
        import cached_embedding

        cached_embedding.main(["--cell", cell, *arguments, f"--output={tmp_path / 'cells'}"])
        return capsys.readouterr().out, json.loads((tmp_path / f"cells/{cell}.json").read_text())

    return run


# ---- Traces.


def batches(tiny, count, **arguments):
    from _cached import traces

    trace = traces.Trace(2000, **arguments)
    return np.stack([trace.batch() for _ in range(count)])


def test_a_trace_has_the_skew_that_it_is_named_after(tiny):
    uniform, skewed = (batches(tiny, 400, skew=skew) for skew in ("uniform", "zipf1.2"))
    counts = [np.sort(np.bincount(ids.ravel(), minlength=2000))[::-1] for ids in (uniform, skewed)]
    weights = np.arange(1, 2001) ** -1.2
    assert counts[1][:10].sum() / skewed.size == pytest.approx(
        weights[:10].sum() / weights.sum(), abs=0.02
    )
    assert counts[0].max() < 40
    hottest = np.argsort(-np.bincount(skewed.ravel()))[:5]
    assert hottest.max() > 100  # ids are permuted


def test_a_trace_repeats_and_drifts_only_where_asked(tiny):
    again = [batches(tiny, 250, skew="zipf1.2", drifts=drifts) for drifts in (False, False, True)]
    np.testing.assert_array_equal(again[0], again[1])
    np.testing.assert_array_equal(again[0][:99], again[2][:99])
    assert (again[0][200:] != again[2][200:]).mean() > 0.01


def test_a_written_trace_is_its_batches(tiny, tmp_path):
    from _cached import traces

    traces.Trace(2000, "zipf1.05").write(tmp_path / "trace", 5)
    written = np.fromfile(tmp_path / "trace", np.int64).reshape(5, 16, 4)
    np.testing.assert_array_equal(written, batches(tiny, 5, skew="zipf1.05"))


# ---- Belady's choice.


def fewest_misses(trace, cache_rows):
    """By trying all that could go."""
    states = {frozenset(): 0}
    for batch in trace:
        counts = dict(zip(*np.unique(batch, return_counts=True), strict=True))
        following = {}
        for held, misses in states.items():
            total = misses + sum(count for row, count in counts.items() if row not in held)
            others = sorted(held - set(counts))
            for size in range(min(len(others), cache_rows - len(counts)) + 1):
                for stay in itertools.combinations(others, size):
                    kept = frozenset([*counts, *stay])
                    following[kept] = min(following.get(kept, total), total)
        states = following
    return min(states.values())


@pytest.mark.parametrize("seed", range(8))
def test_nothing_hits_more_often_than_belady(tiny, seed):
    rng = np.random.default_rng(seed)
    counted = [rng.integers(0, 7, 2) for _ in range(8)]
    before = [np.array([7])] * len(counted)  # the first half of a trace does not count
    hits = tiny._belady([*before, *counted], 3)
    assert hits == pytest.approx(1 - fewest_misses(counted, 3) / 16)


def test_belady_by_hand(tiny):
    trace = [np.array(batch) for batch in ([1, 2], [3, 1], [1, 2], [3, 3])]
    # Two rows: after the second batch, 1 and 2 or 3 are there; of 2 and 3, 2 comes first.
    assert tiny._belady(trace, 2) == pytest.approx(1 / 4)
    assert tiny._belady(trace, 3) == 1


# ---- Cells.


@pytest.mark.slow
def test_a_step_is_measured_once_the_cache_is_full(run):
    printed, record = run("step_zipf1.2", "--rounds=3")
    assert set(record["rivals"]) == {"cached", "memory"}
    assert record["rivals"]["cached"]["ratio"] == [1, 1, 1]
    assert record["rivals"]["memory"]["cpu_ms"] > 0
    assert record["hit_rate"] == 1
    assert record["rows_written"] > 0  # rows go, so there is no room left
    assert record["slab_bytes"] == 200 * 4 * 16
    assert "hits 100.00%" in printed
    again, _ = run("step_zipf1.2")
    assert again == printed.replace("-- step_zipf1.2\n", "")


def test_hits_of_all_policies_are_compared_with_the_best(run, monkeypatch, tiny):
    from _cached import traces

    monkeypatch.setattr(traces, "SKEWS", {"zipf1.2": 1.2})
    printed, record = run("hits")
    assert set(record["hit_rates"]) == {"zipf1.2 0.05", "zipf1.2 0.1"}
    for rates in record["hit_rates"].values():
        assert rates["lookahead"] == 1
        assert 0 < rates["static"] <= rates["belady"] + 0.02
        assert rates["lru"] <= rates["belady"] + 0.02
        assert rates["lfu"] <= rates["belady"] + 0.02
    assert f"({rates['lfu'] / rates['belady']:.0%})" in printed


def test_rivals_share_a_limit_of_memory_each_in_a_group_of_its_own(run, tiny, monkeypatch):
    import contextlib

    asked = {}

    @contextlib.contextmanager
    def group(name):
        asked[name] = "open"
        yield name
        asked[name] = "closed"

    def turns(rivals, rounds):
        cells = {name: cell for name, (_, cell) in rivals.items()}
        assert {cell["limit"] for cell in cells.values()} == {"cgroup"}
        assert {cell["group"] for cell in cells.values()} == set(asked)
        assert len({cell["budget"] for cell in cells.values()}) == 1
        assert cells["cached"]["cache_rows"] * 10 == cells["cached"]["rows"]
        timing = tiny._harness.Timing([1.0] * rounds, [2.0] * rounds)
        return dict.fromkeys(rivals, timing), {}, {}

    monkeypatch.setattr(tiny, "_group", group)
    monkeypatch.setattr(tiny, "_turns", turns)
    monkeypatch.setattr(tiny._workers, "peer_command", lambda packages, worker: [worker])
    printed, record = run("peers_uniform", "--rounds=3")
    assert set(asked.values()) == {"closed"}
    assert set(record["rivals"]) == {"cached", "variable under swap", "RocksDB"}
    assert "RocksDB" in printed


FAKE_ROCKS = """
class _Anything:
    def __init__(self, *arguments, **named): pass
    def __getattr__(self, name): return lambda *arguments: None

Options = BlockBasedOptions = Cache = WriteOptions = _Anything

class WriteBatch:
    def __init__(self, raw_mode): self.rows = {}
    def put(self, key, row): self.rows[key] = row

class Rdict:
    def __init__(self, path, options): self.rows = {}
    def set_write_options(self, options): pass
    def __getitem__(self, keys): return [self.rows.get(key) for key in keys]
    def write(self, batch):
        self.rows.update(batch.rows)
        print("wrote", len(batch.rows), file=__import__("sys").stderr)
"""


def test_the_peer_reads_and_writes_each_row_of_a_batch_once(tiny, tmp_path):
    (tmp_path / "rocksdict.py").write_text(FAKE_ROCKS)
    ids = np.array([[1, 1, 2, 3], [3, 3, 3, 3]])
    ids.tofile(tmp_path / "trace")
    cell = {"dim": 8, "batch": 2, "hotness": 2, "budget": 1000, "steps": 2}
    cell |= {"path": "x", "trace": str(tmp_path / "trace")}
    result = subprocess.run(
        [sys.executable, BENCHMARKS / "_cached" / "rocks.py"],
        input=f"{json.dumps(cell)}\nrun 0\nrun 1\n",
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    ready, *answers = map(json.loads, result.stdout.splitlines())
    assert ready == {"ready": True}
    assert all(answer["wall"] > 0 for answer in answers)
    assert result.stderr.split("\n")[:2] == ["wrote 3", "wrote 1"]


def test_the_picture_has_a_bar_for_each_rival_and_a_line_for_each_policy(tmp_path):
    import cached_embedding

    rivals = {name: {"wall_ms": 1.0} for name in ("cached", "memory")}
    policies = ("belady", "lookahead", "lfu", "lru", "static")
    found = {
        "step_zipf1.2": {"rivals": rivals},
        "hits": {"hit_rates": {"zipf1.2 0.1": dict.fromkeys(policies, 0.5)}},
    }
    cached_embedding.draw(found, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    for text in ("a tenth in memory", "all in memory", *policies):
        assert text in drawn
