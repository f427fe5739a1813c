"""Seamless pictures: the host's Tiling and extensions for one direction go round the border with windows too, and nothing is left changed."""

from types import MethodType

import numpy as np
import pytest
from PIL import Image
from torch import nn

from tests.host.double.jobs import ON, far, left_on_p, pixels, refusal

pytestmark = pytest.mark.usefixtures("settings_page")

GRID = {"enabled": True, "window": "64", "overlap": 0.5, "jitter": 0.0, "tolerance": 0.0}  # so that windows stand where they stood, half round the border


@pytest.fixture
def seamless():
    """64 x 64 pixels whose sides meet."""
    at = np.arange(64) * 2 * np.pi / 64
    wave = np.sin(at)[:, None] + np.cos(2 * at)[None, :] + np.sin(at[:, None] + at[None, :])
    return Image.fromarray(np.stack([128 + 40 * wave, 128 - 30 * wave, np.full_like(wave, 90) + 20 * np.sin(at)[None, :]], -1).clip(0, 255).astype(np.uint8))


def moved(picture, across, down):
    return Image.fromarray(np.roll(pixels(picture).astype(np.uint8), (down, across), (0, 1)))


@pytest.fixture
def difference(host, seamless, monkeypatch):
    """How far a job on a picture, moved half round its border with its noise, is from the same job's picture moved so."""

    def of(args, across, down, **given):
        draw = host.rng.ImageRNG.next
        job = {"init_images": [seamless], "denoising_strength": 0.9} | given
        expected = moved(host.run(host.picture_job(GRID | args, **job))[0], 2 * across, 2 * down)
        shift = (2 * down // 8, 2 * across // 8)
        monkeypatch.setattr(host.rng.ImageRNG, "next", lambda self: draw(self).roll(shift, (-2, -1)))
        made = host.run(host.picture_job(GRID | args, **job | {"init_images": [moved(seamless, across, down)]}))[0]
        monkeypatch.setattr(host.rng.ImageRNG, "next", draw)
        return far(made, expected)

    return of


def layers(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def one_way(host, rows=False):
    """As an extension does that lets pictures tile along one side."""

    def wrapped(self, x, weight, bias):
        x = nn.functional.pad(nn.functional.pad(x, (1, 1, 0, 0), mode=self.padding_modeX), (0, 0, 1, 1), mode=self.padding_modeY)
        return nn.functional.conv2d(x, weight, bias)

    for layer in layers(host.model):
        layer.padding_modeX, layer.padding_modeY = ("constant", "circular") if rows else ("circular", "constant")
        layer._conv_forward = MethodType(wrapped, layer)


@pytest.fixture
def padding(host):
    """Of every call of a model: (rows, columns) of what it saw, the layers' padding, and whether a phase was running."""
    seen = []

    def on_call():
        (layer,) = layers(host.model)
        goes_round = layer.padding_mode == "circular" or "_conv_forward" in vars(layer)
        seen.append((host.model.calls[-1][-2:], goes_round, bool(host.shared.state.textinfo)))

    host.model.on_call = on_call
    return seen


@pytest.mark.parametrize("args", [{}, {"method": "multidiffusion"}, {"upscaler": "latent"}, {"colour_fix": 4.0}])
def test_no_place_of_a_picture_with_tiling_is_another_than_the_rest(difference, args):
    """Neither its border nor its middle: whatever moves round it comes out the same."""
    assert difference(args, 32, 32, tiling=True) <= 1


def test_without_tiling_the_border_is_another_place(difference):
    """So the test before can fail."""
    assert difference({}, 32, 32) > 10


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_layers_end_at_a_windows_border_and_go_round_a_dilated_view_s(host, job_of_kind, padding, kind, sampler):
    p = job_of_kind(kind, {"tolerance": 0.0, "window": "64x128"}, tiling=True, sampler_name=sampler)
    host.run(p)
    windows = [goes_round for size, goes_round, phase in padding if phase and size == (16, 8)]
    views = [goes_round for size, goes_round, phase in padding if phase and size == (8, 8)]
    assert windows
    assert views
    assert not any(windows)
    assert all(views)
    assert all(goes_round for _, goes_round, phase in padding if not phase)
    assert {layer.padding_mode for layer in layers(host.model)} == {"circular"}, "the host itself turns it off with the next job"


@pytest.mark.parametrize("how", ["success", "error", "stop"])
@pytest.mark.parametrize("rows", [False, True])
def test_an_extension_s_own_layers_are_back_however_a_job_ends(host, seamless, padding, rows, how):
    one_way(host, rows)
    before = [vars(layer)["_conv_forward"] for layer in layers(host.model)]
    watch = host.model.on_call

    def on_call():
        watch()
        if how == "error" and len(padding) == 3:
            raise RuntimeError("broken")
        host.shared.state.interrupted = how == "stop" and len(padding) == 3

    host.model.on_call = on_call
    p = host.picture_job({"method": "multidiffusion"}, init_images=[seamless])
    if how == "error":
        with pytest.raises(RuntimeError, match="broken"):
            host.run(p)
    else:
        host.run(p)
    assert not any(goes_round for _, goes_round, phase in padding if phase)
    assert [vars(layer)["_conv_forward"] for layer in layers(host.model)] == before
    host.model.on_call = watch


@pytest.mark.parametrize("rows", [False, True])
def test_along_one_direction_alone_only_those_sides_meet(host, difference, rows):
    one_way(host, rows)
    assert difference({}, *((0, 32) if rows else (32, 0))) <= 1
    assert difference({}, *((32, 0) if rows else (0, 32))) > 10


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_size_that_no_window_and_no_view_divides_is_reached(host, job_of_kind, seamless, kind):
    scaled = {"hr_scale": 2.25} if kind == "text" else {"width": 144, "height": 144, "init_images": [seamless]}
    assert host.run(job_of_kind(kind, {"phases": "progressive"}, tiling=True, **scaled))[0].size == (144, 144)


def test_an_extension_for_seamless_pictures_that_is_idle_again_is_no_reason(host, padding):
    (layer,) = layers(host.model)
    one_way(host)
    layer._conv_forward = MethodType(nn.Conv2d._conv_forward, layer)  # its own way back, which leaves the modes behind
    p = host.text_job(ON)
    assert host.run(p)[0].size == (128, 128)
    assert "_conv_forward" in vars(layer)


def test_the_next_ordinary_job_is_as_ever(host, job_of_kind):
    expected = host.run(job_of_kind("text"))[0]
    host.run(job_of_kind("text", tiling=True))
    p = job_of_kind("text")
    assert far(host.run(p)[0], expected) == 0
    assert not left_on_p(p)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"hr_resize_x": 128, "hr_resize_y": 96}, "no longer meet"),
        ({"hr_checkpoint_info": "other"}, "a second checkpoint"),
        ({"refiner_checkpoint_info": "other"}, "a second checkpoint"),
    ],
)
def test_a_hires_pass_whose_sides_cannot_meet_is_refused_in_a_sentence(host, given, sentence):
    with pytest.raises(Exception, match=sentence) as caught:
        host.run(host.text_job(ON, tiling=True, is_api=True, **given))
    assert refusal(caught)[0] == 422
    assert not host.model.calls


