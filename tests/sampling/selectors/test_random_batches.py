import math

import numpy as np
import pytest

from tfrec_efficient.sampling import LabelHistory
from tfrec_efficient.sampling import RandomBatches


def test_every_epoch_draws_evenly(selectors):
    selector = selectors.predicted(RandomBatches(2), [[0, 1, 2], [1, 1, 1], []], classes=3)
    for epoch in (1, 2, 100):
        selection = selector.select(epoch)
        assert selection.weights is None
        assert selection.sample_weight is None


def test_a_batch_shows_no_sample_twice_and_an_epoch_may(selectors):
    selector = selectors.given(RandomBatches(4), 10)
    batches = selector._planned().batches
    assert np.shape(batches) == (3, 4)  # the last is as large as the others
    assert all(len(set(batch)) == 4 for batch in np.array(batches).tolist())
    assert len(np.unique(batches)) < 12


def test_all_samples_are_shown_equally_often(selectors):
    size, epochs = 20, 500
    shown = np.zeros(size)
    selector = selectors.given(RandomBatches(5), size)
    for epoch in range(epochs):
        selector._epochs_done, selector._plan = epoch, None
        np.add.at(shown, selector._planned().ids, 1)
    # Within 4.5 standard deviations of how often one of 20 is in a batch of 5.
    assert np.abs(shown - epochs).max() < 4.5 * math.sqrt(epochs * 4 * 1 / 4 * 3 / 4)


def test_ten_predictions_are_kept():
    memory = RandomBatches(2).make_memory(3)
    assert isinstance(memory, LabelHistory)
    for label in range(12):
        memory.append(np.array([0]), np.array([label]))
    assert memory.votes().tolist() == [10, 0, 0]


def test_the_config_gives_back_the_selector(selectors):
    selectors.assert_the_config_gives_back(
        RandomBatches(batch_size=7, from_logits=True, seed=3, log_dir="logs")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 0},
            "`batch_size` must be an integer of at least 1. Received: batch_size=0",
        ),
        (
            {"batch_size": 1, "seed": -1},
            "`seed` must be an integer of at least 0. Received: seed=-1",
        ),
    ],
)
def test_bad_arguments(selectors, arguments, message):
    selectors.assert_refused(RandomBatches, arguments, message)


def test_training(selectors, shared):
    selector = RandomBatches(10, seed=1)
    for entry in selectors.train(selector, epochs=3):
        assert set(entry) == {"epoch", "scores", "share_shown"}
        assert 0.4 < entry["share_shown"] < 0.9  # 1 - (1 - 10/50)**5 = .67 is expected
    votes = selector.memory.votes()
    assert votes.sum() == 3 * 50
    hardness = selector.memory.hardness(shared.Y)
    assert (np.diff(hardness[selector.hardest(50)]) <= 0).all()
