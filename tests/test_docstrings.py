"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import tfrec_efficient as tfrec

# The op library looks like an extension module of Python, and is none.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(tfrec.__path__, "tfrec_efficient.")
    if "libtfrec_ops" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    if name.endswith(".movielens"):
        try:
            tfrec.data.datasets.movielens_100k()
        except FileNotFoundError as error:
            pytest.skip(f"MovieLens-100K is not at hand: {error}")
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failed


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = map(importlib.import_module, MODULES)
    assert sum(bool(test.examples) for m in modules for test in finder.find(m)) >= 6
