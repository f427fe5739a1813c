"""The dilated path: taking a latent apart and together, the blur, and the whole path against a naive version."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_ext.core.blur import gaussian_blur, gaussian_kernel
from apt_ext.core.dilated import dilated_grid, dilation_for, gather_dilated, pad_to_grid, scatter_dilated
from apt_ext.core.paths import blurred
from tests.core.made import denoise_dilated

MANY = settings(deadline=None, max_examples=80)
SOME = settings(deadline=None, max_examples=30)

FILL = st.sampled_from(["reflect", "zero"])
SIZE = st.tuples(st.integers(1, 24), st.integers(1, 24))
DILATION = st.tuples(st.integers(1, 5), st.integers(1, 5))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def toy(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
    """Neither pointwise, nor linear, nor symmetric, and different at each noise level: any mistake of place or scale shows."""
    s = sigma.view(-1, 1, 1, 1).to(x.dtype)
    return 0.5 * torch.tanh(x + 0.3 * x.roll(1, -1)) / (1 + s) + 0.2 * x.roll(1, -2) - 0.1 * x.flip(-1)


@MANY
@given(SIZE, DILATION, FILL, st.integers(1, 8), st.integers(1, 3))
@example((1, 1), (5, 4), "reflect", 8, 1)
def test_scatter_undoes_gather(size: tuple[int, int], d: tuple[int, int], fill: str, multiple: int, batch: int) -> None:
    """No pixel may be lost, doubled or moved, at any size."""
    grid = dilated_grid(size, d, fill, multiple)
    x = noise(batch, 2, *size)
    views = gather_dilated(x, grid)
    assert views.shape[:2] == (batch, d[0] * d[1])
    assert grid.views == d[0] * d[1]
    assert views.shape[3] % multiple == 0
    assert views.shape[4] % multiple == 0
    assert views.shape[3] * d[0] < size[0] + d[0] * multiple, "more padding than needed"
    assert views.shape[4] * d[1] < size[1] + d[1] * multiple, "more padding than needed"
    assert torch.equal(scatter_dilated(views, grid), x)


@MANY
@given(SIZE, DILATION, FILL, st.integers(1, 4))
def test_views_are_strided_slices(size: tuple[int, int], d: tuple[int, int], fill: str, multiple: int) -> None:
    """View (i, j) is x[i::d, j::d] of the padded latent, row offset outermost; the padding is numpy's."""
    grid = dilated_grid(size, d, fill, multiple)
    x = noise(2, 3, *size)
    rows, columns = (-size[k] % (d[k] * multiple) for k in (0, 1))
    at_start = fill == "zero"
    reach = ((0, 0), (0, 0), (rows, 0) if at_start else (0, rows), (columns, 0) if at_start else (0, columns))
    wide = np.pad(x.numpy(), reach, mode="constant" if fill == "zero" else "reflect")
    views = gather_dilated(x, grid).numpy()
    for i in range(d[0]):
        for j in range(d[1]):
            assert np.array_equal(views[:, i * d[1] + j], wide[:, :, i :: d[0], j :: d[1]])


@pytest.mark.parametrize(
    ("size", "base", "expected"),
    [
        ((128, 128), (64, 64), (2, 2)),
        ((96, 96), (64, 64), (2, 2)),
        ((65, 64), (64, 64), (2, 1)),
        ((160, 144), (64, 64), (3, 2)),
        ((176, 300), (64, 96), (3, 3)),
        ((40, 256), (64, 64), (1, 4)),
    ],
)
def test_dilation_for(size: tuple[int, int], base: tuple[int, int], expected: tuple[int, int]) -> None:
    """d = round(s), halves up, at least 2 on an axis that grew, 1 on one that did not."""
    assert dilation_for(size, base) == expected


@MANY
@given(st.integers(1, 15), st.floats(0.05, 10))
def test_kernel_is_a_gaussian(length: int, std: float) -> None:
    """Samples about the middle, summing to one, or the blur would change the picture's brightness."""
    kernel = gaussian_kernel(length, std).double().numpy()
    expected = np.array([math.exp(-((k - (length - 1) / 2) ** 2) / (2 * std**2)) for k in range(length)])
    if expected.sum() > 1e-30:
        np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-4, atol=1e-7)
    assert abs(kernel.sum() - 1) < 1e-6


