"""`ELRPlus`: holds a classifier to what it and another one learned early."""

from typing import Any

import keras
import tensorflow as tf

from tfrec_efficient.coreset.learners._learner import Learner
from tfrec_efficient.coreset.learners._learner import are_finite
from tfrec_efficient.coreset.learners._learner import check
from tfrec_efficient.coreset.learners._learner import check_at_least
from tfrec_efficient.coreset.learners._learner import mean
from tfrec_efficient.coreset.learners._views import mixup

# Between which and one minus which probabilities are kept in the regularizer.
_LEAST = 1e-4


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class ELRPlus(Learner):
    """Two classifiers, each held to the targets that the average of the other one has made (ELR+).

    Wrong labels are learned late, so what classifiers predict early is worth keeping. Each of the
    two has a target `t` for each sample, zero at first, which in each step becomes

        target_momentum * t + (1 - target_momentum) * p

    with the probabilities p that the moving average of the other classifier's weights gives to the
    sample. The loss of a classifier is the mean over the batch, whose inputs, labels and targets
    are mixed, of

        cross_entropy(y, p) + regularizer_weight * log(1 - <p, t>)

    and both are trained in the same step, by the optimizer of `compile`.

    Train it on batches `(x, y, index)`. Evaluate it on `(x, y)` or `(x, y, sample_weight)`, with
    floating weights. Predictions are the mean output of both classifiers, and metrics of training
    are those of the two averages, on inputs that are not mixed. It runs on one replica, and is not
    compiled by XLA.

    Args:
        classifier: A built `keras.Model` with outputs of shape `(batch, classes)`.
        second_classifier: One like it with other first weights, such as another call of the same
            function returns.
        samples: int. How many samples there are to train on; `index` is in `[0, samples)`.
        classes: int. `y` is in `[0, classes)`.
        target_momentum: float in `[0, 1)`, the beta of the paper. Defaults to 0.9.
        regularizer_weight: float of at least 0, the lambda of the paper. Defaults to 1.
        weight_momentum: float in `[0, 1)`, the gamma of the paper: that of the moving average of
            weights, which begins as a plain average. Defaults to 0.997.
        mixup_alpha: float of at least 0. Samples are mixed by draws of Beta(alpha, alpha); 0 mixes
            none. Inputs must be floating to be mixed. Defaults to 1.
        from_logits: bool. Whether outputs are before the softmax. Defaults to False.
        seed: int that decides what is mixed. Defaults to 0.
        **kwargs: `name`, `trainable` and `dtype` of the model.

    Attributes:
        targets: Two of float32 and shape `(samples, classes)`, of the first and second classifier.

    Raises:
        ValueError: An argument or a batch breaks a rule above.
        tf.errors.InvalidArgumentError: While training, for classes or an index out of range, or
            outputs that `from_logits` does not fit.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> def classifier():
    ...     return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    >>> learner = tfrec.coreset.ELRPlus(classifier(), classifier(), samples=4, classes=3)
    >>> learner.compile("sgd", metrics=["accuracy"])
    >>> x, y, index = np.eye(4, 2), np.array([0, 1, 2, 2]), np.arange(4)
    >>> sorted(learner.train_on_batch(x, y, index, return_dict=True))
    ['accuracy', 'loss']
    >>> learner.predict(x, verbose=0).shape
    (4, 3)

    References:
        - Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning Regularization Prevents
          Memorization of Noisy Labels", NeurIPS 2020, section 4, and ELR+ in the appendix.
          As in the code that its authors published, averages are called in training mode, and
          predictions are of the two classifiers and not of their averages. That code raises
          `weight_momentum` over 40,000 steps and trains one classifier after the other.
    """

    _objects = ("classifier", "second_classifier")

    def __init__(
        self,
        classifier: keras.Model,
        second_classifier: keras.Model,
        samples: int,
        classes: int,
        target_momentum: float = 0.9,
        regularizer_weight: float = 1.0,
        weight_momentum: float = 0.997,
        mixup_alpha: float = 1.0,
        from_logits: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        for name, value in (
            ("target_momentum", target_momentum),
            ("weight_momentum", weight_momentum),
        ):
            check(name, value, 0 <= value < 1, "in `[0, 1)`")
        check_at_least("regularizer_weight", regularizer_weight, 0)
        check_at_least("mixup_alpha", mixup_alpha, 0)
        super().__init__(
            classifier, second_classifier, samples, classes, from_logits, seed, **kwargs
        )
        self.target_momentum = target_momentum
        self.regularizer_weight = regularizer_weight
        self.weight_momentum = weight_momentum
        self.mixup_alpha = mixup_alpha
        self.build(None)

    def _make_weights(self) -> None:
        self.targets = [
            self._make_weight((self.samples, self.classes), "float32", f"targets_{place}")
            for place in range(2)
        ]
        self._averages = [
            self._make_weight(variable.shape, variable.dtype, f"average_{place}")
            for place, variable in enumerate(self._averaged())
        ]

    def _averaged(self) -> list[Any]:
        """The variables of which there are averages, whether or not they are trained now."""
        variables = [variable for network in self._networks() for variable in network.weights]
        return [v for v in variables if keras.backend.is_float_dtype(v.dtype)]

    def _make_weight(self, shape: Any, dtype: Any, name: str) -> Any:
        return self.add_weight(
            shape=shape,
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            autocast=False,
            name=name,
        )

    def _training_loss(
        self, x: Any, labels: tf.Tensor, index: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        self._average_weights()
        outputs = [self._average_outputs(network, x) for network in self._networks()]
        guesses = [tf.exp(self._log_probabilities(output)) for output in outputs]
        given = tf.one_hot(labels, self.classes)
        losses = []
        for place, network in enumerate(self._networks()):
            targets, guess = self.targets[place], guesses[1 - place]
            target = self._update_targets(targets, index, guess)
            mixed_x, mixed = mixup(x, [given, target], self.mixup_alpha, self._seed_of_step(place))
            logs = self._log_probabilities(self._outputs(network, mixed_x, training=True))
            losses.append(self._loss_of_one(logs, *mixed))
        return tf.add_n(losses), mean(outputs)

    def _average_weights(self) -> None:
        """Takes the weights as they are before the step into their averages."""
        steps = tf.cast(self._steps.value, tf.float32)
        momentum = tf.minimum(steps / (steps + 1), self.weight_momentum)
        for average, variable in zip(self._averages, self._averaged(), strict=True):
            kept = tf.cast(momentum, average.dtype)
            average.assign(kept * average.value + (1 - kept) * variable.value)

    def _average_outputs(self, network: keras.Model, x: Any) -> tf.Tensor:
        # In training mode, as moving statistics of batch normalization lag behind. What the call
        # changes, such as these, is left with the scope.
        values = [average.value for average in self._averages]
        with keras.StatelessScope(list(zip(self._averaged(), values, strict=True))):
            return tf.stop_gradient(self._outputs(network, x, training=True))

    def _update_targets(self, targets: Any, index: tf.Tensor, guess: tf.Tensor) -> tf.Tensor:
        before = tf.gather(targets.value, index)
        rows = self.target_momentum * before + (1 - self.target_momentum) * guess
        # In float16, a step that overflows changes no weights, and so no targets either.
        rows = tf.where(are_finite(guess), rows, before)
        targets.value.scatter_update(tf.IndexedSlices(rows, index))
        return rows

    def _loss_of_one(self, logs: tf.Tensor, given: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        probabilities = tf.clip_by_value(tf.exp(logs), _LEAST, 1 - _LEAST)
        agreement = tf.reduce_sum(probabilities * target, axis=1)
        cross_entropy = -tf.reduce_sum(given * logs, axis=1)
        return tf.reduce_mean(cross_entropy + self.regularizer_weight * tf.math.log(1 - agreement))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            target_momentum=self.target_momentum,
            regularizer_weight=self.regularizer_weight,
            weight_momentum=self.weight_momentum,
            mixup_alpha=self.mixup_alpha,
        )
        return config
