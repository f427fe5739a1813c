"""The plan of phases: growing sizes, the exact target at the end, clear refusals."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_ext.core.phases import base_size, plan_phases

sides = st.integers(8, 200)


def ratios(phases):
    return [round(p.scale, 3) for p in phases]


def test_progressive_goes_by_whole_multiples_as_demofusion_does():
    phases = plan_phases((64, 64), (64, 64), (256, 256))
    assert [p.size for p in phases] == [(128, 128), (192, 192), (256, 256)]
    assert [p.dilation for p in phases] == [(2, 2), (3, 3), (4, 4)]
    assert [p.number for p in phases] == [1, 2, 3]


@pytest.mark.parametrize(
    ("ratio", "policy", "expected"),
    [
        (1.5, "progressive", [1.5]),
        (2.1, "progressive", [2.094]),
        (2.75, "progressive", [2, 2.75]),
        (4, "double", [2, 4]),
        (3, "double", [1.734, 3]),
        (8, "double", [2, 4, 8]),
        (8, "direct", [8]),
        (4, (1.5, 2, 4), [1.5, 2, 4]),
        (4, (2,), [2, 4]),
    ],
)
def test_policies(ratio, policy, expected):
    assert ratios(plan_phases((64, 64), (64, 64), (round(64 * ratio),) * 2, policy)) == expected


def test_a_larger_start_goes_by_multiples_of_itself():
    phases = plan_phases((16, 16), (32, 32), (128, 128))
    assert ratios(phases) == [4, 6, 8]


def test_same_size_is_one_phase_at_scale_one():
    (phase,) = plan_phases((16, 16), (16, 16), (16, 16))
    assert phase.size == (16, 16)
    assert phase.scale == 1
    assert phase.dilation == (1, 1)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.floats(1, 9), st.floats(1, 9), st.sampled_from(["progressive", "double", "direct"]))
def test_every_plan_grows_and_ends_at_the_target(rows, columns, up, across, policy):
    target = (round(rows * up), round(columns * across))
    phases = plan_phases((rows, columns), (rows, columns), target, policy)
    assert phases[-1].size == target
    sizes = [(rows, columns), *(p.size for p in phases)]
    for small, large in pairwise(sizes):
        assert large[0] >= small[0]
        assert large[1] >= small[1]
    assert len(set(sizes[1:])) == len(phases)
    for phase in phases:
        for side, base, d in zip(phase.size, (rows, columns), phase.dilation, strict=True):
            assert d == 1 if side == base else d >= 2
            assert abs(side / base - d) <= 1  # a sub-grid is about base size


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.floats(1.01, 20), st.floats(1.01, 20))
def test_double_never_more_than_doubles_any_side(rows, columns, up, across):
    target = (round(rows * up), round(columns * across))
    sizes = [(rows, columns), *(p.size for p in plan_phases((rows, columns), (rows, columns), target, "double"))]
    assert all(b <= 2 * a + 1 for small, large in pairwise(sizes) for a, b in zip(small, large, strict=True))


def test_refusals_quote_the_values():
    with pytest.raises(ValueError, match="the target, 512 x 240 pixels, is smaller than the picture that is enlarged, 512 x 512; choose a larger one"):
        plan_phases((64, 64), (64, 64), (30, 64))
    with pytest.raises(ValueError, match="phase ratio 7 does not lie between"):
        plan_phases((64, 64), (64, 64), (256, 256), (2, 7))
    for bad in ((3, 2), (2, 2), (2, float("nan"))):
        with pytest.raises(ValueError, match="must rise; order them"):
            plan_phases((64, 64), (64, 64), (256, 256), bad)
    with pytest.raises(ValueError, match="'spiral' does not exist"):
        plan_phases((64, 64), (64, 64), (256, 256), "spiral")


def test_base_size_keeps_small_pictures_and_shrinks_large_ones():
    assert base_size((64, 96), (64, 64)) == (64, 96)
    assert base_size((256, 256), (64, 64)) == (64, 64)
    rows, columns = base_size((128, 512), (64, 64), multiple=8)
    assert (rows, columns) == (32, 128)
    assert base_size((10, 4000), (64, 64), multiple=8) == (10, 1280)  # never larger than the picture
    assert base_size((40, 4000), (64, 64), multiple=8)[0] == 32  # never less than half a window
