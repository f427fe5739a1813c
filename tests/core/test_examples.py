"""The examples in the core's docstrings say what they print."""

import doctest
import importlib
import pkgutil

import pytest

import apt_ext.core

MODULES = [info.name for info in pkgutil.walk_packages(apt_ext.core.__path__, "apt_ext.core.")]
EXPLAINED = {"axis_starts", "plan_phases", "even_batches"}


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [one for name in MODULES for one in finder.find(importlib.import_module(name)) if one.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_prints_what_it_says(example):
    results = doctest.DocTestRunner().run(example)
    assert results.attempted
    assert not results.failed


def test_what_an_example_explains_best_has_one():
    assert {example.name.rpartition(".")[2] for example in examples()} >= EXPLAINED
