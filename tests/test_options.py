"""The one dataclass of settings: limits, refusals in one sentence, and the command line made from it."""

import dataclasses
import math
import re

import pytest

from apt_ext.demo.arguments import OF_PROMPTS, job_from, make_parser
from apt_ext.options import PRESETS, Options, Schedule, blur_std, preset_named, published, settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "magic"}, "Method 'magic' does not exist; use one of multidiffusion, demofusion, accdiffusion"),
        ({"overlap": 0.9}, "Window overlap (overlap) 0.9 is out of range; use a number from 0.0 to 0.75"),
        ({"overlap": math.nan}, "Window overlap (overlap) nan is out of range"),
        ({"matching": -0.1}, "Statistical matching (matching) -0.1 is out of range"),
        ({"matching": True}, "Statistical matching (matching) True is no such number"),
        ({"gamma": "very"}, "Schedule strength (gamma) 'very' is a text, no number; use a number from -2.0 to 2.0"),
        ({"gamma": math.inf}, "Schedule strength (gamma) inf is out of range"),
        ({"window_batch": 0}, "Window batch 0 is out of range"),
        ({"phases": "2,1"}, "Phases '2,1' cannot be used; use one of progressive, double, direct, or a rising list"),
        ({"phases": "one,two"}, "Phases 'one,two' cannot be used; use one of progressive, double, direct, or a rising list"),
        ({"phases": "nan"}, "Phases 'nan' cannot be used; use one of progressive, double, direct, or a rising list"),
        ({"skip_residual": 1}, "Skip residual 1 is neither true nor false"),
        ({"upscaler": " "}, "Upscaler ' ' cannot be used; use one of lanczos, bicubic, latent, or an upscaler's name"),
        ({"upscaler": 4}, "Upscaler 4 cannot be used"),
        ({"word_threshold": 1.5}, "Words per window (word_threshold) 1.5 is out of range; use a number from 0.0 to 1.0"),
        ({"colour_fix": -1.0}, "Colour fix -1.0 is out of range"),
        ({"window": 512}, "Window 512 cannot be used; use one of auto, or a width and a height in pixels such as '640x512'"),
        ({"window": "512x"}, "Window '512x' cannot be used; use one of auto"),
        ({"window": "0x512"}, "Window '0x512' cannot be used; use one of auto"),
        ({"window": "large"}, "Window 'large' cannot be used; use one of auto"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(values, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Options(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": 0.0}, "Denoising strength (strength) 0.0 is out of range; use a number from 0.01 to 1.0"),
        ({"steps": 0}, "Steps 0 is out of range; use a whole number from 1 to 1000"),
        ({"steps": 4.5}, "Steps 4.5 is no such number; use a whole number"),
        ({"spacing": "linear"}, "Schedule type (spacing) 'linear' does not exist; use one of karras, normal, exponential"),
        ({"sampler": ""}, "Sampler '' cannot be used; use one of dpmpp_2m, euler, or another of k-diffusion's"),
    ],
)
def test_bad_schedules_are_refused_in_one_sentence(values, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Schedule(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "size"), [("auto", None), ("Auto", None), ("512", (512, 512)), ("640x512", (640, 512)), (" 640 X 512 ", (640, 512))])
def test_a_window_is_the_models_own_a_square_or_a_width_and_a_height(text, size):
    assert Options(window=text).window_pixels() == size


def test_lists_of_ratios_are_accepted_and_a_blur_is_in_times_the_methods_own():
    assert Options(phases="1.5,2,4").phase_ratios() == (1.5, 2, 4)
    assert Options().phase_ratios() == ()
    assert [blur_std(Options(method=m)) for m in ("multidiffusion", "demofusion", "accdiffusion")] == [0, 1, 0.8]
    assert blur_std(Options(method="accdiffusion", blur=2.5)) == 2.0


DIFFERENT = {"skip_residual": False, "upscaler": "bicubic", "matching": 0.5, "method": "accdiffusion", "steps": 7, "strength": 0.3, "spacing": "normal"}
DIFFERENT |= {"sampler": "euler", "gamma": -0.5, "phases": "1.5,2", "border": "over", "fill": "zero", "reanchor": "off", "window": "96x48"}


@pytest.mark.parametrize("of", [Options, Schedule])
def test_every_setting_has_a_label_a_help_and_an_argument(of):
    parser = make_parser()
    for name, setting in settings(of).items():
        assert setting.label
        assert setting.help
        if name in OF_PROMPTS:
            continue
        default = getattr(of, name)
        other = DIFFERENT.get(name, default / 2 if isinstance(default, float) else 5)
        assert other != default
        flag = name.replace("_", "-")
        given = [f"--no-{flag}"] if isinstance(other, bool) else [f"--{flag}", str(other)]
        job = job_from(parser.parse_args(["upscale", "x.png", *given]), "photo")
        assert getattr(job.options if of is Options else job.schedule, name) == other


def test_the_command_lines_defaults_are_a_presets():
    parser = make_parser()

    def job(line):
        return job_from(parser.parse_args(line.split()), "photo")

    assert job("upscale x.png") == job("upscale x.png --preset balanced") == job("upscale x.png --preset Balanced")
    assert (job("upscale x.png").options, job("upscale x.png").schedule) == (PRESETS["Balanced"].options, PRESETS["Balanced"].schedule)
    assert job("upscale x.png --preset fast --strength 0.3").options == PRESETS["Fast"].options
    assert job("upscale x.png --preset fast --strength 0.3").schedule == dataclasses.replace(PRESETS["Fast"].schedule, strength=0.3)
    assert job("upscale x.png --shortcut 0.3") == job("upscale x.png --strength 0.3")
    assert job("plan 1024x1024 --model sdxl").options == job("upscale x.png").options


def test_no_apt_is_the_base_method_as_published():
    parser = make_parser()

    def job(line):
        return job_from(parser.parse_args(line.split()), "photo")

    assert job("upscale x.png --no-apt") == job("upscale x.png --preset published")
    assert job("upscale x.png --no-apt --method accdiffusion").options == dataclasses.replace(PRESETS["Published"].options, method="accdiffusion")
    plain = job("upscale x.png --no-apt --method multidiffusion")
    assert (plain.options.phases, plain.options.upscaler, plain.options.overlap, plain.options.colour_fix) == ("direct", "latent", 0.5, 0)
    assert (plain.schedule.strength, plain.schedule.sampler) == (Schedule.strength, "euler")


def test_the_published_preset_is_demofusions_settings():
    preset = preset_named("published")
    options = preset.options
    assert (options.method, options.matching, options.upscaler) == ("demofusion", 0.0, "latent")
    assert (options.overlap, options.tolerance, options.fill, options.feather, options.colour_fix) == (0.5, 0.0, "zero", 0.0, 0.0)
    assert published(preset) == preset
    assert preset.schedule == Schedule(50, 1.0, "euler", "normal")


def test_no_apt_turns_off_all_three_parts():
    parser = make_parser()
    job = job_from(parser.parse_args(["upscale", "x.png", "--no-apt"]), "photo")
    assert (job.options.matching, job.options.gamma, job.schedule.strength) == (0, 0, 1)
    for given in (["--matching", "1"], ["--strength", "0.5"]):
        with pytest.raises(ValueError, match=f"--no-apt and {given[0]} contradict"):
            job_from(parser.parse_args(["upscale", "x.png", "--no-apt", *given]), "photo")
