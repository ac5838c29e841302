"""`CFAligner`: one space for what users did with items and what is written about them."""

import functools
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.backbones.sequences import checked_sequences

_ROWS_AT_A_TIME = 4096


class CFAligner(keras.Model):
    """Aligns the item vectors of a CF backbone with the texts of the items (stage 1).

    Two one-layer autoencoders meet in a joint space of `joint_width` dimensions. With the vector
    `E_i` of item i from the backbone, the vector `Q_i` of its text, and `sigmoid` in both encoders,

        e = encode_cf(E),  q = encode_text(Q)
        L = MSE(e, q) + alpha MSE(decode_cf(e), E) + beta MSE(decode_text(q), stop_gradient(Q))
            + BCE(x . decode_cf(e), label)

    for an item that the user went on to and one that the user did not; each mean is over rows and
    features, the mean squared errors of both items are added, and so are both cross-entropies. `x`
    is the backbone's state of the user, which is frozen. The second and third terms keep the joint
    space from collapsing to a point.

    An item that few users met has a poor `E` and a fair `Q`: `item_vectors` can take the text's
    side for such cold items, and `cf_vectors_of_texts` tells where in the backbone's own space
    they belong, so that a dot product with a user's state scores them.

    An item that `has_text` says has no text is left out of the terms that compare with texts.

    It is saved by `save_weights`, not to `.keras`. What it makes, `item_vectors()`, is an array,
    which a `CFLLMRecommender` saves.

    Args:
        cf_backbone: A trained `CFBackbone`. It is frozen.
        texts: The text encoder's view of the items `1, ..., item_count`: an array of shape
            `(item_count, d_text)` of frozen vectors, or the dict that `TextEncoder.tokenize` gives
            for all texts, with `text_encoder`.
        has_text: Boolean array of shape `(item_count,)`, or None: all have one, but for those whose
            vector is zeros. Defaults to None.
        text_encoder: `TextEncoder` to train along, or None where `texts` are vectors.
            Defaults to None.
        joint_width: int. Width of the joint space. Defaults to 128.
        alpha: float. Weight of the reconstruction of CF vectors. Defaults to 0.5.
        beta: float. Weight of the reconstruction of text vectors. Defaults to 0.5.
        faithful: bool. Keeps two habits of the authors' code: the frozen backbone drops units out,
            and the dot product is a mean over features. Defaults to False.
        **kwargs: Arguments of `keras.Model`.

    Call arguments:
        inputs: dict of `"history"` `(batch, max_length)`, `"positive"` and `"negative"` `(batch,)`,
            as `alignment_dataset` gives. `fit` takes no targets.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> import keras, numpy as np
    >>> from tfrec_efficient import llm
    >>> sequences = [[1, 2, 3, 4], [3, 4, 5]]
    >>> backbone = llm.SASRec(item_count=5, width=8, max_length=4)
    >>> text_vectors = np.random.default_rng(0).normal(size=(5, 16)).astype("float32")
    >>> aligner = llm.CFAligner(backbone, text_vectors, joint_width=12)
    >>> aligner.compile("adam")
    >>> data = llm.alignment_dataset(sequences, item_count=5, max_length=4, batch_size=2)
    >>> history = aligner.fit(data, epochs=2, verbose=0, shuffle=False)
    >>> aligner.item_vectors(cold_ids=[5]).shape
    (6, 12)

    References:
        - Kim et al., "Large Language Models meet Collaborative Filtering", KDD 2024, section 4.1,
          equations 1 to 5. The published code adds a sigmoid to the encoders, and so do we.
    """

    def __init__(
        self,
        cf_backbone: Any,
        texts: Any,
        has_text: Any = None,
        text_encoder: Any = None,
        joint_width: int = 128,
        alpha: float = 0.5,
        beta: float = 0.5,
        faithful: bool = False,
        **kwargs: Any,
    ) -> None:
        check_sizes(joint_width=joint_width)
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"`{name}` must be at least 0. Received: {name}={weight!r}")
        super().__init__(**kwargs)
        # Keras would track the arrays of a dict as a structure of its own.
        self._texts = _checked_texts(texts, text_encoder, cf_backbone.item_count)
        self._has_text = _checked_has_text(has_text, self._texts, cf_backbone.item_count)
        self.cf_backbone = cf_backbone
        self.cf_backbone.freeze()
        self.text_encoder = text_encoder
        self.joint_width = joint_width
        self.alpha = alpha
        self.beta = beta
        self.faithful = faithful
        dense = functools.partial(keras.layers.Dense, dtype=self.dtype_policy)
        text_width = self._texts[0].shape[1] if text_encoder is None else text_encoder.width
        self._encode_cf = dense(joint_width, activation="sigmoid", name="encode_cf")
        self._decode_cf = dense(cf_backbone.width, name="decode_cf")
        self._encode_text = dense(joint_width, activation="sigmoid", name="encode_text")
        self._decode_text = dense(text_width, name="decode_text")
        self._encode_cf.build((None, cf_backbone.width))
        self._decode_cf.build((None, joint_width))
        self._encode_text.build((None, text_width))
        self._decode_text.build((None, joint_width))
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Returns the state of each user, and the vectors of its two items on all four sides."""
        dropout = training and self.faithful
        state = tf.stop_gradient(self.cf_backbone.user_state(inputs["history"], training=dropout))
        items = keras.ops.stack([inputs["positive"], inputs["negative"]], axis=1)
        cf = tf.stop_gradient(self.cf_backbone.item_vectors(items))
        text = self._text_vectors(items, training)
        joint_cf, joint_text = self._encode_cf(cf), self._encode_text(text)
        return {
            "state": state,
            "items": items,
            "cf": cf,
            "text": text,
            "joint_cf": joint_cf,
            "joint_text": joint_text,
            "decoded_cf": self._decode_cf(joint_cf),
            "decoded_text": self._decode_text(joint_text),
        }

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The four terms of the class's formula; `sample_weight` must be None."""
        if sample_weight is not None:
            raise ValueError("`sample_weight` must be None. Received: a value")
        sides = {name: tf.cast(value, tf.float32) for name, value in y_pred.items()}
        with_text = tf.gather(
            tf.constant(np.concatenate([[False], self._has_text]).astype(np.float32)),
            y_pred["items"],
        )
        target = tf.stop_gradient(sides["text"])
        loss = _squared_error(sides["joint_cf"], sides["joint_text"], with_text)
        loss += self.alpha * _squared_error(sides["decoded_cf"], sides["cf"])
        loss += self.beta * _squared_error(sides["decoded_text"], target, with_text)
        products = sides["state"][:, tf.newaxis] * sides["decoded_cf"]
        reduce = tf.reduce_mean if self.faithful else tf.reduce_sum
        logits = reduce(products, axis=-1)
        labels = tf.constant([[1.0, 0.0]]) + tf.zeros_like(logits)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
        loss += _sum_of_means(entropy)
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def item_vectors(self, cold_ids: npt.ArrayLike = ()) -> npt.NDArray[np.float32]:
        """The joint vectors of all items; row 0, the padding, is zeros.

        Args:
            cold_ids: Ids of items to take the text's side of. Defaults to none.

        Returns:
            float32 array of shape `(item_count + 1, joint_width)`.

        Raises:
            ValueError: A cold item has no text, or is none of the items, or no integer.
        """
        return self._table(self._encode_cf, self._encode_text, cold_ids, self.joint_width)

    def cf_vectors_of_texts(self) -> npt.NDArray[np.float32]:
        """Where the texts say that the items lie in the CF backbone's space.

        Returns:
            float32 array of shape `(item_count + 1, d)`: the decoded joint vectors of the texts.
            Row 0 and the rows of items without text are zeros.
        """
        ids = 1 + np.flatnonzero(self._has_text)

        def by_text(text: Any) -> Any:
            return self._decode_cf(self._encode_text(text))

        table = np.zeros((len(self._has_text) + 1, self.cf_backbone.width), np.float32)
        self._fill(table, ids, lambda part: by_text(self._text_vectors(part, False)))
        return table

    def get_config(self) -> dict[str, Any]:
        """Raises NotImplementedError: the texts are not saved."""
        raise NotImplementedError(
            "A CFAligner is not saved to `.keras`. Save its weights by `save_weights`; what it "
            "makes, `item_vectors()`, is saved by the `CFLLMRecommender` that is given it."
        )

    def _table(
        self, of_cf: Any, of_text: Any, cold_ids: npt.ArrayLike, width: int
    ) -> npt.NDArray[np.float32]:
        cold = np.unique(np.asarray(cold_ids))
        if cold.size and cold.dtype.kind not in "iu":
            raise ValueError(f"`cold_ids` must be integers. Received: dtype {cold.dtype}")
        cold = cold.astype(np.int64)
        count = self.cf_backbone.item_count
        for item in cold:
            if not 1 <= item <= count:
                raise ValueError(f"`cold_ids` must be in `[1, {count}]`. Received: {item}")
            if not self._has_text[item - 1]:
                raise ValueError(f"`cold_ids` must have texts. Received: {item}, which has none")
        table = np.zeros((count + 1, width), np.float32)
        warm = np.setdiff1d(np.arange(1, count + 1), cold)
        self._fill(table, warm, lambda part: of_cf(self.cf_backbone.item_vectors(part)))
        self._fill(table, cold, lambda part: of_text(self._text_vectors(part, False)))
        return table

    def _fill(self, table: npt.NDArray, ids: npt.NDArray, vectors: Any) -> None:
        for start in range(0, len(ids), _ROWS_AT_A_TIME):
            part = ids[start : start + _ROWS_AT_A_TIME]
            table[part] = tf.cast(vectors(tf.constant(part)), tf.float32).numpy()

    def _text_vectors(self, ids: Any, training: bool) -> Any:
        """The vectors of the texts of items of any shape, computed anew if the encoder learns."""
        rows = tf.reshape(ids, [-1]) - 1
        if self.text_encoder is None:
            flat = tf.gather(tf.constant(self._texts[0]), rows)
        else:
            names = ("token_ids", "padding_mask")
            tokens = [tf.gather(tf.constant(column), rows) for column in self._texts]
            flat = self.text_encoder(dict(zip(names, tokens, strict=True)), training=training)
        return tf.reshape(flat, tf.concat([tf.shape(ids), tf.shape(flat)[1:]], 0))


