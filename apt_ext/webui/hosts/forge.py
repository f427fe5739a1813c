"""Forge, and what has grown out of it with its package `backend`: where the engine comes under its sampler.

Its CFG denoiser never calls a model of its own: it takes the checkpoint's `forge_objects.unet` at every call, which lets a function stand before
the model. So a phase has a clone of that there, with the engine as the function, and the clone's own place is given back.

Source: Forge at dfdcbab6, `backend/sampling/sampling_function.py` and `backend/patcher/unet.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from modules import sd_models, shared
from torch import Tensor, nn

from apt_ext.webui.hosts.arguments import FLAT, Arguments
from apt_ext.webui.hosts.forge_control import ForgeControl, Unheard, control_of
from apt_ext.webui.hosts.host import AtOnce, Run, Text

__all__ = ["Called", "Forge", "fused_inside"]

WRAPPER = "model_function_wrapper"
MEMORY = "memory_peak_estimation_modifier"
PARTS = "apt_parts"  # among a model call's arguments, and taken out again before the model is called


class _Part:
    """A condition of the host's that only says which part of the prompt it belongs to: for a call, the list of its parts."""

    def __init__(self, parts: Sequence[int | None]):
        self.parts = list(parts)

    def process_cond(self, batch_size: int, device: Any, **kwargs: Any) -> _Part:
        return self

    def can_concat(self, other: _Part) -> bool:
        return True

    def concat(self, others: Sequence[_Part]) -> list[int | None]:
        return sum((other.parts for other in others), self.parts)


def _marked(model: Any, x: Any, timestep: Any, uncond: Any, cond: Any, *rest: Any) -> tuple[Any, ...]:
    """A conditioning modifier of the host's: every part of the prompts says which it is."""
    for parts, entries in ((range(len(cond)), cond), ([None] * len(uncond or ()), uncond or ())):
        for part, entry in zip(parts, entries, strict=True):
            entry["model_conds"][PARTS] = _Part([part])
    return (model, x, timestep, uncond, cond, *rest)


class Called:
    """The host's model as the engine calls it: k-diffusion's signature, and the other arguments by the backend's names.

    Args:
        before: a function that another extension has set before the model, which every call of a view goes through.

    Attributes:
        parts: of the call that this is in; see `Host.parts_of`.
    """

    def __init__(self, before: Callable[..., Tensor] | None):
        self._before = before
        self._apply: Any = None
        self._kinds: list[int] = []
        self.parts: Sequence[int | None] = ()

    def __call__(self, x: Tensor, sigma: Tensor, **c: Any) -> Tensor:
        """(N, C, h, w), (N,) and the arguments of N rows."""
        unheard = c.pop("control_model", None)
        if isinstance(unheard, Unheard):
            c["control"] = unheard.control_for(x, sigma, c, len(self._kinds))
        if self._before is not None:
            return self._before(self._apply, {"input": x, "timestep": sigma, "c": c, "cond_or_uncond": self._kinds})
        made: Tensor = self._apply(x, sigma, **c)
        return made

    @contextmanager
    def calling(self, apply: Any, kinds: list[int], parts: Sequence[int | None]) -> Iterator[None]:
        """Within the block, the host calls its model for these kinds of rows."""
        self._apply, self._kinds, self.parts = apply, kinds, parts
        try:
            yield
        finally:
            self._apply, self._kinds, self.parts = None, [], ()


class _Sized:
    """The host's model, which takes its calls for as large as they will be once the engine has cut them into views."""

    def __init__(self, model: Any, at_once: AtOnce):
        self._model, self._at_once = model, at_once

    def memory_required(self, input_shape: Sequence[int]) -> Any:
        return self._model.memory_required(_at_once(input_shape, self._at_once))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _at_once(shape: Sequence[int], at_once: AtOnce) -> list[int]:
    rows, columns = (min(side, of_view) for side, of_view in zip(shape[2:], at_once.size, strict=True))
    return [shape[0] * at_once.views, shape[1], rows, columns]