def blur_slowly(x: np.ndarray, lengths: tuple[int, int], std: float, fill: str) -> np.ndarray:
    """(B, C, H, W) float64: a sum over all taps of the two-dimensional kernel."""
    rows, columns = lengths[0] // 2, lengths[1] // 2
    taps = np.array([[math.exp(-(r * r + c * c) / (2 * std * std)) for c in range(-columns, columns + 1)] for r in range(-rows, rows + 1)])
    taps /= taps.sum()
    wide = np.pad(x, ((0, 0), (0, 0), (rows, rows), (columns, columns)), mode="constant" if fill == "zero" else "reflect")
    out = np.zeros_like(x)
    for r in range(2 * rows + 1):
        for c in range(2 * columns + 1):
            out += taps[r, c] * wide[:, :, r : r + x.shape[2], c : c + x.shape[3]]
    return out


@SOME
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.tuples(st.integers(0, 4), st.integers(0, 4)), st.floats(0.2, 4), FILL)
@example((2, 9), (4, 1), 2.0, "reflect")
def test_blur_is_a_plain_convolution(size: tuple[int, int], half: tuple[int, int], std: float, fill: str) -> None:
    """Separable and grouped must equal the textbook sum, also where the kernel is longer than the latent."""
    lengths = (2 * half[0] + 1, 2 * half[1] + 1)
    x = noise(2, 3, *size)
    expected = blur_slowly(x.numpy(), lengths, std, fill)
    np.testing.assert_allclose(gaussian_blur(x, lengths, std, fill).numpy(), expected, atol=1e-6)
    half_precision = gaussian_blur(x.bfloat16(), lengths, std, fill)
    assert half_precision.dtype == torch.bfloat16
    assert torch.equal(half_precision, gaussian_blur(x.bfloat16().float(), lengths, std, fill).bfloat16()), "not computed in float32"


@pytest.mark.parametrize("fill", ["reflect", "zero"])
def test_a_long_kernel_costs_no_empty_taps(fill: str) -> None:
    """At d = 16 the kernel has 31 taps, of which a std of 0.8 fills 11: leaving the rest out must change nothing that float32 can hold."""
    x = torch.randn(1, 2, 40, 33, generator=torch.Generator().manual_seed(4))
    np.testing.assert_allclose(gaussian_blur(x, (31, 31), 0.8, fill).numpy(), blur_slowly(x.numpy(), (31, 31), 0.8, fill), atol=1e-6)
    assert torch.equal(gaussian_blur(x, (31, 31), 0.8, fill), gaussian_blur(x, (61, 45), 0.8, fill))


def test_blur_limits() -> None:
    """A kernel of one tap changes nothing; a constant stays constant inside a mirror."""
    x = noise(1, 2, 7, 9)
    assert torch.equal(gaussian_blur(x, (1, 1), 0.7), x)
    flat = torch.full((1, 2, 7, 9), 3.5)
    torch.testing.assert_close(gaussian_blur(flat, (7, 5), 1.3), flat)
    with pytest.raises(ValueError, match="edge"):
        gaussian_blur(x, (3, 3), 1.0, "edge")