def alignment_dataset(
    sequences: Any,
    item_count: int,
    max_length: int,
    batch_size: int = 32,
    every_position: bool = False,
    seed: int = 0,
) -> tf.data.Dataset:
    """Makes the batches that `CFAligner` learns from.

    A row is a user's history, the item that came next, and an item drawn uniformly from those that
    the user did not meet. Order and draws differ from epoch to epoch, and repeat with the seed.

    Args:
        sequences: The item ids of each user in the order of time, from 1, without what is held out.
        item_count: int. Ids are in `[1, item_count]`.
        max_length: int. Histories are cut to their latest items, and padded with 0 on the left.
        batch_size: int. Defaults to 32.
        every_position: bool. Each place of a sequence from the second on gives a row, and not the
            last one only. Defaults to False.
        seed: int. Defaults to 0.

    Returns:
        A `tf.data.Dataset` of dicts of `"history"` `(batch, max_length)`, `"positive"` and
        `"negative"` `(batch,)`.

    Raises:
        ValueError: A size is no positive integer, or the seed a negative one; there is no sequence;
            one has fewer than two items, all items, or ids that are no integers or out of range.

    References:
        - Kim et al., KDD 2024, section 4.1; `every_position` is the row A-LLMRec_all of table 10.
    """
    check_sizes(item_count=item_count, max_length=max_length, batch_size=batch_size)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"`seed` must be an integer, 0 or more. Received: seed={seed!r}")
    users: list[int] = []
    ends: list[int] = []
    of_all, row_splits = checked_sequences(sequences, item_count)
    arrays = np.split(of_all, row_splits[1:-1])
    for number, items in enumerate(arrays):
        if len(np.unique(items)) == item_count:
            raise ValueError(
                "`sequences` must leave an item out, to draw negatives from. "
                f"Received: sequences[{number}] with all {item_count} items"
            )
        first = 1 if every_position else len(items) - 1
        users.extend([number] * (len(items) - first))
        ends.extend(range(first, len(items)))
    user_of, end_of = np.array(users), np.array(ends)

    epoch = 0

    def rows() -> Any:
        nonlocal epoch
        generator = np.random.default_rng([seed, epoch])
        epoch += 1
        order = generator.permutation(len(user_of))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            history = np.zeros((len(part), max_length), np.int64)
            negative = np.zeros(len(part), np.int64)
            for row, place in enumerate(part):
                items, end = arrays[user_of[place]], end_of[place]
                seen = items[max(0, end - max_length) : end]
                history[row, max_length - len(seen) :] = seen
                while negative[row] == 0 or negative[row] in items:
                    negative[row] = generator.integers(1, item_count + 1)
            positive = np.array([arrays[user_of[p]][end_of[p]] for p in part])
            yield {"history": history, "positive": positive, "negative": negative}

    batch = tf.TensorSpec([None], tf.int64)
    dataset = tf.data.Dataset.from_generator(
        rows,
        output_signature={
            "history": tf.TensorSpec([None, max_length], tf.int64),
            "positive": batch,
            "negative": batch,
        },
    )
    steps = -(-len(user_of) // batch_size)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)


def _squared_error(left: Any, right: Any, weights: Any = None) -> Any:
    """The mean over rows and features, for each of the two items, and the sum of both."""
    errors = tf.reduce_mean(tf.math.squared_difference(left, right), axis=-1)
    if weights is not None:
        total = tf.reduce_sum(errors * weights, axis=0)
        return tf.reduce_sum(tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=0)))
    return _sum_of_means(errors)


