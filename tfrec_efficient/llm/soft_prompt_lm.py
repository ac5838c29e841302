"""`SoftPromptLM`: a frozen language model of keras-hub that reads vectors where tokens would be."""

from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.llm.local_models import smollm2_135m_instruct
from tfrec_efficient.llm.local_models.smollm2 import keras_hub_or_error

_PROCESSOR = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16"}
_SMOLLM2 = "smollm2-135m-instruct"
_ROWS_AT_A_TIME = 8192
# The largest difference that rounding alone makes in the hidden states of the self-check, which
# are of the size of one after the last normalization.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05, "float64": 1e-6}
# keras-hub 0.32 rotates queries as if `index` were 0. By name: small random weights and bfloat16
# hide that from the self-check.
_WITHOUT_CACHE = {"GPTNeoXCausalLM"}


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class SoftPromptLM:
    """Wraps a causal language model of keras-hub so that soft tokens can stand in its input.

    The model is frozen: nothing of it is trained, unless `lora_rank` is given, and its weights are
    saved with no recommender, which refers to it by name. Training runs through the model's own
    graph from the token embeddings on, so that scales, norms and positions that come after them
    stay as they are. Only states at places that are asked for reach the vocabulary.

    When made, it checks itself: embeddings of ids must give the hidden states and the scores that
    the ids give, and a continuation over the cache those that the whole gives. Otherwise
    `supports_cache` is False, and `prefill` raises.

    Args:
        causal_lm: A `keras_hub.models.CausalLM`, frozen from now on.
        tokenizer: An object with `tokenize(texts)` and `detokenize(ids)`, or None: that of the
            model's preprocessor. Defaults to None.
        reference: str or None. What the model is called in saved recommenders: a name that `load`
            knows, or the folder of a preset of keras-hub. Without it, a recommender
            cannot be saved to `.keras`; `load` sets it. Defaults to None.
        lora_rank: int or None. Trains low-rank additions of this rank to the query and value
            matrices, by keras-hub's `enable_lora`, and no bias. Defaults to None.
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
        if context_length is not None:
            check_sizes(context_length=context_length)
        self.reference = reference
        self.lora_rank = lora_rank
        self.context_length = context_length or getattr(backbone, "max_sequence_length", None)
        if lora_rank is None:
            causal_lm.trainable = False
        else:
            check_sizes(lora_rank=lora_rank)
            _enable_lora(causal_lm, lora_rank)
        self._embedding = backbone.token_embedding
        # OPT adds positions in the layer that embeds, every other family behind it.
        layer: Any = getattr(backbone, "embeddings", None)
        self._positions = getattr(layer, "position_embedding", None)
        cut = (self._embedding if self._positions is None else layer).output
        try:
            self._body = keras.Model([cut, backbone.input["padding_mask"]], backbone.output)
        except ValueError as error:
            raise ValueError(
                "`causal_lm` must be a graph from the token embeddings and the padding mask on. "
                f"Received: {type(causal_lm).__name__}"
            ) from error
        view = _View(causal_lm, backbone=_View(backbone, **self._embeddings_passed_on()))
        self._run_cached = _Inference(partial(type(causal_lm).call_with_cache, view))
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
            ValueError: `token_ids` are no integers, or `soft_tokens` is of another width or rank.
            tf.errors.InvalidArgumentError: A token or a soft token is out of range, or there are
                more or fewer rows of `soft_tokens`.
        """
        ids = tf.convert_to_tensor(token_ids)
        if not ids.dtype.is_integer:
            raise ValueError(f"`token_ids` must be integers. Received: dtype={ids.dtype.name}")
        # The range is checked in 64 bits: 2 ** 32 + 5 is not 5.
        ids = tf.cast(ids, tf.int64)
        soft, slots, checks = None, tf.constant(0, tf.int64), []
        if soft_tokens is not None:
            soft = tf.cast(soft_tokens, self.compute_dtype)
            if not soft.shape.is_compatible_with((None, None, self.width)):
                raise ValueError(
                    f"`soft_tokens` must have the shape (batch, slots, {self.width}). "
                    f"Received: shape {tuple(soft.shape)}"
                )
            slots = tf.shape(soft, tf.int64)[1]
            message = "`soft_tokens` must have a row for each row of `token_ids`"
            checks.append(tf.debugging.assert_equal(tf.shape(soft)[0], tf.shape(ids)[0], message))
        message = f"`token_ids` must be in `[-slots, {self.vocabulary_size})`"
        checks += [
            tf.debugging.assert_less(ids, tf.constant(self.vocabulary_size, tf.int64), message),
            tf.debugging.assert_greater_equal(ids, -slots, message),
        ]
        with tf.control_dependencies([check for check in checks if check is not None]):
            ids = tf.identity(ids)
        embedded = tf.cast(self._embedding(tf.maximum(ids, 0)), self.compute_dtype)
        if soft is None:
            return embedded
        places = tf.where(ids < 0)
        of_row = tf.stack([places[:, 0], -1 - tf.gather_nd(ids, places)], axis=1)
        return tf.tensor_scatter_nd_update(embedded, places, tf.gather_nd(soft, of_row))

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
        embeddings = tf.cast(embeddings, self.compute_dtype)
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

    def prefill(self, embeddings: tf.Tensor, capacity: Any = None) -> tuple[tf.Tensor, Any]:
        """Runs a beginning, and keeps its keys and values.

        TensorFlow has no gradient of what writes into a cache: train with `hidden`.

        Args:
            embeddings: What `embed` gave, `(batch, length, width)`, without padding.
            capacity: int or None. How many tokens the cache is to hold, beginning included. None is
                the length of the beginning. Defaults to None.

        Returns:
            Hidden states `(batch, length, width)`, and a cache for `decode`.

        Raises:
            ValueError: The cached path of the family is not exact in keras-hub.
            tf.errors.InvalidArgumentError: The beginning is longer than `capacity`.
        """
        if not self.supports_cache:
            raise ValueError(
                "`causal_lm` must be of a family whose cache is exact. "
                f"Received: {type(self.causal_lm).__name__}"
            )
        batch, length = tf.unstack(tf.shape(embeddings)[:2])
        capacity = length if capacity is None else capacity
        return self.decode(embeddings, self._empty_cache(batch, capacity), 0)

    def decode(self, embeddings: tf.Tensor, cache: Any, index: Any) -> tuple[tf.Tensor, Any]:
        """Runs the tokens from place `index` on, over the cache of those before.

        Phi-3 with `rope_scaling_type="su"` is the one exception to exactness: its angles change
        where a whole grows longer than `pretraining_sequence_length`, and a cache keeps the old.

        Args:
            embeddings: What `embed` gave, `(batch, length, width)`.
            cache: From `prefill`, `decode` or `repeat_cache`; it is not changed.
            index: int. How many tokens came before.

        Returns:
            Hidden states `(batch, length, width)`, and the cache with these tokens.

        Raises:
            tf.errors.InvalidArgumentError: The tokens do not fit into the cache.
        """
        # Some families take the branch without a cache for the Python number 0.
        index = tf.convert_to_tensor(index, tf.int32)
        embeddings = tf.cast(embeddings, self.compute_dtype)
        # What lies outside, TensorFlow would write over the last tokens of the cache.
        capacity = tf.shape(tf.nest.flatten(cache)[0])[-3]
        message = (
            "`index` and the length of `embeddings` must stay within the capacity of the cache"
        )
        checks = [
            tf.debugging.assert_less_equal(index + tf.shape(embeddings)[1], capacity, message),
            tf.debugging.assert_non_negative(index, message),
        ]
        with tf.control_dependencies([check for check in checks if check is not None]):
            index = tf.identity(index)
        _, hidden, cache = self._run_cached(embeddings, cache, index, training=False)
        return hidden, cache

    def repeat_cache(self, cache: Any, count: Any) -> Any:
        """The cache of each row, `count` times in a row, for as many continuations."""
        return tf.nest.map_structure(lambda part: tf.repeat(part, count, axis=0), cache)

    @classmethod
    def load(
        cls, reference: str = "smollm2-135m-instruct", dtype: Any = None, **arguments: Any
    ) -> "SoftPromptLM":
        """Loads a language model by name or from a folder, so that recommenders can refer to it.

        Args:
            reference: `"smollm2-135m-instruct"`, or the folder of a preset of keras-hub.
                Defaults to `"smollm2-135m-instruct"`.
            dtype: Dtype policy, or None: bfloat16, which takes half the memory, where the processor
                multiplies in it, and float32 elsewhere, where bfloat16 is several times slower.
                Defaults to None.
            **arguments: `lora_rank` and `context_length`, as of the class.

        Raises:
            ImportError: keras-hub is missing.
            FileNotFoundError: There is no such folder, or the model cannot be had.
        """
        tokenizer = None
        if dtype is None:
            dtype = fastest_dtype()
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
        family = type(self.causal_lm).__name__
        count = min(6, self.vocabulary_size)
        ids = np.linspace(0, self.vocabulary_size - 1, count, dtype=np.int32)[np.newaxis]
        ids = tf.constant(np.concatenate([ids, ids[:, ::-1]]))
        mask = tf.ones(ids.shape, self._body.input[1].dtype)
        inputs = {"token_ids": ids, "padding_mask": mask}
        expected = self.causal_lm.backbone(inputs)
        embedded = self.embed(ids)
        tolerance = _TOLERANCE.get(self.compute_dtype, 1e-3)
        gap = _largest_gap(self.hidden(embedded), expected)
        if not gap <= tolerance:
            raise ValueError(
                f"`causal_lm` must take embeddings in the place of ids. Received: "
                f"{family}, whose hidden states differ by {gap:.2g}"
            )
        scores = tf.cast(self.causal_lm(inputs), tf.float32)
        try:
            gap = _largest_gap(self.logits(expected), scores)
        except TypeError:  # its embeddings have no way back
            gap = np.inf
        if not gap <= tolerance * max(1.0, float(tf.reduce_max(tf.abs(scores)))):
            raise ValueError(
                "`causal_lm` must score tokens by its token embedding in reverse. Received: "
                f"{family}, whose scores differ by {gap:.2g}"
            )
        if family in _WITHOUT_CACHE:
            return False
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


