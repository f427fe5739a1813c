"""Replays recorded runs of the published loops through the core with k-diffusion's own Euler sampler, and compares every step.

`python -m tests.golden.cases` prints the largest errors per case; APT_GOLDEN names another folder of cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.blur import gaussian_blur
from apt_ext.core.clock import StepClock, sampler_calls, step_calls
from apt_ext.core.conditioning import ViewBatch, condition_views
from apt_ext.core.dilated import dilated_grid, pad_to_grid
from apt_ext.core.fused import FusedDenoiser
from apt_ext.core.noise_levels import discrete_timestep
from apt_ext.core.paths import blurred
from apt_ext.core.residual import PhaseDenoiser, StepMixer
from apt_ext.core.statistics import mean_std, reanchor
from apt_ext.core.upscale import enlarge
from apt_ext.core.weights import PathWeights, cosine_weights
from tests.conftest import k_sampling
from tests.core.made import fused_denoiser
from tests.golden.files import VAE_FACTOR, Golden, find_cases, why_not_a_case

__all__ = ["TOLERANCE", "Replay", "replay"]

TOLERANCE = 1e-4  # absolute, in the file's own scale; its latents have a std of 2 to 5


class StandIn:
    """The stand-in UNet of the recordings with classifier-free guidance, as a k-diffusion denoiser."""

    def __init__(self, golden: Golden):
        self.weights = {name.removeprefix("unet_"): golden.tensor(name) for name in golden.data if name.startswith("unet_")}
        table = golden.alphas_cumprod.double()
        self.alphas_cumprod, self.log_sigmas = table, ((1 - table) / table).log() / 2
        self.guided, self.rescale = golden.guided, float(golden.option("guidance_rescale"))

    def noise(self, x: Tensor, t: int, emb: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        """The network itself: x in its own (VP) scale."""
        w, a = self.weights, float(self.alphas_cumprod[t])
        tau = 0.25 * float(self.log_sigmas[t])
        b = w["b0"] + tau * w["bt"] + emb.mean(1) @ w["We"] + pooled @ w["Wp"]
        b = b + time_ids[:, 2:4] / 128 @ w["Wc"] + time_ids[:, [0, 1, 4, 5]] / 128 @ w["Ws"]
        h = torch.tanh(F.conv2d(x, w["W1"], padding=1) + b[:, :, None, None])
        return math.sqrt(1 - a) * x + 0.6 * F.conv2d(h, w["W2"], w["b2"], padding=1)

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """`extra`: emb and pooled, each (negative, positive); time_ids (B, 6); guidance; input_sigma (B,), the level that the input is
        scaled for, which is sigma but for the published flaw."""
        emb, pooled, time_ids = extra["emb"], extra["pooled"], extra["time_ids"]
        t = int((self.log_sigmas - math.log(float(sigma[0]))).abs().argmin())
        scaled = x * (1 + extra["input_sigma"] ** 2).rsqrt()[:, None, None, None]
        eps = positive = self.noise(scaled, t, emb[1], pooled[1], time_ids)
        if self.guided:
            negative = self.noise(scaled, t, emb[0], pooled[0], time_ids)
            eps = negative + extra["guidance"] * (positive - negative)
            if self.rescale:
                eps = eps * (1 + self.rescale * (positive.std((1, 2, 3), keepdim=True) / eps.std((1, 2, 3), keepdim=True) - 1))
        return x - sigma[:, None, None, None] * eps


class Recorder(FusedDenoiser):
    """A fused denoiser that keeps what it saw and what each path made of it, a path of no weight included."""

    kept: dict[str, list[Tensor]]

    def estimate_local(self, x: Tensor, sigma: Tensor, step: int, extra: dict[str, Any]) -> Tensor:
        self.kept["local"].append(super().estimate_local(x, sigma, step, extra))
        return self.kept["local"][-1].clone()

    def estimate_dilated(self, x: Tensor, sigma: Tensor, step: int, extra: dict[str, Any], c3: float) -> Tensor:
        self.kept["global"].append(super().estimate_dilated(x, sigma, step, extra, c3))
        return self.kept["global"][-1].clone()

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        step = len(self.kept["mix"])
        self.kept["mix"].append(x.clone())
        out = super().__call__(x, sigma, **extra)
        if self.local is not None and len(self.kept["local"]) == step:
            self.estimate_local(x, sigma, step, extra)
        if self.dilated is not None and len(self.kept["global"]) == step:
            self.estimate_dilated(x, sigma, step, extra, self.weights(float(sigma.max())).c3)
        return out


class Replay:
    """One case, replayed.

    Attributes:
        errors: largest absolute difference for every array of the file that was compared.
    """

    def __init__(self, golden: Golden):
        self.golden, self.errors = golden, dict[str, float]()
        self.model = StandIn(golden)
        self.sigmas = golden.sigmas.to(golden.dtype)
        self.scales = golden.scales()
        self.sample = k_sampling().sample_euler
        table = golden.alphas_cumprod.double()
        self.timestep = discrete_timestep(((1 - table) / table).sqrt())
        self.exponents = tuple(float(golden.option(f"cosine_scale_{k}")) for k in (1, 2, 3))
        height, width = golden.options["height"], golden.options["width"]
        original, target = golden.option("original_size") or (height, width), golden.option("target_size") or (height, width)
        self.extra: dict[str, Any] = {
            "emb": (golden.tensor("emb_neg"), golden.tensor("emb_pos")),
            "pooled": (golden.tensor("pool_neg"), golden.tensor("pool_pos")),
            "time_ids": torch.tensor([[*original, *golden.option("crops_coords_top_left"), *target]], dtype=golden.dtype),
            "guidance": float(golden.option("guidance_scale")),
        }

    def weights(self, sigma: float) -> PathWeights:
        return cosine_weights(self.timestep(sigma), self.exponents)  # type: ignore[arg-type]

    def compare(self, name: str, ours: Tensor | Sequence[float]) -> None:
        """Compare with the file's array of that name, where it has one."""
        if name in self.golden.data:
            recorded, made = torch.from_numpy(self.golden.data[name]).double(), torch.as_tensor(ours).double()
            assert recorded.shape == made.shape, f"{name} is recorded as {tuple(recorded.shape)}, the replay makes {tuple(made.shape)}"
            self.errors[name] = float((recorded - made).abs().max())

    def compare_steps(self, name: str, ours: list[Tensor], after: bool) -> None:
        """Compare (1, 4, H, W) VE latents, one per step, at the step's own level or at the one it leads to."""
        if ours:
            scales = self.scales[1:] if after else self.scales[:-1]
            self.compare(name, torch.cat(ours).double() * scales[:, None, None, None])

    def input_sigma(self, phase: int, step: int, calls: list[int]) -> Tensor:
        """The level that each view's input is scaled for. `calls`: the published loop's batches that the views were in, however the core batches them."""
        return self.sigmas[[self.golden.input_level(phase, step, call) for call in calls]]

    def base(self) -> Tensor:
        """The base latent: the base phase replayed where its start is there, else as recorded."""
        golden = self.golden
        if golden.option("image_lr") or "base_init" not in golden.data:
            return golden.latent("base_final")
        starts: list[Tensor] = []

        def model(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            starts.append(x.clone())
            return self.model(x, sigma, input_sigma=self.input_sigma(-1, len(starts) - 1, [0]), **extra)

        x: Tensor = self.sample(model, golden.latent("base_init") / float(self.scales[0]), self.sigmas, extra_args=self.extra, disable=True)
        self.compare_steps("base_after", [*starts[1:], x], after=True)
        z = x * float(self.scales[-1])
        self.compare("base_final", z[0])
        return z

    def condition(self, phase: int, clock: StepClock) -> Callable[[Mapping[str, Any], ViewBatch], Mapping[str, Any]]:
        """The host's part of the conditioning: crop corners and a guidance of their own for local windows."""
        golden, s = self.golden, self.golden.phases[phase]
        most, jitter = int(golden.option("view_batch_size")), golden.jitter_range

        def condition(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
            made = dict(condition_views(extra, batch))
            if batch.windows:
                corners = [(w.top + jitter, w.left + jitter) for w in batch.windows]
                made["time_ids"] = made["time_ids"].clone()
                made["time_ids"][:, 2:4] = VAE_FACTOR * torch.tensor(corners, dtype=golden.dtype)
                if golden.accdiffusion:
                    made["guidance"] = float(golden.option("multi_guidance_scale"))
                order = golden.windows(s, clock.step)
                calls = [order.index(w) // most for w in batch.windows]
            else:
                assert batch.grid is not None
                calls = [golden.batches(phase)[0] + view // most for view in range(*batch.part)]
            return {**made, "input_sigma": self.input_sigma(phase, clock.step, calls)}

        return condition

    def phase(self, index: int, z: Tensor, anchor: Tensor) -> Tensor:
        """One upscaling phase, from the previous one's latent to its own, both in the file's scale."""
        golden, s = self.golden, self.golden.phases[index]
        z_up, noise = enlarge(z, golden.size(s)), golden.latent(f"p{s}_noise")
        clock = StepClock(self.sigmas.tolist(), step_calls(self.sigmas.tolist(), sampler_calls("euler")))
        local, dilated = golden.option("use_multidiffusion"), golden.option("use_dilated_sampling")
        grid = dilated_grid(golden.size(s), (s, s), fill="zero")
        blur = float(golden.option("sigma")) if golden.option("use_guassian") else 0.0

        def permutations(step: int) -> Callable[[slice, tuple[int, ...]], Tensor]:
            return lambda views, shape: torch.from_numpy(golden.data[f"p{s}_shuffle"][step, views]).long().view(-1, *shape)

        fused = fused_denoiser(
            self.model,
            kind=Recorder,
            windows=(lambda step: golden.windows(s, step)) if local else None,
            grid=grid if dilated else None,
            weights=self.weights,
            step=lambda: clock.step,
            blur=blur,
            tolerance=0.0,
            window_batch=int(golden.option("view_batch_size")),
            fill="zero",
            condition=self.condition(index, clock),
            permutations=permutations if golden.option("shuffle") else None,
            interaction_group=int(golden.option("view_batch_size")),
        )
        fused.kept = {"mix": [], "local": [], "global": []}
        phase = PhaseDenoiser(fused, StepMixer(clock, self.weights, (z_up, noise) if golden.option("use_skip_residual") else None))
        starts: list[Tensor] = []

        def model(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            starts.append(x.clone())
            return phase(x, sigma, **extra)

        x = self.sample(model, z_up + self.sigmas[0] * noise, self.sigmas, extra_args=self.extra, disable=True)
        final = reanchor(x * float(self.scales[-1]), anchor)

        mixed, steps = fused.kept["mix"], list(zip(self.sigmas, self.sigmas[1:], strict=False))
        self.compare(f"p{s}_size", list(golden.size(s)))
        self.compare(f"p{s}_clean", z_up[0])
        self.compare_steps(f"p{s}_start", starts, after=False)
        self.compare_steps(f"p{s}_mix", mixed, after=False)
        for path in ("local", "global"):
            stepped = [m + (m - d) / a * (b - a) for m, d, (a, b) in zip(mixed, fused.kept[path], steps, strict=False)]
            self.compare_steps(f"p{s}_{path}", stepped, after=True)
        self.compare_steps(f"p{s}_after", [*starts[1:], x], after=True)
        self.compare(f"p{s}_final", final[0])
        if local:
            self.compare(f"p{s}_count", golden.counts(s))
        if dilated:
            self.compare(f"p{s}_pad", [grid.top, grid.left])
            self.compare_blur(s, mixed, blur)
        return final

    def compare_blur(self, s: int, mixed: list[Tensor], blur: float) -> None:
        """The dilated path's input, before and after its renormalisation."""
        grid, n = dilated_grid(self.golden.size(s), (s, s), fill="zero"), len(mixed)
        for name, step in ((f"p{s}_gauss0", 0), (f"p{s}_gaussmid", n // 2)):
            std = blur * self.weights(float(self.sigmas[step])).c3
            g = blurred(mixed[step], grid, std)[1] if blur else pad_to_grid(mixed[step], grid)
            self.compare(name, g[0] * float(self.scales[step]))
        if blur:
            stats = []
            for x, sigma, scale in zip(mixed, self.sigmas, self.scales, strict=False):
                y = pad_to_grid(x, grid)
                soft = gaussian_blur(y, (2 * s - 1, 2 * s - 1), blur * self.weights(float(sigma)).c3, "zero")
                stats.append([float(value) * float(scale) for value in (*mean_std(y), *mean_std(soft))])
            self.compare(f"p{s}_stats", torch.tensor(stats))

    def run(self) -> dict[str, float]:
        """Replay everything, and give the errors."""
        golden = self.golden
        self.compare("alphas_cumprod", torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0))
        self.compare("timesteps", golden.timesteps)
        self.compare("prev_timesteps", golden.prev_timesteps)
        self.compare("a_t", golden.a_t)
        self.compare("a_prev", golden.a_prev)
        self.compare("sigmas", golden.sigmas)
        self.compare("jitter_range", torch.tensor(golden.jitter_range))
        self.compare("phases", golden.phases)
        for name, column in zip(("c1", "c2", "c3"), zip(*map(self.weights, golden.sigmas[:-1].tolist()), strict=True), strict=True):
            self.compare(name, list(column))
        self.compare("cosine", [cosine_weights(self.timestep(sigma), (1, 1, 1)).c1 for sigma in golden.sigmas[:-1].tolist()])
        z = anchor = self.base()
        self.compare("anchor", torch.stack(mean_std(anchor)).flatten())
        for index in range(len(golden.phases)):
            z = self.phase(index, z, anchor)
        return self.errors


def replay(golden: Golden) -> dict[str, float]:
    """Largest absolute error of every array of the file that can be compared."""
    with torch.no_grad():
        return Replay(golden).run()


def _worst(errors: dict[str, float], name: str) -> str:
    values = [error for key, error in errors.items() if key.startswith("p") and key.endswith(f"_{name}")]
    return f"{max(values):.1e}" if values else "-"


def main() -> None:
    torch.set_num_threads(1)
    columns = ("mix", "local", "global", "after", "final")
    print(f"{'case':<32}{'phases':>8}{'steps':>6}", *(f"{name:>9}" for name in columns))
    paths: list[Path] = find_cases()
    for path in paths:
        reason = why_not_a_case(path)
        golden = None if reason else Golden(path)
        reason = golden.unsupported if golden else reason
        if golden is None or reason:
            print(f"{path.stem:<32}skipped: {reason}")
            continue
        errors = replay(golden)
        print(f"{path.stem:<32}{','.join(map(str, golden.phases)):>8}{len(golden.timesteps):>6}", *(f"{_worst(errors, name):>9}" for name in columns))


if __name__ == "__main__":
    main()
