"""DivideMix against NumPy, on classifiers that are tables of logits, and its epochs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.coreset.learners._mixture import clean_probabilities
from tfrec_efficient.coreset.learners._views import mixup
from tfrec_efficient.coreset.learners.divide_mix import DivideMix

RNG = np.random.default_rng(0)
N, K = 8, 3
LOGITS = RNG.normal(size=(2, N, K))
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
CLEAN = np.array(
    [[0.9, 0.2], [0.1, 0.8], [0.6, 0.7], [0.3, 0.1], [1, 0], [0, 1], [0.4, 0.6], [1, 1]]
)
EYE = np.eye(N, dtype="float32")


def make(shared, **arguments):
    sizes = {"samples": N, "classes": K, "from_logits": True, "warmup_epochs": 1}
    networks = [shared.table(logits) for logits in LOGITS]
    return DivideMix(*networks, **{**sizes, **arguments})


def warm(learner, epochs=1):
    """As it is after the warm-up, and the division."""
    learner._is_warm = True
    learner.epochs_done.assign(epochs)
    learner.clean_probability.assign(CLEAN)
    return learner


def loss(shared, learner, **arguments):
    shared.compiled(learner, keras.optimizers.SGD(0.0), **arguments)
    return learner.train_on_batch(EYE, LABELS, np.arange(N), return_dict=True)["loss"]


def sharpen(p, temperature):
    powers = p ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def targets(p, mine, temperature=0.5, threshold=0.5):
    """Targets of one classifier, and which are of labelled samples."""
    w = CLEAN[:, 1 - mine, None]
    refined = sharpen(w * np.eye(K)[LABELS] + (1 - w) * p[mine], temperature)
    return np.where(w > threshold, refined, sharpen(p.mean(axis=0), temperature)), w[
        :, 0
    ] > threshold


def semi_loss(p, t, is_labelled, weight):
    cross_entropy = -(t * np.log(p)).sum(axis=1)[is_labelled].mean()
    error = ((p - t) ** 2)[~is_labelled].mean() if not is_labelled.all() else 0
    return cross_entropy + weight * error + np.log(1 / K / p.mean(axis=0)).mean()


# ---- The losses.


@pytest.mark.parametrize("penalty", [False, True])
def test_the_warm_up_learns_the_labels(penalty, shared):
    p = np.array([shared.softmax(logits) for logits in LOGITS])
    expected = -np.log(p[:, np.arange(N), LABELS]).mean(axis=1).sum()
    expected += penalty * (p * np.log(p)).sum(axis=2).mean(axis=1).sum()
    told = loss(shared, make(shared, confidence_penalty=penalty))
    assert told == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("temperature", "threshold", "epochs", "weight"),
    [(0.5, 0.5, 1, 0.0), (0.5, 0.5, 3, 1.0), (0.25, 0.75, 5, 2.0), (1.0, 0.0, 40, 2.0)],
)
def test_the_loss_is_that_of_the_formulas(temperature, threshold, epochs, weight, shared):
    p = np.array([shared.softmax(logits) for logits in LOGITS])
    expected = sum(
        semi_loss(p[mine], *targets(p, mine, temperature, threshold), weight) for mine in (0, 1)
    )
    learner = make(
        shared,
        temperature=temperature,
        clean_threshold=threshold,
        mixup_alpha=0.0,
        unlabelled_weight=2.0,
        rampup_epochs=4,
    )
    assert loss(shared, warm(learner, epochs)) == pytest.approx(expected, rel=1e-5)


def test_inputs_and_targets_are_mixed_alike_and_keep_their_side(shared):
    learner = warm(make(shared, unlabelled_weight=3.0, rampup_epochs=0, seed=5))
    p = np.array([shared.softmax(logits) for logits in LOGITS])
    expected = 0.0
    for mine in (0, 1):
        mixing = mixup(keras.ops.eye(N), [keras.ops.eye(N)], 4.0, np.array([5, mine]))[0].numpy()
        t, is_labelled = targets(p, mine)
        mixed = shared.softmax(mixing @ LOGITS[mine])
        expected += semi_loss(mixed, mixing @ t, is_labelled, 3.0)
    assert loss(shared, learner) == pytest.approx(expected, rel=1e-5)


def test_targets_are_held_fixed(shared):
    """The step of a classifier is that of its loss, if targets do not depend on it."""
    learner = warm(make(shared, mixup_alpha=0.0, unlabelled_weight=2.0, rampup_epochs=0))
    shared.compiled(learner, keras.optimizers.SGD(1.0))
    learner.train_on_batch(EYE, LABELS, np.arange(N))
    p = np.array([shared.softmax(logits) for logits in LOGITS])
    for mine, network in enumerate([learner.classifier, learner.second_classifier]):
        fixed = targets(p, mine)
        gradient = np.zeros((N, K))
        for position in np.ndindex(N, K):
            step = np.zeros((N, K))
            step[position] = 1e-5
            above, below = (
                semi_loss(shared.softmax(LOGITS[mine] + sign * step), *fixed, 2.0)
                for sign in (1, -1)
            )
            gradient[position] = (above - below) / 2e-5
        found = network.weights[0].numpy()
        np.testing.assert_allclose(found, LOGITS[mine] - gradient, atol=1e-5)


def test_two_views_have_one_target_and_are_both_trained_on(shared):
    calls = []

    def augment(x):
        """The next samples' inputs, in each second call."""
        calls.append(x)
        return tf.roll(x, -1, axis=0) if len(calls) % 2 == 0 else x

    learner = warm(make(shared, augment=augment, mixup_alpha=0.0, rampup_epochs=0))
    views = [LOGITS, np.roll(LOGITS, -1, axis=1)]
    p = np.mean([[shared.softmax(logits) for logits in view] for view in views], axis=0)
    expected = 0.0
    for mine in (0, 1):
        t, is_labelled = targets(p, mine)
        both = shared.softmax(np.concatenate([view[mine] for view in views]))
        expected += semi_loss(both, np.tile(t, (2, 1)), np.tile(is_labelled, 2), 1.0)
    assert loss(shared, learner) == pytest.approx(expected, rel=1e-5)
    assert len(calls) == 2


