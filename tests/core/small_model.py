"""What whole jobs of the core's tests need to know of their model: 8 x 8 latents, Stable Diffusion's noise levels, and each picture's own noise."""

import torch

from apt_ext.core.noise_levels import discrete_timestep
from apt_ext.core.types import ModelFacts, Size
from apt_ext.demo.model import alphas_cumprod

SIGMAS = ((1 - alphas_cumprod()) / alphas_cumprod()) ** 0.5
FACTS = ModelFacts(Size(8, 8), 2, float(SIGMAS[-1]), discrete_timestep(SIGMAS))


def noise_for(seeds):
    def noise(phase, shape):
        return torch.stack([torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed * 100 + phase.number)) for seed in seeds])

    return noise
