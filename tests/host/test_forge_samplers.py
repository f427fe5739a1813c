"""The samplers that Forge and its kin have of their own, run as their sources have them: their model calls, and the noise of theirs for rectified flow."""

from __future__ import annotations

import ast
import math
import os
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from apt_ext.core.call_levels import Knobs, call_levels
from apt_ext.webui.run.samplers import FLOW_SAMPLERS, model_calls
from tests.host.contract_forge import NOISE_BY_SNR
from tests.host.sources import definitions

SOURCES = {"FORGE_ROOT": "k_diffusion/sampling.py", "CLASSIC_ROOT": "ldm_patched/k_diffusion/sampling.py"}
NEO = "modules_forge/packages/k_diffusion/sampling.py"
OWN = ("heunpp2", "ipndm", "ipndm_v", "deis")
NOISY = ("euler_ancestral", "dpm_2_ancestral")
NEO_HELPERS = ("_is_const", "sigma_to_half_log_snr", "half_log_snr_to_sigma", "offset_first_sigma_for_snr", "get_ancestral_step")
TIMES = torch.linspace(0.9, 0.0, 6)  # IPNDM_V has a slip in its fourth order, which shows where the steps are not alike
CLEAN = 3.0
SHIFTED = "PredictionFlux"  # by which they tell


class Predictor:
    """What Neo's samplers ask of it."""

    prediction_type = "const"

    def noise_scaling(self, sigma, noise, latent):
        return sigma * noise + (1.0 - sigma) * latent


def functions_of(root):
    """The samplers of a checkout, without what only its other functions import."""
    folder, file = Path(os.environ[root]), SOURCES.get(root, NEO)
    names = {
        "torch": torch,
        "trange": lambda count, disable: range(count),
        "to_d": lambda x, sigma, clean: (x - clean) / sigma,
        "default_noise_sampler": lambda x: lambda sigma, after: torch.randn_like(x),
        "deis": ModuleType("deis"),
        SHIFTED: type(SHIFTED, (Predictor,), {}),
        "math": math,
        "partial": partial,
    }
    coefficients = (folder / file).parent / "deis.py"
    if coefficients.exists():
        exec(compile(coefficients.read_text(), coefficients, "exec"), vars(names["deis"]))
    found = definitions(ast.parse((folder / file).read_text()).body)
    for name, node in found.items():
        if name.removeprefix("sample_").removesuffix("_RF") in (*OWN, *NOISY, *NOISE_BY_SNR, *NEO_HELPERS) and isinstance(node, ast.FunctionDef):
            exec(compile(ast.Module([node], []), file, "exec"), names)
    return names


def run(names, function, **given):
    """A run where the clean picture is known: its end, and the noise of every state that the model is asked about; `told`: its times."""
    found, told = [], given.pop("told", [])

    def model(state, t, **extra):
        time = float(t[0])
        told.append(time)
        found.append((state - (1 - time) * CLEAN) / time)
        return torch.full_like(state, CLEAN)

    model.inner_model = SimpleNamespace(predictor=names[SHIFTED]())  # type: ignore[attr-defined]
    noise = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    return names[f"sample_{function}"](model, (1 - TIMES[0]) * CLEAN + TIMES[0] * noise, TIMES, disable=True, **given), found


def checkouts(*roots):
    return [pytest.param(root, marks=pytest.mark.skipif(not os.environ.get(root), reason=f"set {root} to a checkout of that host")) for root in roots]


@pytest.mark.parametrize("root", checkouts(*SOURCES))
@pytest.mark.parametrize("name", OWN)
def test_its_own_samplers_call_their_model_as_counted_and_keep_the_flow_s_noise(root, name):
    names = functions_of(root)
    if f"sample_{name}" not in names:
        pytest.skip("this one has no such sampler")
    end, found = run(names, name)
    assert len(found) == sum(model_calls(name, f"sample_{name}", TIMES.tolist()))
    assert name in FLOW_SAMPLERS
    torch.testing.assert_close(end, torch.full_like(end, CLEAN), atol=1e-3, rtol=1e-3)
    for left in found[1:]:
        torch.testing.assert_close(left, found[0], atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("root", checkouts("FORGE_ROOT"))
@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("name", NOISY)
def test_two_of_them_add_noise_as_rectified_flow_needs_it(root, name, eta):
    end, found = run(functions_of(root), name, eta=eta)
    torch.testing.assert_close(end, torch.full_like(end, CLEAN), atol=1e-3, rtol=1e-3)
    for left in found:
        assert abs(float(left.mean())) < 0.02
        assert float(left.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("root", checkouts("NEO_ROOT"))
@pytest.mark.parametrize("name", NOISE_BY_SNR)
def test_neo_s_add_it_so_whatever_the_predictor_and_call_their_model_where_they_are_taken_to(root, name):
    told = []
    end, found = run(functions_of(root), name, told=told, noise_sampler=lambda sigma, after: torch.randn(1, 16, 64, 64))
    torch.testing.assert_close(end, torch.full_like(end, CLEAN), atol=1e-3, rtol=1e-3)
    for left in found:
        assert abs(float(left.mean())) < 0.02
        assert float(left.std()) == pytest.approx(1, abs=0.02)
    planned = [level for step in call_levels(name, TIMES.tolist(), Knobs(flow=True)) for level in step]
    assert planned == pytest.approx(told, rel=1e-4)
    assert len(told) == sum(model_calls(name, f"sample_{name}", TIMES.tolist()))
