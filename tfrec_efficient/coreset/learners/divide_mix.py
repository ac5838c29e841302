"""`DivideMix`: keeps the labels that are likely right, and guesses the others."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.coreset._samples import check_integer
from tfrec_efficient.coreset.learners._learner import Learner
from tfrec_efficient.coreset.learners._learner import check
from tfrec_efficient.coreset.learners._learner import check_at_least
from tfrec_efficient.coreset.learners._learner import mean
from tfrec_efficient.coreset.learners._learner import refuse
from tfrec_efficient.coreset.learners._mixture import clean_probabilities
from tfrec_efficient.coreset.learners._views import augmented
from tfrec_efficient.coreset.learners._views import mixup
from tfrec_efficient.coreset.learners._views import stacked


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class DivideMix(Learner):
    """Two classifiers that divide the samples for each other into labelled and unlabelled ones.

    In the first `warmup_epochs`, both learn the labels as they are. From then on, each epoch
    begins with a pass over the dataset that takes the loss of each sample with either classifier.
    Two normal distributions are fitted to the losses of one, and a sample's probability w of the
    lower one is the probability that its label is right. Each classifier goes by the w of the
    other one. For a sample with w above `clean_threshold`, which counts as labelled, its target is

        sharpen(w * y + (1 - w) * p)

    with its own probabilities p, and for any other one it is `sharpen(mean of both p)`, where
    `sharpen(p)` is `p ** (1 / temperature)`, normalized. Inputs and targets of a batch are mixed,
    and the loss is the cross-entropy of labelled samples, plus the squared error of unlabelled ones
    times `unlabelled_weight`, which rises over `rampup_epochs`, plus the divergence KL(uniform,
    mean prediction). The optimizer of `compile` trains both classifiers in the same step.

    Train it by `fit`, on a `tf.data.Dataset` of batches `(x, y, index)` that is read once more for
    each division, so it should not augment: `augment` does. What of an epoch is known is saved with
    the weights, and `keras.callbacks.BackupAndRestore` resumes a run. Evaluate it on `(x, y)` or
    `(x, y, sample_weight)`, with floating weights. Predictions are the mean output of both
    classifiers. It runs on one replica, and is not compiled by XLA.

    Args:
        classifier: A built `keras.Model` with outputs of shape `(batch, classes)`.
        second_classifier: One like it with other first weights, such as another call of the same
            function returns.
        samples: int. How many samples there are to train on; `index` is in `[0, samples)`.
        classes: int. `y` is in `[0, classes)`.
        warmup_epochs: int of at least 1, over all calls of `fit`. Defaults to 10.
        clean_threshold: float in `[0, 1]`. Defaults to 0.5.
        temperature: float above 0. Defaults to 0.5.
        mixup_alpha: float of at least 0. Samples are mixed by draws of Beta(alpha, alpha); 0 mixes
            none. Inputs must be floating to be mixed. Defaults to 4.
        unlabelled_weight: float of at least 0. Defaults to 1.
        rampup_epochs: int of at least 0. After the warm-up, `unlabelled_weight` rises over so many
            epochs from 0, in equal steps. Defaults to 16.
        confidence_penalty: bool. Whether the warm-up adds the negative entropy of the predictions
            to the loss, for noise that turns one class into a certain other. Defaults to False.
        augment: A Keras layer or a function that augments a batch of inputs at random, or None.
            With one, targets come from two views, and both are trained on. Defaults to None.
        from_logits: bool. Whether outputs are before the softmax. Defaults to False.
        seed: int that decides what is mixed. Defaults to 0.
        **kwargs: `name`, `trainable` and `dtype` of the model.

    Attributes:
        clean_probability: float32 of shape `(samples, 2)`: by the losses of the first and of the
            second classifier; NaN for what was not divided yet.

    Raises:
        ValueError: An argument, the dataset or a batch breaks a rule above, or a loss is not
            finite.
        tf.errors.InvalidArgumentError: While training, for classes or an index out of range,
            outputs that `from_logits` does not fit, or a sample that the pass did not show.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> def classifier():
    ...     return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    >>> networks = classifier(), classifier()
    >>> learner = tfrec.coreset.DivideMix(*networks, samples=4, classes=3, warmup_epochs=1)
    >>> learner.compile("sgd", metrics=["accuracy"])
    >>> x, y, index = np.eye(4, 2), np.array([0, 1, 2, 2]), np.arange(4)
    >>> data = tf.data.Dataset.from_tensor_slices((x, y, index)).batch(2)
    >>> _ = learner.fit(data, epochs=2, shuffle=False, verbose=0)
    >>> learner.clean_probability.numpy().shape
    (4, 2)

    References:
        - Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR
          2020, section 3 and algorithm 1. There, a batch is as many labelled samples and as
          many unlabelled ones; here, it is one of the dataset, with what there is of either. Here
          targets are predicted in inference mode, both classifiers take their step at once, and the
          weight rises by epochs and not within them. The averaging of losses over five epochs, for
          noise of 90 %, is left out.
    """

    _objects = ("classifier", "second_classifier", "augment")

    def __init__(
        self,
        classifier: keras.Model,
        second_classifier: keras.Model,
        samples: int,
        classes: int,
        warmup_epochs: int = 10,
        clean_threshold: float = 0.5,
        temperature: float = 0.5,
        mixup_alpha: float = 4.0,
        unlabelled_weight: float = 1.0,
        rampup_epochs: int = 16,
        confidence_penalty: bool = False,
        augment: Callable[[Any], Any] | None = None,
        from_logits: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        warmup_epochs = check_integer("warmup_epochs", warmup_epochs, 1)
        rampup_epochs = check_integer("rampup_epochs", rampup_epochs, 0)
        check("clean_threshold", clean_threshold, 0 <= clean_threshold <= 1, "in `[0, 1]`")
        check("temperature", temperature, 0 < temperature < np.inf, "above 0 and finite")
        check_at_least("mixup_alpha", mixup_alpha, 0)
        check_at_least("unlabelled_weight", unlabelled_weight, 0)
        super().__init__(
            classifier, second_classifier, samples, classes, from_logits, seed, **kwargs
        )
        self.warmup_epochs = warmup_epochs
        self.clean_threshold = clean_threshold
        self.temperature = temperature
        self.mixup_alpha = mixup_alpha
        self.unlabelled_weight = unlabelled_weight
        self.rampup_epochs = rampup_epochs
        self.confidence_penalty = confidence_penalty
        self.augment = augment
        self._is_warm = False
        self.build(None)

    def _make_weights(self) -> None:
        self.epochs_done = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False, name="epochs_done"
        )
        self.clean_probability = self.add_weight(
            shape=(self.samples, 2),
            initializer=keras.initializers.Constant(np.nan),
            dtype="float32",
            trainable=False,
            autocast=False,
            name="clean_probability",
        )

    # ---- The division.

    def fit(self, x: Any = None, *, callbacks: Any = None, **arguments: Any) -> Any:
        """`fit` of Keras, on a dataset of known size.

        Args:
            x: A `tf.data.Dataset` of batches `(x, y, index)` that ends.
            callbacks: As of Keras.
            **arguments: The other arguments of Keras, by name.

        Raises:
            ValueError: `x` is no such dataset.
        """
        is_dataset = isinstance(x, tf.data.Dataset)
        if not is_dataset or x.cardinality() == tf.data.INFINITE_CARDINALITY:
            received = "one that does not end" if is_dataset else type(x).__name__
            raise ValueError(f"`x` must be a `tf.data.Dataset` that ends. Received: {received}")
        # The first, so that what others save at the end of an epoch counts it.
        callbacks = [_Division(x), *keras.tree.flatten(callbacks or [])]
        return super().fit(x, callbacks=callbacks, **arguments)

    def _sample_losses(self, data: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """The index of a batch, and the losses of shape `(batch, 2)`."""
        x, labels, index = self._unpack(data)
        losses = []
        for network in self._networks():
            logs = self._log_probabilities(self._outputs(network, x, training=False))
            losses.append(-tf.gather(logs, labels, batch_dims=1))
        return index, tf.stack(losses, axis=1)

    def _divide(self, batches: Any) -> None:
        """Sets the probabilities from batches of what `_sample_losses` returns."""
        losses = np.full((self.samples, 2), np.nan, np.float32)
        is_shown = np.zeros(self.samples, bool)
        for index, values in batches:
            losses[index], is_shown[index] = values, True
        wrong = np.flatnonzero(is_shown & ~np.isfinite(losses).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"Losses must be finite. Received: {losses[wrong[0]]} for sample {wrong[0]}"
            )
        for losses_of_one in losses.T:
            losses_of_one[is_shown] = clean_probabilities(losses_of_one[is_shown])
        self.clean_probability.assign(losses)

    # ---- The losses.

    def _training_loss(
        self, x: Any, labels: tf.Tensor, index: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        given = tf.one_hot(labels, self.classes)
        if not self._is_warm:
            return self._warmup_loss(augmented(self.augment, x), given)
        clean = tf.gather(self.clean_probability.value, index)
        unknown = tf.math.is_nan(clean[:, 0])
        message = "`index` must be of samples that the dataset showed before the epoch. Received: "
        clean = refuse(clean, unknown, message, index)
        views = [x] if self.augment is None else [augmented(self.augment, x) for _ in range(2)]
        return self._mixmatch_loss(views, given, clean)

    def _warmup_loss(self, x: Any, given: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = [self._outputs(network, x, training=True) for network in self._networks()]
        losses = []
        for logs in map(self._log_probabilities, outputs):
            loss = -given * logs
            if self.confidence_penalty:
                loss += tf.exp(logs) * logs
            losses.append(tf.reduce_mean(tf.reduce_sum(loss, axis=1)))
        return tf.add_n(losses), mean(outputs)

    def _mixmatch_loss(
        self, views: list[Any], given: tf.Tensor, clean: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = [
            [self._outputs(network, view, training=False) for view in views]
            for network in self._networks()
        ]
        own = [mean([tf.exp(self._log_probabilities(o)) for o in of_one]) for of_one in outputs]
        guess = self._sharpen(mean(own))
        x = stacked(views)
        losses = []
        for place, network in enumerate(self._networks()):
            p, w = own[place], clean[:, 1 - place, None]  # by the other classifier
            refined = self._sharpen(w * given + (1 - w) * p)
            is_labelled = w > self.clean_threshold
            targets = tf.stop_gradient(tf.where(is_labelled, refined, guess))
            repeats = [len(views), 1]
            targets = tf.tile(targets, repeats)
            mixed, (targets,) = mixup(x, [targets], self.mixup_alpha, self._seed_of_step(place))
            logs = self._log_probabilities(self._outputs(network, mixed, training=True))
            losses.append(self._semi_loss(logs, targets, tf.tile(is_labelled[:, 0], repeats[:1])))
        return tf.add_n(losses), mean([of_one[0] for of_one in outputs])

    def _sharpen(self, probabilities: tf.Tensor) -> tf.Tensor:
        # By logarithms, as powers of a low temperature are all zero.
        return tf.nn.softmax(tf.math.log(tf.maximum(probabilities, 1e-30)) / self.temperature)

    def _semi_loss(self, logs: tf.Tensor, targets: tf.Tensor, is_labelled: tf.Tensor) -> tf.Tensor:
        probabilities = tf.exp(logs)
        cross_entropy = -tf.reduce_sum(targets * logs, axis=1)
        error = tf.reduce_mean((probabilities - targets) ** 2, axis=1)
        labelled = tf.cast(is_labelled, tf.float32)
        # Of a class that no sample has, the probability may be too small for a number.
        average = tf.maximum(tf.reduce_mean(probabilities, axis=0), keras.config.epsilon())
        return (
            _mean_of(cross_entropy, labelled)
            + self._weight() * _mean_of(error, 1 - labelled)
            - tf.reduce_mean(tf.math.log(self.classes * average))
        )

    def _weight(self) -> tf.Tensor:
        """That of the unlabelled samples in this epoch."""
        if self.rampup_epochs == 0:
            return self.unlabelled_weight
        epochs = tf.cast(self.epochs_done.value - self.warmup_epochs, tf.float32)
        return self.unlabelled_weight * tf.clip_by_value(epochs / self.rampup_epochs, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            warmup_epochs=self.warmup_epochs,
            clean_threshold=self.clean_threshold,
            temperature=self.temperature,
            mixup_alpha=self.mixup_alpha,
            unlabelled_weight=self.unlabelled_weight,
            rampup_epochs=self.rampup_epochs,
            confidence_penalty=self.confidence_penalty,
        )
        return config


def _mean_of(values: tf.Tensor, are_meant: tf.Tensor) -> tf.Tensor:
    """The mean of the values that are meant, or 0 where none is."""
    return tf.math.divide_no_nan(tf.reduce_sum(values * are_meant), tf.reduce_sum(are_meant))


class _Division(keras.callbacks.Callback):
    """Counts the epochs of a learner, and has it divide the samples after its warm-up."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        super().__init__()
        self._dataset = dataset
        self._losses: Any = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        del epoch, logs  # Keras counts those of one `fit`
        learner = self.model
        is_warm = int(keras.ops.convert_to_numpy(learner.epochs_done)) >= learner.warmup_epochs
        if is_warm:
            if self._losses is None:
                losses = learner._sample_losses
                self._losses = losses if learner.run_eagerly else tf.function(losses)
            learner._divide(map(self._losses, self._dataset))
        if is_warm != learner._is_warm:
            learner._is_warm = is_warm
            learner.make_train_function(force=True)  # the steps to come are other ones

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        del epoch, logs
        self.model.epochs_done.assign_add(1)
