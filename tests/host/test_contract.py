"""The double and the real host agree on everything that the adapter touches, and the contract leaves nothing of it out."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from tests.host import contract as contract
from tests.host import contract_forge
from tests.host.double import flow
from tests.host.sources import arguments, definitions, parameters

HOUSE = Path(__file__).parents[2]
ADAPTER = sorted([*(HOUSE / "apt_ext" / "webui").rglob("*.py"), *(HOUSE / "scripts").rglob("*.py")])
SIGNATURES = [(file, name, names) for file, functions in contract.SIGNATURES.items() for name, names in functions.items()]
GLOBALS = [(file, name) for file, names in contract.GLOBALS.items() for name in names.split()]
FIELDS = [(file, owner, name) for file, owners in contract.FIELDS.items() for owner, names in owners.items() for name in names.split()]

ROOT = os.environ.get("WEBUI_ROOT")
needs_host = pytest.mark.skipif(not ROOT, reason="set WEBUI_ROOT to a checkout of the WebUI to hold it to the contract")


def module_of(file):
    return importlib.import_module(file.removesuffix(".py").replace("/", "."))


@pytest.mark.usefixtures("host")
def test_the_double_has_the_functions():
    for file, name, names in SIGNATURES:
        found = module_of(file)
        for part in name.split("."):
            found = inspect.getattr_static(found, part)
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        assert parameters(found) == names.split(), f"{file}: {name}"


@pytest.mark.usefixtures("host")
def test_the_double_has_the_names():
    assert not [(file, name) for file, name in GLOBALS if not hasattr(module_of(file), name)]


def test_the_double_has_the_attributes(host):
    sampler = host.sd_samplers.create_sampler("euler", host.model)
    made = {"Sampler": sampler, "KDiffusionSampler": sampler, "CompVisSampler": host.sd_samplers.create_sampler("ddim", host.model)}
    made |= {"CFGDenoiser": sampler.model_wrap_cfg, "PostSampleArgs": host.scripts.PostSampleArgs([])}
    made |= {"PostprocessImageArgs": host.scripts.PostprocessImageArgs(None), "Processed": host.processing.Processed(None, [])}
    cond = host.prompt_parser.get_multicond_learned_conditioning(host.model, ["a leaf"], 4)
    made |= {"MulticondLearnedConditioning": cond, "ComposableScheduledPromptConditioning": cond.batch[0][0]}
    for file, owner, name in FIELDS:
        instance = made.get(owner) or getattr(module_of(file), owner)()
        assert hasattr(instance, name), f"{owner}.{name}"
    for name in contract.OPTIONS.split():
        assert hasattr(host.shared.opts, name), name


@cache
def tree(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse((Path(str(ROOT)) / file).read_text(encoding="utf8"))


def check_signature(file, name, names):
    body = tree(file).body
    for part in name.split("."):
        found = definitions(body).get(part)
        assert found is not None, f"{file} has no {name}"
        body = getattr(found, "body", [])
    assert arguments(found) == names.split(), f"{file}: {name}"


def attributes(file, owner):
    """Of a class and its bases in the same file, as far as they are set in it; the host's samplers have theirs from sd_samplers_common."""
    found = definitions(tree(file).body)[owner]
    names = set(definitions(found.body))
    for node in ast.walk(found):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
            names.add(node.attr)
    bases = [base.id for base in found.bases if isinstance(base, ast.Name)]
    return names.union(*(attributes(file, base) for base in bases if base in definitions(tree(file).body)))


@cache
def occurring(file):
    names = set()
    for node in ast.walk(tree(file)):
        names |= {value for field in ("attr", "id", "name", "arg") if isinstance(value := getattr(node, field, None), str)}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


@needs_host
@pytest.mark.parametrize("file", contract.SIGNATURES)
def test_the_host_has_the_functions(file):
    for name, names in contract.SIGNATURES[file].items():
        check_signature(file, name, names)


@needs_host
@pytest.mark.parametrize("file", contract.GLOBALS)
def test_the_host_has_the_names(file):
    assert not set(contract.GLOBALS[file].split()) - set(definitions(tree(file).body))


@needs_host
@pytest.mark.parametrize("file", contract.FIELDS)
def test_the_host_has_the_attributes(file):
    for owner, names in contract.FIELDS[file].items():
        assert not set(names.split()) - attributes(file, owner), owner


@needs_host
def test_the_host_has_the_options():
    assert set(contract.OPTIONS.split()) <= occurring("modules/shared_options.py")


@needs_host
@pytest.mark.parametrize("file", contract.OCCURRING)
def test_the_host_has_what_only_occurs_in_it(file):
    assert not set(contract.OCCURRING[file].split()) - occurring(file)


