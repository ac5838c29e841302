"""A run that was killed goes on as if it had not been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import tfrec_efficient as tfrec
from tfrec_efficient import sampling

EPOCHS = 6
SELECTORS = {
    "RecencyBias": lambda **other: tfrec.RecencyBias(
        **{"batch_size": 10, "epochs": 7, "warmup_epochs": 1, "window": 3, "seed": 2, **other}
    ),
    "RecencyBias, weighted": lambda: SELECTORS["RecencyBias"](importance_weights=True),
    "ActiveBias": lambda: sampling.ActiveBias(batch_size=10, warmup_epochs=1),
    "SelfPaced": lambda: sampling.SelfPaced(batch_size=10, epochs=7, first_share=0.3),
    "InfoBatch": lambda: sampling.InfoBatch(batch_size=10, epochs=5, prune_ratio=0.8),
    "SelectiveBackprop": lambda: sampling.SelectiveBackprop(batch_size=10),
}


class Kill(keras.callbacks.Callback):
    """Ends this process at once, after a step of an epoch."""

    def __init__(self, epoch, step):
        super().__init__()
        self.epoch = epoch
        self.step = step
        self.current = None

    def on_epoch_begin(self, epoch, logs=None):
        self.current = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.current, batch) == (self.epoch, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


class Run:
    """A run with new objects: the batches of its epochs, its model and its selector."""

    def __init__(self, shared, kind="RecencyBias", model=None, selector=None):
        self.selector = selector or SELECTORS[kind]()
        self.dataset = self.selector.dataset(shared.X, shared.Y)
        self.model = model or shared.compiled(shared.small_model(), 0.5, momentum=0.9)
        self.plans = shared.Plans(self.selector)

    def fit(self, before=(), after=(), epochs=EPOCHS, **arguments):
        callbacks = [*before, self.selector, self.plans, *after]
        self.model.fit(
            self.dataset, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0, **arguments
        )
        return self

    def weights(self):
        variables = [*self.model.weights, *self.model.optimizer.variables]
        return [variable.numpy() for variable in variables]


def assert_goes_on_like(resumed, whole, first):
    """From epoch `first` on, all is the same."""
    assert sorted(resumed.plans.epochs) == list(range(first, EPOCHS))
    for epoch, batches in resumed.plans.epochs.items():
        assert batches == whole.plans.epochs[epoch]
    assert resumed.selector.log == whole.selector.log
    for name, array in whole.selector.memory.arrays().items():
        np.testing.assert_array_equal(resumed.selector.memory.arrays()[name], array)
    for ours, theirs in zip(resumed.weights(), whole.weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.fixture(scope="module")
def whole_runs(shared):
    """Runs that nobody killed, by the kind of selector."""
    runs = {}

    def whole(kind):
        if kind not in runs:
            runs[kind] = Run(shared, kind).fit()
            plans = [str(plan) for plan in runs[kind].plans.epochs.values()]
            assert len(set(plans)) == EPOCHS  # or the tests could not fail
        return runs[kind]

    return whole


def backup(directory, **arguments):
    return keras.callbacks.BackupAndRestore(directory / "backup", **arguments)


# ---- BackupAndRestore.


@pytest.mark.parametrize(
    ("order", "step"), [("before", None), ("after", None), ("before", 2), ("after", 4)]
)
def test_a_killed_run_goes_on_from_its_last_epoch(step, order, shared, tmp_path, whole_runs):
    with pytest.raises(KeyboardInterrupt):
        Run(shared).fit(**{order: [backup(tmp_path)]}, epochs=EPOCHS, **killed(shared, step, order))
    resumed = Run(shared).fit(**{order: [backup(tmp_path)]})
    assert_goes_on_like(resumed, whole_runs("RecencyBias"), first=3)


def killed(shared, step, order):
    """The callback that kills, at the other end of the list."""
    return {{"before": "after", "after": "before"}[order]: [shared.Killer(3, step)]}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * (kind != "InfoBatch"))
        for kind in SELECTORS
        if kind != "RecencyBias"
    ],
)
def test_every_selector_goes_on(kind, shared, tmp_path, whole_runs):
    """Also those whose epochs are longer than the first after the kill."""
    whole = whole_runs(kind)
    with pytest.raises(KeyboardInterrupt):
        Run(shared, kind).fit([backup(tmp_path)], [shared.Killer(2, 0)])
    assert_goes_on_like(Run(shared, kind).fit([backup(tmp_path)]), whole, first=2)


def test_some_later_epochs_are_longer(whole_runs):
    """What the test above is about."""
    sizes = [len(plan) for plan in whole_runs("SelfPaced").plans.epochs.values()]
    assert sizes[0] == 5
    assert sizes[2] < sizes[-1]


def test_a_run_that_is_killed_again_and_again(shared, tmp_path, whole_runs):
    for epoch in (0, 1, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            Run(shared).fit([backup(tmp_path)], [shared.Killer(epoch, 3)])
    assert_goes_on_like(Run(shared).fit([backup(tmp_path)]), whole_runs("RecencyBias"), first=5)


@pytest.mark.parametrize(
    ("kind", "order"), [("RecencyBias, weighted", "before"), ("InfoBatch", "after")]
)
def test_an_epoch_that_was_cut_short_is_shown_again_from_its_beginning(
    kind, order, shared, tmp_path, whole_runs
):
    """Keras restores the weights of the middle of the epoch, and runs all of it."""
    whole = whole_runs(kind)
    epoch = 1 if kind == "InfoBatch" else 3
    before = sum(len(plan) for at, plan in whole.plans.epochs.items() if at < epoch)
    save_freq = before + 2  # a multiple of it comes later
    with pytest.raises(KeyboardInterrupt):
        Run(shared, kind).fit(
            **{order: [backup(tmp_path, save_freq=save_freq)]},
            **{"before" if order == "after" else "after": [shared.Killer(epoch, 2)]},
        )
    runs = []
    for copy in ("one", "two"):
        shutil.copytree(tmp_path / "backup", tmp_path / copy / "backup")
        run = Run(shared, kind)
        observed = count_observations(run)
        runs.append(run.fit(**{order: [backup(tmp_path / copy, save_freq=1000)]}))
        resumed = sum(len(ids) for plan in run.plans.epochs.values() for ids in plan)
        assert observed() == resumed
    one, two = runs
    assert sorted(one.plans.epochs) == list(range(epoch, EPOCHS))
    assert one.plans.epochs[epoch] == whole.plans.epochs[epoch]
    assert one.plans.epochs == two.plans.epochs
    assert [entry["epoch"] for entry in one.selector.log] == list(range(1, EPOCHS + 1))
    assert one.selector.log[:epoch] == whole.selector.log[:epoch]
    for ours, theirs in zip(one.weights(), two.weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def count_observations(run):
    """Counts the samples that the memory is told of."""
    counts, memory = [], run.selector.memory
    append = memory.append
    memory.append = lambda ids, values: (counts.append(len(ids)), append(ids, values))
    return lambda: sum(counts)


def test_a_state_saved_in_mid_epoch_has_what_was_recorded_so_far(shared, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Run(shared).fit([backup(tmp_path, save_freq=3)], [shared.Killer(0, 3)])
    selector = SELECTORS["RecencyBias"]()
    selector.dataset(shared.X, shared.Y)
    selector.load(tmp_path / "backup" / "latest.weights.h5")
    shown = np.bincount(np.concatenate(selector._planned().batches[:3]), minlength=50)
    assert selector.memory.votes().tolist() == shown.tolist()
    assert selector.log == []


def test_an_epoch_saved_after_its_last_step_is_run_again_with_its_batches(
    shared, tmp_path, whole_runs
):
    """Keras saves between its last step and its end, and does not count it as done."""
    whole = whole_runs("RecencyBias")
    with pytest.raises(KeyboardInterrupt):
        Run(shared).fit([backup(tmp_path, save_freq=5)], [shared.Killer(3, 0)])
    run = Run(shared).fit([backup(tmp_path, save_freq=5)], epochs=5)
    assert sorted(run.plans.epochs) == [2, 3, 4]
    assert run.plans.epochs[2] == whole.plans.epochs[2]
    assert [entry["epoch"] for entry in run.selector.log] == [1, 2, 3, 4, 5]
    assert run.selector.log[:2] == whole.selector.log[:2]


def test_a_process_that_is_killed_goes_on(shared, tmp_path, whole_runs):
    program = f"""
