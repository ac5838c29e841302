"""The command line, the cells and the report of `benchmarks/embedding.py`, at tiny sizes."""

import dataclasses
import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--rows=500", "--dim=8", "--batch=16", "--hotness=4", "--threads=2"]
SIZES = {"dim": 8, "batch": 16, "hotness": 4, "threads": 2}


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def run(*arguments):
    command = [sys.executable, BENCHMARKS / "embedding.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_measures_prints_records_and_does_not_measure_again(tmp_path):
    arguments = ["--quick", "--optimizer=none", *TINY, f"--output={tmp_path}", "--rounds=2"]
    first = run(*arguments, "--peer=tf", "--peer=keras", "--peer=ceiling")
    assert first.returncode == 0, first.stderr
    assert "forward: 500 rows of 8, 16 x 4 ids, uniform, 2 threads; median of 2" in first.stdout
    rivals = ("EmbeddingBag", "reduce_sum", "lookup_sparse", "layers.Embedding", "4 KiB", "huge")
    for rival in rivals:
        assert rival in first.stdout
    assert "TensorFlow 2.20" in first.stdout

    (path,) = tmp_path.iterdir()
    recorded = json.loads(path.read_text())
    (group,) = recorded["groups"]
    assert [len(timing["wall"]) for timing in group.values()] == [2] * 6
    assert [len(timing["cpu"]) for timing in group.values()] == [2] * 6
    assert 0 <= recorded["others_cores"][0] < 64
    assert {"load", "versions", "date", "huge_pages"} <= set(recorded["machine"])

    path.write_text(path.read_text().replace(recorded["machine"]["date"], "2001-01-01"))
    again = run(*arguments, "--peer=tf")  # fewer peers: nothing new to learn
    assert again.returncode == 0, again.stderr
    assert "recorded on 2001-01-01, not measured again" in again.stdout
    assert "wall ms" not in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows=1G"], "must be a positive number like 5000, 100k or 1M. Received: '1G'"),
        (["--rows=0k"], "must be a positive number like 5000, 100k or 1M. Received: '0k'"),
        (["--batch=-1"], "must be a positive integer. Received: '-1'"),
        (["--rounds=1"], "must be at least 2, or there are no quartiles. Received: '1'"),
        (["--peer=numpy"], "argument --peer: invalid choice: 'numpy'"),
        (["--skew=zipf2"], "argument --skew: invalid choice: 'zipf2'"),
        (["--optimizer=ftrl"], "argument --optimizer: invalid choice: 'ftrl'"),
        (["--all", "--rows=1M"], "--rows has no meaning with --all and --report"),
        (["--all", "--quick"], "not allowed with argument"),
        (["--fresh"], "--fresh has no meaning without --output"),
    ],
)
def test_a_bad_flag_is_an_error_that_says_why(arguments, words, capsys):
    import embedding

    with pytest.raises(SystemExit, match="2"):
        embedding.main(arguments)
    assert words in capsys.readouterr().err


def test_a_cell_that_fails_is_named_and_the_others_are_measured(monkeypatch, capsys, tmp_path):
    import embedding
    from _embedding import measure

    def fails_for_none(cell, peers, rounds):
        if cell.optimizer == "none":
            raise RuntimeError("its last words")
        return made_up(cell, peers)

    monkeypatch.setattr(measure, "measure", fails_for_none)
    with pytest.raises(SystemExit, match="Failed:\nforward: 500 rows"):
        embedding.main([*TINY, "--quick", f"--output={tmp_path}"])
    printed = capsys.readouterr()
    assert "its last words" in printed.err
    assert "sgd step: 500 rows" in printed.out
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("text", "rows"), [("5000", 5000), ("100k", 100_000), ("1M", 1_000_000)])
def test_rows_may_have_a_suffix(text, rows):
    from _embedding import cells

    assert cells.parse_rows(text) == rows
    assert cells.parse_rows(cells.format_rows(rows)) == rows