@needs_host
def test_the_host_has_the_plot():
    for file, functions in contract.PLOT.items():
        for name, names in functions.items():
            check_signature(file, name, names)
    for file, names in contract.PLOT_GLOBALS.items():
        assert set(names.split()) <= set(definitions(tree(file).body))


def chain(node):
    """`a.b.c` -> ["a", "b", "c"]; an expression in front of the first dot counts as its last name."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else names


def accesses(path):
    """Every dotted name of a file, with names that `getattr` is given as text among them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield chain(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr" and isinstance(node.args[1], ast.Constant):
            yield [*chain(node.args[0]), node.args[1].value]


def imported(path):
    """(module, name) of everything that a file takes from the host."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.partition(".")[0] == "modules")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "modules":
            for alias in node.names:
                yield (alias.name, None) if node.module == "modules" else (node.module.removeprefix("modules."), alias.name)


def known():
    """Module or object -> the names that the contract lists of it."""
    names = {}

    def add(owner, *more):
        names.setdefault(owner, set()).update(more)

    for file, name, _ in SIGNATURES:
        owner, _, method = name.rpartition(".")
        add(owner or Path(file).stem, method)
        add(Path(file).stem, name.partition(".")[0])
    for files in contract_forge.SIGNATURES.values():
        for file, functions in files.items():
            add(Path(file).stem, *functions)
    for file, name in GLOBALS:
        add(Path(file).stem, name)
    for _, owner, name in FIELDS:
        add(owner, name)
    jobs = ("StableDiffusionProcessing", "StableDiffusionProcessingImg2Img", "StableDiffusionProcessingTxt2Img")
    samplers = ("Sampler", "KDiffusionSampler", "CompVisSampler")
    names["p"] = set().union(*(names[job] for job in jobs)) | {"batch_index", "txt2img_upscale"}
    names["sampler"] = set().union(*(names[sampler] for sampler in samplers))
    names["state"], names["total_tqdm"], names["opts"] = names["State"], names["TotalTQDM"], {*contract.OPTIONS.split(), "add_option"}
    return names


def test_whatever_imports_the_host_is_watched():
    touching = {path for folder in ("apt_ext", "bench", "scripts") for path in (HOUSE / folder).rglob("*.py") if any(imported(path))}
    assert len(touching) > 10
    assert touching <= set(ADAPTER)


def test_the_contract_is_complete():
    names, missing = known(), set()
    for path in ADAPTER:
        taken = list(imported(path))
        modules = {module for module, name in taken if name is None}
        missing |= {(path.name, module, name) for module, name in taken if name and name not in names.get(module, ())}
        for access in accesses(path):
            for owner, name in pairwise(access):
                watched = owner in ("p", "sampler", "state", "opts", "total_tqdm") or (owner in modules and access[0] == owner)
                if watched and not name.startswith(("__", "apt_")) and name not in names.get(owner, ()):
                    missing.add((path.name, owner, name))
    assert not missing


def test_the_contract_asks_for_nothing_that_no_one_uses():
    used = {name for path in ADAPTER for access in accesses(path) for name in access} | {name for path in ADAPTER for _, name in imported(path)}
    assert {name for _, name in GLOBALS} <= used
    assert set(contract.OPTIONS.split()) <= used


def test_a_changed_host_is_noticed(tmp_path, monkeypatch):
    changed = tmp_path / "modules" / "sd_samplers.py"
    changed.parent.mkdir()
    changed.write_text("def create_sampler(name, model, device):\n    pass\n")
    monkeypatch.setattr("tests.host.test_contract.ROOT", str(tmp_path))
    tree.cache_clear()
    try:
        with pytest.raises(AssertionError, match=r"sd_samplers\.py: create_sampler"):
            check_signature("modules/sd_samplers.py", "create_sampler", "name model")
        with pytest.raises(AssertionError, match="has no forget_sampler"):
            check_signature("modules/sd_samplers.py", "forget_sampler", "name")
    finally:
        tree.cache_clear()


@needs_host
@pytest.mark.parametrize("file", contract.SD3)
def test_the_host_has_its_flow_model(file):
    tree = ast.parse((Path(str(ROOT)) / file).read_text(encoding="utf8"))
    for name, names in contract.SD3[file].items():
        owner, method = name.split(".")
        assert arguments(definitions(definitions(tree.body)[owner].body)[method]) == names.split(), name
    written = ast.unparse(tree)
    assert [line for line in contract.SD3_LINES[file] if line not in written] == []


def test_the_double_has_its_flow_model():
    found = contract.SD3["modules/models/sd3/sd3_model.py"]
    for name in ("add_noise_to_latent", "apply_model", "create_denoiser"):
        assert parameters(getattr(flow.StableDiffusion3, name)) == found[f"SD3Inferencer.{name}"].split()
    assert parameters(flow.Schedule.forward) == found["SD3Denoiser.forward"].split()