class _Seam:
    """The engine before the models of a phase: of the checkpoint that it begins with, and of the refiner's.

    Args:
        run: asked for what is called instead of the model. `at_once`: see `Host.inside`.
    """

    def __init__(self, run: Run, at_once: AtOnce | None):
        self._run, self._at_once = run, at_once
        # Weakly: a checkpoint that the refiner takes the place of must not stay in memory.
        self._changed: list[weakref.ref[Any]] = []

    def inject(self, model: Any) -> None:
        """Put the engine before a checkpoint's model, unless it stands there."""
        objects = model.forge_objects
        own = objects.unet
        if isinstance(own.model_options.get(WRAPPER), _Wrapper):
            return
        clone = own.clone()
        clone.apt_own = own
        called = Called(own.model_options.get(WRAPPER))
        clone.set_model_unet_function_wrapper(_Wrapper(self._run.wrap(called), called))
        at_once = self._at_once

        def conditions(model: Any, *rest: Any) -> tuple[Any, ...]:
            return _marked(model if at_once is None else _Sized(model, at_once), *rest)

        clone.model_options["conditioning_modifiers"] = [*own.model_options.get("conditioning_modifiers", ()), conditions]
        if at_once is not None:
            memory = own.model_options.get(MEMORY, own.memory_required)
            clone.model_options[MEMORY] = lambda shape: memory(_at_once(shape, at_once))
        if own.controlnet_linked_list is not None:
            clone.controlnet_linked_list = Unheard(own.controlnet_linked_list)
        objects.unet = clone
        self._changed.append(weakref.ref(objects))

    def eject(self) -> None:
        """Give every checkpoint its own again."""
        for objects in filter(None, (reference() for reference in self._changed)):
            own = vars(objects.unet).get("apt_own")
            if own is not None:
                objects.unet = own
        self._changed = []


class _Wrapper:
    """The host's function before the model. A copy of the options that it is in copies nothing of the engine."""

    def __init__(self, fused: Any, called: Called):
        self._fused, self._called = fused, called

    def __call__(self, apply: Any, args: Mapping[str, Any]) -> Tensor:
        c, kinds = dict(args["c"]), args["cond_or_uncond"]
        # Without marks (another extension has made its own conditions): a prompt of one part.
        parts = c.pop(PARTS, None) or [0 if kind == 0 else None for kind in kinds]
        with self._called.calling(apply, kinds, parts):
            made: Tensor = self._fused(args["input"], args["timestep"], **c)
            return made

    def __deepcopy__(self, memo: Any) -> _Wrapper:
        return self


