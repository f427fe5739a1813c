"""Statistical Matching and re-anchoring: what is promised about means and deviations, and what happens where there is none."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_ext.core.statistics import match_statistics, matching_dilation, mean_std, reanchor, renormalise, statistics_shift
from apt_ext.core.types import Size

SOME = settings(deadline=None, max_examples=50)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def pictures(draw: Any) -> tuple[Tensor, Tensor]:
    """(z_up, reference): a base latent with a different mean and contrast in each sample and channel, enlarged by interpolation."""
    batch, channels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rows, columns = draw(st.integers(4, 10)), draw(st.integers(4, 10))
    seed = draw(st.integers(0, 1000))
    reference = noise(batch, channels, rows, columns, seed=seed) * (0.5 + noise(batch, channels, 1, 1, seed=seed + 1).abs())
    reference = reference + 2 * noise(batch, channels, 1, 1, seed=seed + 2)
    size = (round(rows * draw(st.floats(1, 4))), round(columns * draw(st.floats(1, 4))))
    return F.interpolate(reference, size=size, mode=draw(st.sampled_from(["bicubic", "bilinear"]))), reference


@SOME
@given(pictures())
def test_every_sub_grid_gets_the_references_statistics(pair: tuple[Tensor, Tensor]) -> None:
    """The definition of full matching, per sub-grid, sample and channel, for fractional and unequal scales."""
    z, reference = pair
    before = z.clone()
    out = match_statistics(z, reference)
    assert torch.equal(z, before), "the argument was written to"
    rows, columns = matching_dilation(tuple(z.shape[-2:]), tuple(reference.shape[-2:]))  # type: ignore[arg-type]
    for i in range(rows):
        for j in range(columns):
            view = out[..., i::rows, j::columns]
            torch.testing.assert_close(view.mean((2, 3)), reference.mean((2, 3)), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(view.std((2, 3)), reference.std((2, 3)), rtol=1e-5, atol=1e-5)
            source = z[..., i::rows, j::columns]
            scale = (reference.std((2, 3), keepdim=True) / source.std((2, 3), keepdim=True)) * (source - source.mean((2, 3), keepdim=True))
            torch.testing.assert_close(view, scale + reference.mean((2, 3), keepdim=True), rtol=1e-4, atol=1e-5)
    shift = statistics_shift(out, reference)
    assert shift["mean"] < 1e-4
    assert abs(shift["std"] - 1) < 1e-4
    assert abs(shift["std_min"] - 1) < 1e-4


@SOME
@given(pictures(), st.floats(0, 1))
def test_strength_is_a_straight_line(pair: tuple[Tensor, Tensor], strength: float) -> None:
    """0 is off to the last bit, 1 is full, between them nothing bends."""
    z, reference = pair
    assert torch.equal(match_statistics(z, reference, 0.0), z)
    full = match_statistics(z, reference, 1.0)
    torch.testing.assert_close(match_statistics(z, reference, 0.5), (z + full) / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(match_statistics(z, reference, strength), z + strength * (full - z), rtol=1e-5, atol=1e-5)


def test_a_given_dilation_is_used() -> None:
    """A given picture's phases match at another d than the ratio to the reference."""
    z, reference = 3 * noise(1, 2, 12, 18) + 1, noise(1, 2, 6, 6, seed=1)
    out = match_statistics(z, reference, dilation=(3, 2))
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(out[..., i::3, j::2].std((2, 3)), reference.std((2, 3)))
    assert not torch.allclose(out[..., 0::2, 0::3].std((2, 3)), reference.std((2, 3)), atol=1e-4)


def test_one_reference_serves_a_batch() -> None:
    """(1, C, h, w) is broadcast."""
    z, reference = noise(3, 2, 8, 8), noise(1, 2, 4, 4, seed=1)
    assert torch.equal(match_statistics(z, reference), match_statistics(z, reference.expand(3, -1, -1, -1)))
    torch.testing.assert_close(reanchor(z, reference).std((1, 2, 3)), reference.std().expand(3))


@pytest.mark.parametrize(
    ("size", "reference", "expected"), [((8, 8), (8, 8), (1, 1)), ((12, 20), (8, 8), (2, 3)), ((11, 4), (8, 8), (1, 1)), ((22, 64), (8, 16), (3, 4))]
)
def test_matching_dilation(size: tuple[int, int], reference: tuple[int, int], expected: tuple[int, int]) -> None:
    """The rounded ratio, halves up, at least 1."""
    assert matching_dilation(Size(*size), Size(*reference)) == expected


