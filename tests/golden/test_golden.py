"""The core against recorded runs of the published DemoFusion and AccDiffusion loops, number by number at every step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from apt_ext.core import paths, residual
from apt_ext.core.blur import gaussian_blur
from tests.golden.cases import TOLERANCE, replay
from tests.golden.files import OWN, Golden, find_cases, why_not_a_case

# All that a file has to hold: what was drawn at random, the stand-in model, and something to compare with.
NEEDED = re.compile(r"options|unet_.*|emb_.*|pool_.*|base_init|p\d+_(noise|views|shuffle|final)")


def load(path: Path) -> Golden:
    """The case, or a skip that says what is in its way."""
    golden = None
    reason = why_not_a_case(path)
    if reason is None:
        golden = Golden(path)
        reason = golden.unsupported
    if golden is None or reason:
        pytest.skip(f"{path.stem}: {reason}")
    return golden


@pytest.mark.parametrize("path", find_cases(), ids=lambda path: path.stem)
def test_every_step_agrees_with_the_published_loop(path: Path) -> None:
    """Fusing denoised predictions in k-diffusion's form equals the loops' fusing of stepped latents, option by option."""
    golden = load(path)
    errors = replay(golden)
    assert any(re.fullmatch(r"p\d+_(after|final)", name) for name in errors), "the file holds no result to compare with"
    off = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    assert not off, f"beyond {TOLERANCE}: {off}; options that the replay does not know: {golden.unknown_options or 'none'}"


def test_what_can_be_derived_may_be_left_out(tmp_path: Path) -> None:
    """The replay reads nothing but the random draws: without all else it makes the same result."""
    whole = Golden(OWN / "demofusion_s2.npz")
    with np.load(OWN / "demofusion_s2.npz") as file:
        np.savez(tmp_path / "bare.npz", **{name: file[name] for name in file.files if NEEDED.fullmatch(name)})
    bare = Golden(tmp_path / "bare.npz")
    errors = replay(bare)
    assert set(errors) == {"p2_final"}
    assert len(replay(whole)) > 20
    assert errors["p2_final"] == replay(whole)["p2_final"] <= TOLERANCE


def test_a_recorded_base_latent_replaces_the_base_phase(tmp_path: Path) -> None:
    with np.load(OWN / "demofusion_s2.npz") as file:
        np.savez(tmp_path / "base.npz", **{name: file[name] for name in file.files if name == "base_final" or (NEEDED.fullmatch(name) and name != "base_init")})
    errors = replay(Golden(tmp_path / "base.npz"))
    assert errors["p2_final"] <= TOLERANCE


def _plain_estimate(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return (_blurred(x, *rest)[1],) * 2


def _wider(x: Tensor, lengths: tuple[int, int], *rest: Any) -> Tensor:
    return gaussian_blur(x, (lengths[0] + 2, lengths[1] + 2), *rest)


_blurred = paths.blurred
BREAKS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "D(g) in place of x - g + D(g)": (paths, "blurred", _plain_estimate),
    "no renormalisation": (paths, "renormalise", lambda x, mean, std: x),
    "a kernel of 2d + 1": (paths, "gaussian_blur", _wider),
    "no skip residual": (residual, "mix_residual", lambda *args: None),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_comparison_sees_a_mistake(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would look fine to the eye; the recorded steps tell them apart by a thousand tolerances."""
    monkeypatch.setattr(*BREAKS[name])
    errors = replay(Golden(OWN / "demofusion_s2.npz"))
    assert errors["p2_after"] > 1000 * TOLERANCE
    assert errors["base_final"] <= TOLERANCE


def test_the_recorded_input_levels_are_those_of_the_published_flaw() -> None:
    """Where a file lists the sigma of each model call's input scaling, the rule that stands in for a missing list gives the same."""
    lists = [golden for golden in map(Golden, (p for p in find_cases() if not why_not_a_case(p))) if "scale_calls" in golden.data]
    assert lists
    for golden in lists:
        for phase in range(len(golden.phases)):
            calls = [(step, call) for step in range(len(golden.timesteps)) for call in range(sum(golden.batches(phase)))]
            assert [golden.input_level(phase, *c) for c in calls] == [golden.input_level(phase, *c, recorded=False) for c in calls], golden.name
