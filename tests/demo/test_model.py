"""The embedded model as the engine uses it: sizes, tiles, noise streams, and weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apt_ext.demo import sources
from apt_ext.demo.job import run_job, show
from apt_ext.demo.model import WEIGHTS, load_model
from apt_ext.demo.sources import from_picture, from_words
from apt_ext.demo.wanted import Job
from apt_ext.demo.world import make_scene, render
from apt_ext.options import Schedule


@pytest.fixture(scope="module")
def model():
    return load_model()


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


def test_weights_are_small_and_say_where_they_come_from():
    assert WEIGHTS.stat().st_size < 16 * 2**20
    with safe_open(WEIGHTS, "pt") as file:
        assert {"styles", "recipe"} <= set(file.metadata())


def test_weights_from_before_the_straight_path_mean_what_they_meant(tmp_path):
    """Without it colour goes through the layers alone: what is missing counts as zero, what is unknown is refused."""
    with safe_open(WEIGHTS, "pt") as file:
        facts = file.metadata()
    tensors = load_file(WEIGHTS)
    older = {name: value for name, value in tensors.items() if ".colour." not in name}
    save_file(older, tmp_path / "older.safetensors", metadata=facts)
    old = load_model(tmp_path / "older.safetensors")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    decoder = old.autoencoder.decoder
    assert torch.equal(decoder(z), decoder.exit(decoder.middle(torch.nn.functional.interpolate(decoder.entry(z), scale_factor=2))))
    del older["unet.exit.0.weight"]
    save_file(older, tmp_path / "broken.safetensors", metadata=facts)
    with pytest.raises(RuntimeError, match=r"exit\.0\.weight"):
        load_model(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("level", [-0.9, -0.5, 0.0, 0.6])
def test_one_dark_or_bright_colour_comes_back_as_it_was(model, level):
    """A night sky: no structure for GroupNorm to measure brightness by."""
    flat = torch.tensor([0.8, 0.9, 1.0]).mul(level + 1).sub(1)[None, :, None, None].expand(1, 3, 64, 64)
    back = model.decode(model.encode(flat))
    assert float((back - flat).mean((2, 3)).abs().max()) * 127.5 < 8


@pytest.mark.parametrize("size", [(64, 64), (45, 34), (17, 70), (66, 63)])
def test_a_picture_comes_back_in_its_place(model, size):
    """Also where its sides are no multiple of a latent pixel: shown again it lies where it lay."""
    scene = Image.fromarray(render(make_scene("mosaic", 4), 80)).crop((0, 0, *size))
    source = from_picture(model, scene)
    back = show(model, source, source.latent, 1.0)
    assert back.size == size
    moved = np.roll(np.asarray(scene), 2, axis=1)
    assert psnr(back, scene) > max(20, psnr(back, moved) + 2)
    assert show(model, source, source.latent, 2.5).size == (round(size[0] * 2.5), round(size[1] * 2.5))


def test_below_a_noise_level_guidance_is_left_out(model):
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    style = torch.tensor([0, 3])
    for level, like in ((1.5, 3.0), (0.5, 1.0)):
        sigma = torch.full((2,), level)
        assert torch.equal(model.denoiser(3.0, above=1.0)(x, sigma, style=style), model.denoiser(like)(x, sigma, style=style))
    assert not torch.equal(model.denoiser(3.0)(x, sigma, style=style), model.denoiser(1.0)(x, sigma, style=style))


def test_enlarged_latents_decode_to_the_enlarged_picture(model):
    """Scale equivariance, without which every phase would start from a checkerboard."""
    for style in ("autumn", "pebbles"):
        source = from_picture(model, Image.fromarray(render(make_scene(style, 6), 64)))
        large = show(model, source, torch.nn.functional.interpolate(source.latent, scale_factor=4, mode="bicubic"), 4.0)
        once = show(model, source, source.latent, 1.0).resize(large.size, Image.Resampling.BICUBIC)
        assert psnr(large, once) > 24


def test_tiles_do_not_show(model):
    z = from_picture(model, Image.fromarray(render(make_scene("mosaic", 8), 1088))).latent
    assert z.shape[-1] == 272
    tiled = model.decode(z)
    with torch.no_grad():
        whole = model.autoencoder.decoder(z * model._scale + model._shift).clamp(-1, 1)
    assert psnr(tiled * 127.5, whole * 127.5) > 38
    # No edge where tiles meet, nor at the picture's border, where the convolutions' padding makes steps wherever statistics are a little off:
    # along every row and column the error's mean step stays within a tenth of a level of 255.
    error = (tiled - whole).mean(dim=1)[0] * 127.5
    assert max(float(error.diff(dim=dim).abs().mean(dim=1 - dim).max()) for dim in (0, 1)) < 0.1


def test_sampler_noise_and_starting_noise_are_strangers(model, monkeypatch):
    """Ancestral samplers add noise of their own; drawn from the starting noise's seed, it would pile up instead of mixing."""
    drawn = []
    real = torch.randn

    def randn(*args, **kwargs):
        out = real(*args, **kwargs)
        drawn.append(out.reshape(-1))
        return out

    monkeypatch.setattr(torch, "randn", randn)
    job = Job(scale=2.0, schedule=Schedule(steps=5, strength=1.0, sampler="euler_ancestral"), style="moss")
    source = from_words(model, job, steps=3)
    run_job(model, source, job)
    assert len(drawn) > 6
    for k, first in enumerate(drawn):
        for second in drawn[k + 1 :]:
            if len(first) == len(second):
                assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.2
    assert len({sources.stream(seed, kind, number) for seed in range(4) for kind in range(4) for number in range(40)}) == 4 * 4 * 40
