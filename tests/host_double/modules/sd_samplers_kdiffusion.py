import torch
from modules import sd_samplers_cfg_denoiser, sd_samplers_common, shared

from apt_ext.core.evaluations import EVALUATIONS_PER_STEP
from apt_ext.demo.samplers import k_external, k_sampling


class CFGDenoiserKDiffusion(sd_samplers_cfg_denoiser.CFGDenoiser):
    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = k_external().CompVisDenoiser(shared.sd_model, quantize=False)
        return self.model_wrap


class KDiffusionSampler(sd_samplers_common.Sampler):
    def __init__(self, funcname, sd_model, options=None):
        super().__init__(funcname)
        self.func = getattr(k_sampling(), funcname)
        self.model_wrap_cfg = CFGDenoiserKDiffusion(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p, steps):
        p.extra_generation_params["Hires schedule type" if p.is_hr_pass else "Schedule type"] = "Karras"
        table = self.model_wrap.sigmas
        return k_sampling().get_sigmas_karras(steps, float(table[0]), float(table[-1]))

    def sample_img2img(self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        steps, last = sd_samplers_common.setup_img2img_steps(p, steps)
        whole = self.get_sigmas(p, steps)
        sigmas = whole[steps - last - 1 :]
        more = {"sigmas": sigmas} | self.noise_sources(p, x, whole)
        return self.run(p, x + noise * sigmas[0], last + 1, conditioning, unconditional_conditioning, image_conditioning, x, **more)

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        sigmas = self.get_sigmas(p, p.steps)
        more = {"sigmas": sigmas} | self.noise_sources(p, x, sigmas)
        return self.run(p, x * torch.sqrt(1 + sigmas[0] ** 2), p.steps, conditioning, unconditional_conditioning, image_conditioning, x, **more)


SAMPLERS = {name: f"sample_{name}" for name in [*EVALUATIONS_PER_STEP, "dpm_fast"]}
samplers_data = [
    sd_samplers_common.SamplerData(
        name, lambda model, function=function: KDiffusionSampler(function, model), {"brownian_noise": True} if name.endswith("_sde") else {}
    )
    for name, function in SAMPLERS.items()
]
