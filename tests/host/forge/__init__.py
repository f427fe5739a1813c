"""A double of Forge: the other double's host, with the seam of Forge's package `backend` where the sampler meets the model.

What it has in common with Forge is written down in `tests/host/contract_forge.py` and checked against both.
"""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from tests.host.forge import denoiser
from tests.host.forge.backend import ForgeObjects, KModel, UnetPatcher

__all__ = ["DYNAMIC", "become_forge", "forged", "neo_s_passes"]

DYNAMIC: dict[str, Any] = {}
"""What it knows of the loaded checkpoint by its file's name."""


def forged(model: Any) -> Any:
    """A checkpoint of the other double, as Forge keeps it."""
    unet = UnetPatcher(KModel(model))
    model.forge_objects = ForgeObjects(unet)
    model.forge_objects_original = model.forge_objects.shallow_copy()
    model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()
    model.is_sd1 = not (model.is_sdxl or model.is_sd2 or model.is_sd3)
    stage = model.cond_stage_model

    def found(tokens: list[int], offset: int) -> Any:
        from modules import sd_hijack

        return sd_hijack.EmbeddingDatabase().find_embedding_at_position(tokens, offset)

    model.text_processing_engine = SimpleNamespace(
        process_texts=stage.process_texts, tokenize=stage.tokenize, embeddings=SimpleNamespace(find_embedding_at_position=found)
    )
    model.text_processing_engine_l = model.text_processing_engine  # SDXL's
    return model


def become_forge(host: Any, root: Any, monkeypatch: Any, package: str = "backend") -> None:
    """Turn the double of 1.10.1 into Forge, for one test. `root`: an empty folder for its packages. `package`: the one that gives it away."""
    (root / package).mkdir()
    detect = host.adapter("detect")
    monkeypatch.setattr(detect, "modules", SimpleNamespace(__path__=[str(root / "modules")]))
    detect.host.cache_clear()
    args: Any = ModuleType("backend.args")
    args.dynamic_args = DYNAMIC
    monkeypatch.setitem(sys.modules, "backend", ModuleType("backend"))
    monkeypatch.setitem(sys.modules, "backend.args", args)
    forged(host.model)
    cfg, kdiffusion, timesteps = host.sd_samplers_cfg_denoiser, host.sd_samplers_kdiffusion, host.sd_samplers_timesteps
    monkeypatch.setattr(cfg.CFGDenoiser, "forward", denoiser.forward)
    monkeypatch.setattr(kdiffusion.CFGDenoiserKDiffusion, "inner_model", property(denoiser.by_sigmas))
    monkeypatch.setattr(timesteps.CFGDenoiserTimesteps, "inner_model", property(denoiser.by_timesteps))
    monkeypatch.setattr(host.sd_samplers_common.Sampler, "run", denoiser.prepared(host.sd_samplers_common.Sampler.run))
    monkeypatch.setattr(host.processing.StableDiffusionProcessing, "tell_scripts", denoiser.tell_scripts)
    monkeypatch.setattr(host.extra_networks, "activate", denoiser.activate)
    monkeypatch.setattr(host.sd_models, "made_anew", forged)
    monkeypatch.setattr(host.sd_samplers_common, "refiner_s_networks", lambda p: denoiser.activate(p, p.extra_network_data))
    monkeypatch.setattr(host.sd_models, "forge_model_reload", lambda: host.sd_models.reload_model_weights(), raising=False)


def neo_s_passes(host: Any, monkeypatch: Any) -> None:
    """The first pass brings its pictures to 0..1 before it hands them over, and the hires pass takes them as they come. Some checkpoints are given
    their shift at the beginning of every pass."""
    job, img2img = host.processing.StableDiffusionProcessingTxt2Img, host.processing.StableDiffusionProcessingImg2Img
    first, hires, alone = job.sample, job.sample_hr_pass, img2img.sample
    for name in ("distilled_cfg_scale", "hr_distilled_cfg"):
        monkeypatch.setattr(host.processing.StableDiffusionProcessing, name, 3.5, raising=False)

    def set_shift(shift: float) -> None:
        if getattr(host.shared.sd_model, "use_shift", False):
            host.shared.sd_model.forge_objects.unet.model.predictor.set_parameters(shift=shift)

    def sample_img2img(self: Any, *args: Any) -> Any:
        set_shift(self.distilled_cfg_scale)
        return alone(self, *args)

    def sample(self: Any, *args: Any) -> Any:
        own, brought = self.sample_hr_pass, partial(torch.clamp, min=0.0, max=1.0)
        self.sample_hr_pass = lambda samples, decoded, *rest: own(samples, None if decoded is None else brought((decoded + 1.0) / 2.0), *rest)
        set_shift(self.distilled_cfg_scale)
        return first(self, *args)

    def sample_hr_pass(self: Any, samples: Any, decoded: Any, *rest: Any) -> Any:
        set_shift(self.hr_distilled_cfg)
        return hires(self, samples, None if decoded is None else decoded * 2 - 1, *rest)

    monkeypatch.setattr(job, "sample", sample)
    monkeypatch.setattr(job, "sample_hr_pass", sample_hr_pass)
    monkeypatch.setattr(img2img, "sample", sample_img2img)


def nothing_left(host, samplers):
    for sampler in samplers:
        assert type(sampler.model_wrap_cfg).__module__.startswith("modules.")
        assert not {name for name in vars(sampler.model_wrap_cfg) if name.startswith("apt")}
    for objects in (host.model.forge_objects, host.model.forge_objects_after_applying_lora):
        assert "model_function_wrapper" not in objects.unet.model_options
        assert not vars(objects.unet).keys() & {"apt_own"}
