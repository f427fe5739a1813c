"""A double of Forge: the other double's host, with the seam of Forge's package `backend` where the sampler meets the model.

What it has in common with Forge is written down in `tests/host/contract_forge.py` and checked against both.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.host.forge import denoiser
from tests.host.forge.backend import ForgeObjects, KModel, UnetPatcher

__all__ = ["become_forge", "forged"]


def forged(model: Any) -> Any:
    """A checkpoint of the other double, as Forge keeps it."""
    unet = UnetPatcher(KModel(model))
    model.forge_objects = ForgeObjects(unet)
    model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()
    model.is_sd1 = not (model.is_sdxl or model.is_sd2 or model.is_sd3)
    stage = model.cond_stage_model

    def found(tokens: list[int], offset: int) -> Any:
        from modules import sd_hijack

        return sd_hijack.EmbeddingDatabase().find_embedding_at_position(tokens, offset)

    model.text_processing_engine = SimpleNamespace(
        process_texts=stage.process_texts, tokenize=stage.tokenize, embeddings=SimpleNamespace(find_embedding_at_position=found)
    )
    return model


def become_forge(host: Any, root: Any, monkeypatch: Any, package: str = "backend") -> None:
    """Turn the double of 1.10.1 into Forge, for one test. `root`: an empty folder for its packages. `package`: the one that gives it away."""
    (root / package).mkdir()
    detect = host.adapter("detect")
    monkeypatch.setattr(detect, "modules", SimpleNamespace(__path__=[str(root / "modules")]))
    detect.host.cache_clear()
    forged(host.model)
    cfg, kdiffusion, timesteps = host.sd_samplers_cfg_denoiser, host.sd_samplers_kdiffusion, host.sd_samplers_timesteps
    monkeypatch.setattr(cfg.CFGDenoiser, "forward", denoiser.forward)
    monkeypatch.setattr(kdiffusion.CFGDenoiserKDiffusion, "inner_model", property(denoiser.by_sigmas))
    monkeypatch.setattr(timesteps.CFGDenoiserTimesteps, "inner_model", property(denoiser.by_timesteps))
    monkeypatch.setattr(host.sd_samplers_common.Sampler, "run", denoiser.prepared(host.sd_samplers_common.Sampler.run))
    monkeypatch.setattr(host.processing.StableDiffusionProcessing, "tell_scripts", denoiser.tell_scripts)
    monkeypatch.setattr(host.sd_models, "forge_model_reload", lambda: host.sd_models.reload_model_weights(), raising=False)