class _Inference(keras.layers.Layer):
    """Calls a function without dropout, also where it is part of a step of training."""

    def __init__(self, function: Any) -> None:
        # Whoever calls has cast already, and a cache may be of another dtype.
        super().__init__(autocast=False, name="inference")
        self._function = function

    def call(self, embeddings: Any, cache: Any, index: Any, training: bool = False) -> Any:
        return self._function(embeddings, cache, index)


class _View:
    """An object with some attributes replaced."""

    def __init__(self, viewed: Any, **replaced: Any) -> None:
        self._viewed = viewed
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._viewed, name)


def _enable_lora(causal_lm: Any, rank: int) -> None:
    # A model that was frozen before would keep its new weights frozen.
    causal_lm.trainable = True
    causal_lm.backbone.enable_lora(rank)
    for weight in causal_lm.trainable_weights:
        # Keras leaves the biases of those layers to be trained.
        weight.trainable = weight.name.startswith("lora_")
    if not causal_lm.trainable_weights:
        raise ValueError(
            "`lora_rank` must be None where keras-hub's `enable_lora` finds no query and value "
            f"matrices. Received: lora_rank={rank} and {type(causal_lm).__name__}"
        )


def fastest_dtype() -> str:
    """bfloat16 where Linux says that the processor multiplies in it; nothing is known elsewhere."""
    lines = _PROCESSOR.read_text().splitlines() if _PROCESSOR.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return "bfloat16" if flags & _BFLOAT16 else "float32"


def _first_of(owner: Any, *names: str) -> Any:
    return next(getattr(owner, name) for name in names if hasattr(owner, name))


def _largest_gap(left: tf.Tensor, right: tf.Tensor) -> float:
    return float(tf.reduce_max(tf.abs(tf.cast(left, tf.float32) - tf.cast(right, tf.float32))))
