"""The model, what is patched onto it, and how it is called for all prompts of a step."""

import copy
from types import SimpleNamespace

import torch
from torch import nn

FREE = SimpleNamespace(rows=1_000_000, asked=[])
"""Memory, in latent pixels of all rows together: how much is free, and what was asked for before sampling."""


class Predictor:
    prediction_type = "epsilon"

    def __init__(self, alphas_cumprod):
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()

    def timestep(self, sigma):
        return (sigma.log() - self.sigmas.log()[:, None]).abs().argmin(dim=0)


class KModel(nn.Module):
    """Calls the checkpoint by its timesteps. `control`: what is added to the estimate."""

    def __init__(self, model):
        super().__init__()
        self.checkpoint = (model,)  # in a tuple, so that it is no part of this module
        self.diffusion_model = model.model.diffusion_model
        own = getattr(model.model, "model_sampling", None)
        self.predictor = self.model_sampling = own or Predictor(model.alphas_cumprod)  # the latter for `ldm_patched`
        self.options = []

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        rows = len(transformer_options["cond_mark"])
        assert rows == len(x) == len(t) == len(transformer_options["cond_indices"]) + len(transformer_options["uncond_indices"])
        assert not [name for name in kwargs if name not in ("y", "control_model")], kwargs
        self.options.append(transformer_options)
        if self.predictor.prediction_type == "const":
            return self.checkpoint[0].apply_model(x, t, {"c_crossattn": [c_crossattn]})
        sigma = t[:, None, None, None]
        noise = self.checkpoint[0].apply_model(x / (1 + sigma**2).sqrt(), self.predictor.timestep(t), {"c_crossattn": [c_crossattn]})
        clean = x - sigma * noise
        return clean if control is None else clean + control

    def memory_required(self, input_shape):
        return input_shape[0] * input_shape[2] * input_shape[3]


class UnetPatcher:
    def __init__(self, model):
        self.model = model
        self.model_options = {"transformer_options": {}}
        self.controlnet_linked_list = None
        self.extra_concat_condition = None
        self.lora_patches = {}

    def clone(self):
        n = UnetPatcher(self.model)
        n.model_options, n.lora_patches = copy.deepcopy(self.model_options), self.lora_patches.copy()
        n.controlnet_linked_list, n.extra_concat_condition = self.controlnet_linked_list, self.extra_concat_condition
        return n

    def memory_required(self, input_shape):
        return self.model.memory_required(input_shape=input_shape)

    def set_model_unet_function_wrapper(self, unet_wrapper_function):
        self.model_options["model_function_wrapper"] = unet_wrapper_function

    def list_controlnets(self):
        found, pointer = [], self.controlnet_linked_list
        while pointer is not None:
            found.append(pointer)
            pointer = pointer.previous_controlnet
        return found


class ForgeObjects:
    def __init__(self, unet):
        self.unet = unet

    def shallow_copy(self):
        return ForgeObjects(self.unet)


class Condition:
    def __init__(self, cond):
        self.cond = cond

    def process_cond(self, batch_size, device, **kwargs):
        return Condition(self.cond[:batch_size])

    def can_concat(self, other):
        return self.cond.shape == other.cond.shape

    def concat(self, others):
        return torch.cat([self.cond, *(other.cond for other in others)])


def compile_conditions(cond):
    if isinstance(cond, torch.Tensor):
        return {"model_conds": {"c_crossattn": Condition(cond)}}
    return {"model_conds": {"c_crossattn": Condition(cond["crossattn"]), "y": Condition(cond["vector"])}}


def compile_weighted_conditions(cond, weights):
    """One for every part between ANDs, of all pictures."""
    made = []
    for of_part in zip(*weights, strict=True):
        rows = [row for row, _ in of_part]
        part = {key: value[rows] for key, value in cond.items()} if isinstance(cond, dict) else cond[rows]
        made.append(compile_conditions(part) | {"strength": of_part[-1][1]})
    return made


