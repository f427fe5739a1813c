"""Tiled decoding and encoding: the same picture, no edges, memory by the tile."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_ext.core.tiles.autoencoder import run_in_tiles
from apt_ext.core.tiles.map import _even_tiles, map_tiles
from apt_ext.core.tiles.norm import shared_group_norm
from apt_ext.core.tiles.sample import _spread, draw_sample
from apt_ext.demo import model as leaves
from apt_ext.demo.world import make_scene, render

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


def test_the_encoders_direction():
    x = torch.randn(1, 3, 96, 132, generator=torch.Generator().manual_seed(3))
    tiles = []
    small = map_tiles(lambda v: tiles.append(v.shape) or F.avg_pool2d(v, 4), x, Fraction(1, 4), tile=48, halo=16)
    torch.testing.assert_close(small, F.avg_pool2d(x, 4))
    assert len(tiles) > 1
    assert all(max(shape[2:]) <= 48 for shape in tiles)


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
    weights = layers.state_dict()
    torch.nn.init.uniform_(weights["1.weight"], 0.5, 1.5)
    torch.nn.init.uniform_(weights["1.bias"], -0.5, 0.5)
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


@pytest.fixture(scope="module")
def autoencoder():
    return leaves.load_model()


def levels_apart(autoencoder, style, seed, extent, size):
    """Difference of tiled and untiled decoding of a scene's own latents, in levels of 255. A small extent is a strongly enlarged scene."""
    pixels = torch.from_numpy(render(make_scene(style, seed, extent), size[1], (0, 0, extent, extent * size[0] / size[1])))
    with torch.no_grad():
        raw = autoencoder.autoencoder.encoder(pixels.permute(2, 0, 1)[None] / 127.5 - 1)
        whole = autoencoder.autoencoder.decoder(raw).clamp(-1, 1)
    difference = (autoencoder.decode((raw - autoencoder._shift) / autoencoder._scale) - whole).abs() * 127.5
    assert float(difference.max()) > 0
    return difference


@pytest.mark.parametrize(
    ("style", "seed", "extent", "size"),
    [
        ("autumn", 10, 6.0, (1088, 1088)),
        ("moss", 11, 6.0, (1088, 1088)),
        ("mosaic", 13, 6.0, (1088, 1088)),
        ("pebbles", 12, 2.0, (1088, 1088)),
        ("moss", 11, 1.0, (1088, 1088)),
        ("moss", 10, 6.0, (640, 1152)),
        ("autumn", 14, 2.0, (192, 1536)),
    ],
)
def test_the_embedded_decoder_in_tiles_differs_by_two_levels_at_most(autoencoder, style, seed, extent, size):
    """Many small shapes, a few large ones, and little room for patches."""
    assert float(levels_apart(autoencoder, style, seed, extent, size).max()) <= 2


def work(size, channels=4, samples=1, **how):
    """Shapes handed to a decoder."""
    shapes = []

    def forward(z):
        shapes.append(tuple(z.shape))
        return torch.zeros(z.shape[0], 1, z.shape[2] * 8, z.shape[3] * 8)

    run_in_tiles(torch.nn.Identity(), forward, torch.zeros(samples, channels, *size), Fraction(8), **how)
    return shapes


