"""The weights of the paths at a noise level: DemoFusion's decaying cosines."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["TRAINING_STEPS", "PathWeights", "cosine_weights", "path_shares"]

TRAINING_STEPS = 1000.0


class PathWeights(NamedTuple):
    """c1: share of the skip residual. c2: share of the dilated path. c3: factor of the blur's std. All 0 to 1."""

    c1: float
    c2: float
    c3: float


def cosine_weights(t: float, exponents: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> PathWeights:
    """DemoFusion's decaying weights at a timestep.

    Args:
        t: the model's own timestep, 0 (clean) to 1000 (noise).
        exponents: a1, a2, a3 of the skip residual, the dilated path and the blur.

    Returns:
        c1 = cosine^a1, c2 = cosine^a2, c3 = 0.99 cosine^a3 + 0.01, where cosine = (1 + cos(pi (1000 - t) / 1000)) / 2.

    Source: DemoFusion (Du et al., CVPR 2024), section 3, and the constants of its published code.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * (TRAINING_STEPS - t) / TRAINING_STEPS))
    a1, a2, a3 = exponents
    return PathWeights(cosine**a1, cosine**a2, 0.99 * cosine**a3 + 0.01)


def path_shares(c2: float, tolerance: float) -> tuple[float, float]:
    """Weights of the (local, dilated) path; one below the tolerance is 0, is not evaluated, and the other path gets all."""
    if 1 - c2 < tolerance:
        return 0.0, 1.0
    return (1.0, 0.0) if c2 < tolerance else (1 - c2, c2)
