"""`SoftPromptLM`: a frozen language model of keras-hub that reads vectors where tokens would be."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.local_models import smollm2_135m_instruct
from tfrec_efficient.llm.local_models.smollm2 import keras_hub_or_error

_SMOLLM2 = "smollm2-135m-instruct"
_ROWS_AT_A_TIME = 8192
# The largest difference that rounding alone makes in the hidden states of the self-check, which
# are of the size of one after the last normalization.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05, "float64": 1e-6}


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class SoftPromptLM:
    """Wraps a causal language model of keras-hub so that soft tokens can stand in its input.

    The model is frozen: nothing of it is trained, unless `lora_rank` is given, and its weights are
    saved with no recommender, which refers to it by name. Training runs through the model's own
    graph from the token embeddings on, so that scales, norms and positions that come after them
    stay as they are. Only states at places that are asked for reach the vocabulary.

    When made, it checks itself: embeddings of ids must give the hidden states that the ids give,
    and a continuation over the cache those that the whole gives.

    Args:
        causal_lm: A `keras_hub.models.CausalLM`, frozen from now on.
        tokenizer: An object with `tokenize(texts)` and `detokenize(ids)`, or None: that of the
            model's preprocessor. Defaults to None.
        reference: str or None. What the model is called in saved recommenders: a name that `load`
            knows, or the folder of a preset of keras-hub. Without it, a recommender
            cannot be saved to `.keras`; `load` sets it. Defaults to None.
        lora_rank: int or None. Trains low-rank additions of this rank to the query and value
            matrices, by keras-hub's `enable_lora`. Defaults to None.
        context_length: int or None. The longest input in tokens, for models that do not say.
            Defaults to None.

    Raises:
        ValueError: An argument breaks a rule above, or the self-check fails: a family that
            keras-hub builds in another way.

    References:
        - Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021.
    """

    def __init__(
        self,
        causal_lm: Any,
        tokenizer: Any = None,
        reference: str | None = None,
        lora_rank: int | None = None,
        context_length: int | None = None,
    ) -> None:
        backbone = getattr(causal_lm, "backbone", None)
        if backbone is None or not hasattr(causal_lm, "call_with_cache"):
            raise ValueError(
                "`causal_lm` must be a `keras_hub.models.CausalLM`. "
                f"Received: {type(causal_lm).__name__}"
            )
        self.causal_lm = causal_lm
        preprocessor = getattr(causal_lm, "preprocessor", None)
        self.tokenizer = (
            getattr(preprocessor, "tokenizer", None) if tokenizer is None else tokenizer
        )
        self.reference = reference
        self.lora_rank = lora_rank
        self.context_length = context_length or getattr(backbone, "max_sequence_length", None)
        if lora_rank is None:
            causal_lm.trainable = False
        else:
            check_sizes(lora_rank=lora_rank)
            backbone.enable_lora(lora_rank)
        self._embedding = backbone.token_embedding
        # OPT adds positions in the layer that embeds, every other family behind it.
        layer = getattr(backbone, "embeddings", None)
        self._positions = getattr(layer, "position_embedding", None)
        cut = (self._embedding if self._positions is None else layer).output
        self._body = keras.Model([cut, backbone.input["padding_mask"]], backbone.output)
        self._view = _View(causal_lm, backbone=_View(backbone, **self._embeddings_passed_on()))
        self.width = int(self._body.input[0].shape[-1])
        self.vocabulary_size = int(backbone.vocabulary_size)
        self.compute_dtype = self._body.input[0].dtype
        self.embedding_rms = self._root_mean_square()
        self._cache_is_stacked = True
        self.supports_cache = self._check()

    @property
    def trainable_weights(self) -> list[Any]:
        """The low-rank weights, or none."""
        return self.causal_lm.trainable_weights

    def embed(self, token_ids: Any, soft_tokens: Any = None) -> tf.Tensor:
        """Looks tokens up, and puts soft tokens in their places by one scatter.

        Args:
            token_ids: Integers of shape `(batch, length)`; `-1 - k` stands for the soft token k of
                its row.
            soft_tokens: Floating point tensor of shape `(batch, slots, width)`, or None.
                Defaults to None.

        Returns:
            A tensor of shape `(batch, length, width)` in the compute dtype.

        Raises:
            tf.errors.InvalidArgumentError: A token or a soft token is out of range.
        """
        ids = tf.cast(tf.convert_to_tensor(token_ids), tf.int32)
        slots = 0 if soft_tokens is None else tf.shape(soft_tokens)[1]
        message = f"`token_ids` must be in `[-slots, {self.vocabulary_size})`"
        checks = [
            tf.debugging.assert_less(ids, self.vocabulary_size, message),
            tf.debugging.assert_greater_equal(ids, -slots, message),
        ]
        with tf.control_dependencies([check for check in checks if check is not None]):
            ids = tf.identity(ids)
        embedded = tf.cast(self._embedding(tf.maximum(ids, 0)), self.compute_dtype)
        if soft_tokens is None:
            return embedded
        places = tf.where(ids < 0)
        of_row = tf.stack([places[:, 0], tf.cast(-1 - tf.gather_nd(ids, places), tf.int64)], axis=1)
        soft = tf.gather_nd(tf.cast(soft_tokens, embedded.dtype), of_row)
        return tf.tensor_scatter_nd_update(embedded, places, soft)

    def hidden(self, embeddings: tf.Tensor, padding_mask: Any = None) -> tf.Tensor:
        """Runs the whole model but its vocabulary.

        Args:
            embeddings: What `embed` gave, `(batch, length, width)`.
            padding_mask: Booleans of shape `(batch, length)`, False for padding, which may stand on
                the right, or on the left of models with relative positions (rotary or ALiBi). None
                is no padding. Defaults to None.

        Returns:
            The last hidden states, `(batch, length, width)`.
        """
        if padding_mask is None:
            padding_mask = tf.ones(tf.shape(embeddings)[:2], tf.bool)
        if self._positions is not None:
            embeddings = embeddings + self._positions(embeddings)
        mask = tf.cast(padding_mask, self._body.input[1].dtype)
        return self._body([embeddings, mask], training=False)

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Scores of all tokens, `(..., vocabulary_size)`, for hidden states `(..., width)`."""
        return self._embedding(hidden, reverse=True)

    def logits_at(self, hidden: tf.Tensor, places: Any) -> tf.Tensor:
        """Scores of all tokens at some places.

        Args:
            hidden: Hidden states of shape `(batch, length, width)`.
            places: Booleans of shape `(batch, length)`.

        Returns:
            A tensor of shape `(places that are true, vocabulary_size)`, row by row.
        """
        return self.logits(tf.boolean_mask(hidden, places))

    def prefill(self, embeddings: tf.Tensor, capacity: Any) -> tuple[tf.Tensor, Any]:
        """Runs a beginning, and keeps its keys and values.

        Args:
            embeddings: What `embed` gave, `(batch, length, width)`, without padding.
            capacity: int. How many tokens the cache is to hold, beginning included.

        Returns:
            Hidden states `(batch, length, width)`, and a cache for `decode`.

        Raises:
            ValueError: The cached path of the family is not exact in keras-hub.
        """
        if not self.supports_cache:
            raise ValueError(
                "`causal_lm` must be of a family whose cache is exact. "
                f"Received: {type(self.causal_lm).__name__}"
            )
        return self.decode(embeddings, self._empty_cache(tf.shape(embeddings)[0], capacity), 0)

    def decode(self, embeddings: tf.Tensor, cache: Any, index: Any) -> tuple[tf.Tensor, Any]:
        """Runs the tokens from place `index` on, over the cache of those before.

        Args:
            embeddings: What `embed` gave, `(batch, length, width)`.
            cache: From `prefill`, `decode` or `repeat_cache`; it is not changed.
            index: int. How many tokens came before.

        Returns:
            Hidden states `(batch, length, width)`, and the cache with these tokens.
        """
        # Some families take the branch without a cache for the Python number 0.
        index = tf.convert_to_tensor(index, tf.int32)
        call = type(self.causal_lm).call_with_cache
        _, hidden, cache = call(self._view, embeddings, cache, index)
        return hidden, cache

    def repeat_cache(self, cache: Any, count: Any) -> Any:
        """The cache of each row, `count` times in a row, for as many continuations."""
        return tf.nest.map_structure(lambda part: tf.repeat(part, count, axis=0), cache)

    @classmethod
    def load(
        cls, reference: str = "smollm2-135m-instruct", dtype: Any = "float32", **arguments: Any
    ) -> "SoftPromptLM":
        """Loads a language model by name or from a folder, so that recommenders can refer to it.

        Args:
            reference: `"smollm2-135m-instruct"`, or the folder of a preset of keras-hub.
                Defaults to `"smollm2-135m-instruct"`.
            dtype: Dtype policy. Defaults to `"float32"`.
            **arguments: `lora_rank` and `context_length`, as of the class.

        Raises:
            ImportError: keras-hub is missing.
            FileNotFoundError: There is no such folder, or the model cannot be had.
        """
        tokenizer = None
        if reference == _SMOLLM2:
            causal_lm, tokenizer = smollm2_135m_instruct(dtype)
            arguments = {"context_length": 8192} | arguments
        elif Path(reference).is_dir():
            causal_lm = keras_hub_or_error().models.CausalLM.from_preset(reference, dtype=dtype)
        else:
            raise FileNotFoundError(
                f"`reference` must be {_SMOLLM2!r} or a folder. Received: reference={reference!r}"
            )
        return cls(causal_lm, tokenizer, reference, **arguments)

    def get_config(self) -> dict[str, Any]:
        """Refers to the language model; there are no weights in it."""
        if self.reference is None:
            raise ValueError(
                "`reference` must be given to `SoftPromptLM` for a recommender to be saved. "
                "Received: reference=None"
            )
        return {
            "reference": self.reference,
            "dtype": self.causal_lm.backbone.dtype_policy.name,
            "lora_rank": self.lora_rank,
            "context_length": self.context_length,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SoftPromptLM":
        return cls.load(**config)

    def _embeddings_passed_on(self) -> dict[str, Any]:
        """Stand-ins for what would look tokens up: `call_with_cache` is handed embeddings."""
        positions = self._positions
        # The vocabulary is not asked there, either: its scores of a whole prompt would be thrown
        # away.
        stand_ins: dict[str, Any] = {"token_embedding": lambda states, reverse=False: states}
        if positions is not None:
            stand_ins["embeddings"] = lambda states, start_index=0: (
                states + positions(states, start_index=start_index)
            )
        return stand_ins

    def _empty_cache(self, batch: Any, capacity: Any) -> Any:
        backbone = self.causal_lm.backbone
        heads = _first_of(backbone, "num_query_heads", "num_heads", "num_attention_heads")
        of_values = getattr(backbone, "num_key_value_heads", None) or heads
        of_head = getattr(backbone, "head_dim", None) or backbone.hidden_dim // heads
        layers, tail = backbone.num_layers, [of_values, of_head]
        if self._cache_is_stacked:
            return tf.zeros([batch, layers, 2, capacity, *tail], self.compute_dtype)
        return tuple(
            (tf.zeros([batch, capacity, *tail], self.compute_dtype),) * 2 for _ in range(layers)
        )

    def _check(self) -> bool:
        """Raises ValueError if embeddings are not taken as ids are; says if the cache is exact."""
        count = min(6, self.vocabulary_size)
        ids = np.linspace(0, self.vocabulary_size - 1, count, dtype=np.int32)[np.newaxis]
        ids = tf.constant(np.concatenate([ids, ids[:, ::-1]]))
        mask = tf.ones(ids.shape, self._body.input[1].dtype)
        expected = self.causal_lm.backbone({"token_ids": ids, "padding_mask": mask})
        embedded = self.embed(ids)
        tolerance = _TOLERANCE.get(self.compute_dtype, 1e-3)
        gap = _largest_gap(self.hidden(embedded), expected)
        if not gap <= tolerance:
            raise ValueError(
                f"`causal_lm` must take embeddings in the place of ids. Received: "
                f"{type(self.causal_lm).__name__}, whose hidden states differ by {gap:.2g}"
            )
        self.supports_cache = True
        # In this order: a tuple cannot be taken for a stack, but a stack of as many layers as rows
        # can be taken for a tuple.
        for self._cache_is_stacked in (False, True):
            try:
                begun, cache = self.prefill(embedded[:, :3], count + 1)
                rest, _ = self.decode(embedded[:, 3:], cache, 3)
            except Exception:  # noqa: BLE001, S112 - a cache of another form raises anything
                continue
            return _largest_gap(tf.concat([begun, rest], 1), expected) <= tolerance / 5
        return False

    def _root_mean_square(self) -> float:
        table = self._embedding.embeddings
        total = 0.0
        for start in range(0, table.shape[0], _ROWS_AT_A_TIME):
            ids = tf.range(start, min(start + _ROWS_AT_A_TIME, table.shape[0]))
            rows = tf.cast(self._embedding(ids), tf.float32)
            total += float(tf.reduce_sum(tf.square(rows)))
        return float(np.sqrt(total / (table.shape[0] * table.shape[1])))


class _View:
    """An object with some attributes replaced."""

    def __init__(self, viewed: Any, **replaced: Any) -> None:
        self._viewed = viewed
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._viewed, name)


def _first_of(owner: Any, *names: str) -> Any:
    return next(getattr(owner, name) for name in names if hasattr(owner, name))


def _largest_gap(left: tf.Tensor, right: tf.Tensor) -> float:
    return float(tf.reduce_max(tf.abs(tf.cast(left, tf.float32) - tf.cast(right, tf.float32))))