def calc_cond_uncond_batch(model, cond, uncond, x_in, timestep, model_options):
    waiting = [(one, 0) for one in cond] + ([] if uncond is None else [(one, 1) for one in uncond])
    sums = [torch.zeros_like(x_in), torch.zeros_like(x_in)]
    counts = [1e-37, 1e-37]
    while waiting:
        first = waiting[0][0]["model_conds"]
        alike = [all(value.can_concat(first[name]) for name, value in one["model_conds"].items()) for one, _ in waiting]
        chosen = [index for index, found in enumerate(alike) if found][::-1]
        for parts in range(1, len(chosen) + 1):
            some = chosen[: len(chosen) // parts]
            if model.memory_required([len(some) * len(x_in), *x_in.shape[1:]]) < FREE.rows:
                break
        taken = [waiting.pop(index) for index in some]
        kinds = [kind for _, kind in taken]
        made = [
            {name: value.process_cond(batch_size=len(x_in), device=x_in.device, area=None) for name, value in one["model_conds"].items()} for one, _ in taken
        ]
        assert all(one.keys() == made[0].keys() for one in made)
        c = {name: made[0][name].concat([one[name] for one in made[1:]]) for name in made[0]}
        mark = torch.tensor([float(kind) for kind in kinds]).repeat_interleave(len(x_in))
        options = model_options["transformer_options"] | {"cond_or_uncond": kinds[:], "sigmas": timestep, "cond_mark": mark}
        options |= {name: [row for row, of in enumerate(mark) if of == kind] for name, kind in (("cond_indices", 0), ("uncond_indices", 1))}
        c["transformer_options"] = options
        x, levels = torch.cat([x_in] * len(kinds)), torch.cat([timestep] * len(kinds))
        control = taken[0][0].get("control")
        if control is not None:
            control.transformer_options = options
            if control.told_options:  # reForge
                c["control"] = control.get_control(x, levels, c.copy(), len(kinds), options)
            else:
                c["control"], c["control_model"] = control.get_control(x, levels, c.copy(), len(kinds)), control
        if "model_function_wrapper" in model_options:
            out = model_options["model_function_wrapper"](model.apply_model, {"input": x, "timestep": levels, "c": c, "cond_or_uncond": kinds})
        else:
            out = model.apply_model(x, levels, **c)
        for (one, kind), part in zip(taken, out.chunk(len(kinds)), strict=True):
            strength = one.get("strength", 1.0)
            sums[kind] = sums[kind] + part * strength
            counts[kind] += strength
    return sums[0] / counts[0], sums[1] / counts[1]


def sampling_function(self, denoiser_params, cond_scale, cond_composition):
    unet = self.inner_model.inner_model.forge_objects.unet
    model, x, timestep, model_options, seed = unet.model, denoiser_params.x, denoiser_params.sigma, unet.model_options, self.p.seeds[0]
    uncond = [compile_conditions(denoiser_params.text_uncond)]
    cond = compile_weighted_conditions(denoiser_params.text_cond, cond_composition)
    for one in (*cond, *uncond):
        if unet.controlnet_linked_list is not None:
            one["control"] = unet.controlnet_linked_list
    for modifier in model_options.get("conditioning_modifiers", []):
        model, x, timestep, uncond, cond, cond_scale, model_options, seed = modifier(model, x, timestep, uncond, cond, cond_scale, model_options, seed)
    strength = sum(one["strength"] for one in cond)
    with_prompt, without = calc_cond_uncond_batch(model, cond, None if cond_scale == 1 else uncond, x, timestep, model_options)
    return without + (with_prompt - without) * cond_scale * strength


def sampling_prepare(unet, x):
    rows, channels, height, width = x.shape
    FREE.asked.append(unet.model_options.get("memory_peak_estimation_modifier", unet.memory_required)([2 * rows, channels, height, width]))
    unet.model.checkpoint[0].strength = sum(unet.lora_patches.values())
    for unit in unet.list_controlnets():
        unit.pre_run(unet.model, None)


def sampling_cleanup(unet):
    for unit in unet.list_controlnets():
        unit.cleanup()
