"""Measures of pictures and latents, each a pure function that gives one value, or one row, per picture.

Pictures are (N, 3, h, w) RGB in -1..1, latents (N, C, h, w). The kernel distance between sets of pictures is in `bench.kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.statistics import statistics_shift
from apt_ext.core.windows import Window

__all__ = ["agreement", "cut", "log_spectrum", "luminance", "monotonicity", "repetition", "seams", "shift", "shrink", "structure"]

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luminance(pictures: Tensor) -> Tensor:
    """(N, 3, h, w) -> (N, h, w)."""
    return torch.einsum("nchw,c->nhw", pictures, torch.tensor(LUMINANCE, dtype=pictures.dtype))


def shrink(pictures: Tensor, size: int) -> Tensor:
    """(N, C, h, w) -> (N, C, size, size) by area means."""
    return F.interpolate(pictures, size=(size, size), mode="area")


def cut(x: Tensor, side: int) -> Tensor:
    """(N, C, h, w) -> (N, k, C, side, side): the disjoint square windows that fit into it, row by row."""
    windows = x.unfold(2, side, side).unfold(3, side, side)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def log_spectrum(pictures: Tensor) -> Tensor:
    """Radial power spectrum of the luminance: (N, 3, h, h) -> (N, h // 2) log10 power at 1, 2, ... h // 2 cycles per picture.

    Under a Hann window, or the jump from one border to the opposite one would drown the high frequencies.
    """
    grey = luminance(pictures).double()
    side = grey.shape[-1]
    hann = torch.hann_window(side, periodic=False, dtype=torch.float64)
    power = torch.fft.fft2((grey - grey.mean((1, 2), keepdim=True)) * hann[:, None] * hann[None, :]).abs().square()
    along = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    radius = (along[:, None].square() + along[None, :].square()).sqrt().round().long().flatten()
    sums = torch.zeros((len(grey), int(radius.max()) + 1), dtype=torch.float64).index_add_(1, radius, power.flatten(1))
    mean = sums / torch.bincount(radius)
    return (mean[:, 1 : side // 2 + 1] + 1e-12).log10()


def shift(z: Tensor, base: Tensor) -> Tensor:
    """(N, C, H, W), (N, C, h, w) -> (N, 3): `statistics_shift` of each picture's latent against its base: "mean", "std", "std_min"."""
    return torch.tensor([list(statistics_shift(one[None], other[None]).values()) for one, other in zip(z, base, strict=True)])


def monotonicity(z: Tensor, window: int) -> Tensor:
    """Lag-one autocorrelation inside the native windows of a latent, over rows and columns, averaged over windows and channels: (N, C, H, W) -> (N,)."""
    x = cut(z.double(), window)
    x = x - x.mean((-1, -2), keepdim=True)
    variance = x.square().mean((-1, -2)).clamp(min=1e-12)
    across, down = (x[..., 1:] * x[..., :-1]).mean((-1, -2)), (x[..., 1:, :] * x[..., :-1, :]).mean((-1, -2))
    return ((across + down) / (2 * variance)).mean((1, 2))


def agreement(pictures: Tensor, base: Tensor) -> Tensor:
    """PSNR in dB of the shrunk pictures against the base pictures (N, 3, h, h): (N,)."""
    error = (shrink(pictures, base.shape[-1]) - base).square().mean((1, 2, 3))
    return 10 * (4 / error.clamp(min=1e-12)).log10()


def seams(pictures: Tensor, windows: Sequence[Window], factor: int) -> Tensor:
    """Mean absolute luminance gradient across the borders of windows, over the mean across all other borders of latent pixels: (N,); 1 = no seam.

    Compared is like with like: a decoder may leave a grid of its own between the `factor` x `factor` pixels of each latent pixel.
    NaN where no window has a border inside the picture.
    """
    grey = luminance(pictures)
    height, width = grey.shape[-2:]
    rows, columns = set(range(factor, height, factor)), set(range(factor, width, factor))
    cut_rows = rows & {factor * edge for w in windows for edge in (w.top, w.top + w.height)}
    cut_columns = columns & {factor * edge for w in windows for edge in (w.left, w.left + w.width)}
    down, across = grey.diff(dim=1).abs().mean(2), grey.diff(dim=2).abs().mean(1)  # (N, h - 1) and (N, w - 1), index k - 1 for the border at k

    def mean_at(at_rows: set[int], at_columns: set[int]) -> Tensor:
        parts = [down[:, [k - 1 for k in sorted(at_rows)]], across[:, [k - 1 for k in sorted(at_columns)]]]
        return torch.cat(parts, 1).mean(1)

    return mean_at(cut_rows, cut_columns) / mean_at(rows - cut_rows, columns - cut_columns).clamp(min=1e-12)


def _edges(pictures: Tensor, std: float) -> Tensor:
    """(N, 3, h, w) -> (N, h, w): magnitude of the luminance gradient, blurred by a Gaussian."""
    grey = luminance(pictures)[:, None]
    down, across = (torch.gradient(grey, dim=axis)[0] for axis in (2, 3))
    reach = min(round(3 * std), min(grey.shape[-2:]) - 1)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=grey.dtype).square()) / (2 * std * std))
    kernel = kernel / kernel.sum()
    x = F.pad((down.square() + across.square()).sqrt(), (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]


def structure(pictures: Tensor, reference: Tensor, std: float) -> Tensor:
    """Whether shapes kept their place: correlation of the blurred gradient magnitudes of two pictures of one size, (N,). `std` of the blur in pixels."""
    x, y = (_edges(p, std).flatten(1).double() for p in (pictures, reference))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp(min=1e-12)


def repetition(pictures: Tensor, side: int, coarse: int = 16) -> Tensor:
    """How much the windows of a picture repeat each other: (N, 3, h, w) -> (N,).

    Each of the k disjoint windows of `side` pixels is shrunk to `coarse` pixels, and its largest normalised cross-correlation with any
    other of them, over all circular shifts, is found; the mean over the windows is given. Two windows at least.
    """
    windows = cut(luminance(pictures)[:, None].double(), side)
    n, k = windows.shape[:2]
    x = shrink(windows.flatten(0, 1), coarse)[:, 0]
    x = x - x.mean((1, 2), keepdim=True)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    spectrum = torch.fft.rfft2(x).reshape(n, k, coarse, -1)
    best = torch.stack([torch.fft.irfft2(s[:, None] * s[None, :].conj(), s=(coarse, coarse)).amax((-1, -2)).fill_diagonal_(-1).amax(1) for s in spectrum])
    return best.mean(1)
