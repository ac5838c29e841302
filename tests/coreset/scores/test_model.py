"""Probabilities and embeddings are what a model of any kind makes of the examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.coreset.scores._fingerprint import fingerprint

CLASSES = 3
layers = keras.layers


# ---- Models of all kinds, which end in `head` after `hidden`.


def functional():
    inputs = keras.Input((4,))
    hidden = layers.BatchNormalization()(layers.Dense(6, "relu", name="hidden")(inputs))
    logits = layers.Dense(CLASSES, name="head")(layers.Dropout(0.5)(hidden))
    return keras.Model(inputs, layers.Softmax()(logits))


def stacked():
    hidden = layers.Dense(6, "relu", name="hidden")
    head = layers.Dense(CLASSES, "softmax", name="head")
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dropout(0.5), head])


def nested():
    body = keras.Sequential([keras.Input((4,)), layers.Dense(6, "relu", name="hidden")])
    head = keras.Sequential([keras.Input((6,)), layers.Dense(CLASSES, name="head")])
    return keras.Sequential([body, head, layers.Softmax()])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(CLASSES, "softmax", name="head")  # made first, and runs last
        self.hidden = layers.Dense(6, "relu", name="hidden")
        self.dropout = layers.Dropout(0.5)

    def call(self, x, training=False):
        return self.head(self.dropout(self.hidden(x), training=training))


def eager():
    model = Subclassed()
    model.compile(run_eagerly=True)
    return model


def mirrored(build=functional):
    # Collective ops remember the programs of strategies before, and abort where they differ.
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        return build()


MODELS = {
    "sequential": stacked,
    "functional": functional,
    "nested": nested,
    "subclassed, not built": Subclassed,
    "eager": eager,
    "mirrored": mirrored,
    "mirrored, not built": lambda: mirrored(Subclassed),
}


def named(model, name):
    return next(x for x in model._flatten_layers(include_self=False) if x.name == name)


@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_what_the_model_makes_of_each_example(kind, shared):
    model = MODELS[kind]()
    scores = shared.score(model)
    probabilities = model.predict(shared.X, verbose=0)
    np.testing.assert_allclose(scores.probabilities, probabilities, rtol=1e-5)
    np.testing.assert_array_equal(scores.confidences, scores.probabilities.max(axis=1))
    assert scores.labels.tolist() == shared.Y.tolist()
    assert scores.fingerprints.tolist() == [int(fingerprint(*pair)) for pair in shared.examples()]
    # What the head makes of the embeddings are the probabilities.
    kernel, bias = (weight.numpy() for weight in named(model, "head").weights)
    np.testing.assert_allclose(
        shared.softmax(scores.embeddings @ kernel + bias), probabilities, rtol=1e-4
    )
    dtypes = [getattr(scores, name).dtype.name for name in shared.FILES]
    assert dtypes == ["float32", "float32", "int64", "int64", "float32"]


@pytest.mark.parametrize("kind", ["sequential", "functional", "nested", "subclassed, not built"])
def test_a_layer_can_be_named_or_given(kind, shared):
    model = MODELS[kind]()
    model(shared.X[:1])
    hidden = named(model, "hidden")
    kernel, bias = (weight.numpy() for weight in hidden.weights)
    expected = np.maximum(shared.X @ kernel + bias, 0)
    for layer in ("hidden", hidden):
        found = shared.score(model, embedding_layer=layer)
        np.testing.assert_allclose(found.embeddings, expected, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_is(shared):
    model = Subclassed()
    model(shared.X[:1])
    every = [model, *model._flatten_layers()]
    before = [set(vars(layer)) for layer in every]
    weights = [weight.numpy() for weight in model.weights]
    shared.score(model)
    with pytest.raises(ValueError, match="no class|whole numbers"):
        shared.score(model, shared.examples(y=shared.Y + 1))
    assert [set(vars(layer)) for layer in every] == before
    for weight, array in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), array)


def test_a_layer_that_is_listened_to_already_stays_so(shared):
    model = stacked()
    calls, head = [], model.layers[-1]
    original = head.call
    vars(head)["call"] = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    wrapped = vars(head)["call"]
    shared.score(model)
    assert calls
    assert vars(head)["call"] is wrapped


def test_maps_of_features_are_flattened(shared):
    image = layers.Reshape((2, 2, 1))
    model = keras.Sequential(
        [image, layers.Conv2D(5, 1), layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")]
    )
    assert shared.score(model).embeddings.shape == (shared.SIZE, 5)
    found = shared.score(model, embedding_layer=model.layers[1]).embeddings
    np.testing.assert_allclose(
        found, model.layers[1](image(shared.X)).numpy().reshape(shared.SIZE, 20)
    )


def test_several_inputs_and_weights_of_samples(shared):
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    joined = layers.Concatenate()([left, right])
    model = keras.Model({"left": left, "right": right}, layers.Dense(3, "softmax")(joined))
    features = {"left": shared.X, "right": -shared.X}
    dataset = tf.data.Dataset.from_tensor_slices((features, shared.Y, np.ones(shared.SIZE)))
    np.testing.assert_array_equal(
        shared.score(model, dataset).embeddings, np.hstack([shared.X, -shared.X])
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, shared):
    with_policy = {"dtype": policy}
    model = keras.Sequential(
        [layers.Dense(6, "relu", **with_policy), layers.Dense(3, "softmax", **with_policy)]
    )
    scores = shared.score(model)
    assert scores.probabilities.dtype == scores.embeddings.dtype == np.float32
    np.testing.assert_allclose(scores.probabilities, model.predict(shared.X, verbose=0), atol=1e-2)
    class_of = scores.probabilities.argmax(axis=1)
    assert (scores.confidences == scores.probabilities[np.arange(shared.SIZE), class_of]).all()


# ---- Outputs.


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("from_logits", [False, True])
def test_one_output_means_two_classes(from_logits, flat, shared):
    model = shared.small_model(classes=1, activation=None if from_logits else "sigmoid")
    logits = shared.X @ model.weights[0].numpy() + model.weights[1].numpy()
    logits = np.maximum(logits, 0) @ model.weights[2].numpy() + model.weights[3].numpy()
    if flat:
        model = keras.Model(model.inputs, layers.Reshape(())(model.outputs[0]))
    scores = shared.score(model, shared.examples(y=shared.Y == 2), from_logits=from_logits)
    second = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(scores.probabilities, np.hstack([1 - second, second]), atol=1e-6)
    assert scores.embeddings.shape == (shared.SIZE, 6)
    assert scores.labels.tolist() == (shared.Y == 2).astype(int).tolist()


def test_logits_become_probabilities(shared):
    model = shared.small_model(activation=None)
    expected = shared.softmax(model.predict(shared.X, verbose=0))
    np.testing.assert_allclose(
        shared.score(model, from_logits=True).probabilities, expected, rtol=1e-5
    )


# ---- Errors.


X = np.random.default_rng(1).normal(size=(23, 4)).astype("float32")


def constant(value):
    """A layer after which the first output of row 8 is `value`."""
    first = tf.constant(X[8, 0])
    return lambda x, made: tf.where((x[:, :1] == first) & (tf.range(3) == 0), value, made)


def broken(value, of_embedding=False):
    inputs = keras.Input((4,))
    replace = layers.Lambda(lambda pair: constant(value)(*pair))
    hidden = layers.Dense(3)(inputs)
    if of_embedding:
        hidden = replace([inputs, hidden])
    output = layers.Dense(3, "softmax")(hidden)
    if of_embedding:
        output = layers.Lambda(lambda made: tf.fill(tf.shape(made), 1 / 3))(output)
    return keras.Model(inputs, output if of_embedding else replace([inputs, output]))


class InLoop(keras.Model):
    """Calls its last layer in a graph of its own."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3, "softmax", name="head")

    def call(self, x):
        return tf.function(self.head)(x)


