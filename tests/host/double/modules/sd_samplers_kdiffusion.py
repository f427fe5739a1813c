import inspect
from itertools import pairwise

import torch
from modules import sd_samplers_cfg_denoiser, sd_samplers_common, shared

from apt_ext.core.clock import CALLS_PER_STEP, FREE_SAMPLERS
from apt_ext.demo.samplers import k_external, k_sampling


class CFGDenoiserKDiffusion(sd_samplers_cfg_denoiser.CFGDenoiser):
    @property
    def inner_model(self):
        if self.model_wrap is None:
            made = getattr(shared.sd_model, "create_denoiser", None)
            self.model_wrap = made() if made else k_external().CompVisDenoiser(shared.sd_model, quantize=False)
        return self.model_wrap


def noised(x, noise, sigma):
    if hasattr(shared.sd_model, "add_noise_to_latent"):
        return shared.sd_model.add_noise_to_latent(x, noise, sigma)
    return x + noise * sigma


class KDiffusionSampler(sd_samplers_common.Sampler):
    def __init__(self, funcname, sd_model, options=None):
        super().__init__(funcname)
        self.func = funcname if callable(funcname) else getattr(k_sampling(), funcname)
        self.model_wrap_cfg = CFGDenoiserKDiffusion(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p, steps):
        p.extra_generation_params["Hires schedule type" if p.is_hr_pass else "Schedule type"] = "Karras"
        table = self.model_wrap.sigmas
        return k_sampling().get_sigmas_karras(steps, float(table[0]), shared.opts.sigma_max or float(table[-1]))

    def levels(self, p, sigmas):
        """What the function is told of them, and what moves them."""
        offered = {"sigmas": sigmas, "sigma_min": sigmas[-2], "sigma_max": sigmas[0], "n": len(sigmas) - 1}
        opts = shared.opts
        offered |= {"s_churn": opts.s_churn or p.s_churn, "s_tmin": opts.s_tmin or p.s_tmin, "s_tmax": opts.s_tmax or p.s_tmax}
        offered["eta"] = opts.eta_ancestral if p.eta is None else p.eta
        return {name: value for name, value in offered.items() if name in inspect.signature(self.func).parameters}

    def sample_img2img(self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        steps, last = sd_samplers_common.setup_img2img_steps(p, steps)
        whole = self.get_sigmas(p, steps)
        sigmas = whole[steps - last - 1 :]
        more = self.levels(p, sigmas) | self.noise_sources(p, x, whole)
        return self.run(p, noised(x, noise, sigmas[0]), last + 1, conditioning, unconditional_conditioning, image_conditioning, x, **more)

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        sigmas = self.get_sigmas(p, p.steps)
        more = self.levels(p, sigmas) | self.noise_sources(p, x, sigmas)
        flow = hasattr(shared.sd_model, "add_noise_to_latent")
        start = noised(torch.zeros_like(x), x, sigmas[0]) if flow else x * torch.sqrt(1 + sigmas[0] ** 2)
        return self.run(p, start, p.steps, conditioning, unconditional_conditioning, image_conditioning, x, **more)


@torch.no_grad()
def restart_sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's steps, halfway once back up to where they came from."""
    half = len(sigmas) // 2
    way = [*sigmas[: half + 1], *sigmas[1:]]
    for i, (sigma, after) in enumerate(pairwise(way)):
        if after > sigma:
            x = x + torch.randn_like(x) * (after**2 - sigma**2) ** 0.5
            continue
        clean = model(x, sigma * x.new_ones(len(x)), **extra_args)
        callback({"x": x, "i": min(i, len(sigmas) - 2), "sigma": sigma, "denoised": clean})
        x = clean + (x - clean) * (after / sigma)
    return x


SAMPLERS = {name: f"sample_{name}" for name in [*CALLS_PER_STEP, *FREE_SAMPLERS]} | {"restart": restart_sampler}
samplers_data = [
    sd_samplers_common.SamplerData(
        name, lambda model, function=function: KDiffusionSampler(function, model), {"brownian_noise": True} if name.endswith("_sde") else {}
    )
    for name, function in SAMPLERS.items()
]
