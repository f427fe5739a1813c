"""The fused denoiser: patch fusion as one wrapper with k-diffusion's model signature, so that every sampler works unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from apt_ext.core.blur import gaussian_blur
from apt_ext.core.conditioning import Condition, ViewBatch, condition_views
from apt_ext.core.dilated import DilatedGrid, gather_dilated, pad_to_grid, scatter_dilated
from apt_ext.core.interaction import exchange, exchange_back
from apt_ext.core.residual import Denoiser
from apt_ext.core.schedule import PathWeights, path_shares
from apt_ext.core.statistics import mean_std, renormalise, widen
from apt_ext.core.windows import Window, cover, feather_weights, gather_windows, place_windows

__all__ = ["FusedDenoiser", "blurred", "denoise_dilated", "denoise_local", "dilated_due", "even_batches"]


def even_batches(count: int, most: int) -> list[slice]:
    """Split `count` views into as few batches of at most `most` as possible, of sizes that differ by at most one."""
    batches = -(-count // max(1, most))
    edges = [round(k * count / batches) for k in range(batches + 1)] if batches else []
    return [slice(a, b) for a, b in pairwise(edges)]


def dilated_due(step: int, every: int) -> bool:
    """Whether the dilated path is evaluated anew at a step, counted from 0, or its correction of an earlier one is held."""
    return step % every == 0


def _ignore(_: int) -> None:
    pass


def denoise_local(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    extra: dict[str, Any],
    windows: Sequence[Window],
    *,
    window_batch: int = 8,
    fill: str = "reflect",
    feather: float = 0.0,
    condition: Condition = condition_views,
    on_views: Callable[[int], None] = _ignore,
) -> Tensor:
    """The local path: the mean of the windows' estimates wherever they overlap.

    Args:
        denoiser: k-diffusion's model signature.
        x: (B, C, H, W). `sigma`: (B,). `extra`: the model's other arguments.
        windows: cover every pixel of x.
        window_batch: windows per model call (of B samples each); windows of different size never share a call.
        fill: what a window sees beyond the border, "reflect" or "zero".
        feather: 0 counts every pixel of a window alike; up to 1 lets its edges fade, against seams.
        condition: turns `extra` into a call's arguments.
        on_views: told the number of views done after each call; may raise to interrupt.

    Returns:
        (B, C, H, W) in x's dtype, summed in float32 at least.

    Raises:
        ValueError: where the windows leave a pixel uncovered.

    Source: MultiDiffusion (Bar-Tal et al., 2023), equation 5.
    """
    size = (x.shape[-2], x.shape[-1])
    covered = cover(size, windows)  # counted on the CPU: nothing here waits for the device
    if not bool(covered.all()):
        raise ValueError(f"{int((covered == 0).sum())} of {size[0]} x {size[1]} latent pixels lie in no window; use more windows or a larger overlap")
    value = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    count = torch.zeros((1, 1, *size), dtype=value.dtype, device=x.device) if feather else covered.to(value)
    for (height, width), group in groupby(sorted(windows, key=lambda w: w[2:]), key=lambda w: w[2:]):
        same = list(group)
        weight = feather_weights(height, width, feather, x.device).to(value.dtype) if feather else None
        for part in even_batches(len(same), window_batch):
            batch = ViewBatch(size, x.shape[0], windows=tuple(same[part]), fill=fill)
            patches = denoiser(gather_windows(x, batch.windows, fill), sigma.repeat(batch.count), **condition(extra, batch))
            place_windows(value, patches.to(value.dtype), batch.windows, weight)
            if weight is not None:
                place_windows(count, weight.expand(batch.count, 1, height, width), batch.windows)
            on_views(batch.count)
    return value.div_(count).to(x.dtype)


def blurred(x: Tensor, grid: DilatedGrid, std: float) -> tuple[Tensor, Tensor]:
    """The dilated path's inputs: (y, g), the padded state and the padded, blurred and renormalised one, in float32 at least.

    With a "reflect" grid the statistics are the picture's own; with a "zero" grid x is padded first and the padding counts, as in
    DemoFusion's own code, for comparison with it.
    """
    x = widen(x)
    lengths = (2 * grid.dilation[0] - 1, 2 * grid.dilation[1] - 1)
    y = pad_to_grid(x, grid)
    source = y if grid.fill == "zero" else x
    g = renormalise(gaussian_blur(source, lengths, std, grid.fill), *mean_std(source))
    return y, g if grid.fill == "zero" else pad_to_grid(g, grid)


def denoise_dilated(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    extra: dict[str, Any],
    grid: DilatedGrid,
    *,
    blur: float = 0.0,
    window_batch: int = 8,
    condition: Condition = condition_views,
    on_views: Callable[[int], None] = _ignore,
    permutations: Callable[[slice, tuple[int, ...]], Tensor] | None = None,
    interaction_group: int | None = None,
) -> Tensor:
    """The dilated path: every sub-grid is denoised as a picture of its own; the blur makes neighbouring sub-grids agree.

    The noise estimate comes from the blurred state g and acts on the unblurred one, D = x - g + D(g).

    Args:
        denoiser, x, sigma, extra, window_batch, condition, on_views: as in `denoise_local`.
        grid: from `dilated_grid` for x's size.
        blur: standard deviation of the blur, in latent pixels; 0 leaves it out.
        permutations: AccDiffusion's window interaction: (views, shape of one view's samples (B, C, h, w)) -> a random bijection over
            those views for every position, (views, B, C, h, w); None leaves it out.
        interaction_group: how many consecutive views exchange pixels with each other; all of them when left out.

    Returns:
        (B, C, H, W) in x's dtype.

    Source: DemoFusion (Du et al., CVPR 2024), section 3.3.
    """
    size, samples = (x.shape[-2], x.shape[-1]), x.shape[0]
    plain = grid._replace(top=0, left=0, bottom=0, right=0)  # y and g come padded
    # Without the blur too, x - (x - D) is formed in float32, or a half-precision state's rounding would stay in the estimate.
    y, g = blurred(x, grid, blur) if blur > 0 else (pad_to_grid(widen(x), grid),) * 2
    views = gather_dilated(g, plain)
    del g  # whatever is of the latent's size is let go as soon as it can be
    out = torch.empty_like(views)
    group = interaction_group or grid.views
    for start in range(0, grid.views, group if permutations else grid.views):
        stop = min(grid.views, start + group) if permutations else grid.views
        part = views[start * samples : stop * samples]
        order = None
        if permutations:
            shape = (stop - start, samples, *part.shape[1:])
            order = permutations(slice(start, stop), shape[1:]).to(part.device)
            part = exchange(part.reshape(shape), order).reshape(part.shape)
        noise = out[start * samples : stop * samples]
        for piece in even_batches(stop - start, window_batch):
            batch = ViewBatch(size, samples, grid=grid, part=(start + piece.start, start + piece.stop), fill=grid.fill)
            rows = slice(piece.start * samples, piece.stop * samples)
            seen = part[rows].to(x.dtype)
            noise[rows] = part[rows] - denoiser(seen, sigma.repeat(batch.count), **condition(extra, batch)).to(noise.dtype)
            on_views(batch.count)
        if order is not None:
            noise.copy_(exchange_back(noise.reshape(order.shape), order).reshape(noise.shape))
    height, width = y.shape[-2:]
    del views, part, noise
    estimate = scatter_dilated(out, plain)
    del out
    estimate = estimate.neg_().add_(y)
    return estimate[..., grid.top : height - grid.bottom, grid.left : width - grid.right].to(x.dtype)


class FusedDenoiser:
    """D_fused = (1 - c2) D_local + c2 D_dilated, around any denoiser with k-diffusion's signature.

    A first-order step is affine in D, so fusing the estimates equals fusing the stepped latents, which is what DemoFusion's code does.

    Args:
        denoiser: the model, guidance included, that knows the base size.
        windows: step -> the local windows, or None to leave the local path out.
        grid: the dilated views, or None to leave the dilated path out (MultiDiffusion).
        weights: sigma -> c1, c2, c3 at that noise level.
        step: tells the number of the current step (a `StepClock`'s, say); without it every call counts as a step.
        blur: std of the dilated path's blur in latent pixels, multiplied by c3; 0 for none.
        tolerance: a path whose weight is below it is not evaluated, and the other one gets all the weight.
        dilated_every: k evaluates the dilated path at every k-th step only and holds its correction, D_dilated - D_local, in between.
        window_batch: views per model call. It changes memory and speed, not the picture.
        fill: what local windows see beyond the border, "reflect" or "zero".
        feather: see `denoise_local`.
        condition: see `condition_views`.
        on_views: told the number of views done after each model call; may raise to interrupt.
        permutations: step -> the window interaction of `denoise_dilated`, or None.
        interaction_group: see `denoise_dilated`.

    Raises:
        ValueError: where both paths are left out, or on call, where the samples of a batch stand at different noise levels.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        windows: Callable[[int], Sequence[Window]] | None,
        grid: DilatedGrid | None,
        weights: Callable[[float], PathWeights],
        step: Callable[[], int] | None = None,
        blur: float = 1.0,
        tolerance: float = 0.0,
        dilated_every: int = 1,
        window_batch: int = 8,
        fill: str = "reflect",
        feather: float = 0.0,
        condition: Condition = condition_views,
        on_views: Callable[[int], None] = _ignore,
        permutations: Callable[[int], Callable[[slice, tuple[int, ...]], Tensor]] | None = None,
        interaction_group: int | None = None,
    ):
        if windows is None and grid is None:
            raise ValueError("neither local windows nor dilated views are given; a fused denoiser needs at least one of the two")
        self.denoiser, self.windows, self.grid, self.weights = denoiser, windows, grid, weights
        self.blur, self.tolerance, self.window_batch, self.fill, self.feather = blur, tolerance, window_batch, fill, feather
        self.condition, self.on_views = condition, on_views
        self.permutations, self.interaction_group = permutations, interaction_group
        self.dilated_every = dilated_every
        self._step, self._calls = step, 0
        # A host may call several times a step, for one prompt after the other: each call has a correction of its own.
        self._last_step, self._index = -1, 0
        self._held: dict[tuple[int, torch.Size], Tensor] = {}

    def shares(self, sigma: float) -> tuple[float, float]:
        """Weights of the (local, dilated) path at a noise level; a path that is not evaluated has 0."""
        if self.windows is None or self.grid is None:
            return float(self.windows is not None), float(self.grid is not None)
        return path_shares(self.weights(sigma).c2, self.tolerance)

    def local(self, x: Tensor, sigma: Tensor, step: int, **extra: Any) -> Tensor:
        """D_local alone, (B, C, H, W)."""
        assert self.windows is not None
        return denoise_local(
            self.denoiser,
            x,
            sigma,
            extra,
            self.windows(step),
            window_batch=self.window_batch,
            fill=self.fill,
            feather=self.feather,
            condition=self.condition,
            on_views=self.on_views,
        )

    def dilated(self, x: Tensor, sigma: Tensor, step: int, **extra: Any) -> Tensor:
        """D_dilated alone, (B, C, H, W)."""
        assert self.grid is not None
        return denoise_dilated(
            self.denoiser,
            x,
            sigma,
            extra,
            self.grid,
            blur=self.blur * self.weights(float(sigma.max())).c3,
            window_batch=self.window_batch,
            condition=self.condition,
            on_views=self.on_views,
            permutations=self.permutations(step) if self.permutations else None,
            interaction_group=self.interaction_group,
        )

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """(B, C, H, W) noisy latents, (B,) one noise level, the model's other arguments -> (B, C, H, W) clean estimate."""
        low, high = (float(v) for v in torch.aminmax(sigma))
        if high - low > 1e-6 * high:
            raise ValueError(f"the samples stand at noise levels from {low:.6g} to {high:.6g}; patch fusion needs one level for all")
        step = self._step() if self._step else self._calls
        self._calls += 1
        share_local, share_dilated = self.shares(high)
        if not share_dilated:
            return self.local(x, sigma, step, **extra)
        if not share_local:
            return self.dilated(x, sigma, step, **extra)
        if self.dilated_every == 1:
            return self.local(x, sigma, step, **extra).mul_(share_local).add_(self.dilated(x, sigma, step, **extra), alpha=share_dilated)
        return self._corrected(x, sigma, step, share_dilated, extra)

    def _corrected(self, x: Tensor, sigma: Tensor, step: int, share: float, extra: dict[str, Any]) -> Tensor:
        """D_local + c2 (D_dilated - D_local), the bracket from the last step that was due."""
        if step != self._last_step:
            self._last_step, self._index = step, 0
        key, local = (self._index, x.shape), self.local(x, sigma, step, **extra)
        if key not in self._held or dilated_due(step, self.dilated_every):
            self._held[key] = self.dilated(x, sigma, step, **extra).sub_(local)
        self._index += 1  # only now: a call that ran out of memory comes again
        return local.add_(self._held[key], alpha=share)
