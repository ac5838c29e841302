import numpy as np
import pytest

from tfrec_efficient.sampling import InfoBatch

# The mean is .5, which sample 3 has itself.
LOSSES = [0.125, 0.25, 1.0, 0.5, 0.625]


def selections(selector, count):
    """What `selector` would show in the next epoch with each of `count` seeds."""
    for seed in range(count):
        selector.seed = seed
        yield selector.select(2)


def test_only_samples_below_the_mean_loss_are_left_out(selectors):
    selector = selectors.remembering(InfoBatch(2, prune_ratio=0.75), LOSSES)
    shown = np.zeros(5)
    for selection in selections(selector, 2000):
        assert selection.sample_weight.tolist() == [4.0, 4.0, 1.0, 1.0, 1.0]
        assert len(set(selection.ids.tolist())) == len(selection.ids)
        shown[selection.ids] += 1
    assert shown[2:].tolist() == [2000] * 3
    assert shown[:2] == pytest.approx([500, 500], abs=80)  # 4 standard deviations


@pytest.mark.parametrize("prune_ratio", [0.0, 0.3, 0.5, 0.9])
def test_the_weighted_sum_over_an_epoch_is_unbiased(selectors, prune_ratio):
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 3.0, 200)  # one component of each sample's gradient
    selector = InfoBatch(2, prune_ratio=prune_ratio)
    selectors.remembering(selector, rng.gamma(1.0, size=200))
    sums = [
        (selection.sample_weight * values)[selection.ids].sum()
        for selection in selections(selector, 1000)
    ]
    error = np.std(sums) / np.sqrt(len(sums))
    assert np.mean(sums) == pytest.approx(values.sum(), abs=4 * error + 1e-9)
    assert (len(set(sums)) > 1) == (prune_ratio > 0)  # without pruning, all are shown


def test_who_is_left_out_differs_between_epochs_and_not_between_calls(selectors):
    selector = selectors.remembering(InfoBatch(2), np.arange(100.0))
    a, again, b = (selector.select(epoch).ids.tolist() for epoch in (2, 2, 3))
    assert a == again
    assert a != b


def test_samples_never_seen_are_shown_and_not_in_the_mean(selectors):
    selector = selectors.remembering(InfoBatch(2, prune_ratio=0.5), [*LOSSES, np.nan])
    for selection in selections(selector, 50):
        assert selection.sample_weight.tolist() == [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
        assert set(selection.ids) >= {2, 3, 4, 5}


def test_the_first_epoch_shows_all(selectors):
    selection = selectors.given(InfoBatch(2), 5).select(1)
    assert selection.ids.tolist() == [0, 1, 2, 3, 4]
    assert selection.sample_weight is None


@pytest.mark.parametrize(
    ("epochs", "full_from", "last"),
    [(8, 0.875, 7), (100, 0.875, 87), (10, 0.0, 0), (10, 1.0, 10), (100, 0.29, 29), (10, 0.7, 7)],
)
def test_the_last_epochs_show_all(selectors, epochs, full_from, last):
    selector = InfoBatch(2, epochs, prune_ratio=0.9, full_from=full_from)
    selectors.remembering(selector, np.arange(100.0))
    prunes = [len(selector.select(epoch).ids) < 100 for epoch in range(1, epochs + 2)]
    assert prunes == [epoch <= last for epoch in range(1, epochs + 2)]


def test_batches_bring_the_weights_times_the_given_ones(selectors):
    selector = selectors.remembering(InfoBatch(2, prune_ratio=0.5), LOSSES)
    given = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    seen = {}
    for x, _, weight in selector.dataset(np.arange(5)[:, None], np.zeros(5, int), given):
        seen |= dict(zip(x.numpy()[:, 0].tolist(), weight.numpy().tolist(), strict=True))
    assert set(seen) >= {2, 3, 4}
    expected = [2.0, 4.0, 3.0, 4.0, 5.0]
    assert seen == {sample: expected[sample] for sample in seen}


def test_the_config_gives_back_the_selector(selectors):
    arguments = {"epochs": 40, "prune_ratio": 0.25, "full_from": 0.75}
    selectors.assert_the_config_gives_back(
        InfoBatch(7, **arguments, from_logits=True, seed=3, log_dir="logs")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "`epochs` must be an integer of at least 1. Received: epochs=0"),
        ({"prune_ratio": 1.0}, "`prune_ratio` must be in `[0, 1)`. Received: prune_ratio=1.0"),
        ({"prune_ratio": -0.1}, "`prune_ratio` must be in `[0, 1)`. Received: prune_ratio=-0.1"),
        ({"full_from": 1.5}, "`full_from` must be in `[0, 1]`. Received: full_from=1.5"),
        ({"full_from": -0.5}, "`full_from` must be in `[0, 1]`. Received: full_from=-0.5"),
        (
            {"batch_size": 0},
            "`batch_size` must be an integer of at least 1. Received: batch_size=0",
        ),
    ],
)
def test_bad_arguments(selectors, arguments, message):
    selectors.assert_refused(InfoBatch, arguments, message)


def test_training_shows_less_and_in_the_end_all(selectors):
    log = selectors.train(InfoBatch(10, epochs=4, prune_ratio=0.75, full_from=0.75), epochs=4)
    shown = [entry["share_shown"] for entry in log]
    assert shown[0] == shown[3] == 1.0
    assert 0.3 < shown[1] < 0.9
    assert 0.3 < shown[2] < 0.9
    for entry in log:
        assert set(entry) == {"epoch", "scores", "share_shown"}
        assert sum(entry["scores"]) == 50
