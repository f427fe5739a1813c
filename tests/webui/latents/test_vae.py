"""The host's VAE in tiles, and back to what it was."""

import pytest
import torch
from PIL import Image
from torch import nn


class Conv(nn.Module):
    """A little network like a VAE's half: convolutions and group normalisation around a change of size."""

    def __init__(self, first, last, resize):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(first, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, last, 3, padding=1)
        self.resize = resize
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.last(torch.relu(self.norm(self.first(self.resize(x)))))


@pytest.fixture
def model(host):
    torch.manual_seed(2)
    stage = host.model.first_stage_model
    stage.encoder = Conv(3, 4, lambda x: nn.functional.avg_pool2d(x, 8))
    stage.decoder = Conv(4, 3, lambda z: nn.functional.interpolate(z, scale_factor=8, mode="nearest"))
    stage.requires_grad_(False)
    host.vae.TILE, host.vae.HALO = 24, 8
    return host.model


def uneven(channels, rows, columns, factor=1):
    """Of little contrast on the left and much on the right, so that a tile's own statistics are not the picture's."""
    values = torch.randn(1, channels, rows, columns, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 2, columns)
    return nn.functional.interpolate(values, scale_factor=factor, mode="nearest")


def latent(*size):
    return uneven(4, *size)


@pytest.mark.parametrize("size", [(40, 32), (24, 52)])
def test_a_decoder_in_tiles_gives_nearly_the_same_picture(host, model, size):
    z = latent(*size)
    whole = model.decode_first_stage(z)
    model.first_stage_model.decoder.shapes.clear()
    with host.vae.tiled_vae(model):
        tiled = model.decode_first_stage(z)
    assert len(model.first_stage_model.decoder.shapes) > 1
    assert all(max(shape[-2:]) <= 24 for shape in model.first_stage_model.decoder.shapes)
    torch.testing.assert_close(tiled, whole, atol=0.15, rtol=0)


def test_an_encoder_in_tiles_gives_nearly_the_same_latents(host, model):
    pixels = uneven(3, 32, 40, 8)
    whole = model.encode_first_stage(pixels)
    with host.vae.tiled_vae(model):
        tiled = model.encode_first_stage(pixels)
    assert model.first_stage_model.encoder.shapes[-1] != tuple(pixels.shape)
    torch.testing.assert_close(tiled, whole, atol=0.15, rtol=0)


def test_a_small_picture_goes_through_at_once(host, model):
    z = latent(12, 12)
    whole = model.decode_first_stage(z)
    with host.vae.tiled_vae(model):
        assert torch.equal(model.decode_first_stage(z), whole)


def test_tiles_keep_the_precision(host, model):
    model.first_stage_model.bfloat16()
    with host.vae.tiled_vae(model):
        assert model.decode_first_stage(latent(40, 32).bfloat16()).dtype == torch.bfloat16


def changed(model):
    return [name for name in ("encoder", "decoder") if "forward" in getattr(model.first_stage_model, name).__dict__]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_vae_is_what_it_was_afterwards(host, model, error):
    def work():
        with host.vae.tiled_vae(model):
            assert changed(model) == ["encoder", "decoder"]
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert changed(model) == []


def test_off_changes_nothing(host, model):
    with host.vae.tiled_vae(model, on=False):
        assert changed(model) == []


def test_blocks_may_be_nested(host, model):
    with host.vae.tiled_vae(model):
        with host.vae.tiled_vae(model):
            assert changed(model) == ["encoder", "decoder"]
        assert changed(model) == ["encoder", "decoder"]
    assert changed(model) == []


def test_another_extension_s_forward_is_left_to_it(host, model):
    decoder = model.first_stage_model.decoder
    decoder.forward = theirs = lambda z: torch.zeros(1)
    with host.vae.tiled_vae(model):
        assert decoder.forward is theirs
        assert changed(model) == ["encoder", "decoder"]
    assert decoder.forward is theirs
    assert changed(model) == ["decoder"]


def test_what_another_extension_has_put_back_is_idle_and_stays_as_it_was(host, model):
    """Tiled Diffusion's Tiled VAE keeps the forward of both halves on the instance once it has been used."""
    stage = model.first_stage_model
    for half in (stage.encoder, stage.decoder):
        half.original_forward = half.forward
        half.forward = half.original_forward
    left = {name: vars(getattr(stage, name))["forward"] for name in ("encoder", "decoder")}
    assert not host.vae.tiled_by_another(model)
    z = latent(40, 32)
    whole = model.decode_first_stage(z)
    stage.decoder.shapes.clear()
    with host.vae.tiled_vae(model):
        model.decode_first_stage(z)
    assert len(stage.decoder.shapes) > 1
    assert {name: vars(getattr(stage, name))["forward"] for name in left} == left
    assert torch.equal(model.decode_first_stage(z), whole)


def test_a_vae_without_these_halves_is_left_alone(host, model):
    host.model.first_stage_model = nn.Identity()
    with host.vae.tiled_vae(model):
        pass
    assert set(host.model.first_stage_model.__dict__) == set(nn.Identity().__dict__)


def test_pictures_survive_encoding_and_decoding(host):
    picture = Image.new("RGB", (64, 32), (200, 90, 40))
    z = host.vae.encode(host.model, [picture, picture])
    assert z.shape == (2, 4, 4, 8)
    again = host.vae.pictures_of(host.model, z)
    assert [one.size for one in again] == [(64, 32)] * 2
    assert max(abs(a - b) for a, b in zip(again[1].getpixel((9, 9)), (200, 90, 40), strict=True)) <= 1


def test_latents_are_enlarged_by_an_upscaler_or_as_they_are(host, monkeypatch):
    asked = []

    def resize(mode, picture, width, height, upscaler_name=None):
        asked.append((mode, upscaler_name))
        return picture.resize((width, height))

    monkeypatch.setattr(host.images, "resize_image", resize)
    z = latent(4, 4).repeat(2, 1, 1, 1)
    assert host.vae.upsampler(host.model, "latent")(z, (6, 8)).shape == (2, 4, 6, 8)
    assert asked == []
    through = host.vae.upsampler(host.model, "Nearest")
    assert through(z, (6, 8)).shape == (2, 4, 6, 8)
    assert asked == [(0, "Nearest")] * 2
    assert through(z, (4, 4)) is z
