"""ELR+ against NumPy, on classifiers that are tables of logits."""

import keras
import numpy as np
import pytest

from tfrec_efficient.coreset.learners._views import mixup
from tfrec_efficient.coreset.learners.elr_plus import ELRPlus

RNG = np.random.default_rng(0)
N, K = 6, 3
LOGITS = RNG.normal(size=(2, N, K))
LABELS = np.array([0, 1, 2, 0, 1, 2])
BATCHES = [np.array([0, 1, 2]), np.array([3, 1]), np.array([2, 0, 4, 1])]
HYPERPARAMETERS = {"target_momentum": 0.6, "regularizer_weight": 2.0, "weight_momentum": 0.6}


def make(shared, **arguments):
    sizes = {"samples": N, "classes": K, "from_logits": True}
    networks = [shared.table(logits) for logits in LOGITS]
    return ELRPlus(*networks, **sizes, **{**HYPERPARAMETERS, **arguments})


def train(shared, learner, batches, learning_rate=0.5, **arguments):
    shared.compiled(learner, keras.optimizers.SGD(learning_rate), **arguments)
    return [
        learner.train_on_batch(np.eye(N, dtype="float32")[i], LABELS[i], i, return_dict=True)
        for i in batches
    ]


def one_step(shared, tables, averages, targets, batch, steps):
    """A step in place, and its loss."""
    y = np.eye(K)[LABELS[batch]]
    momentum = min(steps / (steps + 1), 0.6)
    averages[:] = momentum * averages + (1 - momentum) * tables
    loss = 0.0
    for mine, other in ((0, 1), (1, 0)):
        guess = shared.softmax(averages[other][batch])
        targets[mine][batch] = 0.6 * targets[mine][batch] + 0.4 * guess
        t = targets[mine][batch]
        p = shared.softmax(tables[mine][batch])
        agreement = (p * t).sum(axis=1, keepdims=True)
        loss += (-(y * np.log(p)).sum(axis=1) + 2 * np.log(1 - agreement[:, 0])).mean()
        by_logits = p - y - 2 * p * (t - agreement) / (1 - agreement)
        tables[mine][batch] -= 0.5 * by_logits / len(batch)
    return loss


def test_steps_are_those_of_the_formulas(shared):
    learner = make(shared, mixup_alpha=0.0)
    told = train(shared, learner, BATCHES)
    tables, averages, targets = LOGITS.copy(), np.zeros((2, N, K)), np.zeros((2, N, K))
    for steps, (batch, figures) in enumerate(zip(BATCHES, told, strict=True)):
        loss = one_step(shared, tables, averages, targets, batch, steps)
        assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    found = [learner.classifier, learner.second_classifier]
    np.testing.assert_allclose([n.weights[0].numpy() for n in found], tables, rtol=1e-5)
    np.testing.assert_allclose([a.numpy() for a in learner._averages], averages, rtol=1e-5)
    np.testing.assert_allclose([t.numpy() for t in learner.targets], targets, rtol=1e-5)
    assert (targets[:, 5] == 0).all()  # of a sample that was in no batch


def test_inputs_labels_and_targets_are_mixed_alike(shared):
    learner = make(shared, mixup_alpha=1.0, seed=7)
    batch = np.arange(N)
    (figures,) = train(shared, learner, [batch], learning_rate=0.0)
    loss = 0.0
    for mine, other in ((0, 1), (1, 0)):
        mixing = mixup(keras.ops.eye(N), [keras.ops.eye(N)], 1.0, np.array([7, mine]))[0].numpy()
        t = mixing @ (0.4 * shared.softmax(LOGITS[other]))
        p = shared.softmax(mixing @ LOGITS[mine])
        y = mixing @ np.eye(K)[LABELS]
        loss += (-(y * np.log(p)).sum(axis=1) + 2 * np.log(1 - (p * t).sum(axis=1))).mean()
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)


def test_metrics_are_those_of_the_averages(shared):
    learner = make(shared)
    figures = train(shared, learner, [np.arange(N)], metrics=["accuracy"])[-1]
    right = LOGITS.mean(axis=0).argmax(axis=1) == LABELS  # the average of the first weights
    assert figures["accuracy"] == pytest.approx(right.mean())


