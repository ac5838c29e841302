"""Builds the C++ ops against the TensorFlow that is installed; setup.cfg says everything else."""

import json
import os
import shlex
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

from setuptools import Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("custom_ops/**/*.cc"))

sys.path.insert(0, str(ROOT / "tools"))
from tf_backend import tensorflow_flags  # noqa: E402


class BuildOps(build_ext):
    """Compiles one shared library; where that fails, the package is installed without it."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"

    def run(self):
        root = ROOT if self.inplace else Path(self.build_lib)
        library = root / self.get_ext_filename(self.extensions[0].name)
        info = library.with_suffix(".json")
        for leftover in (library, info):  # of an earlier build, perhaps for another TensorFlow
            leftover.unlink(missing_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            flags = tensorflow_flags()
            compiler = shlex.split(os.environ.get("CXX") or "g++")
            # Never fused, so that all instruction sets return the same bits; no errno, so that
            # square roots vectorise; nobody replaces our functions, which may be inlined then; and
            # TensorFlow's headers are full of warnings.
            floats = ["-ffp-contract=off", "-fno-math-errno"]
            options = ["-O3", "-fPIC", "-fno-semantic-interposition", *floats, "-w", "-I."]
            objects = Path(self.build_temp).absolute()
            objects.mkdir(parents=True, exist_ok=True)

            def compile_source(source):
                target = objects / f"{source.replace(os.sep, '_')}.o"
                command = [*compiler, *options, *flags["compile"], "-c", source, "-o", target]
                subprocess.run(command, cwd=ROOT, check=True)
                return target

            with ThreadPool() as pool:  # one compiler for each core
                targets = pool.map(compile_source, SOURCES)
            command = [*compiler, "-shared", *targets, *flags["link"]]
            subprocess.run([*command, "-o", str(library.absolute())], cwd=ROOT, check=True)
            info.write_text(json.dumps({"tensorflow": flags["version"]}) + "\n")
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            library.unlink(missing_ok=True)
            self.warn(f"the C++ ops were not built, their references will be used: {error}")


setup(
    cmdclass={"build_ext": BuildOps},
    # Optional: setuptools must not miss a library that could not be built.
    ext_modules=[Extension("tfrec_efficient.ops.libtfrec_ops", SOURCES, optional=True)],
)
