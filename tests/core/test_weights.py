"""The weights of the paths against their formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_ext.core.weights import cosine_weights, path_shares

MANY = settings(deadline=None, max_examples=150)


@MANY
@given(st.floats(0, 1000), st.tuples(*[st.floats(0.1, 6)] * 3))
def test_cosine_weights_formula(t: float, exponents: tuple[float, float, float]) -> None:
    """The three weights of the method's text, between 0 and 1, and falling with the noise."""
    cosine = (1 + math.cos(math.pi * (1000 - t) / 1000)) / 2
    weights = cosine_weights(t, exponents)
    expected = (cosine ** exponents[0], cosine ** exponents[1], 0.99 * cosine ** exponents[2] + 0.01)
    assert tuple(weights) == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert all(0 <= w <= 1 + 1e-12 for w in weights)
    lower = cosine_weights(t / 2, exponents)
    assert all(a <= b for a, b in zip(lower, weights, strict=True))


def test_cosine_weights_known_values() -> None:
    """Ends and middle with the published exponents 3, 1, 1."""
    assert cosine_weights(1000) == pytest.approx((1, 1, 1))
    assert cosine_weights(0) == pytest.approx((0, 0, 0.01))
    assert cosine_weights(500) == pytest.approx((0.125, 0.5, 0.505))


@pytest.mark.parametrize(("c2", "tolerance", "shares"), [(0.3, 0.1, (0.7, 0.3)), (0.05, 0.1, (1.0, 0.0)), (0.95, 0.1, (0.0, 1.0)), (0.0, 0.0, (1.0, 0.0))])
def test_a_path_below_the_tolerance_gives_its_share_away(c2: float, tolerance: float, shares: tuple[float, float]) -> None:
    assert path_shares(c2, tolerance) == pytest.approx(shares)