class Unused(Subclassed):
    def __init__(self):
        super().__init__()
        self.other = layers.Softmax(name="other")


def sequential(*stack):
    return lambda: keras.Sequential(list(stack))


LOOKUP = [layers.Lambda(lambda x: tf.cast(x > 0, tf.int32)), layers.Embedding(2, 3, name="lookup")]
AVERAGE = [layers.GlobalAveragePooling1D(), layers.Softmax()]
WIDE = [layers.Dense(5, name="wide"), layers.Lambda(lambda x: tf.nn.softmax(x[:, :3]))]
LONG = [layers.Reshape((4, 1)), layers.Dense(3, "softmax")]
ERRORS = [
    (lambda: broken(np.nan), {}, "The model's output must be finite. Received: NaN or infinity in "
     "row 8"),
    (lambda: broken(np.inf, True), {}, "Embeddings must be finite. Received: NaN or infinity in "
     "row 8"),
    (lambda: broken(0.9), {}, "that sum to 1, unless `from_logits=True`. .* in row 8"),
    (sequential(layers.Dense(3)), {}, "must be probabilities that sum to 1, unless `from_logits=T"),
    (stacked, {"embedding_layer": "body"}, "one of the model's layers, which are .*hidden, dropout"
     ".*, head. Received: embedding_layer=body, which 0 of them are"),
    (stacked, {"embedding_layer": layers.Dense(3)}, "which 0 of them are"),
    (Unused, {"embedding_layer": "other"}, "must be a layer that runs .* Received: embedding_layer"
     "=other, and the last such layer that ran is None"),
    (InLoop, {}, "outside of loops and of a `tf.function`, .*=None, .* that ran is head"),
    (sequential(*LOOKUP, *AVERAGE), {}, "tensor of real numbers .* that ran is lookup"),
    (sequential(*WIDE), {}, "makes the output. Received: .*=None, .* is wide"),
    (sequential(layers.Softmax()), {}, "=None, and the last such layer that ran is None"),
    (sequential(*LONG), {}, r"output, of shape `\(batch, classes\)`, .* \(None, 4, 3\)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "arguments", "message"), ERRORS, ids=[message for *_, message in ERRORS]
)
def test_errors(make, arguments, message, shared):
    with pytest.raises(ValueError, match=message):
        shared.score(make(), shared.examples(X), **arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sequential(layers.Dense(3, "softmax")), "of single examples that are batched here. "
         r"Received: \(None, 4, 3\)"),
        (stacked, "Invalid input shape"),
    ],
)  # fmt: skip
def test_examples_that_are_batches_are_refused(make, message, shared):
    with pytest.raises(ValueError, match=message):
        shared.score(make(), shared.examples().batch(4, drop_remainder=True))
