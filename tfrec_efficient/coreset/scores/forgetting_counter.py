"""`ForgettingCounter`: how often each sample goes from right to wrong in training."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.coreset._samples import check_integer
from tfrec_efficient.coreset.scores._examples import check_examples
from tfrec_efficient.coreset.scores._examples import to_classes
from tfrec_efficient.coreset.scores._model import check_probabilities
from tfrec_efficient.coreset.scores._model import to_probabilities


class ForgettingCounter(keras.callbacks.Callback):
    """Counts how often the model forgets each sample.

    A sample is forgotten when the model was right about it after an epoch, and is wrong after the
    next. After every epoch the model runs once over the dataset, which takes about a third of the
    time of an epoch. Counting goes on over several calls of `fit`.

    Args:
        dataset: A finite `tf.data.Dataset` of single examples `(x, y)` or `(x, y, sample_weight)`,
            which gives the same ones in the same order each time. Labels are numbers of classes or
            one-hot.
        batch_size: int. Examples in a forward pass. Defaults to 128.
        from_logits: bool. Whether the output is before the softmax or sigmoid. Defaults to False.

    Attributes:
        right_: bool of shape `(epochs, samples)`: where the model was right. Assigning what another
            counter had goes on from there.
        events_: int64 of shape `(samples,)`: how often each was forgotten. Those that the model was
            never right about get the number of epochs, which is more than any other can have.

    Raises:
        ValueError: An argument breaks a rule above; or in `fit`, an output is no probability, or
            the dataset gives other labels than before.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> model = keras.Sequential([keras.layers.Dense(3, "softmax")])
    >>> model.compile("sgd", "sparse_categorical_crossentropy")
    >>> dataset = tf.data.Dataset.from_tensor_slices((np.eye(5), [0, 1, 2, 0, 1]))
    >>> counter = tfrec.coreset.ForgettingCounter(dataset)
    >>> _ = model.fit(dataset.batch(2), epochs=3, callbacks=[counter], shuffle=False, verbose=0)
    >>> counter.right_.shape, counter.events_.shape
    ((3, 5), (5,))

    References:
        - Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network
          Learning", ICLR 2019, section 3 and algorithm 1. Theirs look at a sample when it is
          trained on, so at a different state of the model for each; ours look at all after each
          epoch. They sort samples that were never right behind all others, as forgotten infinitely
          often; a number does the same here.
    """

    def __init__(
        self, dataset: tf.data.Dataset, batch_size: int = 128, from_logits: bool = False
    ) -> None:
        super().__init__()
        check_examples(dataset)
        self.dataset = dataset
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.from_logits = from_logits
        self.right_ = np.zeros((0, 0), bool)
        self._batches = dataset.batch(batch_size).prefetch(2)
        self._labels: np.ndarray | None = None
        self._step: Any = None

    @property
    def events_(self) -> np.ndarray:
        if not len(self.right_):
            raise ValueError("Give the counter to `fit` as a callback: no epoch has ended yet.")
        events = (self.right_[:-1] & ~self.right_[1:]).sum(axis=0)
        return np.where(self.right_.any(axis=0), events, len(self.right_)).astype(np.int64)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        del logs
        self._step = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        del epoch, logs
        if self._step is None:  # now that the model is built
            self._step = self._probabilities
            if not self.model.run_eagerly:
                spec = self._batches.element_spec[0]
                step = tf.function(self._step, input_signature=[spec], autograph=False)
                self._step = step.get_concrete_function()
        labels: list[np.ndarray] = []
        right: list[np.ndarray] = []
        first = 0
        for x, y, *_ in self._batches:
            probabilities = check_probabilities(self._step(x).numpy(), first)
            labels.append(to_classes(y.numpy(), probabilities.shape[1], first))
            right.append(probabilities.argmax(axis=1) == labels[-1])
            first += len(labels[-1])
        if not labels:
            raise ValueError("`dataset` must hold an example at least. Received: none")
        known, self._labels = self._labels, np.concatenate(labels)
        if known is not None and not np.array_equal(known, self._labels):
            raise ValueError(
                "`dataset` must give the same examples in the same order each time; shuffle for "
                f"`fit` only. Received: other labels after epoch {len(self.right_) + 1}"
            )
        row = np.concatenate(right)[np.newaxis]
        self.right_ = np.concatenate([self.right_, row]) if len(self.right_) else row

    def _probabilities(self, x: Any) -> tf.Tensor:
        return to_probabilities(self.model(x, training=False), self.from_logits)
