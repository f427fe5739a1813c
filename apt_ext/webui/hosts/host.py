"""What the rest of the adapter is told of the host that it is in, and never asks a host itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from apt_ext.core.conditioning import Condition
from apt_ext.core.types import Size
from apt_ext.webui.hosts.arguments import Arguments
from apt_ext.webui.hosts.first_checkpoint import FirstCheckpoint

__all__ = ["AtOnce", "Control", "Host", "Run", "Text"]


class Run(Protocol):
    """What a sampler's denoiser asks while the engine is inside: see `PhaseRun`."""

    def begin(self, x: Tensor, t: Tensor) -> None:
        """The denoiser is called with the sampler's live tensor."""
        ...

    def wrap(self, model: Any) -> Any:
        """What is called instead of the host's model."""
        ...


@dataclass(frozen=True)
class AtOnce:
    """The most that the engine gives the model in one call: this many views, of (rows, columns) in latent pixels."""

    views: int
    size: Size


@dataclass(frozen=True)
class Text:
    """A checkpoint's text encoder: texts -> their chunks of tokens and their number; pieces of text -> tokens; (tokens, position) -> a textual
    inversion there and its length, or None and None."""

    process_texts: Callable[[list[str]], Any]
    tokenize: Callable[[list[str]], list[list[int]]]
    embedding_at: Callable[[list[int], int], Any]


class Control(Protocol):
    """ControlNet's units in a pass; see `hosts.controlnet.Control`."""

    @property
    def active(self) -> bool:
        """Whether there are any."""
        ...

    def most(self, batch: int) -> int:
        """The views that a model call may hold, of those wanted."""
        ...

    def phase(self, size: Size) -> AbstractContextManager[None]:
        """Within the block, the latent is of this size (rows, columns); afterwards every unit has its own hint back."""
        ...

    def prompts(self, c: Any, uc: Any) -> tuple[Any, Any]:
        """What a pass is conditioned on, its prompts and negative prompts, as the units have to see them; neither is written to."""
        ...

    def condition(self, inner: Condition) -> Condition:
        """`inner`, with every unit shown what the call's views see."""
        ...


class Host(Protocol):
    """A host, detected once.

    Attributes:
        name: as its users call it.
        script: gradio's name for an event's function in the browser.
        sampler_coordinates: whether the model is called in its sampler's coordinates; elsewhere always in k-diffusion's.
        whole_timesteps: whether the denoiser takes the nearest whole timestep.
        arguments: how the prompt is written into a model call.
    """

    name: str
    script: str
    sampler_coordinates: bool
    whole_timesteps: bool
    arguments: Arguments

    def inside(self, denoiser: Any, run: Run, at_once: AtOnce | None = None) -> AbstractContextManager[None]:
        """Within the block a sampler's CFG denoiser asks a run; afterwards it is what it was, however the block ends.

        Args:
            at_once: what the host has to keep memory free for; what it thinks itself where that is left out.
        """
        ...

    def parts_of(self, model: Any) -> Sequence[int | None] | None:
        """Of the call that `Run.wrap`'s model is in: for equal shares of its rows, the part of the prompt (between ANDs) that they have, and None for
        the negative one. None for all where the rows come in the order of the prompts, the negative ones last."""
        ...

    def loaded(self) -> Any:
        """The loaded checkpoint, or None."""
        ...

    def family(self, model: Any) -> str:
        """See `model.family_of`."""
        ...

    def flow_samplers(self, model: Any) -> Collection[str]:
        """Of its samplers that add noise, those that add it as this checkpoint of rectified flow needs it, without "sample_"."""
        ...

    def noise_levels(self, sampler: Any) -> Tensor | None:
        """Of a sampler's model, ascending; None where those of `alphas_cumprod` count."""
        ...

    def foresee_levels(self, sampler: Any, p: Any) -> None:
        """Let a sampler of the loaded checkpoint that nothing will sample with go by the noise levels that a pass will have, where the host settles them
        only when the pass begins. The checkpoint, with which a job may be running, is left alone."""
        ...

    def alphas_cumprod(self, model: Any) -> Tensor:
        """(T,) of a checkpoint."""
        ...

    def crop_embedding(self, model: Any) -> Callable[[Tensor], Tensor] | None:
        """SDXL's own embedding of the crop corner, (n, 2) pixels -> (n, 512); None for a model without one."""
        ...

    def unet(self, model: Any) -> nn.Module:
        """A checkpoint's."""
        ...

    def vae_halves(self, model: Any) -> dict[str, nn.Module]:
        """The encoder and the decoder that work in tiles only if APT lets them; none where the host has tiles of its own."""
        ...

    def text(self, model: Any) -> Text:
        """A checkpoint's."""
        ...

    def evaluate(self, model: Any, clean: Tensor, noise: Tensor, timestep: int, text: Any, image: Tensor) -> None:
        """Call a checkpoint's model, for what its layers see: with (N, C, h, w) latents noised to a timestep, the host's conditioning of N texts, and
        its image conditioning."""
        ...

    def prompt_schedules(self, prompts: Any, steps: int, hires_steps: int | None) -> Any:
        """Of every prompt its texts and the steps that they end at, as the host reads prompt editing for a pass."""
        ...

    def words_refused(self) -> str | None:
        """Why words cannot be told apart in a prompt now, in half a sentence."""
        ...

    def hires_as_first(self, p: Any) -> None:
        """A hires pass that nobody has filled in a section of the page or fields of the API for goes by the first pass."""
        ...

    def first_pictures(self, decoded: Tensor) -> Tensor:
        """(B, 3, H, W), what its first pass made, as it hands them to its hires pass -> in -1..1."""
        ...

    def first_checkpoint(self, p: Any, denoiser: Any) -> FirstCheckpoint:
        """Of the pass of a job that a denoiser is about to make."""
        ...

    def control_of(self, p: Any) -> Control:
        """ControlNet's units that are on in a job, for the pass that is about to begin.

        Raises:
            ValueError: where they cannot be shown to windows; the message says what to turn off.
        """
        ...

    def without_control(self, p: Any) -> AbstractContextManager[None]:
        """Within the block, the units that lie over the picture are out of the model."""
        ...

    def control_ended_on_failure(self, p: Any) -> AbstractContextManager[None]:
        """Where the block fails, ControlNet ends its part of the job."""
        ...
