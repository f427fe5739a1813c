"""Where a prompt's tokens are seen in the picture: cross-attention maps, gathered while a UNet is called.

The hooks sit on the UNet's own projections `to_q` and `to_k`, which every optimised attention calls, and are there for the length of one
block only. LDM's UNets and those of diffusers name them alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from apt_ext.core.types import Size

__all__ = ["AttentionMaps", "listening", "map_size"]

MIDDLES = ("middle_block", "mid_block")
Key = tuple[int, str]  # picture of the batch, text


def map_size(latent: Size) -> Size:
    """The one resolution that maps are taken at: the UNet's after two halvings, as AccDiffusion does (32 x 32 for SDXL's 1024 pixels)."""
    return Size(-(-latent[0] // 4), -(-latent[1] // 4))


class AttentionMaps:
    """Running means of cross-attention over heads, layers and steps: a few MB, whatever the number of steps.

    Attributes:
        size: (rows, columns) of the maps.
        rows: of the model call under way, those to listen to: (row, key).
    """

    def __init__(self, size: Size):
        self.size = size
        self.rows: list[tuple[int, Key]] = []
        self._sums: dict[Key, Tensor] = {}
        self._counts: dict[Key, int] = {}

    def add(self, query: Tensor, key: Tensor, heads: int) -> None:
        """One layer of one call: (N, h * w, heads * d) queries, (N, T, heads * d) keys."""
        if not self.rows:
            return
        rows = [row for row, _ in self.rows]
        q, k = (rearrange(value[rows], "n p (h d) -> n h p d", h=heads) for value in (query, key))
        attention = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float().softmax(dim=-1).mean(dim=1)
        for (_, owner), one in zip(self.rows, attention, strict=True):
            before = self._sums.get(owner)
            self._sums[owner] = one if before is None or before.shape != one.shape else before.add_(one)
            self._counts[owner] = 1 if before is None or before.shape != one.shape else self._counts[owner] + 1

    def means(self) -> dict[Key, Tensor]:
        """Key -> (T, h, w) float32 on the CPU."""
        return {key: rearrange(total / self._counts[key], "(h w) t -> t h w", h=self.size[0]).cpu() for key, total in self._sums.items()}


def _layers(unet: nn.Module) -> list[Any]:
    """The UNet's cross-attention on its way down and up; AccDiffusion leaves the middle out."""
    return [
        module
        for name, module in unet.named_modules()
        if name.rpartition(".")[2] == "attn2" and not name.startswith(MIDDLES) and all(hasattr(module, part) for part in ("to_q", "to_k", "heads"))
    ]


@contextmanager
def listening(unet: nn.Module, maps: AttentionMaps) -> Iterator[None]:
    """Within the block, calls of this UNet add to the maps."""
    positions = maps.size[0] * maps.size[1]

    def install(layer: Any) -> Iterator[Any]:
        waiting: list[Tensor] = []

        def asked(_: nn.Module, __: Any, query: Tensor) -> None:
            waiting[:] = [query.detach()] if query.ndim == 3 and query.shape[1] == positions else []

        def answered(_: nn.Module, __: Any, key: Tensor) -> None:
            if waiting:
                maps.add(waiting.pop(), key.detach(), layer.heads)

        yield layer.to_q.register_forward_hook(asked)
        yield layer.to_k.register_forward_hook(answered)

    with ExitStack() as stack:
        for layer in _layers(unet):
            for handle in install(layer):
                stack.callback(handle.remove)
        yield
