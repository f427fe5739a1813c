"""The one dataclass of settings: limits, refusals in one sentence, and the command line made from it."""

import dataclasses
import math

import pytest

from apt_ext.demo.arguments import job_from, make_parser
from apt_ext.options import Options, blur_of, preset_options, published, settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "magic"}, "method 'magic' does not exist; use one of multidiffusion, demofusion, accdiffusion"),
        ({"overlap": 0.9}, "overlap 0.9 is out of range; use a number from 0.0 to 0.75"),
        ({"overlap": math.nan}, "overlap nan is out of range"),
        ({"matching": -0.1}, "matching -0.1 is out of range"),
        ({"matching": True}, "matching True is out of range"),
        ({"gamma": "very"}, "gamma 'very' is out of range; use a number from -2.0 to 2.0 or 'auto'"),
        ({"gamma": math.inf}, "gamma inf is out of range"),
        ({"shortcut": 0.0}, "shortcut 0.0 is out of range"),
        ({"window_batch": 0}, "window batch 0 is out of range"),
        ({"phases": "2,1"}, "phases '2,1' is neither one of"),
        ({"phases": "one,two"}, "phases 'one,two' is neither one of"),
        ({"phases": "nan"}, "phases 'nan' is neither one of"),
        ({"steps": 0}, "steps 0 is out of range; use a whole number from 1 to 1000"),
        ({"steps": 4.5}, "steps 4.5 is out of range; use a whole number"),
        ({"skip_residual": 1}, "skip residual 1 is neither true nor false"),
        ({"upscaler": " "}, "upscaler ' ' is not a name; use one of lanczos, bicubic, latent, or an upscaler's name"),
        ({"upscaler": 4}, "upscaler 4 is not a name"),
        ({"hold": 1.5}, "hold 1.5 is out of range; use a number from 0.0 to 1.0"),
        ({"colour_fix": -1.0}, "colour fix -1.0 is out of range"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(values, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        Options(**values)
    assert "\n" not in str(caught.value)


def test_words_and_lists_are_accepted():
    assert Options(gamma="auto", phases="1.5,2,4").phase_ratios() == (1.5, 2, 4)
    assert Options().phase_ratios() == ()
    assert [blur_of(Options(method=m)) for m in ("multidiffusion", "demofusion", "accdiffusion")] == [0, 1, 0.8]
    assert blur_of(Options(blur=2.5)) == 2.5


DIFFERENT = {"skip_residual": False, "upscaler": "bicubic", "hold": 0.5, "method": "accdiffusion", "steps": 7, "shortcut": 0.3}


def test_every_setting_has_a_label_a_help_and_an_argument():
    parser = make_parser()
    for name, field in settings().items():
        assert field.metadata["label"]
        assert field.metadata["help"]
        flag, other = name.replace("_", "-"), DIFFERENT.get(name, field.default)
        given = [f"--{'' if other else 'no-'}{flag}"] if isinstance(other, bool) else [f"--{flag}", str(other)]
        args = parser.parse_args(["upscale", "x.png", *given])
        assert getattr(job_from(args, "photo").options, name) == other


def test_the_command_lines_defaults_are_a_presets():
    parser = make_parser()

    def job(line):
        return job_from(parser.parse_args(line.split()), "photo")

    assert job("upscale x.png") == job("upscale x.png --preset balanced") == job("upscale x.png --preset Balanced")
    assert job("upscale x.png").options == preset_options("Balanced")[0]
    assert job("upscale x.png --preset fast --strength 0.3").options == dataclasses.replace(preset_options("Fast")[0], shortcut=0.3)
    assert job("plan 1024x1024 --model sdxl").options == job("upscale x.png").options


def test_no_apt_is_the_base_method_as_published():
    parser = make_parser()

    def job(line):
        return job_from(parser.parse_args(line.split()), "photo")

    assert job("upscale x.png --no-apt") == job("upscale x.png --preset published")
    assert job("upscale x.png --no-apt --method accdiffusion").options == dataclasses.replace(preset_options("Published")[0], method="accdiffusion")
    plain = job("upscale x.png --no-apt --method multidiffusion").options
    assert (plain.phases, plain.upscaler, plain.overlap, plain.shortcut, plain.colour_fix) == ("direct", "latent", 0.5, Options().shortcut, 0)


def test_the_published_preset_is_demofusions_settings():
    options, sampler, schedule = preset_options("published")
    assert (options.method, options.steps, options.shortcut, options.matching, options.upscaler) == ("demofusion", 50, 1.0, 0.0, "latent")
    assert (options.overlap, options.tolerance, options.fill, options.feather, options.hold, options.colour_fix) == (0.5, 0.0, "zero", 0.0, 0.0, 0.0)
    assert published(options) == options
    assert (sampler, schedule) == ("euler", "normal")


def test_no_apt_turns_off_all_three_parts():
    parser = make_parser()
    options = job_from(parser.parse_args(["upscale", "x.png", "--no-apt"]), "photo").options
    assert (options.matching, options.gamma, options.shortcut) == (0, 0, 1)
    with pytest.raises(ValueError, match="--no-apt and --matching contradict"):
        job_from(parser.parse_args(["upscale", "x.png", "--no-apt", "--matching", "1"]), "photo")