def test_zipf_ids_are_skewed_and_spread_over_the_table():
    from _embedding import cells

    share = {}
    for skew in cells.SKEWS:
        ids = cells.draw_ids(1000, (100, 100), skew)
        counts = np.bincount(ids.ravel(), minlength=1000)
        assert ids.min() >= 0
        assert ids.max() < 1000
        assert np.abs(np.argsort(counts)[-100:].mean() - 500) < 150  # not the low ids
        share[skew] = np.sort(counts)[-10:].sum() / counts.sum()
    assert share["uniform"] < 0.03
    assert 0.3 < share["zipf1.05"] < share["zipf1.2"] - 0.05


def test_all_rivals_compute_the_definition():
    from _embedding import rivals
    from _embedding.cells import Cell
    from _embedding.cells import Inputs

    cell = Cell(50, "zipf1.05", "none", **SIZES)
    inputs = Inputs(cell)
    table = np.resize(inputs.pattern, (50, 8))
    pooled = table[inputs.ids[0, 0]].sum(axis=1)
    np.testing.assert_allclose(inputs.expected, inputs.summary(pooled), rtol=1e-5)
    for name in (rivals.OURS, *rivals.RIVALS):
        if rivals.RIVALS[name].peer not in ("torch", "fbgemm"):
            with rivals.RIVALS[name].open(cell, inputs) as opened:  # checks its summary
                assert opened.measure(1)["wall"] > 0


