"""`TextEncoder`: a Keras model from texts to vectors of length one."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes


class TextEncoder(keras.Model):
    """Averages the last hidden states of a bidirectional transformer over the tokens of a text.

    Args:
        backbone: A backbone of keras-hub like `BertBackbone`.
        tokenizer: An object with `tokenize(texts)`, which adds the special tokens.
        **kwargs: Arguments of `keras.Model`.

    Call arguments:
        inputs: dict of `"token_ids"` and `"padding_mask"`, both `(batch, length)`, as `tokenize`
            gives them. The output is of shape `(batch, width)`, and each row of length one.

    References:
        - Reimers and Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
          EMNLP 2019, section 3 (mean pooling).
    """

    def __init__(self, backbone: Any, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.width = int(backbone.hidden_dim)
        self.built = True

    def tokenize(self, texts: list[str]) -> dict[str, npt.NDArray]:
        """Returns int32 `"token_ids"` and boolean `"padding_mask"`, `(texts, longest)`."""
        rows = self.tokenizer.tokenize(list(texts))
        longest = max(map(len, rows), default=0)
        token_ids = np.zeros((len(rows), longest), np.int32)
        for place, row in enumerate(rows):
            token_ids[place, : len(row)] = row
        lengths = np.array([len(row) for row in rows])
        return {
            "token_ids": token_ids,
            "padding_mask": np.arange(longest)[np.newaxis] < lengths[:, np.newaxis],
        }

    def encode(
        self, texts: list[str], batch_size: int = 32, verbose: bool = True
    ) -> npt.NDArray[np.float32]:
        """Returns the vectors of texts.

        Args:
            texts: Strings.
            batch_size: int. Texts of about equal length go together. Defaults to 32.
            verbose: bool. Shows a progress bar. Defaults to True.

        Returns:
            float32 array of shape `(len(texts), width)`.
        """
        check_sizes(batch_size=batch_size)
        vectors = np.zeros((len(texts), self.width), np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        bar = keras.utils.Progbar(len(texts), unit_name="text", verbose=int(verbose))
        run = tf.function(self.__call__, reduce_retracing=True)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            tokens = self.tokenize([texts[row] for row in part])
            vectors[part] = run(
                {name: tf.constant(value) for name, value in tokens.items()}, training=False
            )
            bar.update(min(start + batch_size, len(order)))
        return vectors

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        token_ids = tf.cast(inputs["token_ids"], tf.int32)
        mask = tf.convert_to_tensor(inputs["padding_mask"])
        states = self.backbone(
            {
                "token_ids": token_ids,
                "segment_ids": tf.zeros_like(token_ids),
                "padding_mask": tf.cast(mask, tf.int32),
            },
            training=training,
        )
        states = states["sequence_output"] if isinstance(states, dict) else states
        weights = tf.cast(mask, states.dtype)[..., tf.newaxis]
        total = tf.reduce_sum(states * weights, axis=1)
        # The mean's denominator would cancel.
        return tf.math.l2_normalize(total, axis=-1)
