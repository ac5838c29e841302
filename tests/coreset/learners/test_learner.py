"""What all learners do alike: the classifier they are, the batches they take, what is saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.coreset.learners.elr_plus import ELRPlus
from tfrec_efficient.coreset.learners.sop_plus import SOPPlus


def networks_of(learner):
    return [learner.classifier, learner.second_classifier][: 1 + (type(learner) is not SOPPlus)]


def assert_same_weights(ours, theirs):
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


# ---- A classifier.


def test_predictions_are_the_mean_output_of_the_classifiers(kind, shared):
    learner = shared.learner(kind)
    outputs = [network.predict_on_batch(shared.X) for network in networks_of(learner)]
    assert len(outputs) == (1 if kind is SOPPlus else 2)
    np.testing.assert_allclose(learner.predict_on_batch(shared.X), np.mean(outputs, 0), rtol=1e-6)


@pytest.mark.parametrize("from_logits", [False, True])
def test_evaluation_tells_the_cross_entropy_and_metrics(from_logits, shared):
    network = shared.classifier(1, None if from_logits else "softmax")
    learner = shared.learner(SOPPlus, network, from_logits=from_logits)
    shared.compiled(learner, metrics=["accuracy"])
    p = network.predict_on_batch(shared.X)
    p = shared.softmax(p) if from_logits else p
    figures = learner.evaluate(shared.X, shared.Y, verbose=0, return_dict=True)
    assert figures["loss"] == pytest.approx(-np.log(p[shared.INDEX, shared.Y]).mean(), rel=1e-5)
    assert figures["accuracy"] == pytest.approx((p.argmax(axis=1) == shared.Y).mean())


def test_evaluation_tells_the_loss_of_compile_and_weights_samples(shared):
    learner = shared.compiled(shared.learner(SOPPlus), loss="sparse_categorical_crossentropy")
    weights = np.linspace(0, 2, shared.SAMPLES)
    weighted = learner.evaluate(shared.X, shared.Y, sample_weight=weights, verbose=0)
    p = learner.predict_on_batch(shared.X)[shared.INDEX, shared.Y]
    assert weighted == pytest.approx((-np.log(p) * weights).mean(), rel=1e-5)
    learner.compile(loss=lambda y, p: tf.reduce_sum(p, axis=1))  # of probabilities, it is one
    assert learner.evaluate(shared.X, shared.Y, verbose=0) == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_an_index_and_a_weight_are_not_taken_for_each_other(kind, dtype, shared):
    learner = shared.compiled(shared.learner(kind), run_eagerly=dtype != "uint8")
    numbers = shared.INDEX.astype(dtype)
    words = (
        "`sample_weight` must be floating in what is evaluated; cast weights, and leave an index "
        f"out by `dataset.map(lambda x, y, index: (x, y))`. Received: dtype {dtype}"
    )
    for evaluate in (
        lambda: learner.evaluate(shared.dataset(index=numbers), verbose=0),
        lambda: learner.evaluate(shared.X, shared.Y, sample_weight=numbers, verbose=0),
        lambda: learner.test_on_batch(shared.X, shared.Y, numbers),
    ):
        with pytest.raises(ValueError) as error:
            evaluate()
        assert words in str(error.value)
    weighted = learner.evaluate(shared.dataset(index=numbers.astype("float32")), verbose=0)
    losses = -np.log(learner.predict_on_batch(shared.X)[shared.INDEX, shared.Y])
    assert weighted == pytest.approx((losses * shared.INDEX).mean(), rel=1e-5)


# ---- Training.


def test_fit_trains_the_classifiers_and_validates(kind, shared):
    learner = shared.learner(kind)
    before = [variable.numpy() for variable in learner.trainable_variables]
    shared.compiled(learner, metrics=["accuracy"], run_eagerly=False)
    data = shared.dataset(batch_size=16)  # of two sizes
    plain = data.map(lambda x, y, index: (x, y))
    history = shared.fit(learner, data, epochs=2, validation_data=plain)
    assert set(history) == {"accuracy", "loss", "val_accuracy", "val_loss"}
    assert np.isfinite(history["loss"]).all()
    trainable = [v for network in networks_of(learner) for v in network.trainable_variables]
    assert {id(v) for v in learner.trainable_variables} == {id(v) for v in trainable}
    for old, variable in zip(before, learner.trainable_variables, strict=True):
        assert (old != variable.numpy()).any()
    paths = [variable.path for variable in learner.weights]
    assert len({id(variable) for variable in learner.weights}) == len(paths) == len(set(paths))


def test_runs_repeat_by_their_seeds(kind, shared):
    def run(seed):
        learner = shared.compiled(shared.learner(kind, seed=seed))
        shared.fit(learner, shared.dataset(batch_size=12), epochs=2)
        return learner

    first, again, other = run(1), run(1), run(2)
    assert_same_weights(first, again)
    assert any(
        (a.numpy() != b.numpy()).any() for a, b in zip(first.weights, other.weights, strict=True)
    )


def test_a_loaded_learner_goes_on_like_the_one_that_was_saved(kind, shared, tmp_path):
    learner = shared.compiled(shared.learner(kind, seed=3), "adam")
    shared.fit(learner, epochs=2)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert type(loaded) is kind
    for name, value in learner.get_config().items():
        if not isinstance(value, dict):  # but for the classifiers, of which the weights tell
            assert loaded.get_config()[name] == value
    assert_same_weights(loaded, learner)
    loaded.run_eagerly = True
    for model in (learner, loaded):
        shared.fit(model)
    assert_same_weights(loaded, learner)


def test_float16_scales_the_loss_and_keeps_what_is_remembered_wide(kind, shared):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        networks = [shared.classifier(seed) for seed in (1, 2)]
    finally:
        keras.config.set_dtype_policy("float32")
    learner = shared.compiled(shared.learner(kind, *networks))
    assert isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer)
    plain = shared.compiled(shared.learner(kind))
    wide, narrow = shared.fit(plain, epochs=2), shared.fit(learner, epochs=2)
    assert narrow["loss"] == pytest.approx(wide["loss"], rel=0.01)
    assert learner.predict_on_batch(shared.X).dtype == np.float16
    assert {str(variable.dtype) for variable in learner.weights} <= {"float32", "int64"}


def test_losses_of_the_layers_are_added(kind, shared):
    def loss(penalty):
        regularizer = keras.regularizers.L2(penalty)
        networks = [shared.classifier(seed, regularizer=regularizer) for seed in (1, 2)]
        learner = shared.compiled(shared.learner(kind, *networks))
        kernels = [network.layers[-1].kernel.numpy() for network in networks_of(learner)]
        told = learner.train_on_batch(shared.X, shared.Y, shared.INDEX)
        return told, sum((kernel**2).sum() for kernel in kernels)

    with_penalty, squares = loss(0.5)
    assert with_penalty - loss(0.0)[0] == pytest.approx(0.5 * squares, rel=1e-4)


def test_the_loss_of_an_epoch_is_the_mean_over_samples(shared):
    learner = shared.compiled(
        shared.learner(SOPPlus, balance_weight=0.0), keras.optimizers.SGD(0.0)
    )
    whole = shared.fit(learner, shared.dataset(batch_size=24))["loss"]
    assert shared.fit(learner, shared.dataset(batch_size=16))["loss"] == pytest.approx(whole)


class Subclassed(keras.Model):
    """Of inputs by name, and without an argument that says whether it trains."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(8)
        self.normalization = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.5, seed=1)
        self.last = keras.layers.Dense(3, "softmax", activity_regularizer="l2")

    def call(self, x):
        hidden = self.normalization(self.hidden(x["a"]) + x["b"])
        return self.last(self.dropout(hidden))


