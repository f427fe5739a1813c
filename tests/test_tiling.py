"""Tiled decoding and encoding: the same picture, no edges, memory by the tile."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from apt_ext.core.tile_norm import shared_group_norm
from apt_ext.core.tiling import _even_tiles, map_tiles

KERNEL = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.2


def decode(z):
    """Grows by 4 and looks two pixels around, like a decoder without normalisation."""
    return F.interpolate(F.conv2d(z, KERNEL, padding=2), scale_factor=4, mode="nearest")


@pytest.mark.parametrize("size", [(40, 40), (33, 70), (17, 64), (100, 18)])
def test_tiles_equal_the_whole_where_the_halo_covers_the_reach(size):
    z = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(2))
    whole, tiled = decode(z), map_tiles(decode, z, 4, tile=16, halo=8)
    assert tiled.shape == whole.shape
    torch.testing.assert_close(tiled, whole, atol=2e-3, rtol=0)


def test_encoder_direction_and_progress():
    x = torch.randn(1, 3, 96, 132, generator=torch.Generator().manual_seed(3))
    seen = []
    small = map_tiles(lambda v: F.avg_pool2d(v, 4), x, Fraction(1, 4), tile=48, halo=16, on_tile=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(small, F.avg_pool2d(x, 4))
    assert seen[-1][0] == seen[-1][1] == len(seen) > 1


def test_a_tile_that_is_off_leaves_no_edge():
    """Each tile a little brighter or darker than the next, as normalisation layers make them: the step must be spread out."""
    offsets = iter([0.0, 1.0] * 50)
    flat = map_tiles(lambda z: F.interpolate(z, scale_factor=4) + next(offsets), torch.zeros(1, 1, 16, 48), 4, tile=16, halo=8)
    assert float(flat.max()) > 0.9
    assert float(flat.diff(dim=-1).abs().max()) < 0.12


def test_small_pictures_are_not_tiled_and_bad_halos_are_refused():
    calls = []
    map_tiles(lambda z: calls.append(z.shape) or decode(z), torch.zeros(1, 4, 16, 12), 4, tile=16, halo=8)
    assert calls == [(1, 4, 16, 12)]
    with pytest.raises(ValueError, match="halo 12 does not fit into tiles of 16"):
        map_tiles(decode, torch.zeros(1, 4, 40, 40), 4, tile=16, halo=12)
    with pytest.raises(ValueError, match="41 x 40 pixels in tiles of 16 do not divide by 4"):
        map_tiles(decode, torch.zeros(1, 4, 41, 40), Fraction(1, 4), tile=16, halo=8)


def normalised_decoder():
    torch.manual_seed(4)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(4, 16, 3, padding=1),
        torch.nn.GroupNorm(4, 16),
        torch.nn.SiLU(),
        torch.nn.Conv2d(16, 16, 3, padding=1),
        torch.nn.GroupNorm(4, 16, affine=False),
        torch.nn.SiLU(),
        torch.nn.Upsample(scale_factor=4),
        torch.nn.Conv2d(16, 3, 3, padding=1),
    )
    torch.nn.init.uniform_(layers[1].weight, 0.5, 1.5)
    torch.nn.init.uniform_(layers[1].bias, -0.5, 0.5)
    return layers.eval().requires_grad_(False)


def test_shared_statistics_bring_tiles_to_the_whole():
    """A picture whose left half is much louder than its right: each tile by itself would be brought to the same loudness."""
    decoder = normalised_decoder()
    z = torch.randn(2, 4, 24, 80, generator=torch.Generator().manual_seed(6))
    z[..., 40:] *= 0.2
    z[1] += 1.5

    def run():
        return map_tiles(decoder, z, 4, tile=16, halo=8)

    whole, alone = decoder(z), run()
    with shared_group_norm(decoder, run):
        shared = run()
    assert float((alone - whole).abs().max()) > 1
    assert float((shared - whole).abs().max()) < float((alone - whole).abs().max()) / 3
    assert float((shared - whole).square().mean()) < float((alone - whole).square().mean()) / 10


def test_shared_statistics_of_the_whole_are_the_layers_own_and_leave_nothing_behind():
    decoder = normalised_decoder()
    z = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(7))
    before, plain = decoder(z), decoder.state_dict()
    with shared_group_norm(decoder, lambda: decoder(z)):
        torch.testing.assert_close(decoder(z), before, atol=1e-5, rtol=1e-5)
        assert not torch.equal(decoder(2 * z), before)
    with pytest.raises(KeyboardInterrupt), shared_group_norm(decoder, lambda: decoder(z)):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), shared_group_norm(decoder, lambda: 1 / 0):
        pass
    assert torch.equal(decoder(z), before)
    assert all("forward" not in layer.__dict__ and not layer._forward_pre_hooks for layer in decoder.modules())
    assert plain.keys() == decoder.state_dict().keys()


@given(st.integers(1, 700), st.integers(4, 128), st.data())
def test_tiles_are_the_fewest_that_cover_with_their_overlap(length, tile, data):
    halo = data.draw(st.integers(1, tile // 2))
    tiles = _even_tiles(length, tile, halo)
    assert tiles[0][0] == 0
    assert tiles[-1][0] + tiles[-1][1] == length
    assert all(side <= tile for _, side in tiles)
    # Starts are rounded down to whole pixels, which may take one from an overlap.
    assert all(a + side - b >= halo - 1 for (a, side), (b, _) in pairwise(tiles))
    assert len(tiles) == 1 or (len(tiles) - 1) * (tile - halo) + halo < length
