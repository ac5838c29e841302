import json

import numpy as np
import pytest

from tfrec_efficient.coreset import _samples
from tfrec_efficient.coreset import coreset_selector
from tfrec_efficient.coreset.coreset_selector import CoresetSelector


class Every(CoresetSelector):
    """Chooses samples from the end, and keeps what it was given."""

    requires = ("embeddings",)

    def _choose(self, samples, count):
        self.given = samples
        return np.arange(len(samples), dtype="int32")[::-1][:count]


EMBEDDINGS = np.arange(20.0).reshape(10, 2)


@pytest.mark.parametrize(
    ("asked", "count"),
    [(1, 1), (10, 10), (np.int64(4), 4), (0.5, 5), (1.0, 10), (0.29, 3), (np.float32(0.1), 1)],
)
def test_a_number_or_a_share_of_samples_is_chosen(asked, count):
    selector = Every(asked)
    assert selector.fit(embeddings=EMBEDDINGS) is selector
    assert selector.indices_.tolist() == list(range(10))[::-1][:count]
    assert selector.indices_.dtype == np.int64
    assert selector.samples_ == 10
    assert type(selector.samples_) is int


@pytest.mark.parametrize("asked", [11, 0.04])
def test_there_must_be_as_many_samples_as_asked_for(asked):
    with pytest.raises(ValueError) as error:
        Every(asked).fit(embeddings=EMBEDDINGS)
    assert str(error.value) == (
        "`size_or_fraction` must ask for 1 to 10 samples, which are all that there are. "
        f"Received: size_or_fraction={asked}"
    )


@pytest.mark.parametrize("asked", [0, -3, 0.0, -0.5, 1.5, np.nan, np.inf, True, "3", None])
def test_a_bad_size_is_refused(asked):
    with pytest.raises(ValueError) as error:
        Every(asked)
    assert str(error.value) == (
        "`size_or_fraction` must be an integer of at least 1, or a float in `(0, 1]`. "
        f"Received: size_or_fraction={asked}"
    )


@pytest.mark.parametrize("balanced", [0, 1, None, "yes"])
def test_balanced_is_a_bool(balanced):
    with pytest.raises(ValueError) as error:
        Every(1, balanced)
    assert str(error.value) == f"`balanced` must be True or False. Received: balanced={balanced}"


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="_choose"):
        CoresetSelector(1)


def test_arrays_are_checked_and_handed_on(shared):
    arrays = shared.samples()
    selector = Every(3).fit(**arrays)
    assert isinstance(selector.given, _samples.Samples)
    for name, array in arrays.items():
        assert selector.given.need(name) is array
    with pytest.raises(ValueError, match="`embeddings` must be given"):
        Every(3).fit(labels=arrays["labels"])
    with pytest.raises(ValueError, match="`labels` must be given"):
        Every(3, balanced=True).fit(embeddings=EMBEDDINGS)
    with pytest.raises(ValueError, match="`confidences` must have as many rows"):
        Every(3).fit(embeddings=EMBEDDINGS, confidences=[0.5])


@pytest.mark.parametrize("asked", [3, np.int32(3), 0.3, np.float64(0.3)])
def test_the_config_is_json_and_gives_back_the_selector(asked):
    selector = Every(asked, balanced=True)
    config = json.loads(json.dumps(selector.get_config()))
    assert config == {"size_or_fraction": asked, "balanced": True}
    again = Every.from_config(config)
    assert again.size_or_fraction == selector.size_or_fraction
    assert type(again.size_or_fraction) is type(selector.size_or_fraction)


# ---- Saving.


def test_the_choice_and_what_made_it_are_saved(tmp_path):
    fingerprints = np.arange(10) * 2**59 - 2**62
    selector = Every(0.3).fit(embeddings=EMBEDDINGS)
    selector.save(tmp_path / "chosen.npy", fingerprints)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chosen.json", "chosen.npy"]
    indices = np.load(tmp_path / "chosen.npy")
    assert indices.dtype == np.int64
    assert indices.tolist() == [9, 8, 7]
    assert json.loads((tmp_path / "chosen.json").read_text()) == {
        "format": "tfrec_efficient.coreset",
        "version": 1,
        "selector": "Every",
        "config": {"size_or_fraction": 0.3, "balanced": False},
        "samples": 10,
        "chosen": 3,
        "fingerprints": fingerprints[[9, 8, 7]].tolist(),
    }


def test_fingerprints_may_be_left_out_and_names_be_strings(tmp_path):
    Every(3).fit(embeddings=EMBEDDINGS).save(str(tmp_path / "a.b.npy"))
    assert np.load(tmp_path / "a.b.npy").tolist() == [9, 8, 7]
    assert json.loads((tmp_path / "a.b.json").read_text())["fingerprints"] is None


@pytest.mark.parametrize(("interrupted", "kept"), [("save_array", 3), ("replace", 5)])
def test_what_is_interrupted_leaves_no_manifest_of_another_choice(
    tmp_path, monkeypatch, interrupted, kept
):
    Every(3).fit(embeddings=EMBEDDINGS).save(tmp_path / "chosen.npy")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(coreset_selector, interrupted, interrupt)
    with pytest.raises(KeyboardInterrupt):
        Every(5).fit(embeddings=EMBEDDINGS).save(tmp_path / "chosen.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["chosen.npy"]
    assert len(np.load(tmp_path / "chosen.npy")) == kept  # whole, whichever choice it is of


def test_nothing_is_saved_before_fit(tmp_path):
    with pytest.raises(ValueError) as error:
        Every(1).save(tmp_path / "chosen.npy")
    assert str(error.value) == "Call `fit` before `save`: there is no choice yet."


@pytest.mark.parametrize(
    ("name", "fingerprints", "message"),
    [
        ("chosen", None, "`path` must end in `.npy`. Received: path={path}"),
        ("chosen.npz", None, "`path` must end in `.npy`. Received: path={path}"),
        (
            "chosen.npy",
            np.arange(3),
            "`fingerprints` must be int64 of shape (10,). Received: int64 of shape (3,)",
        ),
        (
            "chosen.npy",
            np.arange(10.0),
            "`fingerprints` must be int64 of shape (10,). Received: float64 of shape (10,)",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, name, fingerprints, message):
    selector = Every(3).fit(embeddings=EMBEDDINGS)
    with pytest.raises(ValueError) as error:
        selector.save(tmp_path / name, fingerprints)
    assert str(error.value) == message.format(path=tmp_path / name)
    assert not list(tmp_path.iterdir())
