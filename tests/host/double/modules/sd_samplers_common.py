import inspect
from typing import NamedTuple

import torch
from modules import devices, sd_models, shared

from apt_ext.demo.samplers import k_sampling

approximation_indexes = {"Full": 0, "Approx NN": 1, "Approx cheap": 2, "TAESD": 3}


class InterruptedException(BaseException):
    pass


class SamplerData(NamedTuple):
    name: str
    constructor: object
    options: dict


def setup_img2img_steps(p, steps=None):
    strength = min(p.denoising_strength, 0.999)
    if steps is None and not shared.opts.img2img_fix_steps:
        return p.steps, int(strength * p.steps)
    asked = steps or p.steps
    return (int(asked / strength) if strength > 0 else 0), asked - 1


def images_tensor_to_samples(image, approximation=None, model=None):
    pixels = image.to(devices.dtype_vae) * 2 - 1
    return torch.cat([model.get_first_stage_encoding(model.encode_first_stage(one[None])) for one in pixels])


def decode_first_stage(model, x):
    return model.decode_first_stage(x.to(devices.dtype_vae))


def apply_refiner(cfg_denoiser, sigma=None):
    p = cfg_denoiser.p
    if p.refiner_checkpoint_info is None or shared.sd_model.sd_checkpoint_info == p.refiner_checkpoint_info:
        return False
    if shared.opts.refiner_switch_by_sample_steps:
        share = cfg_denoiser.step / cfg_denoiser.total_steps
    else:
        table = getattr(cfg_denoiser.inner_model, "sigmas", None)
        share = (999 - float(sigma.max() if table is None else (table - sigma.max()).abs().argmin())) / 1000
    if share < p.refiner_switch_at or (getattr(p, "enable_hr", False) and (shared.opts.hires_fix_refiner_pass == "second pass") != p.is_hr_pass):
        return False
    sd_models.reload_model_weights(info=p.refiner_checkpoint_info)
    refiner_s_networks(p)
    p.setup_conds()
    cfg_denoiser.update_inner_model()
    return True


def refiner_s_networks(p):
    """It has none, until Forge."""


class Sampler:
    def __init__(self, funcname):
        self.funcname = self.func = funcname
        self.config = self.last_latent = self.p = self.model_wrap_cfg = self.sampler_extra_args = self.stop_at = None

    def callback_state(self, d):
        shared.state.sampling_step = d["i"]
        shared.total_tqdm.update()

    def launch_sampling(self, steps, func):
        self.model_wrap_cfg.total_steps = steps
        shared.state.sampling_steps, shared.state.sampling_step = steps, 0
        try:
            return func()
        except InterruptedException:
            return self.last_latent

    def noise_sources(self, p, x, sigmas):
        """Every picture's own noise, for functions that draw some."""
        if "noise_sampler" not in inspect.signature(self.func).parameters:
            return {}
        if self.config.options.get("brownian_noise"):
            k = k_sampling()
            return {"noise_sampler": k.BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=p.seeds)}
        return {"noise_sampler": lambda sigma, sigma_next: p.rng.next()}

    def run(self, p, x, steps, conditioning, unconditional_conditioning, image_conditioning, init_latent, **levels):
        cfg = self.model_wrap_cfg
        cfg.p, cfg.step, cfg.init_latent, self.p, self.last_latent = p, 0, init_latent, p, init_latent
        cfg.mask, cfg.nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        self.sampler_extra_args = {
            "cond": conditioning,
            "uncond": unconditional_conditioning,
            "image_cond": image_conditioning,
            "cond_scale": p.cfg_scale,
            "s_min_uncond": 0.0,
        }
        more = {"extra_args": self.sampler_extra_args, "disable": True, "callback": self.callback_state}
        return self.launch_sampling(steps, lambda: self.func(cfg, x, **levels, **more))