def test_the_average_is_plain_at_first(shared):
    learner = make(shared, weight_momentum=0.99)
    kernel = learner.classifier.weights[0]
    seen = []
    for batch in BATCHES * 2:
        seen.append(kernel.numpy())
        train(shared, learner, [batch])
    np.testing.assert_allclose(learner._averages[0].numpy(), np.mean(seen, axis=0), rtol=1e-5)


def test_probabilities_near_one_keep_the_regularizer_finite(shared):
    learner = make(shared, mixup_alpha=0.0, target_momentum=0.0)
    for network, logit in ((learner.classifier, 100), (learner.second_classifier, 99)):
        network.weights[0].assign(logit * np.eye(K)[LABELS])
    (figures,) = train(shared, learner, [np.arange(N)])
    assert figures["loss"] == pytest.approx(2 * 2 * np.log(1e-4), rel=1e-3)


def test_predictions_that_are_not_finite_reach_no_target(shared):
    learner = make(shared)
    train(shared, learner, [np.arange(N)])
    before = [targets.numpy() for targets in learner.targets]
    learner.classifier.weights[0].assign(np.full((N, K), np.nan))
    train(shared, learner, [np.arange(N)])
    assert np.isfinite(learner.targets[0].numpy()).all()
    assert (learner.targets[0].numpy() != before[0]).all()  # those that the second one makes
    np.testing.assert_array_equal(learner.targets[1].numpy(), before[1])


def test_averages_change_no_statistics_and_follow_the_batch(shared):
    """Batch normalization is in training mode, and moves once a step and not twice."""

    def network(seed):
        keras.utils.set_random_seed(seed)
        normalization = keras.layers.BatchNormalization(momentum=0.5)
        return keras.Sequential(
            [keras.Input((4,)), normalization, keras.layers.Dense(3, "softmax")]
        )

    networks = [network(1), network(2)]
    expected = [n(shared.X, training=True).numpy() for n in (network(1), network(2))]
    learner = shared.learner(ELRPlus, *networks, mixup_alpha=0.0, target_momentum=0.0)
    shared.compiled(learner).train_on_batch(shared.X, shared.Y, shared.INDEX)
    for n, targets, of_other in zip(networks, learner.targets, expected[::-1], strict=True):
        np.testing.assert_allclose(targets.numpy(), of_other, rtol=1e-5)
        moved = n.layers[0].moving_mean.numpy()
        np.testing.assert_allclose(moved, 0.5 * shared.X.mean(axis=0), rtol=1e-5)


def test_frozen_layers_stay(shared):
    networks = [shared.classifier(1), shared.classifier(2)]
    learner = shared.learner(ELRPlus, *networks)
    networks[0].layers[0].trainable = False
    kernel = networks[0].layers[0].kernel.numpy()
    shared.fit(shared.compiled(learner), epochs=2)
    np.testing.assert_array_equal(networks[0].layers[0].kernel.numpy(), kernel)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("target_momentum", 1.0, "in `[0, 1)`"),
        ("weight_momentum", -0.1, "in `[0, 1)`"),
        ("regularizer_weight", -1.0, "at least 0 and finite"),
        ("mixup_alpha", np.nan, "at least 0 and finite"),
    ],
)
def test_arguments_that_break_a_rule(name, value, rule, shared):
    with pytest.raises(ValueError) as error:
        shared.learner(ELRPlus, **{name: value})
    assert str(error.value) == f"`{name}` must be {rule}. Received: {name}={value}"


@pytest.mark.slow
def test_wrong_labels_do_less_harm(noisy):
    learner = ELRPlus(
        noisy.classifier(1),
        noisy.classifier(2),
        noisy.samples,
        noisy.classes,
        target_momentum=0.7,
        regularizer_weight=7.0,
    )
    assert noisy.accuracy(learner, 30) > noisy.plain_accuracy + 0.1
    guesses = np.mean([targets.numpy() for targets in learner.targets], axis=0).argmax(axis=1)
    assert (guesses == noisy.right)[noisy.is_wrong].mean() > 0.8
