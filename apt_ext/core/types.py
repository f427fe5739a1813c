"""What the core is handed from outside: sizes, models and samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

__all__ = ["Around", "Deal", "Denoiser", "ModelFacts", "Sampler", "Size", "size_of"]

T = TypeVar("T")


class Size(NamedTuple):
    """A size, or a size's ratio, along rows and columns: in latent pixels where nothing else is said."""

    rows: int
    columns: int


class Around(NamedTuple):
    """Whether a picture is seamless, that is goes on at its other side, along rows (down) and columns (across)."""

    rows: bool
    columns: bool


def size_of(x: Tensor) -> Size:
    """Of a (..., H, W) latent."""
    return Size(x.shape[-2], x.shape[-1])


class Denoiser(Protocol):
    """k-diffusion's model: (B, C, H, W) noisy latents and (B,) sigmas to the (B, C, H, W) estimate of the clean ones."""

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """(B, C, H, W), (B,), the model's other arguments -> (B, C, H, W)."""
        ...


class Sampler(Protocol):
    """A sampler of k-diffusion's, with everything but these arguments bound."""

    def __call__(self, model: Any, x: Tensor, sigmas: Tensor, *, extra_args: dict[str, Any], callback: Callable[[dict[str, Any]], None]) -> Tensor:
        """(B, C, H, W) noisy latents at sigmas[0] -> (B, C, H, W) at sigmas[-1]. May write into x."""
        ...


class ModelFacts(NamedTuple):
    """What the engine has to know of a model.

    Attributes:
        window: its native size, at which it composes; the windows of a job may have another (`window_size`).
        multiple: its inputs' sides have to be multiples of this.
        sigma_max: its largest noise level.
        timestep: sigma -> its own timestep, 0 to 1000.
        factor: pixels per latent pixel.
    """

    window: Size
    multiple: int
    sigma_max: float
    timestep: Callable[[float], float]
    factor: int = 8


class Deal(Protocol):
    """Who makes a network's calls: `map` makes them here, `Ranks.map` deals them out to several processes."""

    def __call__(self, function: Callable[[T], Tensor], items: Sequence[T], /) -> Iterator[Tensor]:
        """A network's call and what it is called with -> the results, in the order of the items."""
        ...
