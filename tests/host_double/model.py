"""A checkpoint without weights: an analytic denoiser that looks at its neighbours and at the prompt, and a VAE of pooling and repeating."""

import torch
from torch import nn

from apt_ext.demo.model import alphas_cumprod

KERNEL = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1
MIX = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0][:, :3]


class Encoder(nn.Module):
    def forward(self, pixels):
        return torch.einsum("bchw,zc->bzhw", nn.functional.avg_pool2d(pixels, 8), MIX)


class Decoder(nn.Module):
    def forward(self, z):
        return torch.einsum("bzhw,zc->bchw", z, MIX).repeat_interleave(8, -1).repeat_interleave(8, -2)


class FirstStage(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()


class Model(nn.Module):
    """Stable Diffusion's noise schedule; its estimate of the noise is that of Gaussian data, bent by neighbours and prompt."""

    is_sdxl = is_sd2 = is_sd3 = False
    parameterization = "eps"

    def __init__(self):
        super().__init__()
        self.alphas_cumprod = alphas_cumprod()
        self.first_stage_model = FirstStage()
        self.calls = []
        self.on_call = lambda: None

    def apply_model(self, x, t, cond):
        self.calls.append(tuple(x.shape))
        self.on_call()
        share = (1 - self.alphas_cumprod[t.round().long()]).sqrt()[:, None, None, None]
        text = cond["c_crossattn"][0].mean((1, 2))[:, None, None, None]
        bent = torch.tanh(nn.functional.conv2d(x, KERNEL, padding=1) + 0.3 * text)
        return share * x + 0.3 * (1 - share) * bent

    def encode_first_stage(self, pixels):
        return self.first_stage_model.encoder(pixels)

    def get_first_stage_encoding(self, encoded):
        return encoded

    def decode_first_stage(self, z):
        return self.first_stage_model.decoder(z)
