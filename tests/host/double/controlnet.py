"""A double of sd-webui-controlnet: its hook on the UNet as far as the adapter relies on it, with models that brighten where their hint is bright.

What it has in common with the extension is written down in `tests/host/contract_controlnet.py` and checked against both.
"""

from enum import Enum

import numpy as np
import torch
from modules import script_callbacks, shared
from torch import nn

FACTOR, MARK, GAIN = 8, 1024, 0.3


class ControlModelType(Enum):
    ControlNet = "ControlNet, Lvmin Zhang"
    T2I_Adapter = "T2I_Adapter, Chong Mou"
    T2I_StyleAdapter = "T2I_StyleAdapter, Chong Mou"
    MasaCtrl = "MasaCtrl, Mingdeng Cao"
    AttentionInjection = "AttentionInjection, Lvmin Zhang"
    ControlLoRA = "ControlLoRA, Wu Hecong"
    ReVision = "ReVision, Stability"
    IPAdapter = "IPAdapter, Hu Ye"
    Controlllite = "Controlllite, Kohya"
    InstantID = "InstantID, Qixun Wang"
    ControlNetUnion = "ControlNetUnion, xinsir6"


class ControlParams:
    """A unit. `passes`: of a hires job's two passes it acts in "both", "low" or "high". `steps`: from which share of them to which."""

    def __init__(self, control_model, hint, hr_hint, kind, *, name="none", weight=1.0, cfg=False, pooled=False, region=None, passes="both", steps=(0, 1)):
        self.control_model, self._hint_cond, self.hr_hint_cond = control_model, hint, hr_hint
        self.control_model_type, self.preprocessor, self.weight = kind, {"name": name}, weight
        self.cfg_injection, self.global_average_pooling, self.effective_region_mask, self.passes = cfg, pooled, region, passes
        self.start_guidance_percent, self.stop_guidance_percent = steps
        self.used_hint_cond = self.used_hint_cond_latent = self.used_hint_inpaint_hijack = None

    @property
    def hint_cond(self):
        return self._hint_cond

    @hint_cond.setter
    def hint_cond(self, hint):
        self._hint_cond = hint
        self.used_hint_cond = self.used_hint_cond_latent = self.used_hint_inpaint_hijack = None

    def choose(self, x):
        """The hint of the pass under way, which the extension tells by the height of what it is given; whether that is the hires pass."""
        if self.used_hint_cond is None:
            self.used_hint_cond = self.hint_cond
        if not isinstance(self.hr_hint_cond, torch.Tensor):
            return False
        height, low, high = x.shape[2] * FACTOR, self.hint_cond.shape[2], self.hr_hint_cond.shape[2]
        hires = abs(height - low) >= abs(height - high)
        wanted = self.hr_hint_cond if hires else self.hint_cond
        if self.used_hint_cond is not wanted:
            self.used_hint_cond, self.used_hint_cond_latent, self.used_hint_inpaint_hijack = wanted, None, None
        return hires


def brightness(hint):
    return GAIN * nn.functional.avg_pool2d(hint[:, :3], FACTOR).mean(1, keepdim=True)


class PlugableControlModel(nn.Module):
    """Its residuals are of the UNet's size, to which the encoded hint is added: a hint of another size is an error of torch's."""

    def __init__(self):
        super().__init__()
        self.control_model = nn.Identity()

    def forward(self, x, hint):
        return torch.zeros_like(x[:, :1]) + brightness(hint)


class PlugableAdapter(nn.Module):
    """Looks at its hint once. What it made is stretched to whatever the UNet's size is."""

    def __init__(self):
        super().__init__()
        self.control_model, self.control = nn.Identity(), None

    def forward(self, x, hint):
        if self.control is None:
            self.control = brightness(hint)
        return nn.functional.interpolate(self.control.clone(), x.shape[-2:], mode="nearest")


class LLLiteModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.cond_image = self.cond_emb = None

    def set_cond_image(self, cond_image):
        self.cond_image, self.cond_emb = cond_image, None

    def forward(self, x):
        if self.cond_emb is None:
            self.cond_emb = nn.functional.interpolate(brightness(self.cond_image / 2 + 0.5), x.shape[-2:], mode="nearest-exact")
        return self.cond_emb.repeat(len(x) // len(self.cond_emb), 1, 1, 1)


class PlugableControlLLLite(nn.Module):
    def __init__(self):
        super().__init__()
        self.modules = {"lllite_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": LLLiteModule()}

    def hook(self, model, cond, weight, start, end):
        for module in self.modules.values():
            module.set_cond_image(cond * 2 - 1)


class PlugableIPAdapter(nn.Module):
    """Adds to the rows of the prompt, and keeps what it has made for as many rows as its first call had."""

    def __init__(self):
        super().__init__()
        self.cache = {}

    def reset(self):
        self.cache = {}

    def forward(self, x, cond_mark):
        if "1_to_v_ip" not in self.cache:
            self.cache["1_to_v_ip"] = torch.linspace(0.1, 0.4, 4)[None, :, None] * cond_mark[..., 0]  # (rows, tokens, 1)
        return self.cache["1_to_v_ip"].view(len(x), -1, 1).mean(1)[..., None, None]


MODELS = {"T2I_Adapter": PlugableAdapter, "Controlllite": PlugableControlLLLite, "IPAdapter": PlugableIPAdapter}


class UnetHook:
    """On the UNet from the beginning of a job to its end.

    Attributes:
        seen: of every call, the unit's used hint, its latent, and the rows of x. `acted`: the shares of the steps at which a unit acted.
    """

    def __init__(self):
        self.model = self.control_params = None
        self.seen, self.acted = [], []

    @staticmethod
    def call_vae_using_process(p, x, batch_size=None, mask=None):
        pixels = x[:, :3] * 2 - 1
        latent = shared.sd_model.encode_first_stage(pixels if mask is None else pixels * (1 - mask))
        return latent if batch_size is None or len(latent) == batch_size else latent.repeat(batch_size, 1, 1, 1)

    def hook(self, model, sd_ldm, control_params, process, batch_option_uint_separate=False, batch_option_style_align=False):
        self.model, self.control_params = model, control_params
        original = model.forward
        outer = self

        def forward(self, x, context):
            cond_mark, context = unmark_prompt_context(context)
            choices = [param.choose(x) for param in outer.control_params]
            hires = any(choices)
            total = torch.zeros_like(x[:, :1])
            for param in outer.control_params:
                kind, model = param.control_model_type.name, param.control_model
                if kind == "AttentionInjection" and param.used_hint_cond_latent is None:
                    param.used_hint_cond_latent = outer.call_vae_using_process(process, param.used_hint_cond, batch_size=len(x))
                outer.seen.append((param.used_hint_cond, param.used_hint_cond_latent, len(x)))
                step, steps = script_callbacks.steps_told[-1]
                if param.passes == ("low" if hires else "high") or not param.start_guidance_percent <= step / steps <= param.stop_guidance_percent:
                    continue
                outer.acted.append(step / steps)
                if kind == "Controlllite":
                    total = total if hires else total + sum(module(x) for module in model.modules.values()) * param.weight
                elif kind == "IPAdapter":
                    total = total + model(x, cond_mark) * param.weight
                elif kind == "AttentionInjection":
                    total = total + param.used_hint_cond_latent.mean((1, 2, 3), keepdim=True)
                elif kind in ("ControlNet", "T2I_Adapter", "ControlLoRA", "InstantID", "ControlNetUnion"):
                    control = model(x, param.used_hint_cond) * param.weight
                    if param.cfg_injection:
                        control = (torch.cat([control] * len(x)) if kind == "T2I_Adapter" else control) * cond_mark
                    if param.effective_region_mask is not None:
                        control = control * nn.functional.interpolate(param.effective_region_mask, control.shape[-2:], mode="bilinear")
                    total = total + (control.mean((2, 3), keepdim=True) if param.global_average_pooling else control)
            return torch.cat([original(x, context), total], dim=1)

        model._original_forward = original
        model.forward = forward.__get__(model)

    def restore(self):
        self.control_params = None
        if hasattr(self.model, "_original_forward"):
            self.model.forward = self.model._original_forward
            del self.model._original_forward


def prompt_context_is_marked(x):
    return bool(x[..., 0, :].abs().eq(MARK).all())


def _marked(cond, sign):
    return cond if prompt_context_is_marked(cond) else torch.cat([torch.zeros_like(cond[..., :1, :]) + sign * MARK, cond], dim=-2)


def mark_prompt_context(x, positive):
    """In place, as far as there are lists."""
    if isinstance(x, list):
        x[:] = [mark_prompt_context(one, positive) for one in x]
        return x
    for name in ("batch", "schedules"):
        if hasattr(x, name):
            setattr(x, name, mark_prompt_context(getattr(x, name), positive))
            return x
    sign = 1 if positive else -1
    return _marked(x, sign) if isinstance(x, torch.Tensor) else x._replace(cond=_marked(x.cond, sign))


def unmark_prompt_context(x):
    """(1 for rows of the prompt, the context without its marks); without marks, every row counts as the prompt's."""
    if not prompt_context_is_marked(x):
        assert not x[:, 0].abs().eq(MARK).all(-1).any(), "a prompt without its mark"
        return torch.ones(len(x), 1, 1, 1), x
    return (x[:, 0].mean(-1) > 0).float()[:, None, None, None], x[:, 1:]


def _mark_prompts(p):
    """Those of the first pass: a hires pass's are made by the host when the extension has done its part."""
    original = p.conditioning

    def conditioning(prompts, steps, hires_steps=None):
        made, uncond = original(prompts, steps, hires_steps)
        return (made, uncond) if p.is_hr_pass else (mark_prompt_context(made, True), mark_prompt_context(uncond, False))

    p.conditioning = conditioning


class Script:
    """The extension's script, with the units of one job.

    Args:
        units: each of them a picture and what `ControlParams` takes, `kind` by its name.
    """

    def __init__(self, *units):
        self.units, self.latest_network, self.used = units, None, []
        self.ui_batch_option_state = ["All ControlNet units for all images in a batch", False]

    def title(self):
        return "ControlNet"

    def process(self, p, *args):
        if self.latest_network is not None:
            self.latest_network.restore()
        target = (int(p.width * p.hr_scale), int(p.height * p.hr_scale)) if getattr(p, "enable_hr", False) else None
        self.latest_network = UnetHook()
        self.used.append(self.latest_network)
        params = []
        for picture, kind, more in self.units:
            model = MODELS.get(kind, PlugableControlModel)()
            low, high = _pixels(picture, (p.width, p.height)), None if target is None else _pixels(picture, target)
            params.append(ControlParams(model, low, high, ControlModelType[kind], **more))
            if kind == "Controlllite":
                model.hook(model=None, cond=low, weight=1.0, start=0.0, end=1.0)
        _mark_prompts(p)
        self.latest_network.hook(shared.sd_model.model.diffusion_model, shared.sd_model, params, p)

    def postprocess(self, p, processed, *args):
        processed.images.extend([])
        self.latest_network.restore()
        self.latest_network = None


def _pixels(picture, size):
    return torch.from_numpy(np.asarray(picture.convert("RGB").resize(size), dtype=np.float32) / 255).permute(2, 0, 1)[None]


def with_units(p, *units):
    """A job with ControlNet's script among its own, its units on: (picture, kind, more)."""
    script = Script(*units)
    p.scripts.alwayson_scripts.append(script)
    return script
