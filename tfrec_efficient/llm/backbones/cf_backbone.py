"""`CFBackbone`: what all collaborative-filtering models of this folder can do."""

import abc
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.embedding import EmbeddingBag
from tfrec_efficient.embedding._bag_layer import check_sizes

_INPUTS = ("history", "positives", "negatives")


class CFBackbone(keras.Model):
    """A collaborative-filtering model: a vector for each item, a state for each history of items.

    Items are 1 to `item_count`, and 0 is padding. A history is a row of ids of shape
    `(max_length,)`, left padded with 0 and with the latest item last, as
    `keras.utils.pad_sequences(sequences, max_length)` makes it. How well an item fits is the dot
    product of its vector with the state. Users are nothing but their histories, so new ones need no
    training.

    A subclass makes its layers in its constructor, builds them at the end of it, and implements
    `encode`. It is trained by `fit` on what `sequence_dataset` gives: at each place of a history,
    binary cross-entropy of the item that comes next against items that the user never had,

        `softplus(-positive) + mean(softplus(negatives))`,

    averaged over the places that are no padding (with several replicas, those of each replica).
    Items are looked up once a step, so the gradient of their table has each row once.

    Args:
        item_count: int. Number of items.
        width: int. Width of states and of the vectors of items.
        max_length: int. Items in a history.
        dropout: float in `[0, 1)`. Share of what the model drops where it says so.
        seed: int. Of the initial weights and of dropout.
        **kwargs: Arguments of `keras.Model`.

    Call arguments:
        inputs: A dict of integer tensors: `"history"` and `"positives"` of shape
            `(batch, max_length)`, and `"negatives"` of shape `(batch, max_length, negatives)`, or
            `(batch, negatives)` for those that all places of a row share. The call returns dot
            products, float32 of shape `(batch, max_length, 1 + negatives)`, the positive first.

    Raises:
        ValueError: An argument breaks a rule above, or has a wrong dtype or static shape.
        tf.errors.InvalidArgumentError: An id is outside `[0, item_count]`, or a history is not
            left padded.

    Example:
    >>> import keras
    >>> from tfrec_efficient.llm.backbones import SASRec
    >>> model = SASRec(item_count=5, width=8, max_length=4)
    >>> history = keras.utils.pad_sequences([[1, 2], [3, 4, 5, 1, 2]], model.max_length)
    >>> model.user_state(history).shape
    TensorShape([2, 8])
    >>> ids, scores = model.top_k(history, k=1)
    >>> ids.numpy()[1].tolist()  # all other items are in the history
    [3]

    References:
        - Kim et al., "Large Language Models meet Collaborative Filtering: An Efficient All-round
          LLM-based Recommender System", KDD 2024, section 4.1, whose CF-RecSys this is.
    """

    # Whether histories are read from a table of their own, not from that of the items to predict.
    separate_history = False

    built: bool

    def __init__(
        self,
        item_count: int,
        width: int,
        max_length: int,
        dropout: float,
        seed: int,
        **kwargs: Any,
    ) -> None:
        check_sizes(item_count=item_count, width=width, max_length=max_length)
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in `[0, 1)`. Received: dropout={dropout!r}")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"`seed` must be an integer, 0 or more. Received: seed={seed!r}")
        super().__init__(**kwargs)
        self.item_count = item_count
        self.width = width
        self.max_length = max_length
        self.dropout = dropout
        self.seed = seed
        self.supports_jit = False  # XLA cannot compile custom ops
        self._seeds = np.random.default_rng(seed)
        self._items = self._table("items")
        if self.separate_history:
            self._items_of_history = self._table("items_of_history")

    # ---- For subclasses --------------------------------------------------------------------------

    @abc.abstractmethod
    def encode(self, vectors: tf.Tensor, is_item: tf.Tensor, training: bool) -> tf.Tensor:
        """The state of the user after each item of a history.

        Args:
            vectors: Those of the items of the histories, of shape `(batch, max_length, width)`;
                zeros for padding.
            is_item: bool of shape `(batch, max_length)`; False for padding.
            training: Whether to drop out.

        Returns:
            States of shape `(batch, max_length, width)`. Each depends on the items up to its
            place only.
        """
        raise NotImplementedError

    def new_seed(self) -> int:
        """Returns another seed each time, the same ones for the same `seed` of the model."""
        return int(self._seeds.integers(2**31))

    def new_dropout(self) -> keras.layers.Dropout:
        """Returns a dropout layer of the rate and policy of the model."""
        return keras.layers.Dropout(self.dropout, seed=self.new_seed(), dtype=self.dtype_policy)

    def new_dense(self, units: int, name: str, activation: Any = None) -> keras.layers.Dense:
        """Returns a dense layer with Glorot's initial weights, of the policy of the model."""
        initializer = keras.initializers.GlorotUniform(self.new_seed())
        return keras.layers.Dense(
            units,
            activation,
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )

    def build_tables(self) -> None:
        """Makes the weights that `encode` does not know of."""
        self._items.build()
        if self.separate_history:
            self._items_of_history.build()

    # ---- For users -------------------------------------------------------------------------------

    def user_state(self, history: Any, training: bool = False) -> tf.Tensor:
        """Returns the states of users after their histories.

        Args:
            history: Integers of shape `(batch, max_length)`, left padded with 0. An empty history
                has a state too, which is the same for all of them and was not trained.
            training: Whether to drop out. Defaults to False.

        Returns:
            A tensor of shape `(batch, width)` and the compute dtype of the model.
        """
        history = self._as_history(history)
        table = self._items_of_history if self.separate_history else self._items
        return self.encode(table(history), history > 0, training)[:, -1]

    def freeze(self) -> None:
        """Makes all weights untrainable, for good."""
        # Keras passes only a change on to the weights, and a model whose config says that it is not
        # trainable is revived with weights that are.
        self.trainable = True
        self.trainable = False

    def item_vectors(self, ids: Any) -> tf.Tensor:
        """Returns the vectors of items.

        Args:
            ids: Integers of any shape; 0 gives zeros.

        Returns:
            A tensor of shape `(..., width)` and the compute dtype of the model.
        """
        return self._items(_as_ids(ids, "ids"))

    def scores(self, history: Any, candidates: Any) -> tf.Tensor:
        """Returns how well items fit histories.

        Args:
            history: Integers of shape `(batch, max_length)`, left padded with 0.
            candidates: Integers of shape `(batch, n)`; 0 for places without a candidate.

        Returns:
            float32 of shape `(batch, n)`: dot products, and minus infinity for id 0.
        """
        candidates = _as_ids(candidates, "candidates")
        if candidates.shape.rank != 2:
            raise ValueError(
                f"`candidates` must have the shape `(batch, n)`. Received: {candidates.shape}"
            )
        vectors = tf.cast(self.item_vectors(candidates), tf.float32)
        state = tf.cast(self.user_state(history), tf.float32)
        scores = tf.linalg.matvec(vectors, state)
        return tf.where(candidates > 0, scores, -np.inf)

    def top_k(
        self, history: Any, k: int, exclude_history: bool = True
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the items that fit best, of all.

        Args:
            history: Integers of shape `(batch, max_length)`, left padded with 0.
            k: int. How many, up to `item_count`.
            exclude_history: bool. Whether to leave the items of the history out. Defaults to True.

        Returns:
            `(ids, scores)`, int64 and float32 of shape `(batch, k)`, the best first. Where no item
            is left, the id is 0 and the score minus infinity.
        """
        check_sizes(k=k)
        if k > self.item_count:
            raise ValueError(f"`k` must be at most {self.item_count}, the items. Received: k={k}")
        history = self._as_history(history)
        state = tf.cast(self.user_state(history), tf.float32)
        scores = tf.matmul(state, self._all_vectors(), transpose_b=True)
        padding = tf.zeros_like(history[:, :1])
        columns = tf.concat([padding, history], 1) if exclude_history else padding
        rows = tf.broadcast_to(
            tf.range(tf.shape(columns, tf.int64)[0])[:, tf.newaxis], tf.shape(columns)
        )
        excluded = tf.stack([rows, columns], -1)
        scores = tf.tensor_scatter_nd_update(
            scores, excluded, tf.fill(tf.shape(columns), tf.constant(-np.inf, tf.float32))
        )
        best, ids = tf.math.top_k(scores, k)
        return tf.where(tf.math.is_inf(best), np.int64(0), tf.cast(ids, tf.int64)), best

    def _all_vectors(self) -> tf.Tensor:
        """Those of all ids, 0 included."""
        if self._items.quantization_mode is None:
            return tf.cast(self._items.embeddings.value, tf.float32)
        return tf.cast(self.item_vectors(tf.range(self.item_count + 1)), tf.float32)

    # ---- For Keras -------------------------------------------------------------------------------

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        if not isinstance(inputs, dict) or any(name not in inputs for name in _INPUTS):
            received = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(
                f"`inputs` must be a dict with {', '.join(_INPUTS)}, as `sequence_dataset` gives. "
                f"Received: {received}"
            )
        history = self._as_history(inputs["history"])
        positives = _as_ids(inputs["positives"], "positives")
        negatives = _as_ids(inputs["negatives"], "negatives")
        if negatives.shape.rank not in (2, 3):
            raise ValueError(
                "`negatives` must have the shape `(batch, negatives)` or "
                f"`(batch, max_length, negatives)`. Received: shape {negatives.shape}"
            )
        parts = [positives, negatives] + ([] if self.separate_history else [history])
        vectors = self._look_up_at_once(parts)
        of_history = self._items_of_history(history) if self.separate_history else vectors[2]
        states = tf.cast(self.encode(of_history, history > 0, training), tf.float32)
        of_positives, of_negatives = (tf.cast(part, tf.float32) for part in vectors[:2])
        to_positives = tf.reduce_sum(states * of_positives, -1, keepdims=True)
        if negatives.shape.rank == 2:
            to_negatives = tf.matmul(states, of_negatives, transpose_b=True)
        else:
            to_negatives = tf.linalg.matvec(of_negatives, states)
        return tf.concat([to_positives, to_negatives], -1)

    def _look_up_at_once(self, parts: list[tf.Tensor]) -> list[tf.Tensor]:
        # Gradients of several look-ups would be concatenated, and the optimizers of Keras do not
        # add up what rows get twice.
        flat = [tf.reshape(part, [-1]) for part in parts]
        vectors = tf.split(self._items(tf.concat(flat, 0)), [tf.size(part) for part in flat])
        return [
            tf.ensure_shape(
                tf.reshape(rows, tf.concat([tf.shape(part), [self.width]], 0)),
                part.shape.concatenate(self.width),
            )
            for rows, part in zip(vectors, parts, strict=True)
        ]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Returns the binary cross-entropy that the class describes.

        Args:
            x: The inputs of the call.
            y: Not used; must be None.
            y_pred: What the call gave.
            sample_weight: Not used; must be None.
            training: Not used. Defaults to True.
        """
        if y is not None or sample_weight is not None:
            raise ValueError(
                "A CF backbone is trained on inputs alone, as `sequence_dataset` gives them. "
                f"Received: y={y}, sample_weight={sample_weight}"
            )
        losses = tf.nn.softplus(-y_pred[..., 0])
        losses += tf.reduce_mean(tf.nn.softplus(y_pred[..., 1:]), -1)
        is_item = tf.cast(tf.convert_to_tensor(x["positives"]) > 0, losses.dtype)
        loss = tf.math.divide_no_nan(tf.reduce_sum(losses * is_item), tf.reduce_sum(is_item))
        loss = tf.add_n([loss, *(tf.cast(other, loss.dtype) for other in self.losses)])
        # Keras adds up the gradients of replicas, and expects a loss that allows for it.
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            item_count=self.item_count,
            width=self.width,
            max_length=self.max_length,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config

    def _table(self, name: str) -> EmbeddingBag:
        return EmbeddingBag(
            self.item_count + 1,
            self.width,
            combiner=None,
            embeddings_initializer=_NormalRows(self.new_seed()),
            padding_id=0,
            dtype=self.dtype_policy,
            name=name,
        )

    def _as_history(self, history: Any) -> tf.Tensor:
        history = _as_ids(history, "history")
        if not history.shape.is_compatible_with((None, self.max_length)):
            raise ValueError(
                f"`history` must have the shape `(batch, {self.max_length})`. "
                f"Received: shape {history.shape}"
            )
        history = tf.ensure_shape(history, (None, self.max_length))
        is_late_padding = (history[:, :-1] != 0) & (history[:, 1:] == 0)
        check = tf.debugging.assert_equal(
            is_late_padding,
            tf.zeros_like(is_late_padding),
            "`history` must be left padded: no 0 may follow an item.",
        )
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(history)


class _NormalRows(keras.initializers.Initializer):
    """Normally distributed rows of a spread that does not depend on their number; row 0 is zeros.

    Xavier's initializer, as in the code of A-LLMRec, overwrites the row of the padding.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        rows = keras.random.normal(
            (shape[0] - 1, shape[1]), stddev=0.02, dtype=dtype, seed=self.seed
        )
        return keras.ops.pad(rows, [[1, 0], [0, 0]])

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


def _as_ids(ids: Any, name: str) -> tf.Tensor:
    ids = tf.convert_to_tensor(ids)
    if not ids.dtype.is_integer:
        raise ValueError(f"`{name}` must be integers. Received: dtype {ids.dtype.name}")
    return tf.cast(ids, tf.int64)