def _sum_of_means(values: Any) -> Any:
    """The means over rows, added; zero for a replica that gets no row of a last batch."""
    rows = tf.cast(tf.shape(values)[0], values.dtype)
    return tf.reduce_sum(tf.math.divide_no_nan(tf.reduce_sum(values, axis=0), rows))


def _checked_texts(texts: Any, text_encoder: Any, item_count: int) -> list[npt.NDArray]:
    if (text_encoder is not None) != isinstance(texts, dict):
        raise ValueError(
            "`texts` must be tokens with a `text_encoder`, and vectors without one. "
            f"Received: texts of type {type(texts).__name__}, text_encoder={text_encoder!r}"
        )
    if text_encoder is None:
        columns = [np.asarray(texts, np.float32)]
    else:
        names = ("token_ids", "padding_mask")
        if not set(names) <= set(texts):
            raise ValueError(
                "`texts` must have token_ids and padding_mask with a `text_encoder`. "
                f"Received: {sorted(texts)}"
            )
        columns = [np.asarray(texts[name]) for name in names]
    for column in columns:
        if column.ndim != 2 or len(column) != item_count:
            raise ValueError(
                f"`texts` must have a row for each item, `({item_count}, ...)`. "
                f"Received: shape {column.shape}"
            )
    if text_encoder is None and not np.isfinite(columns[0]).all():
        item = 1 + int(np.argmin(np.isfinite(columns[0]).all(axis=1)))
        raise ValueError(f"`texts` must be finite. Received: the vector of item {item}")
    return columns


def _checked_has_text(
    has_text: Any, texts: list[npt.NDArray], item_count: int
) -> npt.NDArray[np.bool_]:
    if has_text is None:
        # Of the tokens of an encoder, these are the ids; a text has at least its first token.
        return (texts[0] != 0).any(axis=1)
    has_text = np.asarray(has_text)
    if has_text.shape != (item_count,) or has_text.dtype != bool:
        raise ValueError(
            f"`has_text` must be a boolean array of shape ({item_count},). "
            f"Received: {has_text.dtype} of shape {has_text.shape}"
        )
    return has_text