@pytest.mark.parametrize(
    "given", [{"resize_mode": 1, "width": 128, "height": 96}, {"resize_mode": 2, "width": 96, "height": 128}, {"paste_to": (0, 0, 32, 32)}]
)
def test_a_part_of_a_picture_is_refused_in_a_sentence(host, seamless, given):
    with pytest.raises(Exception, match="no longer meet, since only a part of it is worked on") as caught:
        host.run(host.picture_job(ON, tiling=True, is_api=True, init_images=[seamless], **given))
    assert refusal(caught)[0] == 422
    assert not host.model.calls


def test_pixels_are_enlarged_round_the_border(host, seamless):
    """By any ratio, of the other side as of itself."""
    both, enlarge = host.borders.Around(True, True), host.upscalers.enlarge_picture
    for size in ((128, 128), (100, 96), (64, 64), (67, 131)):
        made = enlarge(seamless, size, "lanczos", 0, both)
        assert made.size == size
        nine = Image.fromarray(np.tile(pixels(seamless).astype(np.uint8), (3, 3, 1)))
        whole = enlarge(nine, (3 * size[0], 3 * size[1]), "lanczos")
        assert far(made, whole.crop((size[0], size[1], 2 * size[0], 2 * size[1]))) <= 1


def test_the_panel_plans_windows_that_go_round_where_tiling_is_on(host):
    asked = {"img2img": True, "target": [128, 128], "given": [64, 64], "resize_mode": 0, "steps": 8, "hires_steps": 0, "denoising": 0.6, "sampler": "euler"}
    asked |= {"scheduler": "Automatic", "settings": {}}
    plain = host.panel.plan(asked)
    host.shared.opts.tiling = True
    round_it = host.panel.plan(asked)
    assert max(x + width for x, _, width, _ in round_it["drawing"]["windows"]) > 128 >= max(x + width for x, _, width, _ in plain["drawing"]["windows"])