@pytest.mark.parametrize("size", [(256, 256), (384, 384), (512, 512), (256, 512), (512, 264)])
def test_all_decoding_together_is_little_more_than_the_picture_and_never_more_than_a_tile_at_once(size):
    shapes = work(size, samples=2, tile=136, halo=8, side=24, share=0.05)
    areas = [n * height * width // 2 for n, _, height, width in shapes]
    assert max(areas) <= 136 * 136
    assert sum(areas) <= 1.15 * size[0] * size[1]


def test_a_sample_never_grows_beyond_a_tile():
    (n, _, height, width), *tiles = work((120, 200), tile=40, halo=8, side=20, share=0.9)
    assert n * height * width <= 40 * 40
    assert n > 1
    assert len(tiles) > 1


def tiled(decoder, z):
    return run_in_tiles(decoder, decoder, z, Fraction(4), tile=48, halo=8, side=12, share=0.2)


def test_statistics_are_each_picture_s_own_and_the_same_every_time():
    decoder = normalised_decoder()
    z = torch.randn(2, 4, 64, 80, generator=torch.Generator().manual_seed(8)) * torch.linspace(0.3, 1.5, 80)
    z[1] = z[1] * 0.1 + 2
    state = torch.random.get_rng_state()
    both = tiled(decoder, z)
    assert torch.equal(both, tiled(decoder, z))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(both, torch.cat([tiled(decoder, one[None]) for one in z]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_layers_are_restored_wherever_decoding_fails(fails_at):
    decoder = normalised_decoder()
    calls = []

    def forward(z):
        calls.append(z)
        if len(calls) == fails_at:
            raise MemoryError
        return decoder(z)

    with pytest.raises(MemoryError):
        run_in_tiles(decoder, forward, torch.zeros(1, 4, 64, 64), Fraction(4), tile=48, halo=8, side=12, share=0.2)
    assert all("forward" not in layer.__dict__ for layer in decoder.modules())


@settings(deadline=None, max_examples=30)
@given(st.integers(30, 90), st.integers(30, 90), st.integers(6, 24), st.integers(1, 12), st.sampled_from([1, 2]))
def test_a_sample_s_weights_are_positive_and_sum_to_one(rows, columns, side, count, cell):
    z = torch.randn(2, 3, rows * cell, columns * cell, generator=torch.Generator().manual_seed(rows))
    patches, weights = draw_sample(z, cell, side=side, count=count)
    assert patches.shape == (2 * count, 3, side * cell, side * cell)
    assert weights.shape == (count, 2, side, side)
    assert float(weights.min()) >= 0
    torch.testing.assert_close(weights.sum((0, 2, 3)), torch.ones(2))
    rows, columns = (torch.tensor([window[axis] for window in _spread((rows, columns), side, count)]) for axis in (0, 1))
    assert not weights[rows > 0][:, :, 0].any()
    assert not weights[columns > 0][..., 0].any()


def test_a_sample_holds_as_much_of_the_border_as_the_picture():
    """What a network makes of the zeros beyond the border sways a normalisation: levels were up to 4.6 of 255 off where a sample had none of it."""
    z = torch.randn(1, 4, 100, 140, generator=torch.Generator().manual_seed(11))
    _, weights = draw_sample(z, 1, side=20, count=14)
    outermost = F.pad(torch.zeros(98, 138), (1,) * 4, value=1.0)
    held = sum(
        float((weight[0] * outermost[w.top : w.top + 20, w.left : w.left + 20]).sum()) for weight, w in zip(weights, _spread((100, 140), 20, 14), strict=True)
    )
    assert held == pytest.approx(float(outermost.mean()), rel=0.1)


def test_weights_bring_a_sample_s_features_to_the_picture_s():
    z = F.interpolate(torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(9)), size=(128, 128), mode="bicubic")
    patches, weights = draw_sample(z, 1, side=18, count=12)
    for of in (lambda v: v, torch.square):
        truth = of(z).mean((0, 2, 3))
        weighted = (of(patches) * weights.reshape(12, 1, 18, 18)).sum((0, 2, 3))
        plain = of(patches)[..., 3:15, 3:15].mean((0, 2, 3))
        assert float((weighted - truth).square().mean()) < float((plain - truth).square().mean()) / 10


def test_half_precision_is_normalised_by_statistics_in_float32():
    decoder = normalised_decoder().bfloat16()
    z = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(10)) + 30
    whole = normalised_decoder()(z)
    assert float((tiled(decoder, z.bfloat16()) - whole).abs().max()) < 0.5