def dilated_slowly(x: np.ndarray, sigma: float, d: tuple[int, int], std: float, fill: str, multiple: int) -> np.ndarray:
    """The method's text, one sample and one view at a time, in float64."""
    out = np.zeros_like(x)
    rows, columns = (-x.shape[k + 2] % (d[k] * multiple) for k in (0, 1))
    for b in range(x.shape[0]):
        sample = x[b : b + 1]
        if fill == "zero":
            y = np.pad(sample, ((0, 0), (0, 0), (rows, 0), (columns, 0)))
        else:
            y = np.pad(sample, ((0, 0), (0, 0), (0, rows), (0, columns)), mode="reflect")
        g = y
        if std > 0:
            source = y if fill == "zero" else sample
            g = blur_slowly(source, (2 * d[0] - 1, 2 * d[1] - 1), std, fill)
            g = (g - g.mean()) / g.std(ddof=1) * source.std(ddof=1) + source.mean()
            if fill == "reflect":
                g = np.pad(g, ((0, 0), (0, 0), (0, rows), (0, columns)), mode="reflect")
        estimate = np.zeros_like(y)
        for i in range(d[0]):
            for j in range(d[1]):
                view = g[:, :, i :: d[0], j :: d[1]]
                clean = toy(torch.from_numpy(view.copy()), torch.tensor([sigma], dtype=torch.float64)).numpy()
                estimate[:, :, i :: d[0], j :: d[1]] = y[:, :, i :: d[0], j :: d[1]] - (view - clean)
        out[b] = estimate[0, :, rows:, columns:] if fill == "zero" else estimate[0, :, : x.shape[2], : x.shape[3]]
    return out


@pytest.mark.parametrize("fill", ["reflect", "zero"])
@pytest.mark.parametrize("blur", [0.0, 0.01, 0.8])
@pytest.mark.parametrize(
    ("scales", "multiple"),
    [((1.5, 1.5), 1), ((2.75, 2.75), 1), ((1.5, 2.75), 1), ((2.75, 1.5), 2), ((3.2, 1.0), 1), ((4.1, 2.0), 4)],
)
def test_path_equals_the_naive_one(scales: tuple[float, float], multiple: int, blur: float, fill: str) -> None:
    """Fractional scales, a different d along each axis, sizes that do not divide, both fills, with and without blur."""
    base = (7, 6)
    size = tuple(round(b * s) for b, s in zip(base, scales, strict=True))
    d = dilation_for(size, base)  # type: ignore[arg-type]
    x = 3 * noise(2, 3, *size, seed=4) + torch.tensor([1.0, -5.0]).view(2, 1, 1, 1)
    grid = dilated_grid(size, d, fill, multiple)  # type: ignore[arg-type]
    out = denoise_dilated(toy, x, torch.full((2,), 2.5, dtype=torch.float64), {}, grid, blur=blur, window_batch=3)
    np.testing.assert_allclose(out.numpy(), dilated_slowly(x.numpy(), 2.5, d, blur, fill, multiple), atol=5e-6)


@SOME
@given(SIZE, DILATION, FILL, st.floats(0.1, 3))
def test_blurred_keeps_each_samples_statistics(size: tuple[int, int], d: tuple[int, int], fill: str, std: float) -> None:
    """The blurred state must stand at the noise level that the model is told."""
    x = noise(2, 3, size[0] + 3, size[1] + 3) * torch.tensor([1.0, 20.0]).view(2, 1, 1, 1) + 2
    grid = dilated_grid((size[0] + 3, size[1] + 3), d, fill)
    y, g = blurred(x, grid, std)
    assert torch.equal(y, pad_to_grid(x, grid))
    source, inner = (y, g) if fill == "zero" else (x, g[..., : x.shape[2], : x.shape[3]])
    torch.testing.assert_close(inner.mean((1, 2, 3)), source.mean((1, 2, 3)))
    torch.testing.assert_close(inner.std((1, 2, 3)), source.std((1, 2, 3)))
    if max(d) == 1:
        torch.testing.assert_close(g, y)


@pytest.mark.parametrize("fill", ["reflect", "zero"])
def test_samples_do_not_see_each_other(fill: str) -> None:
    """Statistics are taken per sample: another picture in the batch must change nothing."""
    grid = dilated_grid((13, 17), (2, 3), fill)
    x = noise(2, 4, 13, 17)
    other = x.clone()
    other[1] = 50 * other[1] - 9
    sigma = torch.ones(2, dtype=torch.float64)
    first, second = (denoise_dilated(toy, v, sigma, {}, grid, blur=0.7) for v in (x, other))
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


def test_unknown_fill_is_quoted() -> None:
    """Also where the size divides and nothing is padded."""
    with pytest.raises(ValueError, match="edge"):
        gather_dilated(noise(1, 1, 4, 4), dilated_grid((4, 4), (2, 2), "edge"))