def test_subclassed_classifiers_and_inputs_by_name(kind, shared):
    x = {"a": shared.X, "b": shared.X[:, :1]}
    networks = [Subclassed(), Subclassed()]
    for network in networks:
        network(x)
    learner = shared.compiled(shared.learner(kind, *networks))
    history = shared.fit(learner, shared.dataset(x), epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert learner.predict_on_batch(x).shape == (shared.SAMPLES, shared.CLASSES)
    for network in networks_of(learner):
        assert (network.normalization.moving_mean.numpy() != 0).any()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_classes_of_any_integer_dtype_and_in_a_column(dtype, shared):
    def loss(y):
        learner = shared.compiled(shared.learner(SOPPlus))
        return learner.train_on_batch(shared.X, y, shared.INDEX.astype("int32"))

    assert loss(shared.Y.astype(dtype)[:, None]) == loss(shared.Y)


# ---- What is refused.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": 0}, "`samples` must be an integer of at least 1. Received: samples=0"),
        ({"classes": 1}, "`classes` must be an integer of at least 2. Received: classes=1"),
        ({"classes": 3.0}, "`classes` must be an integer of at least 2. Received: classes=3.0"),
        ({"seed": -1}, "`seed` must be an integer of at least 0. Received: seed=-1"),
    ],
    ids=str,
)
def test_arguments_that_break_a_rule(kind, arguments, words, shared):
    with pytest.raises(ValueError) as error:
        shared.learner(kind, **arguments)
    assert str(error.value) == words


