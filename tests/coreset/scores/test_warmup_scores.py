"""Scores are of the examples of a dataset, each once, and of no other dataset."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.coreset.coreset_selector import CoresetSelector


def test_a_view_is_scored_and_the_example_is_hashed(shared):
    model = shared.small_model()
    scores = shared.score(model, view=lambda x, y: (-x, y))
    np.testing.assert_allclose(scores.probabilities, model.predict(-shared.X, verbose=0), rtol=1e-5)
    assert scores.fingerprints.tolist() == shared.score(model).fingerprints.tolist()


@pytest.mark.parametrize("directory", [None, "scores"])
def test_a_dataset_of_unknown_size(directory, tmp_path, shared):
    unknown = shared.examples().filter(lambda x, y: True)
    assert unknown.cardinality() == tf.data.UNKNOWN_CARDINALITY
    model = shared.small_model()
    found = shared.score(model, unknown, directory=directory and tmp_path / directory)
    shared.assert_same(found, shared.score(model))


def test_progress_is_shown(capsys, tmp_path, shared):
    shared.score(shared.small_model(), directory=tmp_path, verbose=1)
    assert f"{shared.SIZE}/{shared.SIZE}" in capsys.readouterr().out
    shared.score(shared.small_model(), verbose=0)
    assert capsys.readouterr().out == ""


def test_a_selector_is_given_what_it_uses(shared):
    class Picky(CoresetSelector):
        requires = ("embeddings", "forgetting_events")

        def _choose(self, samples, count):
            self.samples = samples
            return np.argsort(samples.need("forgetting_events"))[:count]

    scores = shared.score(shared.small_model())
    selector = Picky(2)
    assert scores.fit(selector, np.arange(shared.SIZE)[::-1]) is selector
    assert selector.indices_.tolist() == [shared.SIZE - 1, shared.SIZE - 2]
    assert selector.samples.embeddings is scores.embeddings
    assert selector.samples.labels is scores.labels
    of_label = scores.probabilities[np.arange(shared.SIZE), shared.Y]
    np.testing.assert_array_equal(selector.samples.confidences, of_label)
    np.testing.assert_array_equal(scores.label_confidences, of_label)
    assert selector.samples.probabilities is None
    with pytest.raises(ValueError, match="`forgetting_events` must be given"):
        scores.fit(selector)


def swapped(shared, first, second):
    order = np.arange(shared.SIZE)
    order[[first, second]] = second, first
    return shared.examples(shared.X[order], shared.Y[order])


OTHERS = [
    (10, lambda s: swapped(s, 7, 15), "10 so far, .* Received: another example in row 7"),
    (23, lambda s: swapped(s, 7, 15), "23 so far, .* Received: another example in row 7"),
    (10, lambda s: s.examples().take(8), "Received: 8 examples"),
    (23, lambda s: s.examples().take(22), "Received: 22 examples"),
    (23, lambda s: s.examples().repeat(2), "Received: another example in row 23"),
    (23, lambda s: s.examples(y=(s.Y + 1) % 3), "Received: another example in row 0"),
    (23, lambda s: s.examples(s.X.astype("float64")), "Received: another example in row 0"),
]


@pytest.mark.parametrize(
    ("rows", "make", "received"), OTHERS, ids=[f"{rows} {text}" for rows, _, text in OTHERS]
)
def test_other_examples_are_refused(rows, make, received, tmp_path, shared):
    shared.score(shared.small_model(), directory=tmp_path)
    if rows < shared.SIZE:
        shared.as_if_killed(tmp_path, rows, np.random.default_rng(0))
    before = shared.contents(tmp_path)
    with pytest.raises(ValueError, match=f"`dataset` must give the examples whose .*{received}"):
        shared.score(shared.small_model(), make(shared), directory=tmp_path)
    assert shared.contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "integer of at least 1. Received: batch_size=0"),
        ({"view": lambda x, y: x}, "`view` must return what it is given"),
    ],
)
def test_bad_arguments(arguments, message, shared):
    with pytest.raises(ValueError, match=message):
        shared.score(shared.small_model(), **arguments)
