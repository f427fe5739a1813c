"""The double and the real sd-webui-controlnet agree on everything that the adapter touches."""

import ast
import importlib
import os
import re
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from tests.host import contract_controlnet as contract
from tests.host.sources import arguments, definitions, parameters

ROOT = os.environ.get("CONTROLNET_ROOT")
needs_extension = pytest.mark.skipif(not ROOT, reason="set CONTROLNET_ROOT to a checkout of sd-webui-controlnet to hold it to the contract")
FIELDS = [(file, owner, names) for file, owners in contract.FIELDS.items() for owner, names in owners.items()]


@cache
def source(file):
    return (Path(ROOT or "") / file).read_text(encoding="utf8")


@pytest.fixture
def double(host):
    return importlib.reload(importlib.import_module("tests.host.double.controlnet"))


def test_the_double_has_the_attributes(double):
    lite = double.PlugableControlLLLite()
    made = {"Script": double.Script(), "UnetHook": double.UnetHook(), "PlugableAdapter": double.PlugableAdapter(), "PlugableControlLLLite": lite}
    made |= {"LLLiteModule": next(iter(lite.modules.values())), "PlugableIPAdapter": double.PlugableIPAdapter()}
    made |= {"ControlParams": double.ControlParams(None, None, None, double.ControlModelType.ControlNet)}
    for _, owner, names in FIELDS:
        assert not [name for name in names.split() if not hasattr(made[owner], name)], owner


def test_the_double_has_the_functions(double):
    for functions in contract.SIGNATURES.values():
        for name, names in functions.items():
            owner, method = name.split(".")
            assert parameters(getattr(getattr(double, owner), method)) == names.split(), name


def test_the_double_has_the_kinds(double):
    assert [kind.name for kind in double.ControlModelType] == contract.KINDS.split()
    assert double.Script().title() == "ControlNet"
    assert double.Script((Image.new("RGB", (8, 8)), "ControlNet", {})).latest_network is None


@needs_extension
@pytest.mark.parametrize(("file", "owner", "names"), FIELDS)
def test_the_extension_has_the_attributes(file, owner, names):
    found = definitions(ast.parse(source(file)).body)[owner]
    has = set(definitions(found.body)) | {
        node.attr for node in ast.walk(found) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    assert not set(names.split()) - has


@needs_extension
@pytest.mark.parametrize("file", contract.SIGNATURES)
def test_the_extension_has_the_functions(file):
    for name, names in contract.SIGNATURES[file].items():
        body = ast.parse(source(file)).body
        for part in name.split("."):
            found = definitions(body)[part]
            body = found.body
        assert arguments(found) == names.split(), name


@needs_extension
def test_the_extension_has_the_kinds():
    kinds = definitions(definitions(ast.parse(source("scripts/enums.py")).body)["ControlModelType"].body)
    assert set(contract.KINDS.split()) <= set(kinds)


@needs_extension
@pytest.mark.parametrize("file", contract.LINES)
def test_the_extension_works_as_it_is_taken_to(file):
    lines = re.sub(r"\s+", " ", source(file))
    assert not [line for line in contract.LINES[file] if re.sub(r"\s+", " ", line) not in lines]
