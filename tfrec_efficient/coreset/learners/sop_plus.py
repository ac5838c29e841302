"""`SOPPlus`: learns the noise of each label beside the classifier."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.coreset.learners._learner import Learner
from tfrec_efficient.coreset.learners._learner import are_finite
from tfrec_efficient.coreset.learners._learner import check_at_least
from tfrec_efficient.coreset.learners._views import augmented
from tfrec_efficient.coreset.learners._views import stacked

# The least probability in the losses, as in the code that the paper's authors published.
_LEAST = 1e-4


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class SOPPlus(Learner):
    """A classifier with variables that take up the noise of the labels (SOP and SOP+).

    Sample i with the one-hot label y has `U = clip(u[i]**2 * y, 0, 1)`, which stands for a wrong
    label, and `V = clip(v[i]**2 * (1 - y), 0, 1)`, which stands for the right one. With the
    probabilities p of the classifier and its choice h, one-hot, the loss is the mean over the batch
    of

        cross_entropy(y, normalize(p + U - stop_gradient(V))) + |h + U - V - y|**2

    plus `balance_weight` times the divergence KL(uniform, mean of the normalized), plus
    `consistency_weight` times KL(p of the weak view, p of the strong view), where the weak one is
    held fixed. The optimizer of `compile` trains the classifier. Rows of `u` and `v` take steps of
    plain gradient descent, without momentum and weight decay, and only those of the batch.

    Train it on batches `(x, y, index)`. Evaluate it on `(x, y)` or `(x, y, sample_weight)`, with
    floating weights. Predictions are those of the classifier. It runs on one replica, and is not
    compiled by XLA.

    Args:
        classifier: A built `keras.Model` with outputs of shape `(batch, classes)`.
        samples: int. How many samples there are to train on; `index` is in `[0, samples)`.
        classes: int. `y` is in `[0, classes)`.
        weak: A Keras layer or a function that augments a batch of inputs a little, or None. The
            loss of the labels is that of this view. Defaults to None.
        strong: One that augments them much, or None, with which there is no consistency to weight.
            Defaults to None.
        u_learning_rate: float of at least 0. Defaults to 10.
        v_learning_rate: float of at least 0. Defaults to 100.
        balance_weight: float of at least 0. Defaults to 0.1.
        consistency_weight: float of at least 0. Defaults to 0.9.
        from_logits: bool. Whether the classifier's output is before the softmax. Defaults to False.
        seed: int that decides the first values of `u` and `v`. Defaults to 0.
        **kwargs: `name`, `trainable` and `dtype` of the model.

    Attributes:
        u: float32 of shape `(samples, 1)`.
        v: float32 of shape `(samples, classes)`.

    Raises:
        ValueError: An argument or a batch breaks a rule above.
        tf.errors.InvalidArgumentError: While training, for classes or an index out of range, or
            outputs that `from_logits` does not fit.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> classifier = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    >>> learner = tfrec.coreset.SOPPlus(classifier, samples=4, classes=3)
    >>> learner.compile("sgd", metrics=["accuracy"])
    >>> x, y, index = np.eye(4, 2), np.array([0, 1, 2, 2]), np.arange(4)
    >>> sorted(learner.train_on_batch(x, y, index, return_dict=True))
    ['accuracy', 'loss']
    >>> learner.predict(x, verbose=0).shape
    (4, 3)

    References:
        - Liu, Zhu, Qu, You, "Robust Training under Label Noise by Over-parameterization", ICML
          2022, section 2. As in the code that its authors published, and not in the paper, the
          squared error trains `u` as well, and probabilities are at least 1e-4 in the loss. The
          divergences are whole, where that code leaves out the constant.
    """

    _objects = ("classifier", "weak", "strong")

    def __init__(
        self,
        classifier: keras.Model,
        samples: int,
        classes: int,
        weak: Callable[[Any], Any] | None = None,
        strong: Callable[[Any], Any] | None = None,
        u_learning_rate: float = 10.0,
        v_learning_rate: float = 100.0,
        balance_weight: float = 0.1,
        consistency_weight: float = 0.9,
        from_logits: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_at_least("u_learning_rate", u_learning_rate, 0)
        check_at_least("v_learning_rate", v_learning_rate, 0)
        check_at_least("balance_weight", balance_weight, 0)
        check_at_least("consistency_weight", consistency_weight, 0)
        super().__init__(classifier, None, samples, classes, from_logits, seed, **kwargs)
        self.weak = weak
        self.strong = strong
        self.u_learning_rate = u_learning_rate
        self.v_learning_rate = v_learning_rate
        self.balance_weight = balance_weight
        self.consistency_weight = consistency_weight
        self.build(None)

    def _make_weights(self) -> None:
        self.u, self.v = (
            self.add_weight(
                shape=(self.samples, width),
                initializer=keras.initializers.RandomNormal(stddev=1e-8, seed=self.seed + place),
                dtype="float32",
                trainable=False,  # by the optimizer
                autocast=False,
                name=name,
            )
            for place, (name, width) in enumerate([("u", 1), ("v", self.classes)])
        )

    def _training_loss(
        self, x: Any, labels: tf.Tensor, index: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        views = [augmented(self.weak, x)]
        if self.strong is not None:
            views.append(augmented(self.strong, x))
        # One pass over both, so that batch normalization sees one distribution.
        outputs = self._outputs(self.classifier, stacked(views), training=True)
        logs = tf.split(self._log_probabilities(outputs), len(views))
        u, v = (tf.gather(variable.value, index) for variable in (self.u, self.v))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([u, v])
            loss = self._label_loss(logs[0], tf.one_hot(labels, self.classes), u, v)
        rates = self.u_learning_rate, self.v_learning_rate
        for variable, gradient, rate in zip(
            (self.u, self.v), tape.gradient(loss, [u, v]), rates, strict=True
        ):
            # In float16, a step that overflows changes no weights, and so no rows either.
            step = tf.where(are_finite(logs[0]), rate * gradient, 0.0)
            variable.value.scatter_sub(tf.IndexedSlices(step, index))
        if self.strong is not None:
            guess = tf.stop_gradient(logs[0])
            divergence = tf.reduce_sum(tf.exp(guess) * (guess - logs[1]), axis=1)
            loss += self.consistency_weight * tf.reduce_mean(divergence)
        return loss, tf.split(outputs, len(views))[0]

    def _label_loss(self, logs: tf.Tensor, given: tf.Tensor, u: tf.Tensor, v: tf.Tensor) -> Any:
        """All but the consistency, from log probabilities and one-hot labels `(batch, classes)`."""
        wrong = tf.clip_by_value(u**2 * given, 0.0, 1.0)
        right = tf.clip_by_value(v**2 * (1 - given), 0.0, 1.0)
        chosen = tf.one_hot(tf.argmax(logs, axis=1), self.classes)
        error = tf.reduce_sum((chosen + wrong - right - given) ** 2, axis=1)
        shares = tf.maximum(tf.exp(logs) + wrong - tf.stop_gradient(right), _LEAST)
        shares /= tf.reduce_sum(shares, axis=1, keepdims=True)
        shares = tf.maximum(shares, _LEAST)
        cross_entropy = -tf.reduce_sum(given * tf.math.log(shares), axis=1)
        average = tf.reduce_mean(shares, axis=0)
        balance = -tf.reduce_mean(tf.math.log(self.classes * average))
        return tf.reduce_mean(cross_entropy + error) + self.balance_weight * balance

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            u_learning_rate=self.u_learning_rate,
            v_learning_rate=self.v_learning_rate,
            balance_weight=self.balance_weight,
            consistency_weight=self.consistency_weight,
        )
        return config
