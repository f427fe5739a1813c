"""Low-pass guidance: the coarse shapes of every estimate are held to the latent that a phase began with.

It changes the estimate alone, so no sampler has to know of it, and none of the sampler's tensors is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from apt_ext.core.blur import gaussian_blur
from apt_ext.core.statistics import at_least_float32

__all__ = ["Hold", "hold_weight", "low_pass"]

REACH = 4.0  # stds; what lies further out weighs less than a thousandth of the middle


def low_pass(x: Tensor, std: tuple[float, float], fill: str = "reflect") -> Tensor:
    """(B, C, H, W) blurred by a Gaussian of std (rows, columns) in latent pixels, in float32 at least. `fill`: what lies beyond the border."""
    rows, columns = (2 * math.ceil(REACH * s) + 1 for s in std)
    return gaussian_blur(gaussian_blur(at_least_float32(x), (rows, 1), std[0], fill), (1, columns), std[1], fill)


def hold_weight(strength: float, first: float, until: float) -> Callable[[float], float]:
    """sigma -> w: `strength` at the phase's first noise level, down along a cosine over log sigma, 0 from `until` on.

    A phase that begins at or below `until` is not held at all.
    """

    def weight(sigma: float) -> float:
        if sigma <= until or first <= until:
            return 0.0
        way = min(1.0, math.log(sigma / until) / math.log(first / until))
        return strength * 0.5 * (1 - math.cos(math.pi * way))

    return weight


class Hold(NamedTuple):
    """D' = D + w(sigma) LP(z_ref - D).

    Attributes:
        reference: z_ref (B, C, H, W), the clean latent that the phase began with.
        std: of the low-pass LP along (rows, columns), in latent pixels of the phase.
        weight: sigma -> w, 0 to 1.
        free: (H, W) or (B, 1, H, W), 1 where the picture may change freely and is not held; None holds it everywhere.
        fill: what lies beyond the border.

    Related: DiffuseHigh (Kim et al., 2024), section 3; FAM diffusion (Yang et al., 2024), section 3.
    """

    reference: Tensor
    std: tuple[float, float]
    weight: Callable[[float], float]
    free: Tensor | None = None
    fill: str = "reflect"

    def __call__(self, estimate: Tensor, sigma: float) -> Tensor:
        """(B, C, H, W) estimate of the clean latent at a noise level -> the held one, in the estimate's dtype."""
        w = self.weight(sigma)
        if w == 0:
            return estimate
        change = low_pass(at_least_float32(self.reference.to(estimate.device)) - at_least_float32(estimate), self.std, self.fill).mul_(w)
        if self.free is not None:
            change = change * (1 - self.free.to(change))
        return (at_least_float32(estimate) + change).to(estimate.dtype)
