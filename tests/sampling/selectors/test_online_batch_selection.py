import numpy as np
import pytest

from tfrec_efficient.sampling import OnlineBatchSelection


def test_chances_fall_with_the_rank_of_the_loss(selectors):
    """Never seen is rank 1, and ties rank by id."""
    selector = OnlineBatchSelection(2, epochs=2, warmup_epochs=0, selection_pressure=100.0)
    selectors.remembering(selector, [0.1, 0.9, np.nan, 0.5, 0.5])
    selection = selector.select(1)
    ranks = np.array([5, 2, 1, 3, 4])
    assert selection.weights == pytest.approx(10.0 ** (-ranks / 5), rel=1e-12)  # 100 ** (1/2)
    assert selection.sample_weight is None


def test_chances_are_those_of_the_formula(selectors):
    losses = np.random.default_rng(0).gamma(1.0, size=300)
    selector = OnlineBatchSelection(2, epochs=50, warmup_epochs=10, selection_pressure=64.0)
    selectors.remembering(selector, losses)
    for epoch in (11, 30, 49):
        pressure = 64.0 * np.exp(np.log(1 / 64.0) / (50 - 10)) ** (epoch - 10)
        rank = [1 + np.sum(losses > loss) for loss in losses]
        expected = [1 / np.exp(np.log(pressure) / 300) ** r for r in rank]
        weights = selector.select(epoch).weights
        np.testing.assert_allclose(weights / weights.sum(), expected / np.sum(expected), rtol=1e-9)


def test_the_pressure_is_the_ratio_of_the_first_to_the_last(selectors):
    selector = OnlineBatchSelection(2, epochs=101, warmup_epochs=1)
    weights = selectors.remembering(selector, np.arange(1000)).select(2).weights
    assert weights[-1] / weights[0] == pytest.approx(100 ** (0.99 * 0.999))


@pytest.mark.parametrize("epoch", [1, 3])
def test_the_warmup_draws_evenly(selectors, epoch):
    selector = OnlineBatchSelection(2, epochs=9, warmup_epochs=3)
    assert selectors.remembering(selector, [1.0, 2.0, 3.0]).select(epoch).weights is None


@pytest.mark.parametrize("epoch", [9, 10, 99])
def test_at_the_end_all_chances_are_equal(selectors, epoch):
    selector = OnlineBatchSelection(2, epochs=9, warmup_epochs=3)
    weights = selectors.remembering(selector, [1.0, 2.0, np.nan]).select(epoch).weights
    assert weights.tolist() == [1.0, 1.0, 1.0]


def test_selection_does_not_change_the_memory(selectors):
    losses = np.float32([2.0, np.nan, 1.0])
    selector = selectors.remembering(OnlineBatchSelection(2, warmup_epochs=0), losses)
    selector.select(1)
    np.testing.assert_array_equal(selector.memory.loss, losses)


def test_the_config_gives_back_the_selector(selectors):
    arguments = {"epochs": 40, "warmup_epochs": 3, "selection_pressure": 8.0}
    selectors.assert_the_config_gives_back(
        OnlineBatchSelection(7, **arguments, from_logits=True, seed=3, log_dir="logs")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": -1},
            "`batch_size` must be an integer of at least 1. Received: batch_size=-1",
        ),
        (
            {"warmup_epochs": -1},
            "`warmup_epochs` must be an integer of at least 0. Received: warmup_epochs=-1",
        ),
        (
            {"epochs": 15},
            "`epochs` must be above `warmup_epochs`=15. Received: epochs=15",
        ),
        (
            {"selection_pressure": 0.5},
            "`selection_pressure` must be at least 1 and finite. Received: selection_pressure=0.5",
        ),
        (
            {"selection_pressure": np.inf},
            "`selection_pressure` must be at least 1 and finite. Received: selection_pressure=inf",
        ),
    ],
)
def test_bad_arguments(selectors, arguments, message):
    selectors.assert_refused(OnlineBatchSelection, arguments, message)


def test_training_shows_large_losses_more_often(selectors):
    selector = OnlineBatchSelection(10, epochs=4, warmup_epochs=1, selection_pressure=1e6)
    log = selectors.train(selector, epochs=4)
    for entry in log:
        assert set(entry) == {"epoch", "scores", "share_shown"}
    assert log[1]["share_shown"] < log[0]["share_shown"]
    assert np.isfinite(selector.memory.loss[selector.hardest(5)]).all()
