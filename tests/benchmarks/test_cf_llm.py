"""The cells, the records and the tables of `benchmarks/cf_llm.py`; nothing long is trained."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def import_path(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_cell_runs_by_itself_and_is_not_run_again(tmp_path, capsys):
    import cf_llm

    arguments = ["--data", "ml-100k", "--method", "popularity", "--test", "40"]
    arguments += ["--output", str(tmp_path)]
    cf_llm.main(arguments)
    (path,) = tmp_path.glob("*.json")
    assert path.name == "ml-100k.popularity.none.few0.seed0.json"
    record = json.loads(path.read_text())
    # Cheap methods are asked all that there are, whatever the others are.
    assert len(record["hits"]) == len(record["cold"]) == 943 and 0 < np.mean(record["hits"]) < 0.6
    written = path.stat().st_mtime_ns
    cf_llm.main(arguments)
    assert path.stat().st_mtime_ns == written
    assert "popularity" in capsys.readouterr().out


def test_a_record_of_another_budget_is_refused(tmp_path):
    import cf_llm

    cell = ("popularity", "ml-100k", 0, "none", 0)
    record = {"budget": {"epochs": 1, "train": 1, "test": 1}}
    cf_llm.file_of(tmp_path, cell).write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="must be of the budget"):
        cf_llm.measured(tmp_path, cell, cf_llm.methods.Budget())


def test_cells_that_mean_nothing_are_left_out():
    import cf_llm

    cells = cf_llm.all_cells()
    assert len(set(cells)) == len(cells)
    across = {cell[0] for cell in cells if cell[1] == cf_llm.ACROSS}
    assert {"aligner", "without_llm", "cf_llm"} <= across
    assert not {"popularity", "sasrec"} & across
    assert {cell[3] for cell in cells if cell[0] == "llm_only"} == {"verbalizer"}
    assert {cell[2] for cell in cells if cell[3] == "retrieval"} == {0, 128}
    assert {cell[1] for cell in cells if cell[3] == "retrieval" and not cell[2]} == {"collm-ml1m"}
    assert {cell[2] for cell in cells if cell[1] == "collm-ml1m"} == {0}
    assert {cell[0] for cell in cells} == set(cf_llm.methods.METHODS)


def test_items_of_another_domain_are_placed_by_their_texts(tmp_path):
    from _cf_llm import data
    from _cf_llm import stages

    from tfrec_efficient import llm

    backbone = llm.SASRec(4, stages.WIDTH, max_length=5)
    aligner = llm.CFAligner(backbone, np.eye(4, 8, dtype=np.float32))
    other = data.Sequences("other", [], ["a", "b", " "], ["a", "b", " "], (), 5)
    np.save(tmp_path / "texts-other.npy", np.eye(4, 8, dtype=np.float32)[1:])
    placed, moved = stages.for_other_items(backbone, aligner, other, tmp_path)
    expected = aligner.cf_vectors_of_texts()
    np.testing.assert_allclose(placed.item_vectors([1, 2]), expected[[2, 3]], atol=1e-6)
    assert not placed.item_vectors([3]).numpy().any()
    assert moved.cf_backbone is placed


def test_questions_are_the_same_for_all_and_learners_are_not_validated_on():
    from _cf_llm import data

    sequences = data.Sequences(
        "made up", [np.arange(1, 7) + user for user in range(20)], ["t"] * 60, ["t"] * 60, (), 5
    )
    asked = {split: data.questions(sequences, split, 99, 3) for split in ("train", "valid", "test")}
    assert not set(asked["train"][0]) & set(asked["valid"][0])
    assert len(asked["test"][0]) == 20
    for users, questions in asked.values():
        last = [sequences.items[user] for user in users]
        place = -1 if len(users) == 20 else -2
        assert questions.target_items.tolist() == [items[place] for items in last]
    again = data.questions(sequences, "test", 99, 3)[1]
    np.testing.assert_array_equal(again.candidates, asked["test"][1].candidates)


def test_a_split_by_time_asks_what_came_after_all_that_was_learnt():
    from _cf_llm import data

    later = {"valid": [np.array([1, 2, 4]), np.array([3, 5])], "test": [np.array([1, 2, 4, 6])]}
    items = [np.array([1, 2]), np.array([3])]
    sequences = data.Sequences("made up", items, ["t"] * 60, ["t"] * 60, (), 5, later)
    assert sequences.of_training() == items
    (row,), test = data.questions(sequences, "test", 99, 0)
    assert row == 0 and test.target_items.tolist() == [6]
    assert test.history.tolist() == [[0, 0, 1, 2, 4]]
    assert set(data.questions(sequences, "train", 99, 0)[1].target_items) == {4, 5}


def test_the_split_of_collm_is_read_as_its_authors_made_it():
    for name in ("collm-ml1m", "ml-1m"):
        if not Path(os.environ.get("TFREC_DATA_DIR", "/nowhere"), name).is_dir():
            pytest.skip(f"{name} is not at hand")
    from _cf_llm import data

    sequences = data.load("collm-ml1m")
    assert sequences.item_count == 3255 and len(sequences.items) == 719
    assert sum(map(len, sequences.items)) == 18191
    # Of 5,495 and 3,998 movies that users liked, less those who have no history.
    assert {split: len(rows) for split, rows in sequences.later.items()} == {
        "valid": 5428, "test": 3959,
    }  # fmt: skip
    assert sequences.texts[0] == "Shawshank Redemption, The (1994), Drama"


def test_cold_items_are_those_met_least():
    from _cf_llm import data

    items = [np.array([1, 2, 3, 9, 9]), np.array([1, 2, 4, 9, 9])]
    sequences = data.Sequences("made up", items, ["t"] * 10, ["t"] * 10, (), 5)
    assert data.cold_items(sequences).tolist() == [5, 6, 7]


def test_the_committed_records_make_tables(capsys):
    import cf_llm

    cf_llm.main(["--report"])
    printed = capsys.readouterr().out
    assert "amazon-beauty, all users" in printed and "+0.000" in printed
