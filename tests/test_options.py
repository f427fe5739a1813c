"""The one dataclass of settings: limits, refusals in one sentence, and the command line made from it."""

import math

import pytest

from apt_ext.demo.arguments import job_from, make_parser
from apt_ext.options import Options, blur_of, settings


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


def test_every_setting_has_a_label_a_help_and_an_argument():
    parser = make_parser()
    for name, field in settings().items():
        assert field.metadata["label"]
        assert field.metadata["help"]
        args = parser.parse_args(["upscale", "x.png", f"--{name.replace('_', '-')}", str(field.default)])
        assert getattr(job_from(args, "photo").options, name) == field.default


def test_the_embedded_model_has_defaults_of_its_own_and_other_models_have_the_methods():
    parser = make_parser()

    def options(line):
        chosen = job_from(parser.parse_args(line.split()), "photo").options
        return chosen.shortcut, chosen.phases

    assert options("upscale x.png") == (0.4, "double")
    assert options("upscale x.png --phases direct") == (0.4, "direct")
    assert options("upscale x.png --no-apt") == (1.0, "progressive")
    assert options("upscale x.png --no-apt --method multidiffusion") == (0.4, "double")
    assert options("plan 64x64") == (0.4, "double")
    assert options("plan 1024x1024 --model sdxl") == (0.6, "double")
    assert options("plan 1024x1024 --model sdxl --no-apt") == (1.0, "progressive")


def test_no_apt_turns_off_all_three_parts():
    parser = make_parser()
    options = job_from(parser.parse_args(["upscale", "x.png", "--no-apt"]), "photo").options
    assert (options.matching, options.gamma, options.shortcut) == (0, 0, 1)
    with pytest.raises(ValueError, match="--no-apt and --matching contradict"):
        job_from(parser.parse_args(["upscale", "x.png", "--no-apt", "--matching", "1"]), "photo")
