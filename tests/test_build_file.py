import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import tensorflow as tf

ROOT = Path(__file__).parents[1]
OPS = ROOT / "custom_ops"

# Where TensorFlow Serving's own documentation puts custom ops. In the root of the workspace the
# includes of the sources would resolve without our help.
PACKAGE = "tensorflow_serving/custom_ops/tfrec_efficient"

# Only the folders that the headers of ops reach: Bazel makes a target of each file, and the wheel
# has sixteen thousand.
TENSORFLOW_CORE = """
FOLDERS = "Eigen absl google ml_dtypes tensorflow/core tsl unsupported xla/tsl"

cc_library(
    name = "framework",
    textual_hdrs = glob(["headers/%s/**" % folder for folder in FOLDERS.split(" ")]),
    includes = ["headers"],
    visibility = ["//visibility:public"],
)
"""

# Bazel's toolchains download rules_cc and rules_java, which for Bazel 4 only wrap native rules.
RULES_CC = ["cc_binary", "cc_library", "cc_toolchain", "cc_toolchain_suite"]
RULES_JAVA = ["java_import", "java_runtime", "java_toolchain"]


def relative(paths):
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def evaluate_build_file():
    """Returns the targets of BUILD by name, on machines without Bazel too."""
    targets = {}
    functions = {
        "package": lambda **arguments: None,
        "licenses": lambda names: None,
        "package_name": lambda: "",
        "glob": lambda patterns: relative(path for each in patterns for path in ROOT.glob(each)),
        "cc_library": lambda **arguments: targets.update({arguments["name"]: arguments}),
    }
    exec((ROOT / "BUILD").read_text(), functions)
    return targets


def evaluate_setup(monkeypatch):
    """Returns what setup.py hands to setuptools."""
    arguments = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    monkeypatch.setattr(sys, "path", [*sys.path])  # setup.py adds to it
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def write_files(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def native_rules(names):
    return "".join(f"{name} = native.{name}\n" for name in names)


def write_repositories(root):
    """Writes the external repositories of the build, and returns their names."""
    write_files(
        root,
        {
            "org_tensorflow/WORKSPACE": "",
            "org_tensorflow/tensorflow/core/BUILD": TENSORFLOW_CORE,
            "rules_cc/WORKSPACE": "",
            "rules_cc/cc/BUILD": "",
            "rules_cc/cc/defs.bzl": native_rules(RULES_CC),
            "rules_java/WORKSPACE": "",
            "rules_java/java/BUILD": "",
            "rules_java/java/defs.bzl": native_rules(RULES_JAVA),
        },
    )
    headers = root / "org_tensorflow/tensorflow/core/headers"
    headers.symlink_to(tf.sysconfig.get_include(), target_is_directory=True)
    return ["org_tensorflow", "rules_cc", "rules_java"]


def run(*command, cwd):
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_build_file_and_setup_name_the_same_sources(monkeypatch):
    (extension,) = evaluate_setup(monkeypatch)["ext_modules"]
    sources = evaluate_build_file()["ops_lib"]["srcs"]
    assert sources
    assert sources == sorted(extension.sources)
    assert not [source for source in sources if "test" in source]


def test_build_file_declares_every_header():
    library = evaluate_build_file()["ops_lib"]
    headers = [path for path in OPS.rglob("*") if path.suffix in {".h", ".inc"}]
    assert sorted(library["hdrs"] + library["textual_hdrs"]) == relative(headers)


def test_build_file_never_fuses_multiplications_and_additions():
    assert "-ffp-contract=off" in (ROOT / "setup.py").read_text()
    assert "-ffp-contract=off" in evaluate_build_file()["ops_lib"]["copts"]


@pytest.mark.slow
def test_bazel_builds_the_ops_for_tensorflow_serving(tmp_path):
    bazel = shutil.which("bazel")
    if bazel is None:
        pytest.skip("Bazel is not on the PATH (Debian and Ubuntu: apt install bazel-bootstrap)")

    workspace = tmp_path / "serving"
    write_files(workspace, {"WORKSPACE": ""})
    shutil.copytree(OPS, workspace / PACKAGE / "custom_ops")
    shutil.copy(ROOT / "BUILD", workspace / PACKAGE)
    repositories = write_repositories(tmp_path)
    flags = [flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("-I")]
    run(
        bazel,
        # No server that outlives the test. The system's bazelrc stays: Debian's Bazel does not
        # start without it.
        "--batch",
        "--nohome_rc",
        f"--output_user_root={tmp_path / 'output'}",
        "build",
        f"//{PACKAGE}:ops_lib",
        "--jobs=2",
        "--spawn_strategy=local",
        "--copt=-O0",
        "--copt=-w",
        *(f"--cxxopt={flag}" for flag in flags),
        *(f"--override_repository={name}={tmp_path / name}" for name in repositories),
        cwd=workspace,
    )

    # Bazel names it ".lo" instead of ".a" where linkers have to keep all of it.
    archive = workspace / "bazel-bin" / PACKAGE / "libops_lib.lo"
    objects = run("ar", "t", archive, cwd=tmp_path).split()
    sources = list(OPS.rglob("*.cc"))
    assert sorted(name.split(".")[0] for name in objects) == sorted(path.stem for path in sources)
    text = "".join(path.read_text() for path in sources)
    ops = re.findall(r'REGISTER_OP\("(.+?)"\)', text)
    assert ops
    assert not [op for op in ops if op.encode() + b"\0" not in archive.read_bytes()]