import importlib.util
def load(path):
    spec = importlib.util.spec_from_file_location(path.split("/")[-1][:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
from pathlib import Path
tests = load({__file__!r})
shared = load({str(Path(__file__).with_name("conftest.py"))!r}).Shared
tests.Run(shared).fit([tests.backup(Path({str(tmp_path)!r}))], [tests.Kill(4, 2)])
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    metadata = json.loads((tmp_path / "backup" / "training_metadata.json").read_text())
    assert metadata["epoch"] == 4
    assert_goes_on_like(Run(shared).fit([backup(tmp_path)]), whole_runs("RecencyBias"), first=4)


def test_an_interrupted_run_goes_on_with_the_same_objects(shared, tmp_path, whole_runs):
    run = Run(shared)
    with pytest.raises(KeyboardInterrupt):
        run.fit([backup(tmp_path)], [shared.Killer(3, 2)])
    assert_goes_on_like(run.fit([backup(tmp_path)]), whole_runs("RecencyBias"), first=0)


# ---- ModelCheckpoint.


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_a_saved_model_goes_on_after_load(suffix, order, shared, tmp_path, whole_runs):
    path = tmp_path / f"model{suffix}"
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=suffix != ".keras")
    first = Run(shared).fit(**{order: [checkpoint]}, epochs=3)
    if suffix == ".keras":
        model = keras.models.load_model(path)
    else:
        model = shared.compiled(shared.small_model(seed=5), 0.5, momentum=0.9)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
    expected = first.model.predict(shared.X, verbose=0)
    np.testing.assert_array_equal(model.predict(shared.X, verbose=0), expected)

    resumed = Run(shared, model=model)
    resumed.selector.load(path)
    assert resumed.selector.log == first.selector.log
    resumed.fit(initial_epoch=3)
    assert_goes_on_like(resumed, whole_runs("RecencyBias"), first=3)


def test_a_model_saved_without_a_selector_is_as_ever(shared, tmp_path):
    run = Run(shared).fit(epochs=1)
    run.model.save(tmp_path / "after.keras")
    model = keras.models.load_model(tmp_path / "after.keras")
    assert len(model.weights) == 2
    message = "^`path` must be a file that was saved .* Received: one with no state of RecencyBias$"
    with pytest.raises(ValueError, match=message):
        run.selector.load(tmp_path / "after.keras")


def saved(shared, tmp_path, kind="RecencyBias"):
    path = tmp_path / "model.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    Run(shared, kind).fit([checkpoint], epochs=1)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SELECTORS["RecencyBias"](window=4), "window=4. Received: window=3"),
        (lambda: SELECTORS["RecencyBias"](seed=3), "seed=3. Received: seed=2"),
        (SELECTORS["SelfPaced"], "selector=SelfPaced. Received: selector=RecencyBias"),
    ],
)
def test_the_state_of_another_selector_is_refused(make, words, shared, tmp_path):
    selector = make()
    selector.dataset(shared.X, shared.Y)
    before = selector.export_state()
    with pytest.raises(
        ValueError, match=f"^The saved selector must be like this one, with {words}$"
    ):
        selector.load(saved(shared, tmp_path))
    assert selector.classes is None
    after = selector.export_state()
    assert {name: array.tobytes() for name, array in after.items()} == {
        name: array.tobytes() for name, array in before.items()
    }


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.update(memory_ring=state["memory_ring"][:, 1:]), "must be whole"),
        (lambda state: state.pop("memory_votes"), "must be whole"),
        (lambda state: state.update(plan_ids=np.array([0, 50], np.int32)), "must be whole"),
        (
            lambda state: state.update(
                about=np.frombuffer(state["about"].tobytes().replace(b'n": 1', b'n": 2'), np.uint8)
            ),
            "must have the format 1. Received: 2",
        ),
    ],
)
def test_a_spoilt_state_is_refused(spoil, words, shared):
    selector = SELECTORS["RecencyBias"]()
    selector.dataset(shared.X, shared.Y)
    state = selector.export_state()
    selector.import_state(state)
    spoil(state)
    with pytest.raises(ValueError, match=words):
        selector.import_state(state)


