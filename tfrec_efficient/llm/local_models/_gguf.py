"""From a GGUF file of a Llama to a backbone of keras-hub and a tokenizer."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

# Of a weight of keras-hub, below `transformer_layer_<n>/`: the tensor of GGUF, below `blk.<n>.`.
_OF_LAYER = {
    "self_attention/query/kernel": "attn_q.weight",
    "self_attention/key/kernel": "attn_k.weight",
    "self_attention/value/kernel": "attn_v.weight",
    "self_attention/attention_output/kernel": "attn_output.weight",
    "self_attention_layernorm/scale": "attn_norm.weight",
    "feedforward_intermediate_dense/kernel": "ffn_up.weight",
    "feedforward_gate_dense/kernel": "ffn_gate.weight",
    "feedforward_output_dense/kernel": "ffn_down.weight",
    "feedforward_layernorm/scale": "ffn_norm.weight",
}
_OF_MODEL = {
    "token_embedding/embeddings": "token_embd.weight",
    "token_embedding/reverse_embeddings": "output.weight",
    "sequence_output_layernorm/scale": "output_norm.weight",
}
_CONTROL_TOKEN = 3
# What would change a Llama if it were there, and what leaves it as it is.
_UNCHANGED = {
    "llama.rope.scaling.type": "none",
    "llama.rope.scaling.factor": 1.0,
    "llama.rope.scale_linear": 1.0,
    "llama.attention.sliding_window": 0,
    "llama.expert_count": 0,
}


class GGUFFile:
    """A model in the file format of llama.cpp.

    Args:
        path: The file.

    Raises:
        ImportError: The package gguf is missing.
        ValueError: The file holds no Llama, one whose tokenizer is not known here, or one with
            scaled positions, experts, heads of another width, or other tensors.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise ImportError("pip install 'tfrec-efficient[llm]' brings gguf.") from error
        self._dequantize = gguf.quants.dequantize
        reader = gguf.GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        for name, known in (
            ("general.architecture", "llama"),
            ("tokenizer.ggml.model", "gpt2"),
            ("tokenizer.ggml.pre", "smollm"),
        ):
            if self.field(name) != known:
                raise ValueError(f"{path} must have {name}={known}. Received: {self.field(name)}")
        head = self.field("llama.embedding_length") // self.field("llama.attention.head_count")
        widths = ("rope.dimension_count", "attention.key_length", "attention.value_length")
        for name, only in (_UNCHANGED | {f"llama.{width}": head for width in widths}).items():
            if self.field(name) not in (None, only):
                raise ValueError(
                    f"{path} must have {name}={only}, or none. Received: {self.field(name)}"
                )
        blocks = range(self.field("llama.block_count"))
        tensors = {f"blk.{block}.{name}" for block in blocks for name in _OF_LAYER.values()}
        tensors |= set(_OF_MODEL.values())
        differing = (tensors ^ set(self._tensors)) - {"output.weight"}
        if differing:
            raise ValueError(
                f"{path} must have the tensors of a Llama, and no others. "
                f"Received: missing or more are {', '.join(sorted(differing)[:5])}"
            )

    def field(self, name: str) -> Any:
        """A field, or None where there is none."""
        return self._fields[name].contents() if name in self._fields else None

    def backbone(self) -> Any:
        """A `keras_hub.models.Llama3Backbone` with the file's weights, in float32."""
        import keras_hub

        heads = self.field("llama.attention.head_count")
        kv_heads = self.field("llama.attention.head_count_kv")
        backbone = keras_hub.models.Llama3Backbone(
            vocabulary_size=len(self.field("tokenizer.ggml.tokens")),
            num_layers=self.field("llama.block_count"),
            num_query_heads=heads,
            num_key_value_heads=kv_heads,
            hidden_dim=self.field("llama.embedding_length"),
            intermediate_dim=self.field("llama.feed_forward_length"),
            rope_max_wavelength=self.field("llama.rope.freq_base") or 10000.0,
            layer_norm_epsilon=self.field("llama.attention.layer_norm_rms_epsilon"),
            tie_word_embeddings="output.weight" not in self._tensors,
            dtype="float32",
        )
        bar = keras.utils.Progbar(len(backbone.weights), unit_name="tensor")
        for weight in backbone.weights:
            weight.assign(self._values(weight.path, tuple(weight.shape), heads, kv_heads))
            bar.add(1)
        return backbone

    def tokenizer_json(self) -> str:
        """The tokenizer in the format of the package tokenizers."""
        tokens = self.field("tokenizer.ggml.tokens")
        kinds = self.field("tokenizer.ggml.token_type")
        added = [
            {
                "id": number,
                "content": tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, kind in enumerate(kinds)
            if kind == _CONTROL_TOKEN
        ]
        by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        return json.dumps(
            {
                "version": "1.0",
                "added_tokens": added,
                # Digits stand alone, so that "1995" is four tokens.
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Digits", "individual_digits": True},
                        by_bytes | {"use_regex": True},
                    ],
                },
                "decoder": by_bytes | {"use_regex": True},
                "model": {
                    "type": "BPE",
                    "vocab": {token: number for number, token in enumerate(tokens)},
                    "merges": [merge.split(" ") for merge in self.field("tokenizer.ggml.merges")],
                },
            }
        )

    def _values(
        self, path: str, shape: tuple[int, ...], heads: int, kv_heads: int
    ) -> npt.NDArray[np.float32]:
        first, _, rest = path.partition("/")
        if path in _OF_MODEL:
            name = _OF_MODEL[path]
        else:
            name = f"blk.{first.removeprefix('transformer_layer_')}.{_OF_LAYER[rest]}"
        tensor = self._tensors[name]
        values = self._dequantize(tensor.data, tensor.tensor_type)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            values = _rotated_by_halves(values, heads if "_q" in name else kv_heads)
        # GGUF has the outputs in rows; the vocabulary of keras-hub has, too.
        if values.ndim == 2 and name != "token_embd.weight":
            values = values.T
        return values.reshape(shape)


def _rotated_by_halves(values: npt.NDArray, heads: int) -> npt.NDArray:
    """From pairs of neighbours, which llama.cpp rotates, to pairs half a head apart."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
