"""The samplers that Forge and its kin have of their own, run as their sources have them: their model calls, and the noise of Forge's for rectified flow."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from apt_ext.webui.run.samplers import FLOW_SAMPLERS, model_calls
from tests.host.sources import definitions

SOURCES = {"FORGE_ROOT": "k_diffusion/sampling.py", "CLASSIC_ROOT": "ldm_patched/k_diffusion/sampling.py"}
OWN = ("heunpp2", "ipndm", "ipndm_v", "deis")
NOISY = ("euler_ancestral", "dpm_2_ancestral")
TIMES = torch.linspace(0.9, 0.0, 6)  # IPNDM_V has a slip in its fourth order, which shows where the steps are not alike
CLEAN = 3.0
SHIFTED = "PredictionFlux"  # by which they tell


def functions_of(root):
    """The samplers of a checkout, without what only its other functions import."""
    folder = Path(os.environ[root])
    names = {
        "torch": torch,
        "trange": lambda count, disable: range(count),
        "to_d": lambda x, sigma, clean: (x - clean) / sigma,
        "default_noise_sampler": lambda x: lambda sigma, after: torch.randn_like(x),
        "deis": ModuleType("deis"),
        SHIFTED: type(SHIFTED, (), {}),
    }
    coefficients = (folder / SOURCES[root]).parent / "deis.py"
    if coefficients.exists():
        exec(compile(coefficients.read_text(), coefficients, "exec"), vars(names["deis"]))
    found = definitions(ast.parse((folder / SOURCES[root]).read_text()).body)
    for name, node in found.items():
        if name.removeprefix("sample_").removesuffix("_RF") in OWN + NOISY and isinstance(node, ast.FunctionDef):
            exec(compile(ast.Module([node], []), SOURCES[root], "exec"), names)
    return names


def run(names, function, **given):
    """A run where the clean picture is known: its end, and the noise of every state that the model is asked about."""
    found = []

    def model(state, t, **extra):
        time = float(t[0])
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
