"""What stands under the host's CFG denoiser during a phase: the fused model, and the conditioning of its views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apt_ext.core.conditioning import ViewBatch, condition_views
from apt_ext.core.fused import FusedDenoiser
from apt_ext.core.residual import StepMixer
from apt_ext.core.types import Denoiser
from apt_ext.webui.hosts.arguments import NESTED, Arguments
from apt_ext.webui.model import POOLED
from apt_ext.webui.run.coordinates import Coordinates

if TYPE_CHECKING:  # everything else here can do without the host
    from apt_ext.webui.words.windows import WindowPrompts

__all__ = ["PhaseRun", "window_corners"]

SINUSOID = 256  # SDXL's vector: behind the pooled prompt six numbers of 256 each: original size, crop corner, target size


class PhaseRun:
    """What one phase adds to the sampler's denoiser.

    Args:
        coordinates: of the sampler.
        mixer: the gate before every call.
        fuse: the host's model as k-diffusion's denoiser -> the phase's engine around it.
        on_memory: told of an out-of-memory error with the window batch in use; returns the one to go on with, or raises.
        prompts: of the local windows, or None where all of them have the whole one.
        called: the coordinates that the host calls its model in; the sampler's own where left out.
        parts_of: see `Host.parts_of`.
        on_call: told of every call of the host's model, before its views are evaluated.

    Attributes:
        counted: whether the views of the call under way count for the bar: not, where the host calls its model once more for the negative prompt.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        mixer: StepMixer,
        fuse: Callable[[Denoiser], FusedDenoiser],
        *,
        on_memory: Callable[[Exception, int], int],
        prompts: WindowPrompts | None = None,
        called: Coordinates | None = None,
        parts_of: Callable[[Any], Sequence[int | None] | None] = lambda model: None,
        on_call: Callable[[], None] = lambda: None,
    ):
        self.coordinates, self.mixer, self.fuse, self.on_memory = coordinates, mixer, fuse, on_memory
        self.prompts, self.on_call = prompts, on_call
        self.called, self.parts_of = called or coordinates, parts_of
        self.counted = True
        self.models: dict[int, FusedModel] = {}

    def begin(self, x: Tensor, t: Tensor) -> None:
        """Count a call of the denoiser, and mix the skip residual into the sampler's own tensor at the first of a step."""
        if self.prompts is not None:
            self.prompts.rows.begin()
        self.mixer.begin(x, self.coordinates.level(t))

    def wrap(self, model: Any) -> FusedModel:
        """The fused model around the host's; the refiner may bring another one in the middle of a phase."""
        if id(model) not in self.models:
            self.models[id(model)] = FusedModel(model, self)
        return self.models[id(model)]


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()


class FusedModel:
    """Stands where the CFG denoiser expects its model: same call, same attributes."""

    def __init__(self, model: Any, run: PhaseRun):
        self._model, self._run = model, run
        self._engine = run.fuse(run.called.denoiser(model))

    def __call__(self, x: Tensor, t: Tensor, **extra: Any) -> Tensor:
        """(N, C, H, W) at the phase's size -> the same; N counts prompts, not only pictures."""
        parts = self._run.parts_of(self._model)
        self._run.counted = parts is None or 0 in parts
        if self._run.prompts is not None:
            self._run.prompts.next_call(len(x), parts)
        self._run.on_call()
        while True:
            try:
                return self._run.called.estimate(self._engine, x, t, extra)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                reason = error.with_traceback(None)  # the frames hold on to the tensors that were too many
            self._engine.calls.batch = self._run.on_memory(reason, self._engine.calls.batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def window_corners(
    corner: Callable[[Tensor], Tensor] | None, offset: tuple[int, int] = (0, 0), factor: int = 8, arguments: Arguments = NESTED
) -> Callable[[Mapping[str, Any], ViewBatch], Mapping[str, Any]]:
    """The engine's conditioning for a model: what is spatial is cut, and SDXL's crop corner is each local window's own.

    Args:
        corner: (n, 2) pixels from the top and the left -> (n, 2 * 256), the model's own embedding of them; None for a model without.
        offset: (top, left) that the host adds to the corner. `factor`: pixels per latent pixel. `arguments`: the host's.

    Source: DemoFusion (Du et al., CVPR 2024), its published code; the dilated views keep the whole picture's corner.
    """

    def condition(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
        cut = condition_views(extra, batch)
        sequence, vector = (None, None) if corner is None else arguments.text_of(cut)
        start, end = POOLED + 2 * SINUSOID, POOLED + 4 * SINUSOID
        if corner is None or sequence is None or not batch.windows or vector is None or vector.shape[-1] < end:
            return cut
        corners = [(max(0, w.top) * factor + offset[0], max(0, w.left) * factor + offset[1]) for w in batch.windows]
        places = torch.tensor(corners, dtype=torch.float32, device=vector.device)
        vector = vector.clone()
        vector[:, start:end] = batch.spread(corner(places).to(vector.dtype))
        return arguments.with_text(cut, sequence, vector)

    return condition