def test_the_state_of_another_dataset_is_refused(shared, tmp_path):
    selector = SELECTORS["RecencyBias"]()
    selector.dataset(shared.X[:40], shared.Y[:40])
    with pytest.raises(ValueError, match="with samples=40. Received: samples=50$"):
        selector.load(saved(shared, tmp_path))


def test_the_folder_of_tensorboard_may_change(shared, tmp_path):
    selector = SELECTORS["RecencyBias"](log_dir=str(tmp_path / "elsewhere"))
    selector.dataset(shared.X, shared.Y)
    selector.load(saved(shared, tmp_path))
    assert len(selector.log) == 1


def test_a_backup_without_a_selector_is_restored_with_a_warning(shared, tmp_path):
    run = Run(shared)
    with pytest.raises(KeyboardInterrupt):
        run.model.fit(
            shared.X, shared.Y, batch_size=10, epochs=3, shuffle=False, verbose=0,
            callbacks=[backup(tmp_path), shared.Killer(1)],
        )  # fmt: skip
    message = "The checkpoint has no state of RecencyBias, which begins anew."
    resumed = Run(shared)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed.fit([backup(tmp_path)], epochs=2)
    assert message in [str(warning.message) for warning in caught]
    assert [entry["epoch"] for entry in resumed.selector.log] == [1]
