"""AUTOMATIC1111's WebUI 1.10.1: where the engine comes under its sampler.

Only one sampler's own denoiser is changed, by giving it a subclass of its class for the length of one phase. What the host does around
its model (prompt editing, AND, callbacks, masks, previews, the refiner) stays the host's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from modules import sd_models, shared
from torch import Tensor

from apt_ext.webui.model import family_of, window_option

__all__ = ["FirstCheckpoint", "fused_inside", "native_side"]


@cache
def _with_engine(base: Any) -> Any:
    """The subclass of a CFG denoiser's class that asks its `apt_run` first."""

    class APTDenoiser(base):
        @property
        def inner_model(self) -> Any:
            return self.apt_run.wrap(super().inner_model)

        def forward(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.apt_run.begin(x, sigma)
            return self.apt_run.end(x, sigma, super().forward(x, sigma, *args, **kwargs))

    return APTDenoiser


@contextmanager
def fused_inside(denoiser: Any, run: Any) -> Iterator[None]:
    """Within the block, a sampler's CFG denoiser asks a `PhaseRun`, or another with its `begin`, `wrap` and `end`; afterwards it is what it was."""
    base: Any = type(denoiser)
    denoiser.__class__ = _with_engine(base)
    denoiser.apt_run = run
    try:
        yield
    finally:
        del denoiser.apt_run
        denoiser.__class__ = base


def native_side(model: Any) -> int:
    """The native side of a checkpoint's family in pixels, as the settings page has it."""
    return int(getattr(shared.opts, window_option(family_of(model))))


class FirstCheckpoint:
    """The checkpoint that a pass begins with, for all of its phases: the host's refiner puts another in its place within one.

    Args:
        denoiser: the sampler's CFG denoiser.
    """

    def __init__(self, denoiser: Any):
        self._denoiser, self._own = denoiser, shared.sd_model.sd_checkpoint_info

    def restore(self) -> None:
        """Have it loaded again, before a later phase."""
        if shared.sd_model.sd_checkpoint_info == self._own:
            return
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=self._own)
        self._denoiser.model_wrap = None  # made anew for the loaded one