def test_classifiers_that_are_none(shared):
    with pytest.raises(ValueError, match="`classifier` must be a `keras.Model`. Received: .*Dense"):
        shared.learner(SOPPlus, keras.layers.Dense(3))
    with pytest.raises(ValueError, match="`second_classifier` must be a `keras.Model`. Received: "):
        shared.learner(ELRPlus, shared.classifier(), "second")
    with pytest.raises(ValueError, match="`classifier` must be built: begin it with `keras.Input`"):
        shared.learner(SOPPlus, Subclassed())


def test_classifiers_that_share_weights(kind, shared):
    if kind is SOPPlus:
        return
    first = shared.classifier()
    second = keras.Sequential([keras.Input((4,)), first])
    for other, count in ((first, 4), (second, 4)):
        with pytest.raises(ValueError, match=f"share no weights with .* Received: {count} shared"):
            shared.learner(kind, first, other)


def test_classifiers_that_begin_alike(kind, shared):
    if kind is SOPPlus:
        return
    learner = shared.compiled(shared.learner(kind, shared.classifier(1), shared.classifier(1)))
    words = "`second_classifier` must begin with other weights than `classifier`. Received: the"
    with pytest.raises(ValueError, match=words):
        shared.fit(learner)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("y", 3, "`y` must be in `[0, 3)`. Received: `y[5]=3`"),
        ("y", -1, "`y` must be in `[0, 3)`. Received: `y[5]=-1`"),
        ("index", 24, "`index` must be in `[0, 24)`. Received: `index[5]=24`"),
        ("index", -7, "`index` must be in `[0, 24)`. Received: `index[5]=-7`"),
    ],
)
def test_numbers_out_of_range(kind, name, value, words, shared):
    arrays = {"y": shared.Y.copy(), "index": shared.INDEX.copy()}
    arrays[name][5:7] = value
    # One in a graph, where the order of what depends on nothing is free.
    learner = shared.compiled(shared.learner(kind), run_eagerly=value != 24)
    before = [variable.numpy() for variable in learner.weights]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        learner.train_on_batch(shared.X, arrays["y"], arrays["index"])
    assert words in str(error.value)
    for old, variable in zip(before, learner.weights, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_batches_of_other_kinds(kind, shared):
    learner = shared.compiled(shared.learner(kind))
    with pytest.raises(
        ValueError, match=r"Batches must be `\(x, y, index\)`, .* Received: 2 parts"
    ):
        shared.fit(learner, shared.dataset().map(lambda x, y, index: (x, y)))
    with pytest.raises(ValueError, match="`index` must be integers. Received: dtype float32"):
        shared.fit(learner, shared.dataset(index=shared.INDEX.astype("float32")))
    with pytest.raises(ValueError, match="`y` must be integers. Received: dtype float64"):
        shared.fit(learner, shared.dataset(y=np.eye(3)[shared.Y]))
    with pytest.raises(
        ValueError, match=r"`y` must have the shape `\(batch,\)`. Received: \(24, 3\)"
    ):
        shared.fit(learner, shared.dataset(y=np.eye(3, dtype=int)[shared.Y]))


def test_classifiers_of_another_width(kind, shared):
    learner = shared.compiled(shared.learner(kind, classes=4))
    words = r"`classifier` must have outputs of shape `\(batch, 4\)`. Received: \(24, 3\)"
    with pytest.raises(ValueError, match=words):
        shared.fit(learner)


def test_outputs_that_are_no_probabilities(kind, shared):
    networks = [shared.classifier(seed, None) for seed in (1, 2)]
    learner = shared.compiled(shared.learner(kind, *networks))
    words = "`from_logits` must be True of .* Received: from_logits=False, and absolute outputs"
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        shared.fit(learner)


def test_more_than_one_replica(kind, shared):
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope(), pytest.raises(ValueError, match="one replica, .* Received: 2 replicas"):
        shared.learner(kind)


def test_xla_is_left_out(kind, shared):
    learner = shared.learner(kind)
    learner.compile("sgd")
    assert not learner.jit_compile
