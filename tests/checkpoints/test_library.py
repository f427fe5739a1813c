"""The library call and the pipeline class: results, progress, stopping, several pictures, and what is handed through."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.checkpoints.library import upscale
from apt_ext.checkpoints.pipeline import AptUpscalePipeline
from apt_ext.demo.cli import main
from apt_ext.options import Options, Schedule, settings

SHORT: dict[str, Any] = {"steps": 8, "window_batch": 2}


def pixels(picture):
    return np.asarray(picture, int)


@pytest.fixture
def pipe(checkpoints):
    return AptUpscalePipeline.from_pretrained(checkpoints("sd1"))


def test_the_call_the_class_and_the_command_make_one_picture(checkpoints, opened, pipe, photo, tmp_path):
    called = upscale(opened("sd1"), photo, prompt="a red cat", negative="fog", scale=2, seed=5, **SHORT)
    piped = pipe(prompt="a red cat", negative_prompt="fog", image=Image.open(photo), scale=2, seed=5, num_inference_steps=8, window_batch=2)
    command = f"upscale {photo} --model {checkpoints('sd1')} --negative fog --scale 2 --seed 5 --steps 8 --window-batch 2 --quiet -o {tmp_path / 'out.png'}"
    assert main([*command.split(), "--prompt", "a red cat"]) == 0
    assert called.image.size == (144, 192)
    assert (pixels(called.image) == pixels(piped.images[0])).all()
    assert (pixels(called.image) == pixels(Image.open(tmp_path / "out.png"))).all()
    written = Image.open(tmp_path / "out.png").info["parameters"]
    assert called.infotext == written
    assert called.complete
    assert called.report["window_evaluations"] == piped.reports[0]["window_evaluations"] > 0


def test_progress_rises_to_the_end_and_tells_the_phase(opened, photo):
    told = []
    made = upscale(opened("sd1"), photo, scale=4, on_progress=lambda *at: told.append(at), **SHORT)
    done, totals, phases = zip(*told, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]} == {made.report["window_evaluations"]}
    assert sorted(set(phases)) == [1, 2]
    assert list(phases) == sorted(phases)
    first = sum(1 for phase in phases if phase == 1)
    assert done[first - 1] == made.report["phases"][0]["window_evaluations"]


@pytest.mark.parametrize("phase", [1, 2])
def test_stopping_gives_the_last_finished_phase_at_the_size_asked_for(opened, photo, phase):
    told = []
    made = upscale(opened("sd1"), photo, scale=4, on_progress=lambda *at: told.append(at), interrupted=lambda: told[-1][2] == phase, colour_fix=0.0, **SHORT)
    assert not made.complete
    assert not made.report["complete"]
    assert made.image.size == (288, 384)
    assert told[-1][0] < told[-1][1]
    plain = pixels(Image.open(photo).resize((288, 384), Image.Resampling.LANCZOS))
    finished = upscale(opened("sd1"), photo, scale=2, colour_fix=0.0, **SHORT).image.resize((288, 384), Image.Resampling.LANCZOS)
    near = abs(pixels(made.image) - pixels(finished)).mean()
    assert (near == 0) == (phase == 2), "one phase to twice the size is the first of two"
    assert abs(pixels(made.image) - plain).mean() > 0


def test_several_pictures_come_out_as_each_alone(pipe, photo):
    own, other = Image.open(photo), Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    all_of_them = pipe(prompt=["a cat", "a dog"], image=[own, other], scale=2, seed=3, **SHORT).images
    alone = [pipe(prompt=words, image=one, scale=2, seed=3, **SHORT).images[0] for words, one in (("a cat", own), ("a dog", other))]
    assert all((pixels(a) == pixels(b)).all() for a, b in zip(all_of_them, alone, strict=True))
    two = pipe(prompt="a cat", image=own, scale=2, generator=torch.Generator().manual_seed(3), num_images_per_prompt=2, **SHORT).images
    assert (pixels(two[0]) == pixels(alone[0])).all()
    assert (pixels(two[0]) != pixels(two[1])).any()
    with pytest.raises(ValueError, match="3 prompts and 2 pictures do not go together"):
        pipe(prompt=["a", "b", "c"], image=[own, other])


def test_without_a_picture_the_checkpoint_makes_one_first(pipe):
    (made,) = pipe(prompt="a cat", scale=2, **SHORT).images
    assert made.size == (128, 128)


def test_what_is_diffusers_own_is_handed_through(pipe):
    assert pipe.unet is pipe.pipe.unet
    assert pipe.to(torch.float64) is pipe
    assert pipe.pipe.unet.dtype == torch.float64
    with pytest.raises(AttributeError):
        pipe.nothing_of_that_name  # noqa: B018


def test_every_setting_can_be_given_by_name_and_others_are_refused(opened, photo):
    with pytest.raises(ValueError, match="setting 'magic' does not exist; use some of method, "):
        upscale(opened("sd1"), photo, magic=1)
    with pytest.raises(ValueError, match="preset 'best' does not exist"):
        upscale(opened("sd1"), photo, preset="best")
    with pytest.raises(ValueError, match=r"scale 40.* out of range"):
        upscale(opened("sd1"), photo, scale=40.0)
    made = upscale(opened("sd1"), photo, scale=2, method="multidiffusion", sampler="euler", spacing="normal", guidance=1.0, guided_above=0.5, **SHORT)
    assert made.report["settings"]["options"]["method"] == "multidiffusion"
    assert made.report["settings"]["schedule"]["sampler"] == "euler"


CHANGED: dict[str, Any] = {
    **{"method": "accdiffusion", "matching": 0.6, "gamma": 0.2, "phases": "1.5,2", "reanchor": "off", "overlap": 0.5, "jitter": 0.3, "border": "over"},
    **{"fill": "zero", "feather": 0.2, "residual_decay": 2.0, "dilated_decay": 2.0, "blur_decay": 2.0, "blur": 3.0, "tolerance": 0.0, "word_threshold": 0.6},
    **{"upscaler": "latent", "skip_residual": False, "colour_fix": 4.0, "window": "64x96", "regions": "0-50% x 0-100%: a barn"},
    **{"steps": 6, "strength": 0.5, "sampler": "euler", "spacing": "normal"},
}


def test_every_setting_reaches_the_picture(opened, photo):
    """All of them are changed, and each in turn is put back to its default, which makes another picture."""
    assert CHANGED.keys() == {*settings(Options), *settings(Schedule)} - {"window_batch"}
    given: dict[str, Any] = {"prompt": "a red cat, sleeping", "scale": 2.0, "window_batch": 8, "guidance": 1.0}
    made = upscale(opened("sd1"), photo, **given, **CHANGED)
    told = {**made.report["settings"]["options"], **made.report["settings"]["schedule"]}
    assert {name: told[name] for name in CHANGED} == CHANGED
    defaults = dataclasses.asdict(Options()) | dataclasses.asdict(Schedule())
    alike = set()
    for name in CHANGED:
        other = upscale(opened("sd1"), photo, **given, **{**CHANGED, name: defaults[name]})
        if (pixels(other.image) == pixels(made.image)).all():
            alike.add(name)
    assert alike == {"residual_decay"}  # which says nothing where there is no skip residual


def test_a_function_of_one_docstring():
    assert all(name in (inspect.getdoc(upscale) or "") for name in inspect.signature(upscale).parameters)
