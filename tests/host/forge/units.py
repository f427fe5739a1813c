"""Units of the family's own ControlNet, and a control picture for them."""

import torch

from tests.host.double.model import MIX


class Unit:
    """One of Forge's ControlNet units: what it is shown is added to the estimate."""

    told_options = global_average_pooling = False
    advanced_mask_weighting = advanced_frame_weighting = None

    def __init__(self, hint, previous=None):
        self.cond_hint_original, self.cond_hint, self.previous_controlnet, self.transformer_options = hint, None, previous, {}
        self.ran, self.shown = [], []

    def pre_run(self, model, percent_to_timestep_function):
        self.ran.append("begin")

    def cleanup(self):
        self.ran.append("end")
        self.cond_hint = None

    def get_control(self, x_noisy, t, cond, batched_number):
        if self.cond_hint is None or self.cond_hint.shape[-1] != 8 * x_noisy.shape[-1]:
            self.cond_hint = torch.nn.functional.interpolate(self.cond_hint_original, scale_factor=x_noisy.shape[-1] * 8 / self.cond_hint_original.shape[-1])
        assert len(self.transformer_options["cond_mark"]) == len(x_noisy)
        self.shown.append(tuple(self.cond_hint.shape))
        before = 0 if self.previous_controlnet is None else self.previous_controlnet.get_control(x_noisy, t, cond, batched_number)
        return before + 0.1 * torch.nn.functional.avg_pool2d(self.cond_hint, 8).mean(1, keepdim=True) * MIX.sum(1)[:, None, None]


class Newer(Unit):
    """One of reForge's, which is told the options of its call."""

    told_options = True

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):  # type: ignore[override]
        self.transformer_options = transformer_options
        if self.previous_controlnet is not None:
            self.previous_controlnet.transformer_options = transformer_options
        return super().get_control(x_noisy, t, cond, batched_number)


def blobs(size=128, seed=0):
    rough = torch.rand(1, 3, size // 16, size // 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, (size, size), mode="bicubic").clamp(0, 1)