def test_low_temperatures_do_not_underflow(shared):
    learner = warm(make(shared, temperature=0.001))
    assert np.isfinite(loss(shared, learner))


@pytest.mark.parametrize("from_logits", [False, True])
def test_certain_classifiers_stay_finite(from_logits, shared):
    """Of classes that no sample has, the probability is too small for a number."""
    logits = np.where(np.arange(K) == 0, 1000.0, 0.0) * np.ones((N, 1))
    networks = [shared.table(logits), shared.table(0.9 * logits)]
    if not from_logits:
        networks = [keras.Sequential([network, keras.layers.Softmax()]) for network in networks]
    learner = DivideMix(*networks, N, K, from_logits=from_logits, mixup_alpha=0.0)
    p = np.tile([[1.0, 0.0, 0.0]], (2, N, 1))
    expected = 0.0
    for mine, largest in enumerate([1000.0, 900.0]):
        t, is_labelled = targets(p, mine)
        floor = keras.config.epsilon()
        logs = np.array([0.0, *[-largest if from_logits else np.log(floor)] * 2])
        expected -= (t @ logs)[is_labelled].mean() + (np.log(K) + 2 / K * np.log(floor))
    assert loss(shared, warm(learner)) == pytest.approx(expected, rel=1e-5)
    shared.compiled(learner, keras.optimizers.SGD(1.0))
    learner.train_on_batch(EYE, LABELS, np.arange(N))
    for weight in learner.weights:
        assert np.isfinite(weight.numpy()).all()


def test_a_side_without_samples_adds_nothing(shared):
    learner = warm(make(shared, mixup_alpha=0.0, clean_threshold=1.0, rampup_epochs=0))
    learner.clean_probability.assign(np.zeros((N, 2)))
    p = np.array([shared.softmax(logits) for logits in LOGITS])
    t = sharpen(p.mean(axis=0), 0.5)
    expected = sum(((of_one - t) ** 2).mean() - np.log(K * of_one.mean(0)).mean() for of_one in p)
    assert loss(shared, learner) == pytest.approx(expected, rel=1e-5)


# ---- The division.


def test_probabilities_are_those_of_the_losses_of_each_classifier(shared):
    learner = shared.compiled(shared.learner(DivideMix), keras.optimizers.SGD(0.0))
    shared.fit(learner, epochs=1)
    assert np.isnan(learner.clean_probability.numpy()).all()
    order = np.random.default_rng(0).permutation(shared.SAMPLES)
    data = shared.dataset(shared.X[order], shared.Y[order], order)
    shared.fit(learner, data, epochs=1)
    for column, network in enumerate([learner.classifier, learner.second_classifier]):
        p = network.predict_on_batch(shared.X)[shared.INDEX, shared.Y]
        found = learner.clean_probability.numpy()[:, column]
        np.testing.assert_allclose(found, clean_probabilities(-np.log(p)), atol=1e-4)
        assert found.min() < 0.5 < found.max()


