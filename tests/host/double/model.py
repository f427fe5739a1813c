"""A checkpoint without weights: an analytic denoiser that looks at its neighbours and at the prompt, and a VAE of pooling and repeating."""

import torch
from torch import nn

from apt_ext.demo.model import alphas_cumprod
from tests.host.double.text import TextModel

KERNEL = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1
MIX = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0][:, :3]


class CheckpointInfo(str):
    """A name, which is the file's too."""

    @property
    def filename(self):
        return str(self)


class Encoder(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def forward(self, pixels):
        return torch.einsum("bchw,zc->bzhw", nn.functional.avg_pool2d(pixels, 8), self.mix)


class Decoder(Encoder):
    def forward(self, z):
        return torch.einsum("bzhw,zc->bchw", z, self.mix).repeat_interleave(8, -1).repeat_interleave(8, -2)


class FirstStage(nn.Module):
    def __init__(self, mix=MIX):
        super().__init__()
        self.encoder, self.decoder = Encoder(mix), Decoder(mix)


class CrossAttention(nn.Module):
    """As the host's: projections by the names that its optimisations call."""

    heads = 2

    def __init__(self, seed, width):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(4, 8, bias=False), nn.Linear(width, 8, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.to_q, self.to_k):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * 2

    def forward(self, x, context):
        q, k = self.to_q(x), self.to_k(context)
        return (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ context


class Block(nn.Module):
    def __init__(self, factor, seed, width):
        super().__init__()
        self.factor, self.attn2 = factor, CrossAttention(seed, width)

    def forward(self, x, context):
        small = nn.functional.avg_pool2d(x, self.factor, ceil_mode=True)
        seen = self.attn2(small.flatten(2).transpose(1, 2), context).mean(-1)
        return nn.functional.interpolate(seen.reshape(len(x), 1, *small.shape[-2:]), size=x.shape[-2:])


class UNet(nn.Module):
    """Cross-attention at a half and at a quarter of the latent, and a middle that nobody listens to."""

    def __init__(self, width):
        super().__init__()
        self.input_blocks, self.output_blocks = nn.ModuleList([Block(2, 2, width), Block(4, 3, width)]), nn.ModuleList([Block(4, 4, width)])
        self.middle_block = nn.ModuleList([Block(4, 5, width)])
        self.bend = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bend.weight.data = KERNEL

    def forward(self, x, context):
        return sum(block(x, context) for block in (*self.input_blocks, *self.middle_block, *self.output_blocks))


class Diffusion(nn.Module):
    conditioning_key = "crossattn"

    def __init__(self, width):
        super().__init__()
        self.diffusion_model = UNet(width)


class Model(nn.Module):
    """Stable Diffusion's noise schedule; its estimate of the noise is that of Gaussian data, bent by neighbours and prompt.

    Where an extension makes the UNet return a second channel, pictures become that much brighter.

    Args:
        name: of the checkpoint. `width`: numbers of a token of its text encoder.
    """

    is_sdxl = is_sd2 = is_sd3 = False
    parameterization = "eps"
    latent_channels = 4
    strength = 0.0  # of the extra networks that act on it

    def __init__(self, name="base", width=2):
        super().__init__()
        self.sd_checkpoint_info = CheckpointInfo(name)
        self.alphas_cumprod = alphas_cumprod()
        self.first_stage_model = FirstStage()
        self.model, self.cond_stage_model = Diffusion(width), TextModel(width)
        self.calls = []
        self.on_call = lambda: None

    def apply_model(self, x, t, cond):
        self.calls.append(tuple(x.shape))
        self.on_call()
        share = (1 - self.alphas_cumprod[t.round().long()]).sqrt()[:, None, None, None]
        text, *brighter = self.model.diffusion_model(x, cond["c_crossattn"][0]).split(1, dim=1)
        bent = torch.tanh(self.model.diffusion_model.bend(x) + 0.3 * text)
        estimate = share * x + 0.3 * (1 - share) * bent
        return estimate - (sum(brighter) + self.strength) * MIX.sum(1)[:, None, None]

    def get_learned_conditioning(self, texts):
        return self.cond_stage_model.encode(texts)

    def encode_first_stage(self, pixels):
        return self.first_stage_model.encoder(pixels)

    def get_first_stage_encoding(self, encoded):
        return encoded

    def decode_first_stage(self, z):
        return self.first_stage_model.decoder(z)
