from itertools import pairwise

import torch
from modules import sd_samplers_cfg_denoiser, sd_samplers_common, shared


class TimestepsDenoiser(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner_model = model

    def forward(self, input, timesteps, **kwargs):
        return self.inner_model.apply_model(input, timesteps, **kwargs)


class CFGDenoiserTimesteps(sd_samplers_cfg_denoiser.CFGDenoiser):
    mask_before_denoising = True

    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = TimestepsDenoiser(shared.sd_model)
        return self.model_wrap

    def clean(self, x, out, sigma):
        alpha = shared.sd_model.alphas_cumprod[sigma.long()][:, None, None, None]
        return (x - (1 - alpha).sqrt() * out) / alpha.sqrt()


def _step(x, noise, alpha, alpha_after):
    clean = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    return alpha_after**0.5 * clean + (1 - alpha_after) ** 0.5 * noise


def _pairs(model, timesteps):
    """(timestep, its alpha, the next one's alpha) of every step, from the noisiest; the list's first entry is only an end."""
    table = model.inner_model.inner_model.alphas_cumprod
    for index in range(len(timesteps) - 1, 0, -1):
        yield int(timesteps[index]), float(table[timesteps[index]]), float(table[timesteps[index - 1]]), int(timesteps[index - 1])


@torch.no_grad()
def ddim(model, x, timesteps, extra_args=None, callback=None, disable=None, eta=0.0):
    for i, (t, alpha, after, _) in enumerate(_pairs(model, timesteps)):
        x = _step(x, model(x, x.new_full((len(x),), t), **extra_args), alpha, after)
        callback({"x": x, "i": i})
    return x


@torch.no_grad()
def plms(model, x, timesteps, extra_args=None, callback=None, disable=None):
    before = None
    for i, (t, alpha, after, next_t) in enumerate(_pairs(model, timesteps)):
        noise = model(x, x.new_full((len(x),), t), **extra_args)
        if before is None:
            ahead = model(_step(x, noise, alpha, after), x.new_full((len(x),), next_t), **extra_args)
            mean = (noise + ahead) / 2
        else:
            mean = (3 * noise - before) / 2
        before, x = noise, _step(x, mean, alpha, after)
        callback({"x": x, "i": i})
    return x


@torch.no_grad()
def unipc(model, x, timesteps, extra_args=None, callback=None, disable=None):
    """As the host's: as many steps as the list has entries, evenly in time down to timestep 0, so between the model's own timesteps."""
    logs = model.inner_model.inner_model.alphas_cumprod.log()
    way = torch.linspace(float(timesteps[-1]), 0, len(timesteps) + 1).tolist()

    def alpha(t):
        below = int(t)
        return float(torch.lerp(logs[below], logs[min(below + 1, len(logs) - 1)], t - below).exp())

    for i, (t, after) in enumerate(pairwise(way)):
        x = _step(x, model(x, x.new_full((len(x),), t), **extra_args), alpha(t), alpha(after))
        callback({"x": x, "i": i})
    return x


class CompVisSampler(sd_samplers_common.Sampler):
    def __init__(self, funcname, sd_model):
        super().__init__(funcname)
        self.model_wrap_cfg = CFGDenoiserTimesteps(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_timesteps(self, p, steps):
        return (torch.arange(0, 1000, 1000 // steps) + 1).clip(0, 999)

    def sample_img2img(self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        steps, last = sd_samplers_common.setup_img2img_steps(p, steps)
        timesteps = self.get_timesteps(p, steps)
        alpha = shared.sd_model.alphas_cumprod[timesteps[last]]
        noisy = x * alpha.sqrt() + noise * (1 - alpha).sqrt()
        return self.run(p, noisy, last + 1, conditioning, unconditional_conditioning, image_conditioning, x, timesteps=timesteps[:last])

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        timesteps = self.get_timesteps(p, p.steps)
        return self.run(p, x, p.steps, conditioning, unconditional_conditioning, image_conditioning, x, timesteps=timesteps)


samplers_data = [
    sd_samplers_common.SamplerData(function.__name__, lambda model, function=function: CompVisSampler(function, model), {}) for function in (ddim, plms, unipc)
]