def test_the_warm_up_counts_epochs_over_all_fits(shared):
    learner = shared.learner(DivideMix, warmup_epochs=3, mixup_alpha=0.0)
    shared.compiled(learner, keras.optimizers.SGD(0.0), run_eagerly=False)
    losses = [*shared.fit(learner, epochs=2)["loss"], *shared.fit(learner, epochs=3)["loss"]]
    assert losses[:3] == pytest.approx([losses[0]] * 3)  # of the labels, and then of the targets
    assert abs(losses[3] - losses[0]) > 0.01
    assert learner.epochs_done.numpy() == 5
    assert shared.fit(learner)["loss"][0] != pytest.approx(losses[0], abs=0.01)


@pytest.mark.slow
def test_epochs_are_counted_and_samples_divided_under_a_strategy_of_one_replica(shared):
    def run():
        learner = shared.learner(DivideMix, warmup_epochs=2)
        learner.compile(keras.optimizers.SGD(0.1))
        shared.fit(learner, shared.dataset(batch_size=12), epochs=3)
        shared.fit(learner, shared.dataset(batch_size=12), epochs=1)
        return learner

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        mirrored = run()
    assert mirrored.epochs_done.numpy() == 4
    for ours, plain in zip(mirrored.weights, run().weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), plain.numpy(), rtol=1e-5, err_msg=ours.path)


def test_a_part_of_the_samples_is_enough(shared):
    learner = shared.compiled(shared.learner(DivideMix))
    part = np.arange(0, shared.SAMPLES, 2)
    data = shared.dataset(shared.X[part], shared.Y[part], part)
    shared.fit(learner, data, epochs=2)
    shown = ~np.isnan(learner.clean_probability.numpy()).any(axis=1)
    assert np.flatnonzero(shown).tolist() == part.tolist()
    words = "`index` must be of samples that the dataset showed before the epoch. Received: 1"
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        learner.train_on_batch(shared.X[:4], shared.Y[:4], shared.INDEX[:4])


class Interrupted(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_resumes(shared, tmp_path):
    def run(*callbacks):
        learner = shared.compiled(shared.learner(DivideMix, warmup_epochs=2))
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        shared.fit(learner, epochs=5, callbacks=[backup, *callbacks] if callbacks else None)
        return learner

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted())
    resumed = run(keras.callbacks.Callback())
    assert resumed.epochs_done.numpy() == 5
    for ours, theirs in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def test_losses_that_are_not_finite(shared):
    learner = shared.compiled(shared.learner(DivideMix))
    shared.fit(learner)
    x = shared.X.copy()
    x[17] = np.nan
    words = r"Losses must be finite. Received: \[nan nan\] for sample 17"
    with pytest.raises(ValueError, match=words):
        shared.fit(learner, shared.dataset(x))


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (lambda shared: shared.X, "ndarray"),
        (lambda shared: shared.dataset().repeat(), "one that does not end"),
    ],
    ids=["array", "endless"],
)
def test_what_cannot_be_read_twice(data, received, shared):
    learner = shared.compiled(shared.learner(DivideMix))
    words = f"`x` must be a `tf.data.Dataset` that ends. Received: {received}"
    with pytest.raises(ValueError, match=words):
        shared.fit(learner, data(shared))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("warmup_epochs", 0, "an integer of at least 1"),
        ("rampup_epochs", 1.5, "an integer of at least 0"),
        ("clean_threshold", 1.1, "in `[0, 1]`"),
        ("temperature", 0.0, "above 0 and finite"),
        ("mixup_alpha", -1.0, "at least 0 and finite"),
        ("unlabelled_weight", np.inf, "at least 0 and finite"),
    ],
)
def test_arguments_that_break_a_rule(name, value, rule, shared):
    with pytest.raises(ValueError) as error:
        shared.learner(DivideMix, **{name: value})
    assert str(error.value) == f"`{name}` must be {rule}. Received: {name}={value}"


def test_augmenting_layers_are_saved(shared, tmp_path):
    learner = shared.learner(DivideMix, augment=keras.layers.GaussianNoise(0.1, seed=1))
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.augment.stddev == 0.1


@pytest.mark.slow
def test_wrong_labels_do_less_harm(noisy):
    learner = DivideMix(
        noisy.classifier(1),
        noisy.classifier(2),
        noisy.samples,
        noisy.classes,
        warmup_epochs=3,
        rampup_epochs=5,
    )
    assert noisy.accuracy(learner, 10) > noisy.plain_accuracy + 0.1
    clean = learner.clean_probability.numpy().mean(axis=1)
    assert clean[noisy.is_wrong].mean() < 0.2
    assert clean[~noisy.is_wrong].mean() > 0.8
