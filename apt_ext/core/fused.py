"""The fused denoiser: patch fusion as one wrapper with k-diffusion's model signature, so that every sampler works unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from apt_ext.core.paths import DilatedPath, LocalPath
from apt_ext.core.views import ViewCalls
from apt_ext.core.weights import PathWeights, path_shares

__all__ = ["FusedDenoiser"]


class FusedDenoiser:
    """D_fused = (1 - c2) D_local + c2 D_dilated, around any denoiser with k-diffusion's signature.

    A first-order step is affine in D, so fusing the estimates equals fusing the stepped latents, which is what DemoFusion's code does.

    Args:
        calls: how the model, guidance included, is called for views of the base size.
        local: the local windows, or None to leave that path out. `dilated`: the dilated views, or None (MultiDiffusion).
        weights: sigma -> c1, c2, c3 at that noise level.
        step: tells the number of the current step (a `StepClock`'s, say); without it every call counts as a step.
        tolerance: a path whose weight is below it is not evaluated, and the other one gets all the weight.

    Raises:
        ValueError: where both paths are left out.
    """

    def __init__(
        self,
        calls: ViewCalls,
        local: LocalPath | None,
        dilated: DilatedPath | None,
        weights: Callable[[float], PathWeights],
        *,
        step: Callable[[], int] | None = None,
        tolerance: float = 0.0,
    ):
        if local is None and dilated is None:
            raise ValueError("neither local windows nor dilated views are given; a fused denoiser needs at least one of the two")
        self.calls, self.local, self.dilated, self.weights, self.tolerance = calls, local, dilated, weights, tolerance
        self._step, self._counted = step, 0

    def shares(self, sigma: float) -> tuple[float, float]:
        """Weights of the (local, dilated) path at a noise level; a path that is not evaluated has 0."""
        if self.local is None or self.dilated is None:
            return float(self.local is not None), float(self.dilated is not None)
        return path_shares(self.weights(sigma).c2, self.tolerance)

    def estimate_local(self, x: Tensor, sigma: Tensor, step: int, extra: dict[str, Any]) -> Tensor:
        """D_local: arguments as in a call, and the step's number."""
        assert self.local is not None
        return self.local(self.calls, x, sigma, step, extra)

    def estimate_dilated(self, x: Tensor, sigma: Tensor, step: int, extra: dict[str, Any], c3: float) -> Tensor:
        """D_dilated: arguments as in a call, the step's number, and the blur's factor."""
        assert self.dilated is not None
        return self.dilated(self.calls, x, sigma, step, extra, c3)

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """(B, C, H, W) noisy, (B,) sigmas and the model's other arguments -> (B, C, H, W) clean estimate.

        Rows may stand at noise levels of their own (a host's extension may lower that of the prompt's rows alone): each view keeps its sample's,
        and the paths' weights are those of the highest, the step's.
        """
        step = self._step() if self._step else self._counted
        self._counted += 1
        level = float(sigma.max())
        share_local, share_dilated = self.shares(level)
        if not share_dilated:
            return self.estimate_local(x, sigma, step, extra)
        c3 = self.weights(level).c3
        if not share_local:
            return self.estimate_dilated(x, sigma, step, extra, c3)
        return self.estimate_local(x, sigma, step, extra).mul_(share_local).add_(self.estimate_dilated(x, sigma, step, extra, c3), alpha=share_dilated)
