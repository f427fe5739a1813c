"""Paths and fused denoisers from one list of settings, for tests that change one of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from apt_ext.core.conditioning import Condition, condition_views
from apt_ext.core.dilated import DilatedGrid
from apt_ext.core.fused import FusedDenoiser
from apt_ext.core.paths import DilatedPath, LocalPath, Permutations
from apt_ext.core.views import ViewCalls
from apt_ext.core.weights import PathWeights
from apt_ext.core.windows import Window

__all__ = ["denoise_dilated", "denoise_local", "fused_denoiser"]


def _ignore(_: int) -> None:
    pass


def denoise_local(
    model: Any, x: Tensor, sigma: Tensor, extra: dict[str, Any], windows: Sequence[Window], *, fill: str = "reflect", feather: float = 0.0, **calls: Any
) -> Tensor:
    """D_local. `calls`: of `view_calls`."""
    return LocalPath(lambda step: windows, fill, feather)(view_calls(model, **calls), x, sigma, 0, extra)


def denoise_dilated(
    model: Any,
    x: Tensor,
    sigma: Tensor,
    extra: dict[str, Any],
    grid: DilatedGrid,
    *,
    blur: float = 0.0,
    permutations: Permutations | None = None,
    interaction_group: int | None = None,
    **calls: Any,
) -> Tensor:
    """D_dilated. `calls`: of `view_calls`."""
    path = DilatedPath(grid, blur, (lambda step: permutations) if permutations else None, interaction_group)
    return path(view_calls(model, **calls), x, sigma, 0, extra)


def view_calls(model: Any, window_batch: int = 8, condition: Condition = condition_views, on_views: Callable[[int], None] = _ignore) -> ViewCalls:
    return ViewCalls(model, window_batch, condition, on_views)


def fused_denoiser(
    model: Any,
    *,
    windows: Callable[[int], Sequence[Window]] | None,
    grid: DilatedGrid | None,
    weights: Callable[[float], PathWeights],
    step: Callable[[], int] | None = None,
    blur: float = 1.0,
    tolerance: float = 0.0,
    fill: str = "reflect",
    feather: float = 0.0,
    permutations: Callable[[int], Permutations] | None = None,
    interaction_group: int | None = None,
    kind: type[FusedDenoiser] = FusedDenoiser,
    **calls: Any,
) -> Any:
    """D_fused. `calls`: of `view_calls`."""
    local = None if windows is None else LocalPath(windows, fill, feather)
    dilated = None if grid is None else DilatedPath(grid, blur, permutations, interaction_group)
    return kind(view_calls(model, **calls), local, dilated, weights, step=step, tolerance=tolerance)
