"""The embedded model's training: its pictures, its loop, its checkpoints."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from apt_ext.demo import train
from apt_ext.demo.autoencoder import FACTOR, Autoencoder
from apt_ext.demo.dataset import CANVAS_EXTENT, STYLE_NAMES, VIEW, ZOOMS, draw, draw_large, make_pool, photo_pyramids, pieces, recolour, soften
from apt_ext.demo.fit import CHECKED, LOWEST, Plan, compact, expand, fit, plateau
from apt_ext.demo.model import load_model
from apt_ext.demo.muon import is_hidden
from apt_ext.demo.photos import MORE_PHOTOS, held_out_half, load_more_photos, training_half
from apt_ext.demo.resources import resource_files
from apt_ext.demo.train import autoencoder_loss, local_contrast
from apt_ext.demo.unet import UNet

ROOT = Path(__file__).parents[2]


def picture(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (30, 30), (31, 31)])
def test_halves_of_a_photograph_share_nothing_and_leave_nothing(shape):
    whole = picture(*shape)
    axis = 1 if shape[1] >= shape[0] else 0
    mine, theirs = training_half(whole), held_out_half(whole)
    assert np.array_equal(np.concatenate([mine, theirs], axis), whole)
    assert 0 <= theirs.shape[axis] - mine.shape[axis] <= 1


def test_a_missing_photograph_is_named_with_its_package(tmp_path):
    with pytest.raises(ValueError, match=r"sheep\.webp is nowhere below .*; unpack Debian's gcompris-qt-data there: dpkg-deb -x"):
        load_more_photos(tmp_path)
    listed = [name for places in MORE_PHOTOS.values() for names in places.values() for name in names]
    assert len(set(listed)) == len(listed)


def resource_file(contents):
    """A Qt resource file, version 3, of {(folder, name): (content, flags)}, each folder below the root."""
    folders = sorted({folder for folder, _ in contents})
    names, tables, data = {}, b"", b""
    for name in sorted({*folders, *(name for _, name in contents)}):
        names[name] = len(tables)
        tables += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes, files = [(0, 2, len(folders), 1)], []
    for folder in folders:
        inside = sorted(name for place, name in contents if place == folder)
        nodes.append((names[folder], 2, len(inside), 1 + len(folders) + len(files)))
        files += [(folder, name) for name in inside]
    for key in files:
        content, flags = contents[key]
        nodes.append((names[key[1]], flags, 0, len(data)))
        data += struct.pack(">I", len(content)) + content
    tree = b"".join(struct.pack(">IHIIQ", *node, 0) for node in nodes)
    head = 24
    return b"qres" + struct.pack(">5I", 3, head, head + len(tree), head + len(tree) + len(data), 0) + tree + data + tables


def test_photographs_are_found_in_unpacked_packages(tmp_path):
    def bytes_of(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "webp", lossless=True)
        return file.getvalue()

    packages, count = {}, 0
    for place, names in ((place, names) for places in MORE_PHOTOS.values() for place, names in places.items()):
        for name in names:
            count += 1
            packages.setdefault(place, {})[name] = picture(4, 6, count)
    for place, pictures in packages.items():
        if place.startswith("usr"):
            (tmp_path / place).mkdir(parents=True)
            for name, image in pictures.items():
                (tmp_path / place / name).write_bytes(bytes_of(image))
    for packed in {place.split("/")[0] for place in packages} - {"usr"}:
        contents = {}
        for place, pictures in packages.items():
            if place.startswith(packed):
                for number, (name, image) in enumerate(pictures.items()):
                    plain = bytes_of(image)
                    packed_too = struct.pack(">I", len(plain)) + zlib.compress(plain)
                    contents[f"gcompris/{place}", name] = (packed_too, 1) if number % 2 else (plain, 0)
        (tmp_path / f"{packed}.rcc").write_bytes(resource_file(contents))
    other = {("gcompris/erase/resource", "horse.webp"): (bytes_of(picture(4, 6, 999)), 0)}
    (tmp_path / "erase.rcc").write_bytes(resource_file(other))  # another picture of that name, in another activity
    wanted = [image for pictures in packages.values() for image in pictures.values()]
    assert len(wanted) == 30
    assert all(np.array_equal(a, b) for a, b in zip(load_more_photos(tmp_path), wanted, strict=True))


def test_what_is_no_resource_file_or_compressed_otherwise_is_said(tmp_path):
    file = tmp_path / "a.rcc"
    file.write_bytes(b"not it")
    with pytest.raises(ValueError, match=r"a\.rcc is no Qt resource file"):
        resource_files(file)
    file.write_bytes(resource_file({("folder", "name"): (b"?", 4)}))
    with pytest.raises(ValueError, match=r"folder/name in .* is compressed by Zstandard"):
        resource_files(file)


def test_photographs_are_shown_at_every_zoom_and_never_blown_up_where_that_can_be_helped():
    for shape, count in (((300, 225), 1), ((427, 320), 1), ((1000, 700), 2)):
        pyramids = photo_pyramids(picture(*shape))
        assert len(pyramids) == count
        for pyramid in pyramids:
            shorter = [min(level.shape[:2]) for level in pyramid]
            assert shorter[0] >= VIEW
            assert np.allclose(np.divide(shorter, shorter[0]), ZOOMS, rtol=0.03)
            assert min(shape) < VIEW * ZOOMS[-1] or shorter[-1] <= min(shape)


def test_views_have_their_styles():
    photos = [np.full((300, 300, 3), 255, np.uint8)]
    pool = make_pool(1, 1, 2, photos, 1)
    assert [len(level) for level in pool[0]] == [3, 1, 1, 1, 1]
    x, styles = draw(pool, 64, 0.5, np.random.default_rng(1))
    assert x.shape == (64, 3, VIEW, VIEW)
    white = x.flatten(1).min(1).values == 1
    assert torch.equal(white, styles == STYLE_NAMES.index("photo"))
    assert 16 < int(white.sum()) < 48
    assert {0, 1, 2, 3} <= set(styles.tolist())


def test_large_views_are_of_the_pictures_that_are_large_enough():
    grey = [np.full((300, 300, 3), 128, np.uint8)]
    pool = make_pool(1, 1, 1, grey, 1)
    for side in (2 * VIEW, 4 * VIEW):
        x = draw_large(pool, 24, side, 0.5, 0.0, np.random.default_rng(side))
        assert x.shape == (24, 3, side, side)
        assert 4 < int((x.flatten(1).std(1) < 1e-3).sum()) < 20  # the grey photograph's
    with pytest.raises(ValueError, match=f"no scene is rendered at 448 pixels; the largest zoom gives {round(CANVAS_EXTENT * VIEW * ZOOMS[-1])}"):
        draw_large(pool, 1, 7 * VIEW, 0.5, 0.0, np.random.default_rng(1))


def test_a_patchwork_is_made_of_native_views():
    pool = [[[np.full((VIEW, VIEW, 3), 40 * style, np.uint8)] for _ in ZOOMS] for style in range(len(STYLE_NAMES))]
    for level in pool:
        level[-1] = [np.full((4 * VIEW, 4 * VIEW, 3), 255, np.uint8)]
    (x,) = draw_large(pool, 1, 4 * VIEW, 0.25, 1.0, np.random.default_rng(1))
    cells = pieces(x[None], VIEW)
    assert cells.shape == (16, 3, VIEW, VIEW)
    assert torch.equal(cells[5], x[:, VIEW : 2 * VIEW, VIEW : 2 * VIEW])
    assert torch.equal(cells.amax((1, 2, 3)), cells.amin((1, 2, 3)))
    assert len(set(cells[:, 0, 0, 0].tolist())) > 2


def test_softened_views_lose_what_an_enlargement_cannot_show():
    x = torch.rand(6, 3, 2 * VIEW, 2 * VIEW, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(soften(x, 0.0, np.random.default_rng(1)), x)
    y = soften(x, 1.0, np.random.default_rng(1))
    power = torch.fft.rfft2(y).abs()[..., VIEW - 8 : VIEW + 8, -8:].mean() / torch.fft.rfft2(x).abs()[..., VIEW - 8 : VIEW + 8, -8:].mean()
    assert float(power) < 0.1
    assert torch.allclose(y.mean((2, 3)), x.mean((2, 3)), atol=0.02)


@pytest.mark.parametrize("side", [VIEW, 2 * VIEW])
def test_the_anchor_asks_for_the_latents_of_native_pieces(side):
    torch.manual_seed(1)
    model, other = Autoencoder(16), Autoencoder(16)
    x = torch.rand(2, 3, side, side) * 2 - 1

    def loss(teacher, anchor):
        return autoencoder_loss(model, x, 0.0, np.random.default_rng(1), torch.Generator().manual_seed(1), teacher, anchor).item()

    with torch.no_grad():
        rim = 2 if side > VIEW else 0
        inner = slice(rim, VIEW // FACTOR - rim)
        mine, theirs = pieces(model.encoder(x), VIEW // FACTOR)[..., inner, inner], other.encoder(pieces(x, VIEW))[..., inner, inner]
        far = float((mine - theirs).square().mean())
    assert loss(None, 1.0) == loss(other.encoder, 0.0)
    assert loss(other.encoder, 3.0) - loss(None, 0.0) == pytest.approx(3 * far, rel=1e-3)
    own = loss(model.encoder, 3.0) - loss(None, 0.0)
    assert (own < 1e-6) == (side == VIEW)  # of a larger view its own latents are others: the statistics are the whole view's


def test_local_contrast_is_each_octaves_own():
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    finest = (0.5 * (1 - 2 * ((rows + columns) % 2)).float())[None, None]
    next_finest = (0.5 * (1 - 2 * ((rows // 2 + columns // 2) % 2)).float())[None, None]
    inner = (..., slice(1, -1), slice(1, -1))
    fine, coarse = local_contrast(finest)
    assert torch.allclose(fine[inner], torch.full_like(fine[inner], 0.5), atol=1e-3)
    assert float(coarse.max()) < 0.02
    assert torch.allclose(local_contrast(next_finest)[1][inner], torch.full_like(coarse[inner], 0.5), atol=1e-3)
    flat = local_contrast(torch.full((1, 3, 64, 64), 0.3))
    assert all(float(each.max()) < 0.02 for each in flat)


def test_the_texture_term_asks_for_the_pictures_own_contrast():
    torch.manual_seed(1)
    model, x = Autoencoder(16), torch.rand(2, 3, 64, 64) * 2 - 1

    def loss(texture):
        return autoencoder_loss(model, x, 0.0, np.random.default_rng(1), torch.Generator().manual_seed(1), texture=texture).item()

    with torch.no_grad():
        made = model.decoder(model.encoder(x))
    far = sum(float((a - b).abs().mean()) for a, b in zip(local_contrast(made), local_contrast(x), strict=True))
    assert loss(3.0) - loss(0.0) == pytest.approx(3 * far, rel=1e-3)


def test_recoloured_views_keep_their_shapes_and_the_others_stay():
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = recolour(x, 0.5, np.random.default_rng(1))
    assert torch.equal(x[4:], y[4:])
    for before, after in zip(x[:4] + 1, y[:4] + 1, strict=True):
        alike = torch.corrcoef(torch.cat([before.flatten(1), after.flatten(1)]))[:3, 3:]
        assert torch.allclose(alike.max(0).values, torch.ones(3), atol=1e-4)  # each channel is one of before, dimmed
        assert float(after.max()) < float(before.max())


def test_the_rate_rises_stays_and_goes_down_in_a_straight_line():
    assert plateau(0, 0.0) == pytest.approx(0.01)
    assert plateau(500, 0.0) == plateau(500, 0.59) == 1
    assert plateau(500, 0.8) == pytest.approx(LOWEST + 0.5)
    assert plateau(500, 1.0) == LOWEST


def test_a_compact_checkpoint_is_half_as_large_and_keeps_what_is_tiny():
    state: Any = {"model": {"large": 1e-9 * torch.randn(64, 128), "small": torch.randn(3)}, "steps": [{"betas": (0.9, 0.98), "step": 3}], "none": None}
    back = expand(compact(state))
    assert torch.allclose(back["model"]["large"], state["model"]["large"], rtol=1e-3, atol=1e-13)
    assert torch.equal(back["model"]["small"], state["model"]["small"])
    assert back["steps"] == [{"betas": [0.9, 0.98], "step": 3}]
    assert back["none"] is None
    assert compact(state)["model"]["large"]["half"].element_size() == 2
    assert torch.equal(expand(compact(torch.zeros(5000))), torch.zeros(5000))


def regression(seed=1):
    """A model with a kernel for one optimiser and matrices for the other, and its loss: to be 0, it has to learn a fixed linear map."""
    torch.manual_seed(seed)
    model, target = nn.Sequential(nn.Conv2d(32, 32, 1), nn.Flatten(), nn.Linear(32, 4)), torch.randn(32, 4)

    def loss(step, part):
        x = torch.randn(16, 32, 1, 1, generator=torch.Generator().manual_seed(1000 * step + part))
        return (model(x) - x.flatten(1) @ target).square().mean()

    return model, loss


def test_kernels_between_hidden_layers_are_one_optimisers_and_linear_layers_the_others():
    unet = UNet(5)
    hidden = {name for name, weight in unet.named_parameters() if is_hidden(weight)}
    assert {"down1.0.conv1.weight", "to2.weight", "attention.qkv.weight", "up2.0.skip.weight"} <= hidden
    assert not {"entry.weight", "exit.2.weight", "down1.0.embed.weight", "time.0.weight", "style.weight", "down1.0.conv1.bias"} & hidden


def test_training_learns_goes_on_from_a_compact_checkpoint_and_can_be_made_longer(tmp_path):
    cpu, exported = torch.device("cpu"), []
    model, loss = regression()
    first = loss(9999, 0).item()
    whole = fit(model, loss, Plan(1, 300), tmp_path / "whole.pt", cpu, exported.append)
    assert loss(9999, 0).item() < 0.1 * first
    assert len(exported) == 2  # at 200 steps and at the end
    model, loss = regression()
    fit(model, loss, Plan(1, 10**7, every=10**7, minutes=0.005), tmp_path / "clock.pt", cpu, exported.append)  # the clock ends it
    assert 0 < torch.load(tmp_path / "clock.pt")["step"] < 10**6
    assert len(exported) == 3
    # 100 steps of the longer run, kept compactly, then the rest: rates are the longer run's, so it ends about where the whole one did.
    parts, (model, loss) = tmp_path / "parts.pt", regression()

    def cut(step, part):
        if step == 100:
            raise KeyboardInterrupt
        return loss(step, part)

    with pytest.raises(KeyboardInterrupt):
        fit(model, cut, Plan(1, 300, every=100), parts, cpu, exported.append)
    torch.save(compact(torch.load(parts)), parts)
    model, loss = regression()
    again = fit(model, loss, Plan(1, 300), parts, cpu, exported.append)
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(a, b, atol=0.02 * float(b.abs().max()))
    with pytest.raises(ValueError, match="is of a run with seed 1; use another --out for seed 2"):
        fit(model, loss, Plan(2, 300), parts, cpu, exported.append)


def test_weights_that_no_gradient_reaches_end_a_training(tmp_path):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.learns, self.left = nn.Conv2d(16, 16, 1), nn.Linear(1, 1)

    model, done = Half(), []

    def loss(step, part):
        done.append(step)
        x = model.learns(torch.ones(2, 16, 1, 1))
        return (x + 0 * model.left(x) - 1).square().mean()

    with pytest.raises(RuntimeError, match=r"no gradient reaches 2 of the weights, left\.weight for one; train without --compile"):
        fit(model, loss, Plan(1, 50), tmp_path / "half.pt", torch.device("cpu"), lambda _: None)
    assert max(done) == CHECKED
    assert not list(tmp_path.iterdir())


def test_a_processor_with_bfloat16_refuses_to_compile(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    with pytest.raises(SystemExit, match="2"):
        train.main(["--out", str(tmp_path / "out"), "--device", "cpu", "--compile"])
    assert "--compile does not do on this processor, which computes in bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_trains_resumes_and_starts_from_given_weights(tmp_path):
    sizes = "--scenes 1 --whole-scenes 0 --photo-share 0 --autoencoder-steps 2 --autoencoder-batch 2 --unet-steps 2 --unet-batch 4 --latents 8 --workers 1"

    def command(out, *more):
        train.main(["--out", str(tmp_path / out), "--device", "cpu", *sizes.split(), *more])
        return load_file(tmp_path / out / "leaves.safetensors")

    file = tmp_path / "one" / "leaves.safetensors"
    first = [sys.executable, "-m", "apt_ext.demo.train", "--out", str(file.parent), "--device", "cpu", *sizes.split()]
    run = subprocess.run(first, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "leaves.safetensors: " in run.stdout
    made = load_file(file)
    assert load_model(file).styles == ("autumn", "moss", "pebbles", "mosaic", "photo")
    assert (tmp_path / "one" / "unet-compact.pt").stat().st_size < 0.6 * (tmp_path / "one" / "unet.pt").stat().st_size
    again = command("one")
    assert all(torch.equal(again[name], made[name]) for name in made)
    with pytest.raises(ValueError, match="is of a run with seed 2"):
        command("one", "--seed", "3")
    started = command("two", "--start", str(file), "--unet-rate", "0", "--autoencoder-rate", "0")
    assert all(torch.allclose(started[name], made[name], atol=2e-3) for name in made if not name.startswith("latent"))
    other = command("three", "--start", str(file), "--frozen", "1", "--texture", "3", "--unet-rate", "0")
    moved = {name.split(".")[1] for name in made if name.startswith("autoencoder") and not torch.equal(other[name], made[name])}
    assert moved == {"decoder"}
