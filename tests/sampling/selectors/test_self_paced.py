import numpy as np
import pytest

from tfrec_efficient.sampling import SelfPaced

LOSSES = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 1.0, 0.4, 0.8, 0.6]


@pytest.mark.parametrize(
    ("epoch", "shown"),
    # 1/2, 2/3, 5/6 and 1 of ten, after an epoch of all.
    [(1, 10), (2, 5), (3, 7), (4, 8), (5, 10), (6, 10), (50, 10)],
)
def test_the_share_of_easy_samples_grows_evenly(selectors, epoch, shown):
    selector = SelfPaced(2, epochs=5, warmup_epochs=1, first_share=0.5)
    selection = selectors.remembering(selector, LOSSES).select(epoch)
    assert sorted(selection.ids) == sorted(np.argsort(LOSSES)[:shown])
    assert selection.sample_weight is None


def test_every_epoch_has_its_share(selectors):
    selector = SelfPaced(2, epochs=24, warmup_epochs=4, first_share=0.24)
    selectors.remembering(selector, np.random.default_rng(0).permutation(1000))
    shown = [len(selector.select(epoch).ids) for epoch in range(1, 26)]
    assert shown == [1000] * 4 + list(range(240, 1001, 40)) + [1000]


def test_the_epoch_after_the_warmup_may_be_the_one_that_shows_all(selectors):
    selector = selectors.remembering(SelfPaced(2, epochs=2, first_share=0.1), LOSSES)
    assert [len(selector.select(epoch).ids) for epoch in (1, 2, 3)] == [10, 10, 10]


def test_samples_never_seen_count_as_easiest(selectors):
    selector = SelfPaced(1, epochs=3, warmup_epochs=1, first_share=0.5)
    selection = selectors.remembering(selector, [0.1, np.nan, 0.0, np.nan]).select(2)
    assert sorted(selection.ids) == [1, 3]


def test_at_least_one_sample_is_shown(selectors):
    selector = SelfPaced(1, epochs=3, warmup_epochs=1, first_share=0.01)
    assert selectors.remembering(selector, [0.3, 0.2, 0.4]).select(2).ids.tolist() == [1]


def test_an_epoch_shows_what_was_selected_once_in_random_order(selectors):
    selector = selectors.remembering(SelfPaced(4, epochs=3, first_share=0.7), LOSSES)
    selector._epochs_done = 1
    batches = [batch.tolist() for batch in selector._planned().batches]
    assert [len(batch) for batch in batches] == [4, 3]
    order = sum(batches, [])
    assert sorted(order) == sorted(np.argsort(LOSSES)[:7])
    assert order != np.argsort(LOSSES)[:7].tolist()


def test_the_config_gives_back_the_selector(selectors):
    arguments = {"epochs": 40, "warmup_epochs": 3, "first_share": 0.25}
    selectors.assert_the_config_gives_back(
        SelfPaced(7, **arguments, from_logits=True, seed=3, log_dir="logs")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"warmup_epochs": 0},
            "`warmup_epochs` must be an integer of at least 1. Received: warmup_epochs=0",
        ),
        (
            {"epochs": 3, "warmup_epochs": 3},
            "`epochs` must be above `warmup_epochs`=3. Received: epochs=3",
        ),
        ({"first_share": 0.0}, "`first_share` must be in `(0, 1]`. Received: first_share=0.0"),
        ({"first_share": 1.1}, "`first_share` must be in `(0, 1]`. Received: first_share=1.1"),
        (
            {"batch_size": 0},
            "`batch_size` must be an integer of at least 1. Received: batch_size=0",
        ),
    ],
)
def test_bad_arguments(selectors, arguments, message):
    selectors.assert_refused(SelfPaced, arguments, message)


def test_training_shows_more_and_more(selectors):
    log = selectors.train(SelfPaced(10, epochs=4, first_share=0.5), epochs=4)
    assert [round(50 * entry["share_shown"]) for entry in log] == [50, 25, 38, 50]
    for entry in log:
        assert set(entry) == {"epoch", "scores", "share_shown"}
        assert sum(entry["scores"]) == 50