def test_a_rival_that_computes_something_else_is_caught():
    from _embedding.cells import Cell
    from _embedding.cells import Inputs

    inputs = Inputs(Cell(50, "uniform", "none", **SIZES))
    inputs.check("right", inputs.expected)
    with pytest.raises(AssertionError, match="wrong pools other rows than the definition says"):
        inputs.check("wrong", inputs.expected * 1.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_a_step_updates_the_rows_of_its_ids_and_gives_the_pooled_rows(optimizer):
    from _embedding import rivals
    from _embedding.cells import Cell
    from _embedding.cells import Inputs

    cell = Cell(500, "uniform", optimizer, **SIZES)
    inputs = Inputs(cell)
    for make in (rivals._ours, rivals._gather, rivals._lookup, rivals._keras):
        rival = make(cell, tf.constant(inputs.pattern))
        before = rival.variables[0].numpy()
        pooled = rivals.compile_step(rival, inputs, is_forward=False)(2)
        np.testing.assert_allclose(pooled[0], before[inputs.ids[2, 0]].sum(axis=1), rtol=1e-4)
        changed = np.flatnonzero((rival.variables[0].numpy() != before).any(axis=1))
        np.testing.assert_array_equal(changed, np.unique(inputs.ids[2]))


def test_many_tables_of_keras_compute_the_definition():
    from _embedding import collection
    from _embedding import rivals
    from _embedding.cells import Cell
    from _embedding.cells import Inputs

    for hotness in (1, 3):
        cell = Cell(50, "uniform", "sgd", **{**SIZES, "hotness": hotness}, tables=3)
        with collection.RIVALS[rivals.KERAS].open(cell, Inputs(cell)) as opened:
            assert opened.measure(0)["wall"] > 0


def test_rivals_that_do_not_fit_into_memory_together_meet_ours_in_groups():
    from _embedding import measure
    from _embedding import rivals
    from _embedding.cells import Cell

    cell = Cell(10_000_000, "uniform", "adagrad")  # tables of 2.56 GB
    taking_part = dict(rivals.RIVALS)
    groups, too_large = measure.fit_into_memory(cell, taking_part, 100_000_000_000)
    assert groups == [list(rivals.RIVALS)]
    assert too_large == {}

    groups, too_large = measure.fit_into_memory(cell, taking_part, 18_000_000_000)
    assert len(groups) > 1
    assert all(group[0] == rivals.OURS for group in groups)
    others = [name for group in groups for name in group[1:]]
    assert set(too_large) == {rivals.KERAS}
    assert sorted([rivals.OURS, *others, *too_large]) == sorted(rivals.RIVALS)
    assert "needs 18.9 GB together with ours, and 16.2 GB may be used" in too_large[rivals.KERAS]


def made_up(cell, peers=()):
    """A record in which ours takes 10 ms, and the n-th of the others 10 * (n + 1)."""
    import _harness
    from _embedding import collection
    from _embedding import measure
    from _embedding import rivals
    from _embedding.cells import Record
    from _embedding.cells import format_rows

    if cell.against_rows:
        names = [f"{rivals.OURS}, {format_rows(rows)} rows" for rows in (100_000, cell.rows)]
    else:
        names = list(collection.RIVALS if cell.tables > 1 else rivals.RIVALS)
    assert names[0] == measure.ours(cell)
    timings = {
        name: _harness.Timing([10.0 * (n + 1)] * 3, [1.0] * 3) for n, name in enumerate(names)
    }
    facts = _harness.machine()
    return Record(cell, list(peers), 3, facts, [0.0] * 3, [timings], [0.4], {}, {})


def test_the_report_prints_every_claim_and_draws_the_picture(tmp_path, capsys):
    import embedding
    from _embedding import cells
    from _embedding import claims
    from _embedding import memory
    from _embedding import rivals

    for cell in claims.needed_cells(SIZES):
        made_up(cell).write(tmp_path)
        assert dataclasses.asdict(cells.read(tmp_path, cell)) == dataclasses.asdict(made_up(cell))
    found = {"before": 10**8, "peak": 10**8 + 5 * 10**6}
    memory_path = memory.path_of(tmp_path, memory.cell_of(SIZES))
    memory_path.write_text(json.dumps({rivals.OURS: {**found, "peak_since": "the steps"}}))
    embedding.main(["--report", f"--output={tmp_path}", *TINY[1:]])

    printed = capsys.readouterr().out.splitlines()
    disturbed = "Disturbed: other programs took 0.4 cores meanwhile."
    assert printed.count(disturbed) == len(claims.needed_cells(SIZES))
    table = printed[[line.startswith("theirs / ours") for line in printed].index(True) :]
    for claim in claims.claims(SIZES):
        (line,) = [line for line in table if line.startswith(claim.title)]
        assert claim.aim in line
        assert line.endswith(("yes", "no")) or "least times" in line
    text = "\n".join(table)
    # Ours 10 ms, tf.gather 20, lookup 30: the best of both counts. FBGEMM 60, the ceiling 70.
    assert "forward: best stock TensorFlow, 1M uniform" in text
    assert ">= 4x    2.00x  2.00x-2.00x   no" in text
    assert ">= 1.2x    6.00x  6.00x-6.00x   yes; least times 6.00x" in text
    assert ">= 90 %    700 %" in text
    assert "< 2x    2.00x  2.00x-2.00x   no" in text
    assert "5 MB on top of 100 MB between steps" in text

    picture = tmp_path / "embedding.svg"
    assert picture.stat().st_size < 60_000
    words = {e.text for e in xml.etree.ElementTree.parse(picture).iter() if e.tag.endswith("text")}
    assert {rivals.OURS, rivals.KERAS, rivals.FBGEMM, "100k", "10M", "ms per step"} <= words


def test_a_claim_of_a_noisy_rival_says_which_ratio_reaches_the_target():
    from _embedding.claims import Claim
    from _embedding.claims import Figure

    noisy = Claim("title", None, (), target=2, is_noisy=True)
    assert noisy.verdict(Figure(3, 2, 4, 3)) == "yes"
    assert noisy.verdict(Figure(3, 2, 4, 1)) == "by median only"
    assert noisy.verdict(Figure(1, 1, 4, 3)) == "by least times only"
    assert Claim("title", None, (), target=2).verdict(Figure(3, 2, 4, 1)) == "yes"


def test_what_is_not_measured_is_said(tmp_path, capsys):
    import embedding
    from _embedding import claims

    embedding.main(["--report", f"--output={tmp_path}"])
    printed = capsys.readouterr().out
    assert printed.count("not measured") == len(claims.claims(SIZES)) + 1


@pytest.mark.slow
def test_the_memory_of_a_step_is_measured():
    from _embedding import memory
    from _embedding import rivals
    from _embedding.cells import Cell

    table = 200_000 * 64 * 4
    cell = Cell(200_000, "uniform", "sgd", **{**SIZES, "dim": 64})
    found = memory.measure(cell, rivals.KERAS)
    assert found["before"] > table
    assert 0.9 * table < found["peak"] - found["before"] < 5 * table  # Keras copies its table
