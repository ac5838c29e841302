import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tfrec_efficient as tfrec

PACKAGE = Path(tfrec.__file__).parent
OPTIONAL = {
    "cleanlab", "dask", "distributed", "gguf", "keras_hub", "matplotlib", "safetensors", "scann",
    "tensorflow_datasets", "tensorflow_recommenders", "tensorflow_text", "tf_keras", "tokenizers",
    "torch", "ydf", "ydf_tf",
}  # fmt: skip


def run(code, **environment):
    command = [sys.executable, "-P", "-c", code]  # what is installed, not this tree
    env = {"PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_the_names_of_the_house():
    public = {name for name in vars(tfrec) if not name.startswith("_")}
    assert public - {"version", "testing"} == {
        "CFProjection",
        "CachedEmbedding",
        "EmbeddingBag",
        "EmbeddingBagCollection",
        "PimDevice",
        "Prune4Rel",
        "RecencyBias",
        "coreset",
        "data",
        "embedding",
        "llm",
        "ops",
        "optimizers",
        "pim",
        "sampling",
    }
    assert tfrec.__version__.count(".") == 2


def test_another_backend_is_refused_with_the_remedy():
    # No other backend is installed, so Keras is made to say that it uses one.
    result = run("import keras; keras.backend.backend = lambda: 'jax'; import tfrec_efficient")
    assert result.returncode == 1
    assert "KERAS_BACKEND=tensorflow" in result.stderr
    assert "Received: KERAS_BACKEND=jax" in result.stderr


def test_importing_the_package_imports_no_optional_package():
    code = "import sys, tfrec_efficient; print(','.join(m.split('.')[0] for m in sys.modules))"
    before = run("import sys, keras, tensorflow; print(','.join(sys.modules))").stdout
    imported = set(run(code).stdout.strip().split(","))
    assert "tfrec_efficient" in imported
    assert not (OPTIONAL & imported) - set(before.strip().split(","))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.name))
def test_no_module_imports_an_optional_package_or_legacy_keras_at_its_top(path):
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            assert name.split(".")[0] not in OPTIONAL, f"{path} imports {name} at its top"
    assert "tf.keras" not in path.read_text() or path.name == "tfrs.py"