@pytest.mark.parametrize("value", [0.0, 0.1, 3.3, -1000.3])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_flat_sub_grids_keep_their_contrast(value: float, strength: float) -> None:
    """Nothing divided by nothing: rounding errors must not be blown up to a picture, nor NaN come out."""
    reference = noise(2, 3, 4, 4) + 7
    z = torch.full((2, 3, 10, 14), value)
    z[:, 2, ::3, ::5] = torch.nextafter(z[:, 2, ::3, ::5], torch.tensor(10.0))  # flat but for the last bit
    z[:, 1] = noise(2, 10, 14, seed=3)  # one channel with contrast, which must be matched as ever
    out = match_statistics(z, reference, strength)
    assert out.isfinite().all()
    expected = value + strength * (reference.mean((2, 3), keepdim=True) - value)
    torch.testing.assert_close(out[:, [0, 2]], expected.expand(2, 3, 10, 14)[:, [0, 2]], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out[:, 1], match_statistics(z[:, 1:2], reference[:, 1:2], strength)[:, 0])


def test_single_pixels_have_no_deviation() -> None:
    """1 x 1 sub-grids, and a 1 x 1 reference: the mean moves, the contrast stays, and no NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on the degrees of freedom
        z, reference = noise(1, 2, 3, 3), noise(1, 2, 4, 4, seed=1)
        out = match_statistics(z, reference, dilation=(3, 3))
        torch.testing.assert_close(out, reference.mean((2, 3), keepdim=True).expand_as(out))
        single = noise(1, 2, 1, 1, seed=2)
        out = match_statistics(z, single, dilation=(1, 1))
        torch.testing.assert_close(out, z - z.mean((2, 3), keepdim=True) + single)
        out = reanchor(z, noise(1, 1, 1, 1).expand(1, 1, 1, 1))
        torch.testing.assert_close(out, z - z.mean() + noise(1, 1, 1, 1))


def test_flat_reference_takes_the_contrast_away() -> None:
    """A reference of deviation 0 is a statement too, and it is finite."""
    out = match_statistics(noise(1, 2, 8, 8), torch.full((1, 2, 4, 4), 2.0))
    torch.testing.assert_close(out, torch.full((1, 2, 8, 8), 2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [1.0, 0.37])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, strength: float) -> None:
    """The sum of a thousand half-precision squares is no variance; only the result may be rounded."""
    z, reference = (30 * noise(2, 3, 64, 48) + 4).to(dtype), (25 * noise(2, 3, 32, 24, seed=1) - 9).to(dtype)
    for function in (lambda a, b: match_statistics(a, b, strength), reanchor, lambda a, b: renormalise(a, *mean_std(b))):
        out = function(z, reference)
        assert out.dtype == dtype
        assert torch.equal(out, function(z.float(), reference.float()).to(dtype))
    assert mean_std(z)[1].dtype == torch.float32
    assert match_statistics(z.double(), reference.double()).dtype == torch.float64


@SOME
@given(pictures())
def test_reanchor_is_per_sample(pair: tuple[Tensor, Tensor]) -> None:
    """Each picture's overall mean and deviation become its own reference's, whoever shares the batch."""
    z, reference = pair
    z = z * torch.arange(1, z.shape[0] + 1).view(-1, 1, 1, 1) - 3
    out = reanchor(z, reference)
    for b in range(z.shape[0]):
        torch.testing.assert_close(out[b].mean(), reference[b].mean(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out[b].std(), reference[b].std(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out[b : b + 1], reanchor(z[b : b + 1], reference[b : b + 1]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(match_statistics(z, reference)[b : b + 1], match_statistics(z[b : b + 1], reference[b : b + 1]), rtol=1e-5, atol=1e-5)


def test_statistics_shift_reads_what_was_done() -> None:
    """Known changes come back as numbers: this is what the log and the benchmark report."""
    reference = noise(1, 2, 16, 16)
    reference = (reference - reference.mean((2, 3), keepdim=True)) / reference.std((2, 3), keepdim=True)
    z = torch.zeros(1, 2, 32, 32)
    for i in range(2):
        for j in range(2):
            z[..., i::2, j::2] = reference * (0.5 if (i, j) == (1, 0) else 0.8) + (0.25 if (i, j) == (0, 1) else 0)
    shift = statistics_shift(z, reference)
    assert shift == pytest.approx({"mean": 0.25, "std": (0.5 + 3 * 0.8) / 4, "std_min": 0.5}, rel=1e-4)
    assert statistics_shift(reference, reference) == pytest.approx({"mean": 0, "std": 1, "std_min": 1}, abs=1e-6)


def test_interpolation_shrinks_and_matching_repairs() -> None:
    """The effect that the method exists for, by a different amount at each interpolation phase."""
    reference = noise(1, 4, 32, 32)
    z = F.interpolate(reference, scale_factor=3, mode="bicubic")
    shift = statistics_shift(z, reference)
    assert shift["std"] < 0.9
    assert shift["std_min"] < shift["std"] - 0.02
    assert statistics_shift(match_statistics(z, reference), reference)["std_min"] > 0.9999


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_bad_strength_is_quoted(strength: float) -> None:
    """The user must see which number was wrong."""
    with pytest.raises(ValueError, match=str(strength)):
        match_statistics(noise(1, 1, 4, 4), noise(1, 1, 2, 2), strength)
