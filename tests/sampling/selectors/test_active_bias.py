import numpy as np
import pytest

from tfrec_efficient.sampling import ActiveBias


def told(selector, samples, selectors):
    """`selector`, which knows of each of `samples` the probabilities of its given label."""
    selectors.given(selector, len(samples))
    for turn in range(max(len(values) for values in samples)):
        ids = np.array([i for i, values in enumerate(samples) if turn < len(values)])
        selector.memory.append(ids, np.float32([samples[i][turn] for i in ids]))
    return selector


# Variances 1/16, 1/4 and 0, of 2, 2 and 3 draws.
BY_HAND = [[0.25, 0.75], [0.0, 1.0], [0.5, 0.5, 0.5]]
DEVIATIONS = [np.sqrt(1 / 16 + 1 / 256), np.sqrt(1 / 4 + 1 / 16), 0.0]


def test_preferences_worked_by_hand(selectors):
    selector = ActiveBias(2, mode="sampling", warmup_epochs=1, smoothing=0.125)
    selection = told(selector, BY_HAND, selectors).select(2)
    assert selection.weights == pytest.approx(np.array(DEVIATIONS) + 0.125)
    assert selection.sample_weight is None


def test_samples_drawn_fewer_than_twice_have_the_mean_preference(selectors):
    selector = ActiveBias(2, mode="sampling", warmup_epochs=1, smoothing=0.02)
    weights = told(selector, [*BY_HAND, [0.9], []], selectors).select(2).weights
    mean = np.mean(DEVIATIONS)
    assert weights == pytest.approx(np.array([*DEVIATIONS, mean, mean]) + 0.02)


def test_without_a_sample_drawn_twice_all_preferences_are_equal(selectors):
    selector = ActiveBias(2, mode="sampling", warmup_epochs=1, smoothing=0.02)
    weights = told(selector, [[0.9], [0.1], []], selectors).select(2).weights
    assert weights == pytest.approx([0.02] * 3)


def test_preferences_are_those_of_the_formula_over_all_draws(selectors):
    rng = np.random.default_rng(0)
    samples = [rng.random(rng.integers(2, 40)).astype(np.float32).tolist() for _ in range(60)]
    selector = ActiveBias(2, mode="sampling", warmup_epochs=3, smoothing=0.05)
    weights = told(selector, samples, selectors).select(4).weights
    variance = np.array([np.var(values) for values in samples])
    draws = np.array([len(values) for values in samples])
    expected = np.sqrt(variance + variance**2 / (draws - 1)) + 0.05
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_weighting_draws_evenly_and_weights_each_batch_to_a_mean_of_1(selectors):
    samples = [[0.1 * i, 0.1 * i + 0.05 * j] for i in range(5) for j in range(1, 5)]
    selector = ActiveBias(6, mode="weighting", warmup_epochs=1, smoothing=0.02)
    selection = told(selector, samples, selectors).select(2)
    assert selection.weights is None
    assert selection.normalize_batch
    preference = np.array([np.std(values) for values in np.float32(samples)])
    preference = np.sqrt(preference**2 + preference**4) + 0.02
    np.testing.assert_allclose(selection.sample_weight, preference, rtol=1e-5)
    selector._epochs_done, selector._plan = 1, None
    batches = list(selector.dataset(np.arange(20)[:, None], np.zeros(20, int)))
    assert len(batches) == 4
    for x, _, weight in batches:
        own = preference[x.numpy()[:, 0]]
        np.testing.assert_allclose(weight, own * 6 / own.sum(), rtol=1e-5)


def test_given_weights_multiply_the_scaled_ones(selectors):
    selector = ActiveBias(3, mode="weighting", warmup_epochs=1, smoothing=0.125)
    told(selector, BY_HAND, selectors)._epochs_done = 1
    given = np.array([1.0, 2.0, 4.0])
    (batch,) = selector.dataset(np.arange(3)[:, None], np.zeros(3, int), given)
    preference = np.array(DEVIATIONS) + 0.125
    expected = preference * 3 / preference.sum() * given
    np.testing.assert_allclose(batch[2], expected[batch[0].numpy()[:, 0]], rtol=1e-5)


@pytest.mark.parametrize("mode", ["sampling", "weighting"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_the_warmup_prefers_nothing(selectors, mode, epoch):
    selector = told(ActiveBias(2, mode, warmup_epochs=3), BY_HAND, selectors)
    selection = selector.select(epoch)
    assert selection.weights is None
    assert selection.sample_weight is None
    parts = next(iter(selector.dataset(np.arange(3)[:, None], np.zeros(3, int))))
    if mode == "weighting":
        assert parts[2].numpy().tolist() == [1.0, 1.0]
    else:
        assert len(parts) == 2


@pytest.mark.parametrize("mode", ["sampling", "weighting"])
def test_the_config_gives_back_the_selector(selectors, mode):
    arguments = {"warmup_epochs": 3, "smoothing": 0.2}
    selector = ActiveBias(7, mode, **arguments, from_logits=True, seed=3, log_dir="logs")
    if mode == "sampling":
        selectors.assert_the_config_gives_back(selector)
    else:  # the default
        assert ActiveBias(**selector.get_config()).get_config() == selector.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "both"}, '`mode` must be one of "sampling" and "weighting". Received: mode=both'),
        (
            {"warmup_epochs": 0},
            "`warmup_epochs` must be an integer of at least 1. Received: warmup_epochs=0",
        ),
        ({"smoothing": 0.0}, "`smoothing` must be above 0. Received: smoothing=0.0"),
        (
            {"batch_size": 0},
            "`batch_size` must be an integer of at least 1. Received: batch_size=0",
        ),
    ],
)
def test_bad_arguments(selectors, arguments, message):
    selectors.assert_refused(ActiveBias, arguments, message)


@pytest.mark.parametrize("mode", ["sampling", "weighting"])
def test_training(selectors, mode):
    selector = ActiveBias(10, mode, warmup_epochs=2)
    for entry in selectors.train(selector, epochs=4):
        assert set(entry) == {"epoch", "scores", "share_shown"}
    assert selector.memory.count.sum() == 4 * 50
    drawn = selector.memory.count > 1
    assert (selector.memory.variance()[drawn] > 0).any()