@cache
def _with_engine(base: Any) -> Any:
    """The subclass of a CFG denoiser's class with its `apt_run` before and after, and its `apt_seam` before every checkpoint that it calls."""

    class APTDenoiser(base):
        def forward(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.apt_run.begin(x, sigma)
            return self.apt_run.end(x, sigma, super().forward(x, sigma, *args, **kwargs))

        def update_inner_model(self) -> None:
            super().update_inner_model()
            self.apt_seam.inject(shared.sd_model)

    return APTDenoiser


@contextmanager
def fused_inside(denoiser: Any, run: Run, at_once: AtOnce | None = None) -> Iterator[None]:
    """See `Host.inside`."""
    base: Any = type(denoiser)
    seam = _Seam(run, at_once)
    denoiser.__class__ = _with_engine(base)
    denoiser.apt_run, denoiser.apt_seam = run, seam
    try:
        seam.inject(shared.sd_model)
        yield
    finally:
        seam.eject()
        del denoiser.apt_run, denoiser.apt_seam
        denoiser.__class__ = base


class _FirstCheckpoint:
    """See `Host.first_checkpoint`. The host's parameters still name it: the refiner only borrows them."""

    def __init__(self, denoiser: Any):
        self._denoiser, self._own = denoiser, shared.sd_model.sd_checkpoint_info

    def restore(self) -> None:
        if shared.sd_model.sd_checkpoint_info == self._own:
            return
        sd_models.forge_model_reload()
        self._denoiser.model_wrap = None  # made anew for the loaded one


class Forge:
    """See `hosts.host.Host`."""

    name = "Forge"
    script = "js"
    sampler_coordinates = False
    whole_timesteps = True
    arguments: Arguments = FLAT

    def inside(self, denoiser: Any, run: Run, at_once: AtOnce | None = None) -> AbstractContextManager[None]:
        """See `Host`."""
        return fused_inside(denoiser, run, at_once)

    def parts_of(self, model: Called) -> Sequence[int | None]:
        """The negative prompt may come first, alone or not at all."""
        return model.parts

    def loaded(self) -> Any:
        """Before the first job there is a stand-in of the host's, which has no name."""
        model = sd_models.model_data.sd_model
        return model if hasattr(model, "sd_checkpoint_info") else None

    def family(self, model: Any) -> str:
        """By the marks that it has for 1.10.1's extensions.

        Raises:
            ValueError: for one that is no Stable Diffusion 1, 2 or XL.
        """
        if model.is_sdxl:
            return "sdxl"
        if model.is_sd2:
            return "sd2v" if _predictor(model).prediction_type == "v_prediction" else "sd2"
        if model.is_sd1:
            return "sd1"
        kind = "SD3" if model.is_sd3 else type(model).__name__
        raise ValueError(f"{kind} checkpoints are not supported yet; choose an SD 1.x, SD 2.x or SDXL checkpoint")

    def noise_levels(self, sampler: Any) -> Tensor | None:
        """The predictor's, for every sampler."""
        levels: Tensor = _predictor(shared.sd_model).sigmas.detach().cpu()
        return levels

    def alphas_cumprod(self, model: Any) -> Tensor:
        """As its samplers by timesteps make them."""
        levels: Tensor = 1 / (_predictor(model).sigmas ** 2 + 1)
        return levels

    def crop_embedding(self, model: Any) -> Callable[[Tensor], Tensor] | None:
        """The embedding that all six numbers of its conditioning go through, (n,) -> (n, 256)."""
        if not model.is_sdxl:
            return None

        def embed(places: Tensor) -> Tensor:
            made: Tensor = model.embedder(places.flatten()).reshape(len(places), -1)
            return made

        return embed

    def unet(self, model: Any) -> nn.Module:
        """See `Host`."""
        network: nn.Module = model.forge_objects.unet.model.diffusion_model
        return network

    def vae_halves(self, model: Any) -> dict[str, nn.Module]:
        """It tiles by itself where memory asks for it."""
        return {}

    def text(self, model: Any) -> Text:
        """SDXL has two encoders, which take a text apart alike."""
        engine = model.text_processing_engine_l if model.is_sdxl else model.text_processing_engine
        return Text(engine.process_texts, engine.tokenize, engine.embeddings.find_embedding_at_position)

    def evaluate(self, model: Any, clean: Tensor, noise: Tensor, timestep: int, text: Any, image: Tensor) -> None:
        """By the noise level."""
        unet = model.forge_objects.unet
        sigma = _predictor(model).sigmas[timestep].to(clean)
        cond = {"c_crossattn": text["crossattn"], "y": text["vector"]} if isinstance(text, dict) else {"c_crossattn": text}
        if image.shape[-2:] == clean.shape[-2:]:
            cond["c_concat"] = image
        options = dict(unet.model_options.get("transformer_options", {}))
        levels = sigma.expand(len(clean))
        options |= {"cond_or_uncond": [0], "sigmas": levels, "cond_mark": torch.zeros_like(levels), "cond_indices": [*range(len(clean))], "uncond_indices": []}
        unet.model.apply_model(clean + sigma * noise, levels, **cond, transformer_options=options)

    def words_refused(self) -> str | None:
        """See `Host`."""
        return None

    def first_checkpoint(self, denoiser: Any) -> _FirstCheckpoint:
        """See `Host`."""
        return _FirstCheckpoint(denoiser)

    def control_of(self, p: Any) -> ForgeControl:
        """The host's own, linked to its UNet."""
        return control_of(shared.sd_model.forge_objects.unet)

    def without_control(self, p: Any) -> AbstractContextManager[None]:
        """`evaluate` does without."""
        return nullcontext()

    def control_ended_on_failure(self, p: Any) -> AbstractContextManager[None]:
        """The host takes a clone of its UNet for every pass, so nothing is left."""
        return nullcontext()


def _predictor(model: Any) -> Any:
    return model.forge_objects.unet.model.predictor
