"""Measures of pictures, each a pure function that gives one value, or one row, per picture.

Pictures are (N, 3, h, w) RGB in -1..1. The kernel distance between sets of pictures is in `bench.quality.kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

from apt_ext.core.windows import Window

__all__ = ["agreement", "cut", "dense", "log_spectrum", "luminance", "psnr", "seams", "shrink", "ssim", "structure"]

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luminance(pictures: Tensor) -> Tensor:
    """(N, 3, h, w) -> (N, h, w)."""
    return torch.einsum("nchw,c->nhw", pictures, torch.tensor(LUMINANCE, dtype=pictures.dtype))


def shrink(pictures: Tensor, size: int) -> Tensor:
    """(N, C, h, w) -> (N, C, size, size) by area means."""
    return F.interpolate(pictures, size=(size, size), mode="area")


def cut(x: Tensor, side: int) -> Tensor:
    """(N, C, h, w) -> (N, k, C, side, side): the disjoint square windows that fit into it, row by row."""
    return dense(x, side, side)


def dense(x: Tensor, side: int, stride: int) -> Tensor:
    """(N, C, h, w) -> (N, k, C, side, side): all square windows at multiples of a stride, row by row."""
    windows = x.unfold(2, side, stride).unfold(3, side, stride)
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


def psnr(pictures: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over all pixels and colours: (N,); equal pictures have 126 dB."""
    error = (pictures.double() - true.double()).square().mean((1, 2, 3))
    return 10 * (4 / error.clamp(min=1e-12)).log10()


def ssim(pictures: Tensor, true: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004: a Gaussian window of std 1.5), the mean over pixels and colours: (N,)."""
    how = {"channel_axis": 0, "data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    bright = [(x.double().numpy() + 1) / 2 for x in (pictures, true)]  # its term for brightness is meant for values from 0 on
    found = [structural_similarity(x, y, **how) for x, y in zip(*bright, strict=True)]
    return torch.tensor(found, dtype=torch.float64)


def agreement(pictures: Tensor, inputs: Tensor) -> Tensor:
    """PSNR in dB of the shrunk pictures against their inputs (N, 3, h, h): (N,)."""
    return psnr(shrink(pictures, inputs.shape[-1]), inputs)


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
