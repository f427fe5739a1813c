"""The embedded model as the engine uses it: sizes, tiles, noise streams, and its training."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from apt_ext.demo import job as jobs
from apt_ext.demo.job import Job, from_picture, from_style, run_job, show
from apt_ext.demo.model import WEIGHTS, load_model
from apt_ext.demo.world import make_scene, render
from apt_ext.options import Options

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    return load_model()


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


def test_weights_are_small_and_say_where_they_come_from():
    assert WEIGHTS.stat().st_size < 16 * 2**20
    with safe_open(WEIGHTS, "pt") as file:
        assert {"styles", "recipe"} <= set(file.metadata())


@pytest.mark.parametrize("size", [(64, 64), (45, 34), (17, 70), (66, 63)])
def test_a_picture_comes_back_in_its_place(model, size):
    """Also where its sides are no multiple of a latent pixel: shown again it lies where it lay."""
    scene = Image.fromarray(render(make_scene("pebbles", 4), 80)).crop((0, 0, *size))
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
    # No edge where tiles meet: the error's own steps are no larger there than elsewhere. (No tiles meet at the picture's border, where
    # the convolutions' padding makes a step of its own.)
    error = (tiled - whole).mean(dim=1)[0]
    for dim in (0, 1):
        steps = error.diff(dim=dim).abs().mean(dim=1 - dim)
        assert float(steps[4:-4].max()) < 4 * float(steps.mean())


def test_sampler_noise_and_starting_noise_are_strangers(model, monkeypatch):
    """Ancestral samplers add noise of their own; drawn from the starting noise's seed, it would pile up instead of mixing."""
    drawn = []
    real = torch.randn

    def randn(*args, **kwargs):
        out = real(*args, **kwargs)
        drawn.append(out.reshape(-1))
        return out

    monkeypatch.setattr(torch, "randn", randn)
    job = Job(scale=2.0, options=Options(steps=5, shortcut=1.0), sampler="euler_ancestral", style="moss")
    source = from_style(model, job, steps=3)
    run_job(model, source, job, quiet=True)
    assert len(drawn) > 6
    for k, first in enumerate(drawn):
        for second in drawn[k + 1 :]:
            if len(first) == len(second):
                assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.2
    assert len({jobs._stream(seed, kind, number) for seed in range(4) for kind in range(4) for number in range(40)}) == 4 * 4 * 40


def test_training_runs_resumes_and_refuses_another_seed(tmp_path):
    recipe = "--scenes-per-style 1 --photo-share 0 --autoencoder-steps 2 --autoencoder-batch 2 --unet-steps 2 --unet-batch 4 --latents 8 --workers 1".split()
    command = [sys.executable, "-m", "apt_ext.demo.train", "--out", str(tmp_path), "--device", "cpu", *recipe]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    made = (tmp_path / "leaves.safetensors").read_bytes()
    trained = load_model(tmp_path / "leaves.safetensors")
    assert trained.styles == ("autumn", "moss", "pebbles", "mosaic", "photo")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    tensors = [load_model(tmp_path / "leaves.safetensors").unet.state_dict(), trained.unet.state_dict()]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert len(made) == (tmp_path / "leaves.safetensors").stat().st_size
    refused = subprocess.run([*command, "--seed", "2"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "is of a run with seed 1" in refused.stderr
