"""The two paths that patch fusion takes through a latent: local windows of it, and dilated views of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from apt_ext.core.blur import gaussian_blur
from apt_ext.core.borders import goes_around
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import DilatedGrid, gather_dilated, pad_to_grid, scatter_dilated
from apt_ext.core.interaction import exchange, exchange_back
from apt_ext.core.statistics import at_least_float32, mean_std, renormalise
from apt_ext.core.types import size_of
from apt_ext.core.views import ViewCalls, even_batches
from apt_ext.core.windows import Window, cover, feather_weights, gather_windows, place_windows

__all__ = ["DilatedPath", "LocalPath", "Permutations", "blurred"]

Permutations = Callable[[slice, tuple[int, ...]], Tensor]
"""Views and the shape (B, C, h, w) of one view's samples -> a random bijection over those views for every position, (views, B, C, h, w)."""


@dataclass(frozen=True)
class LocalPath:
    """The mean of the windows' estimates wherever they overlap.

    Attributes:
        windows: step -> the windows, which cover every pixel.
        fill: what a window sees beyond the border: "reflect", "zero", or one of `fill_around`, with windows that go round it.
        feather: 0 counts every pixel of a window alike; up to 1 lets its edges fade, against seams.

    Source: MultiDiffusion (Bar-Tal et al., 2023), equation 5.
    """

    windows: Callable[[int], Sequence[Window]]
    fill: str = "reflect"
    feather: float = 0.0

    def __call__(self, calls: ViewCalls, x: Tensor, sigma: Tensor, step: int, extra: dict[str, Any]) -> Tensor:
        """Estimate.

        Args:
            calls: evaluates the windows; those of different size never share a call.
            x: (B, C, H, W). `sigma`: (B,). `extra`: the model's other arguments.

        Returns:
            (B, C, H, W) in x's dtype, summed in float32 at least.

        Raises:
            ValueError: where the windows leave a pixel uncovered.
        """
        size, windows, around = size_of(x), self.windows(step), goes_around(self.fill)
        covered = cover(size, windows, around)  # counted on the CPU: nothing here waits for the device
        if not bool(covered.all()):
            raise ValueError(
                f"{int((covered == 0).sum())} of {size.rows} x {size.columns} latent pixels lie in no window; use more windows or a larger overlap"
            )
        value = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        count = torch.zeros((1, 1, *size), dtype=value.dtype, device=x.device) if self.feather else covered.to(value)
        for (height, width), group in groupby(sorted(windows, key=lambda w: w[2:]), key=lambda w: w[2:]):
            same = list(group)
            weight = feather_weights(height, width, self.feather, x.device).to(value.dtype) if self.feather else None
            batches = [ViewBatch(size, x.shape[0], windows=tuple(same[part]), fill=self.fill) for part in even_batches(len(same), calls.batch)]
            for views, patches in calls.estimates(batches, lambda views: gather_windows(x, views.windows, self.fill), sigma, extra):
                place_windows(value, patches.to(value.dtype), views.windows, weight, around)
                if weight is not None:
                    place_windows(count, weight.expand(views.count, 1, height, width), views.windows, around=around)
        return value.div_(count).to(x.dtype)


def blurred(x: Tensor, grid: DilatedGrid, std: float) -> tuple[Tensor, Tensor]:
    """The dilated path's inputs: (y, g), the padded state and the padded, blurred and renormalised one, in float32 at least.

    With a "reflect" grid the statistics are the picture's own; with a "zero" grid x is padded first and the padding counts, as in
    DemoFusion's own code, for comparison with it.
    """
    x = at_least_float32(x)
    lengths = (2 * grid.dilation[0] - 1, 2 * grid.dilation[1] - 1)
    y = pad_to_grid(x, grid)
    source = y if grid.fill == "zero" else x
    g = renormalise(gaussian_blur(source, lengths, std, grid.fill), *mean_std(source))
    return y, g if grid.fill == "zero" else pad_to_grid(g, grid)


@dataclass(frozen=True)
class DilatedPath:
    """Every sub-grid is denoised as a picture of its own; the blur makes neighbouring sub-grids agree.

    The noise estimate comes from the blurred state g and acts on the unblurred one, D = x - g + D(g).

    Attributes:
        grid: from `dilated_grid` for the latent's size.
        blur: std of the blur in latent pixels, multiplied by c3; 0 leaves it out.
        permutations: step -> AccDiffusion's window interaction, or None to leave it out.
        interaction_group: how many consecutive views exchange pixels with each other; all of them when left out.

    Source: DemoFusion (Du et al., CVPR 2024), section 3.3; the interaction is AccDiffusion's (Lin et al., ECCV 2024), section 3.3.
    """

    grid: DilatedGrid
    blur: float = 0.0
    permutations: Callable[[int], Permutations] | None = None
    interaction_group: int | None = None

    def __call__(self, calls: ViewCalls, x: Tensor, sigma: Tensor, step: int, extra: dict[str, Any], c3: float = 1.0) -> Tensor:
        """Estimate: arguments as in `LocalPath`, and the blur's factor; returns (B, C, H, W) in x's dtype."""
        grid, samples, size = self.grid, x.shape[0], size_of(x)
        plain = grid._replace(top=0, left=0, bottom=0, right=0)  # y and g come padded
        # Without the blur too, x - (x - D) is formed in float32, or a half-precision state's rounding would stay in the estimate.
        y, g = blurred(x, grid, self.blur * c3) if self.blur * c3 > 0 else (pad_to_grid(at_least_float32(x), grid),) * 2
        state = rearrange(gather_dilated(g, plain), "b v c h w -> v b c h w")
        del g  # whatever is of the latent's size is let go as soon as it can be
        noise = torch.empty_like(state)
        draw = self.permutations(step) if self.permutations else None
        group = self.interaction_group or grid.views if draw else grid.views
        for start in range(0, grid.views, group):
            stop = min(grid.views, start + group)
            part, order = state[start:stop], None
            if draw:
                order = draw(slice(start, stop), tuple(part.shape[1:])).to(part.device)
                part = exchange(part, order)
            batches = [
                ViewBatch(size, samples, grid=grid, part=(start + piece.start, start + piece.stop), fill=grid.fill)
                for piece in even_batches(stop - start, calls.batch)
            ]

            def seen(views: ViewBatch, part: Tensor = part, start: int = start) -> Tensor:
                return rearrange(part[views.part[0] - start : views.part[1] - start].to(x.dtype), "v b c h w -> (b v) c h w")

            for views, estimates in calls.estimates(batches, seen, sigma, extra):
                own = slice(views.part[0], views.part[1])
                estimate = rearrange(estimates.to(noise.dtype), "(b v) c h w -> v b c h w", b=samples)
                noise[own] = part[own.start - start : own.stop - start] - estimate
            if order is not None:
                noise[start:stop] = exchange_back(noise[start:stop], order)
        height, width = y.shape[-2:]
        del state, part
        estimate = scatter_dilated(rearrange(noise, "v b c h w -> b v c h w"), plain)
        del noise
        estimate = estimate.neg_().add_(y)
        return estimate[..., grid.top : height - grid.bottom, grid.left : width - grid.right].to(x.dtype)
