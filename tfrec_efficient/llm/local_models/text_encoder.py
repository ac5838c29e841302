"""`TextEncoder`: a Keras model from texts to vectors of length one."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.local_models.local_tokenizer import LocalTokenizer
from tfrec_efficient.llm.local_models.smollm2 import keras_hub_or_error

_MINILM = "all-minilm-l6-v2"


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class TextEncoder(keras.Model):
    """Averages the last hidden states of a bidirectional transformer over the tokens of a text.

    A text of no tokens has the zero vector. All weights are trained unless `trainable` is set to
    False; a pooling head of the backbone is left out, so that each of them gets a gradient.

    Args:
        backbone: A backbone of keras-hub like `BertBackbone`.
        tokenizer: An object with `tokenize(texts)`, which adds the special tokens.
        max_length: int or None. Texts are cut to so many tokens: by `tokenizer.truncate`, if there
            is such a method, which can keep the special token at the end. Defaults to None.
        reference: str or None. What `load` calls this encoder, for saved models to refer to it.
            Defaults to None.
        **kwargs: Arguments of `keras.Model`.

    Call arguments:
        inputs: dict of `"token_ids"` and `"padding_mask"`, both `(batch, length)`, as `tokenize`
            gives them. The output is float32 of shape `(batch, width)`, and each row of length one.

    Raises:
        ValueError: `max_length` is no positive integer.

    References:
        - Reimers and Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
          EMNLP 2019, section 3 (mean pooling).
    """

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        max_length: int | None = None,
        reference: str | None = None,
        **kwargs: Any,
    ) -> None:
        # Vectors are float32, whatever the backbone computes in.
        super().__init__(**{"dtype": "float32"} | kwargs)
        if max_length is not None:
            check_sizes(max_length=max_length)
            if hasattr(tokenizer, "truncate"):
                tokenizer.truncate(max_length)
        states = backbone.output
        states = states["sequence_output"] if isinstance(states, dict) else states
        self.backbone = keras.Model(backbone.input, states)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.reference = reference
        self.width = int(states.shape[-1])
        self._policy = backbone.dtype_policy.name
        # Made once: to trace a backbone takes seconds.
        self._run = tf.function(self.__call__, reduce_retracing=True)
        self.built = True

    @classmethod
    def load(
        cls,
        reference: str = _MINILM,
        max_length: int = 256,
        dtype: Any = "float32",
        **kwargs: Any,
    ) -> "TextEncoder":
        """Loads an encoder by name or from a folder, so that saved models can refer to it.

        Args:
            reference: `"all-minilm-l6-v2"`, or a folder in the format of Hugging Face with
                `config.json`, `model.safetensors` and `tokenizer.json`.
                Defaults to `"all-minilm-l6-v2"`.
            max_length: int. Texts are cut to so many tokens. Defaults to 256.
            dtype: Dtype policy of the backbone. Defaults to `"float32"`.
            **kwargs: Arguments of `keras.Model`.

        Raises:
            ImportError: keras-hub, safetensors or tokenizers is missing.
            FileNotFoundError: There is no such folder, or the model cannot be had.
        """
        keras_hub = keras_hub_or_error()
        if reference == _MINILM:
            from tfrec_efficient.llm.local_models.minilm import minilm_folder  # it imports this

            folder = minilm_folder()
        elif Path(reference, "tokenizer.json").is_file():
            folder = Path(reference)
        else:
            raise FileNotFoundError(
                f"`reference` must be {_MINILM!r} or a folder with a tokenizer.json. "
                f"Received: reference={reference!r}"
            )
        backbone = keras_hub.models.Backbone.from_preset(str(folder), dtype=dtype)
        tokenizer = LocalTokenizer(folder / "tokenizer.json")
        return cls(backbone, tokenizer, max_length, reference, **kwargs)

    def tokenize(self, texts: list[str]) -> dict[str, npt.NDArray]:
        """Returns int32 `"token_ids"` and boolean `"padding_mask"`, `(texts, longest)`."""
        rows = [row[: self.max_length] for row in self.tokenizer.tokenize(list(texts))]
        longest = max(map(len, rows), default=0) or 1  # backbones take no width of zero
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
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            tokens = self.tokenize([texts[row] for row in part])
            vectors[part] = self._run(
                {name: tf.constant(value) for name, value in tokens.items()}, training=False
            )
            bar.update(min(start + batch_size, len(order)))
        return vectors

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        token_ids = tf.cast(inputs["token_ids"], tf.int32)
        mask = tf.convert_to_tensor(inputs["padding_mask"])
        given = {
            "token_ids": token_ids,
            "segment_ids": tf.zeros_like(token_ids),
            "padding_mask": tf.cast(mask, tf.int32),
        }
        states = self.backbone(
            {name: given[name] for name in self.backbone.input}, training=training
        )
        # The mean's denominator would cancel. In float32: a long sum in bfloat16 loses its end.
        total = tf.reduce_sum(
            tf.cast(states, tf.float32) * tf.cast(mask, tf.float32)[..., tf.newaxis], axis=1
        )
        return tf.math.l2_normalize(total, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Refers to the encoder, whose tokenizer and sizes `load` finds again."""
        if self.reference is None:
            raise ValueError(
                "`reference` must be given to `TextEncoder` for a model with it to be saved. "
                "Received: reference=None"
            )
        return {
            "reference": self.reference,
            "max_length": self.max_length,
            "dtype": self._policy,
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "TextEncoder":
        config = dict(config)
        trainable = config.pop("trainable")
        encoder = cls.load(**config)
        encoder.trainable = trainable
        return encoder
