"""Where Forge's samplers differ: the CFG denoiser that calls the backend, networks that patch the UNet, and what is reset before a pass."""

from types import SimpleNamespace

import torch

from tests.host.forge.backend import sampling_cleanup, sampling_function, sampling_prepare


class ScheduleLinker:
    """What a schedule is made from."""

    def __init__(self, predictor):
        self.predictor = predictor

    @property
    def sigmas(self):
        return self.predictor.sigmas


def by_sigmas(self):
    from modules import shared

    if self.model_wrap is None:
        self.model_wrap = ScheduleLinker(shared.sd_model.forge_objects.unet.model.predictor)
        self.model_wrap.inner_model = shared.sd_model
    return self.model_wrap


def by_timesteps(self):
    from modules import shared

    if self.model_wrap is None:
        self.model_wrap = SimpleNamespace(inner_model=shared.sd_model)
    return self.model_wrap


def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
    from modules import prompt_parser, sd_samplers_common, shared
    from modules.sd_samplers_kdiffusion import noised

    if shared.state.interrupted or shared.state.skipped:
        raise sd_samplers_common.InterruptedException
    own = self.mask_before_denoising  # those by timesteps
    if own:
        sigmas = 1 / self.inner_model.inner_model.alphas_cumprod - 1
        sigma = sigmas.sqrt()[sigma.round().long()]
        x = x * (sigma**2 + 1).sqrt()[:, None, None, None]
    if sd_samplers_common.apply_refiner(self, sigma):
        cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]
        sampling_prepare(shared.sd_model.forge_objects.unet, x)
    parts, cond = prompt_parser.reconstruct_multicond_batch(cond, self.step)
    level = sigma[:, None, None, None]
    if self.mask is not None:
        x = x * self.nmask + noised(self.init_latent, torch.randn_like(self.init_latent), level) * self.mask
    params = SimpleNamespace(x=x, sigma=sigma, text_cond=cond, text_uncond=uncond, image_cond=image_cond)
    clean = sampling_function(self, denoiser_params=params, cond_scale=cond_scale, cond_composition=parts)
    if self.mask is not None:
        clean = self.blend(clean)
    self.sampler.last_latent = clean
    self.step += 1
    return (x - clean) / level if own else clean


def activate(p, extra_network_data):
    """What is on already stays; otherwise the UNet is the checkpoint's own with these on it, and nothing else."""
    from modules import shared

    model, wanted = shared.sd_model, dict(enumerate(extra_network_data["lora"]))
    if model.forge_objects_after_applying_lora.unet.lora_patches == wanted:
        return
    model.forge_objects.unet = model.forge_objects_original.unet.clone()
    model.forge_objects.unet.lora_patches = wanted
    model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()


def prepared(run):
    def prepared_run(self, *args, **kwargs):
        unet = self.model_wrap.inner_model.forge_objects.unet
        sampling_prepare(unet, args[1])
        made = run(self, *args, **kwargs)
        sampling_cleanup(unet)
        return made

    return prepared_run


def tell_scripts(self, x, noise, c, uc):
    """Before a hires pass twice: what the first time has changed on the checkpoint is taken back in between."""
    from modules import shared

    model = shared.sd_model
    if self.is_hr_pass and self.scripts is not None:
        self.scripts.process_before_every_sampling(p=self, x=x, noise=noise, c=c, uc=uc)
    model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
    if self.scripts is not None:
        self.scripts.process_before_every_sampling(p=self, x=x, noise=noise, c=c, uc=uc)
