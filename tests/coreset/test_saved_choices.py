"""What a selector has saved is what `keep` reads, and nothing else is."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.coreset.coreset_selector import CoresetSelector
from tfrec_efficient.coreset.filters import keep
from tfrec_efficient.coreset.scores._fingerprint import fingerprint

SIZE = 23
X = np.random.default_rng(0).normal(size=(SIZE, 4)).astype("float32")
EXAMPLES = tf.data.Dataset.from_tensor_slices((X, np.arange(SIZE)))
PRINTS = np.array(list(EXAMPLES.map(fingerprint).as_numpy_iterator()))


class Last(CoresetSelector):
    """Chooses samples from the end."""

    requires = ("embeddings",)

    def _choose(self, samples, count):
        return np.arange(len(samples))[::-1][:count]


@pytest.fixture
def path(tmp_path):
    Last(4).fit(embeddings=X).save(tmp_path / "coreset.npy", PRINTS)
    return tmp_path / "coreset.npy"


@pytest.mark.parametrize("has_prints", [False, True])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["text", "path"])
def test_a_saved_choice_is_kept(kind, has_prints, tmp_path):
    path = tmp_path / "coreset.npy"
    Last(4).fit(embeddings=X).save(path, PRINTS if has_prints else None)
    dataset = EXAMPLES.apply(keep(kind(path)))
    assert [int(y) for _, y in dataset] == [19, 20, 21, 22]
    assert int(dataset.cardinality()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "have format=tfrec_efficient.coreset. Received: format=another"),
        ({"version": 2}, "must have version=1. Received: version=2"),
        ({"version": ...}, "must have version=1. Received: version=None"),
        ({"samples": 22}, "must have `samples` as an integer above 22. Received: samples=22"),
        ({"samples": "23"}, "an integer above 22. Received: samples='23'"),
        ({"samples": ...}, "an integer above 22. Received: samples=nothing"),
        ({"chosen": 3}, "must have `chosen` as 4, as many as the positions beside it. Received: "
         "chosen=3"),
        ({"chosen": ...}, "as many as the positions beside it. Received: chosen=nothing"),
        ({"fingerprints": [1, 2]}, "must have `fingerprints` as null or 4 integers of 64 bits. "
         "Received: fingerprints=[1, 2]"),
        ({"fingerprints": [1, 2, 3, 2**63]}, "fingerprints=[1, 2, 3, 9223372036854775808]"),
        ({"fingerprints": [1, 2, 3, 4.0]}, "Received: fingerprints=[1, 2, 3, 4.0]"),
        ({"fingerprints": 4}, "Received: fingerprints=4"),
        ({"fingerprints": ...}, "null or 4 integers of 64 bits. Received: fingerprints=nothing"),
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_another_kind(change, message, path):
    manifest = path.with_suffix(".json")
    about = json.loads(manifest.read_text()) | change
    manifest.write_text(json.dumps({k: value for k, value in about.items() if value is not ...}))
    with pytest.raises(ValueError) as error:
        keep(path)
    assert str(error.value).endswith(f"{message} in {manifest}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The manifest must be JSON. Received: {manifest}: Expecting value: line 1 column 1"),
        ('{"format": "tfrec', "The manifest must be JSON. Received: {manifest}: Unterminated"),
        ("[]", "The manifest must be an object of JSON. Received: {manifest}: list"),
    ],
)
def test_a_manifest_that_is_broken(text, message, path):
    manifest = path.with_suffix(".json")
    manifest.write_text(text)
    with pytest.raises(ValueError) as error:
        keep(path)
    assert str(error.value).startswith(message.format(manifest=manifest))


def test_positions_that_are_none(path):
    for positions, message in (
        ([1.0, 2.0], "`indices` must be at least one integer"),
        ([1, 2, 3, 2**63 - 1], "`indices` must be at most 1099511627776. Received: .*=9223372"),
    ):
        np.save(path, np.array(positions))
        with pytest.raises(ValueError, match=message):
            keep(path)
    np.save(path, np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        keep(path)


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_one_file_without_the_other(suffix, path):
    path.with_suffix(suffix).unlink()
    with pytest.raises(ValueError, match=f"with a manifest of JSON beside it, .* Received: {path}"):
        keep(path)
