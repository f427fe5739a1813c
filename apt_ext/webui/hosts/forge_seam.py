"""Where the engine comes under the sampler of Forge and its kin: the package `backend` of Forge and Neo, `ldm_patched` of Classic and reForge.

Their CFG denoiser never calls a model of its own: it takes the checkpoint's `forge_objects.unet` at every call, which lets a function stand before
the model. So a phase has a clone of that there, with the engine as the function, and the clone's own place is given back.

Source: Forge at dfdcbab6, `backend/sampling/sampling_function.py` and `backend/patcher/unet.py`; Classic at 1f95d717 and reForge at 3b56b268,
`ldm_patched/modules/samplers.py` and `modules_forge/forge_sampler.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from modules import shared
from torch import Tensor

from apt_ext.webui.hosts.forge_control import Unheard
from apt_ext.webui.hosts.host import AtOnce, Run

__all__ = ["Called", "fused_inside"]

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

    def size(self) -> list[int]:
        return [len(self.parts)]


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
        unheard: ControlNet's units, asked for each call of views.

    Attributes:
        parts: of the call that this is in; see `Host.parts_of`.
    """

    def __init__(self, before: Callable[..., Tensor] | None, unheard: Unheard | None):
        self._before, self._unheard = before, unheard
        self._apply: Any = None
        self._kinds: list[int] = []
        self.parts: Sequence[int | None] = ()

    def __call__(self, x: Tensor, sigma: Tensor, **c: Any) -> Tensor:
        """(N, C, h, w), (N,) and the arguments of N rows."""
        c.pop("control_model", None)  # what stands for the units
        if self._unheard is not None and "control" in c:
            c["control"] = self._unheard.control_for(x, sigma, c, len(self._kinds))
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

    def memory_required(self, input_shape: Sequence[int], **more: Any) -> Any:
        return self._model.memory_required(_at_once(input_shape, self._at_once), **more)

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
        units = own.controlnet_linked_list
        unheard = None if units is None else Unheard(units)
        called = Called(own.model_options.get(WRAPPER), unheard)
        clone.set_model_unet_function_wrapper(_Wrapper(self._run.wrap(called), called))
        at_once = self._at_once

        def conditions(model: Any, *rest: Any) -> tuple[Any, ...]:
            return _marked(model if at_once is None else _Sized(model, at_once), *rest)

        clone.model_options["conditioning_modifiers"] = [*own.model_options.get("conditioning_modifiers", ()), conditions]
        if at_once is not None:
            # Neo asks the clone itself, the others an option first.
            required, memory = own.memory_required, own.model_options.get(MEMORY, own.memory_required)
            clone.memory_required = lambda input_shape: required(_at_once(input_shape, at_once))
            clone.model_options[MEMORY] = lambda shape: memory(_at_once(shape, at_once))
        clone.controlnet_linked_list = unheard
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
            return super().forward(x, sigma, *args, **kwargs)

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
