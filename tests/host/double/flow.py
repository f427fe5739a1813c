"""Checkpoints of rectified flow without weights, with times for noise levels: transformers with sixteen channels and no cross-attention, and UNets."""

import torch
from torch import nn

from tests.host.double.model import FirstStage, Model

MIX = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2)))[0][:, :3]


class Transformer(nn.Module):
    """Patches of two by two; its velocity is that of Gaussian data, bent by neighbours and prompt."""

    def forward(self, x, timestep, context):
        assert x.shape[-1] % 2 == x.shape[-2] % 2 == 0, x.shape
        time, text = timestep[:, None, None, None], context.mean((1, 2))[:, None, None, None]
        clean = (1 - time) * x / (time**2 + (1 - time) ** 2) + 0.3 * time * torch.tanh(x.roll(1, -1) + x.roll(1, -2) + text)
        return (x - clean) / time


class Schedule(nn.Module):
    """What a sampler is given to call: the checkpoint, by its times."""

    def __init__(self, model):
        super().__init__()
        self.inner_model, self.sigmas = model, model.model.model_sampling.sigmas

    def forward(self, input, sigma, **kwargs):
        return self.inner_model.apply_model(input, sigma, **kwargs)


class Predictor(nn.Module):
    prediction_type = "const"

    def __init__(self, shift=3.0):
        super().__init__()
        self.shift = shift
        self.set_parameters()

    def set_parameters(self, *, shift=None, timesteps=1000):
        self.shift = shift or self.shift
        t = torch.arange(1, timesteps + 1) / timesteps
        self.register_buffer("sigmas", self.shift * t / (1 + (self.shift - 1) * t))

    def timestep(self, sigma):
        return sigma * 1000

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1.0 - sigma) * latent_image


class PredictionFlux(Predictor):
    """By its name two of Forge's samplers know how to add noise."""


class StableDiffusion3(Model):
    is_sd3 = True
    latent_channels = 16
    predictor = Predictor

    def __init__(self, name="base", width=2):
        super().__init__(name, width)
        self.first_stage_model = FirstStage(MIX)
        self.model.diffusion_model, self.model.model_sampling = Transformer(), self.predictor()
        self.alphas_cumprod = 1 / (self.model.model_sampling.sigmas**2 + 1)

    def apply_model(self, x, t, cond):
        """(N, 16, h, w) and times -> the clean ones."""
        self.calls.append(tuple(x.shape))
        self.on_call()
        return x - t[:, None, None, None] * self.model.diffusion_model(x, t, cond["c_crossattn"][0])

    def create_denoiser(self):
        return Schedule(self)

    def add_noise_to_latent(self, x, noise, amount):
        return self.model.model_sampling.noise_scaling(amount, noise, x)


class Flux(StableDiffusion3):
    is_sd3 = False
    predictor = PredictionFlux


class Chroma(Flux):
    """A text is as long as it is, so one call encodes only texts of one length."""

    def get_learned_conditioning(self, texts):
        return torch.stack(own_length(self, texts))


class ZImage(StableDiffusion3):
    """Neo's, which gives its predictor the job's shift before every pass. Texts of any length come in a list."""

    is_sd3 = False

    def __init__(self, *args):
        super().__init__(*args)
        self.use_shift = True

    def get_learned_conditioning(self, texts):
        return own_length(self, texts)


class Lumina2(ZImage):
    pass


class StableDiffusionXL(Model):
    """Neo's of rectified flow: the UNet, which is told where a window lies."""

    def __init__(self, *args):
        super().__init__(*args)
        self.is_sdxl = self.use_shift = True
        self.model.model_sampling = Predictor()
        self.alphas_cumprod = 1 / (self.model.model_sampling.sigmas**2 + 1)
        self.embedder = lambda places: places[:, None].expand(-1, 256)

    def apply_model(self, x, t, cond):
        """(N, 4, h, w) and times -> the clean ones."""
        self.calls.append(tuple(x.shape))
        self.on_call()
        time, unet = t[:, None, None, None], self.model.diffusion_model
        text = unet(x, cond["c_crossattn"][0])
        return (1 - time) * x / (time**2 + (1 - time) ** 2) + 0.3 * time * torch.tanh(unet.bend(x) + 0.3 * text)

    def add_noise_to_latent(self, x, noise, amount):
        return self.model.model_sampling.noise_scaling(amount, noise, x)


class Mugen(StableDiffusionXL):
    pass


def own_length(model, texts):
    return [whole[: 2 + len(text.split())] for text, whole in zip(texts, model.cond_stage_model.encode(texts), strict=True)]
