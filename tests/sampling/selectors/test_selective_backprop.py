import numpy as np
import pytest

from tfrec_efficient.sampling import SelectiveBackprop


def shown(selector, seeds):
    """How often each sample is shown in epoch 2, over many seeds."""
    counts = np.zeros(len(selector.memory.loss))
    for seed in range(seeds):
        selector.seed = seed
        selection = selector.select(2)
        assert selection.sample_weight is None
        counts[selection.ids] += 1
    return counts / seeds


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    ("losses", "shares"),
    [
        ([0.3, 0.1, 0.4, 0.2], [0.75, 0.25, 1.0, 0.5]),
        ([1.0, 2.0, 1.0, 1.0], [0.75, 1.0, 0.75, 0.75]),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
        ([np.nan, 0.2, np.nan, 0.1], [1.0, 0.5, 1.0, 0.25]),
    ],
)
def test_a_sample_is_kept_by_its_share_to_the_exponent(selectors, losses, shares, exponent):
    selector = selectors.remembering(SelectiveBackprop(2, exponent), losses)
    expected = np.array(shares) ** exponent
    # 4 standard deviations of 2000 draws, of which there are none for a certain one.
    tolerance = 4 * np.sqrt(expected * (1 - expected) / 2000)
    assert (np.abs(shown(selector, 2000) - expected) <= tolerance).all()


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_the_exponent_says_how_many_are_kept(selectors, exponent):
    losses = np.random.default_rng(0).permutation(20_000)
    selector = selectors.remembering(SelectiveBackprop(2, exponent), losses)
    kept = len(selector.select(2).ids) / 20_000
    assert kept == pytest.approx(1 / (1 + exponent), abs=0.015)


@pytest.mark.parametrize(("refresh_epochs", "full"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7])])
def test_every_so_many_epochs_show_all(selectors, refresh_epochs, full):
    selector = SelectiveBackprop(2, refresh_epochs=refresh_epochs)
    selectors.remembering(selector, np.arange(100.0))
    ids = {epoch: selector.select(epoch).ids.tolist() for epoch in range(1, 8)}
    assert [epoch for epoch in ids if ids[epoch] == list(range(100))] == full


def test_who_is_kept_differs_between_epochs_and_not_between_calls(selectors):
    selector = selectors.remembering(SelectiveBackprop(2), np.arange(100.0))
    a, again, b = (selector.select(epoch).ids.tolist() for epoch in (2, 2, 3))
    assert a == again
    assert a != b


def test_an_epoch_is_never_empty(selectors):
    selector = selectors.remembering(SelectiveBackprop(1, exponent=1e6), [0.3, 0.7, 0.1])
    assert selector.select(2).ids.tolist() == [1]


def test_the_config_gives_back_the_selector(selectors):
    arguments = {"exponent": 2.5, "refresh_epochs": 5}
    selectors.assert_the_config_gives_back(
        SelectiveBackprop(7, **arguments, from_logits=True, seed=3, log_dir="logs")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exponent": -0.5}, "`exponent` must be at least 0. Received: exponent=-0.5"),
        (
            {"refresh_epochs": 0},
            "`refresh_epochs` must be an integer of at least 1. Received: refresh_epochs=0",
        ),
        (
            {"batch_size": 0},
            "`batch_size` must be an integer of at least 1. Received: batch_size=0",
        ),
    ],
)
def test_bad_arguments(selectors, arguments, message):
    selectors.assert_refused(SelectiveBackprop, arguments, message)


def test_training_shows_all_in_every_third_epoch(selectors):
    log = selectors.train(SelectiveBackprop(10, exponent=2.0), epochs=4)
    shown = [entry["share_shown"] for entry in log]
    assert shown[0] == shown[3] == 1.0
    assert 0.1 < shown[1] < 0.6
    assert 0.1 < shown[2] < 0.6
    for entry in log:
        assert set(entry) == {"epoch", "scores", "share_shown"}
        assert sum(entry["scores"]) == 50
