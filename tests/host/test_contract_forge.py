"""The double of Forge's seam and the real hosts of that family agree on everything that the adapter touches."""

from __future__ import annotations

import ast
import os
import warnings
from functools import cache
from pathlib import Path

import pytest

from tests.host import contract, contract_forge
from tests.host.double import flow
from tests.host.forge import backend
from tests.host.sources import arguments, definitions, parameters

ROOTS = {name: os.environ.get(name, "") for name in contract_forge.SIGNATURES}


def cases(table):
    """Every file of every root; those of a host that is not named are skipped, and say how to name it."""
    for root, files in table.items():
        missing = pytest.mark.skipif(not ROOTS[root], reason=f"set {root} to a checkout of that host to hold it to the contract")
        yield from (pytest.param(root, file, marks=missing, id=f"{root} {file}") for file in files)


@cache
def tree(root, file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse((Path(ROOTS[root]) / file).read_text(encoding="utf8"))


def found(root, file, name):
    body = tree(root, file).body
    for part in name.split("."):
        made = definitions(body).get(part)
        assert made is not None, f"{file} has no {name}"
        body = getattr(made, "body", [])
    return made


@pytest.mark.parametrize(("root", "file"), cases(contract_forge.SIGNATURES))
def test_the_host_has_the_functions(root, file):
    for name, names in contract_forge.SIGNATURES[root][file].items():
        assert arguments(found(root, file, name)) == names.split(), f"{file}: {name}"


@pytest.mark.parametrize(("root", "file"), cases(contract_forge.LINES))
def test_the_host_has_the_lines(root, file):
    written = ast.unparse(tree(root, file))
    for line in contract_forge.LINES[root][file]:
        assert line in written, f"{file}: {line}"


@pytest.mark.parametrize(("root", "file"), cases(dict.fromkeys(contract_forge.OTHERS, contract.SIGNATURES)))
def test_forge_and_neo_have_what_1_10_1_has(root, file):
    for name, names in contract.SIGNATURES[file].items():
        if name in contract_forge.NOT_ASKED.get(file, ()):
            continue
        wanted = contract_forge.OTHERS[root].get(file, {}).get(name, names)
        assert arguments(found(root, file, name)) == wanted.split(), f"{file}: {name}"


@pytest.mark.parametrize(("root", "file"), cases(dict.fromkeys(contract_forge.SIGNATURES, ("modules/sd_samplers_kdiffusion.py",))))
def test_a_schedule_reads_of_a_job_what_the_panel_has(root, file):
    body = ast.walk(found(root, file, "KDiffusionSampler.get_sigmas"))
    read = {node.attr for node in body if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "p"}
    assert read
    assert read <= contract_forge.SCHEDULES_READ


@pytest.mark.parametrize(("root", "file"), cases(dict.fromkeys(contract_forge.SIGNATURES, ("modules/processing.py",))))
def test_one_of_the_passes_brings_the_first_pictures_to_0_to_1(root, file):
    """By which the adapter tells in what range they are handed over: Neo's first pass, elsewhere the hires pass."""
    passes = {name: found(root, file, f"StableDiffusionProcessingTxt2Img.{name}") for name in ("sample", "sample_hr_pass")}
    clamped = [name for name, body in passes.items() if any(isinstance(node, ast.Attribute) and node.attr == "clamp" for node in ast.walk(body))]
    assert clamped == ["sample" if root == "NEO_ROOT" else "sample_hr_pass"]


def test_the_double_has_the_functions():
    for name in ("calc_cond_uncond_batch", "sampling_function", "sampling_prepare", "sampling_cleanup"):
        wanted = contract_forge.SIGNATURES["FORGE_ROOT"]["backend/sampling/sampling_function.py"][name]
        assert parameters(getattr(backend, name)) == wanted.split(), name
    patcher = {"UnetPatcher." + name.partition(".")[2]: names for name, names in contract_forge.PATCHER.items()}
    for name, names in (patcher | contract_forge.SIGNATURES["FORGE_ROOT"]["backend/modules/k_model.py"] | {"UnetPatcher.clone": "self"}).items():
        owner, method = name.split(".")
        assert parameters(getattr(getattr(backend, owner), method)) == names.split(), name


def test_the_double_of_rectified_flow_noises_as_the_host_does():
    wanted = contract_forge.SIGNATURES["FORGE_ROOT"]["backend/modules/k_prediction.py"]
    assert parameters(flow.Predictor.noise_scaling) == wanted["AbstractPrediction.noise_scaling"].split()
    assert parameters(flow.PredictionFlux.timestep) == wanted["PredictionFlux.timestep"].split()
    written = ast.unparse(ast.parse(Path(flow.__file__).read_text()))
    assert "sigma * noise + (1.0 - sigma) * latent_image" in written
    assert f"prediction_type = {flow.Predictor.prediction_type!r}" in written
    assert {flow.Flux.__name__, flow.StableDiffusion3.__name__, flow.PredictionFlux.__name__} == {"Flux", "StableDiffusion3", "PredictionFlux"}


def test_the_double_has_the_lines():
    written = ast.unparse(ast.parse(Path(backend.__file__).read_text()))
    for line in (contract_forge.MODIFIED, contract_forge.ASKED, "model_options['model_function_wrapper'](model.apply_model, {'input': "):
        assert line in written, line


def imported(file):
    """The names that a file of the adapter takes from the host's `modules` and from its own hosts, wherever in it."""
    found = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))) if isinstance(node, ast.ImportFrom)]
    own = {str(node.module).rpartition(".")[2] for node in found if str(node.module).startswith("apt_ext.webui.hosts.")}
    return {alias.name for node in found if node.module == "modules" for alias in node.names} | own


def test_nothing_that_neo_loads_imports_what_neo_has_not():
    elsewhere = {"a1111.py", "ldm_patched.py"}
    for file in (Path(__file__).parents[2] / "apt_ext/webui").rglob("*.py"):
        if file.name not in elsewhere:
            assert not imported(file) & {"sd_hijack", "a1111", "ldm_patched"}, file


def test_a_changed_host_is_noticed(tmp_path, monkeypatch):
    file = tmp_path / "backend/sampling/sampling_function.py"
    file.parent.mkdir(parents=True)
    file.write_text("def sampling_prepare(unet, x, more):\n    pass\n")
    monkeypatch.setitem(ROOTS, "FORGE_ROOT", str(tmp_path))
    tree.cache_clear()
    try:
        assert arguments(found("FORGE_ROOT", "backend/sampling/sampling_function.py", "sampling_prepare")) == ["unet", "x", "more"]
        with pytest.raises(AssertionError, match="has no sampling_cleanup"):
            found("FORGE_ROOT", "backend/sampling/sampling_function.py", "sampling_cleanup")
    finally:
        tree.cache_clear()
