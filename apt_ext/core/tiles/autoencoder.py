"""Half of an autoencoder, an encoder or a decoder, over a large picture: in tiles, normalised as if it were done at once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

from torch import Tensor, nn

from apt_ext.core.tiles.map import cut_tiles, map_tiles
from apt_ext.core.tiles.norm import shared_group_norm
from apt_ext.core.tiles.sample import draw_sample
from apt_ext.core.types import Deal

__all__ = ["run_in_tiles"]

FEWEST = 8  # patches


def run_in_tiles(
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    factor: Fraction,
    *,
    tile: int,
    halo: int,
    side: int = 20,
    share: float = 1.0,
    deal: Deal = map,
) -> Tensor:
    """Run a module tile by tile, with group normalisation by the whole picture's statistics, taken from all tiles or from a sample of it.

    Args:
        module: holds the GroupNorm layers.
        forward: (B, C, h, w) -> (B, C', h * factor, w * factor), the module's own.
        x: (B, C, H, W).
        factor, tile, halo: see `map_tiles`; a picture no larger than a tile is done at once and untouched.
        side: of the sample's patches, in pixels of the smaller of the two sides (a latent's). Together they are no larger than a tile.
        share: of the picture that is in the sample. Its work comes on top; more of it brings the result closer. With 1, every tile is run
            twice, the first time for its statistics.
        deal: who runs the tiles, see `ViewCalls`, both times. A sample is run by every process for itself.

    Returns:
        (B, C', H * factor, W * factor), float32. Self-attention sees its tile only.

    Raises:
        ValueError: see `map_tiles`.
    """
    over_tiles = partial(map_tiles, forward, x, factor, tile=tile, halo=halo)
    if max(x.shape[-2:]) <= tile:
        return over_tiles(deal=deal)
    if share >= 1:
        calls = [partial(_run, forward, cut) for cut in cut_tiles(x, factor, tile=tile, halo=halo)]
        with shared_group_norm(module, calls, deal=deal):
            return over_tiles(deal=deal)
    cell = factor.denominator
    rows, columns, longest = x.shape[-2] // cell, x.shape[-1] // cell, tile // cell
    side = max(1, min(side, rows, columns, longest // 3))
    count = min(max(FEWEST, round(share * rows * columns / side**2)), longest**2 // side**2)
    patches, weights = draw_sample(x, cell, side=side, count=count)
    with shared_group_norm(module, lambda: forward(patches), weights):
        return over_tiles(deal=deal)


def _run(forward: Callable[[Tensor], Tensor], cut: Callable[[], Tensor]) -> None:
    forward(cut())
