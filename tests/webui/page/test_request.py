"""What users and programs ask for, as the adapter reads it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from apt_ext.core.noise_levels import shortcut_sigmas
from apt_ext.options import PHASE_POLICIES, PRESETS, Options, settings
from apt_ext.webui.page.controls import CONTROLS, CUSTOM, defaults
from apt_ext.webui.page.request import Request, infotext, parse, preset_host_values, preset_values, replaced

UNWRITTEN = {"window_batch"}


def test_the_order_of_the_arguments_is_frozen():
    assert [control.name for control in CONTROLS] == [
        "preset",
        "method",
        "upscaler",
        "colour_fix",
        "phases",
        "matching",
        "gamma",
        "overlap",
        "jitter",
        "window_batch",
        "tiled_vae",
        "save_phases",
        "word_threshold",
        "draw_words",
        "skip_residual",
        "residual_decay",
        "dilated_decay",
        "blur_decay",
        "blur",
        "feather",
        "tolerance",
        "border",
        "fill",
        "reanchor",
        "window",
        "regions",
        "own_settings",
    ]


def test_every_setting_has_a_control():
    assert set(settings()) <= {control.name for control in CONTROLS}


def test_nothing_given_is_the_defaults():
    assert parse([]) == parse([{}]) == parse(list(defaults().values())) == Request(Options(window_batch=4))


def test_arguments_in_order():
    request = parse([CUSTOM, "accdiffusion", "bicubic", 0.0, "double", 0.5, 0.25, 0.125])
    options = request.options
    assert (options.method, options.phases, options.matching, options.gamma, options.overlap) == ("accdiffusion", "double", 0.5, 0.25, 0.125)


def test_missing_and_empty_arguments_in_order_keep_their_default():
    assert parse([CUSTOM, None, None, None, "direct", None]).options == Options(phases="direct", window_batch=4)


def test_arguments_by_name():
    request = parse([{"method": "multidiffusion", "save_phases": True, "tiled_vae": False, "feather": 1}])
    assert request == Request(Options(method="multidiffusion", feather=1, window_batch=4), tiled_vae=False, save_phases=True)


def test_what_is_not_given_is_taken_from_the_page_defaults():
    base = defaults() | {"overlap": 0.125, "gamma": 0.5}
    assert parse([{"jitter": 0.5}], base).options == Options(overlap=0.125, gamma=0.5, jitter=0.5, window_batch=4)
    assert parse([], base).options.gamma == 0.5


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_settings_and_the_defaults_of_the_rest(preset):
    expected = Request(replace(PRESETS[preset].options, window_batch=4))
    assert parse([preset]) == parse([{"preset": preset}]) == expected
    assert parse([preset, "accdiffusion", "bicubic", 3.0, "1.5,2"]) == expected, "in order, a preset fills what the page would fill"
    assert parse([{"preset": preset}], defaults() | {"feather": 1.0, "blur": 0.0}) == expected


def test_what_is_named_goes_before_the_preset():
    assert parse([{"preset": "Fast", "overlap": 0.75}]).options == replace(PRESETS["Fast"].options, overlap=0.75, window_batch=4)


def test_a_preset_leaves_memory_and_files_alone():
    assert not {"window_batch", "tiled_vae", "save_phases"} & set(preset_values("Quality"))
    request = parse([{"preset": "Quality", "window_batch": 9, "tiled_vae": False}])
    assert (request.options.window_batch, request.tiled_vae) == (9, False)


@pytest.mark.parametrize("name", ["fast", "FAST", "Fast"])
def test_a_presets_name_is_read_in_any_case(name):
    assert parse([name]) == parse([{"preset": name}]) == parse(["Fast"])
    assert preset_host_values(name) == preset_host_values("Fast")
    assert replaced(Request(), {"preset": name}) == replaced(Request(), {"preset": "Fast"})


def test_whole_numbers_may_come_as_floats():
    assert parse([{"window_batch": 16.0}]).options.window_batch == 16
    assert isinstance(parse([{"window_batch": 16.0}]).options.window_batch, int)


@pytest.mark.parametrize("phases", [*PHASE_POLICIES, "1.5,2,4", "3"])
def test_phases_are_policies_or_ratios(phases):
    assert parse([{"phases": phases}]).options.phases == phases


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([{"gama": 1}], "setting 'gama' does not exist; use some of preset, method"),
        ([{"steps": 20}], "setting 'steps' does not exist"),
        ([{"preset": "Best"}], "preset 'Best' does not exist; use one of Custom, Fast"),
        ([{"preset": None}], "preset None does not exist"),
        ([{"preset": ["Fast"]}], r"preset \['Fast'\] does not exist"),
        (["Best"], "preset 'Best' does not exist"),
        ([{"method": "magic"}], "Method 'magic' does not exist"),
        ([CUSTOM, "magic"], "Method 'magic' does not exist"),
        ([{"gamma": 30}], r"Schedule strength \(gamma\) 30 is out of range"),
        ([{"gamma": "very"}], r"Schedule strength \(gamma\) 'very' is a text, no number"),
        ([{"gamma": None}], r"Schedule strength \(gamma\) None is no such number"),
        ([{"overlap": float("nan")}], r"Window overlap \(overlap\) nan is out of range"),
        ([{"overlap": True}], r"Window overlap \(overlap\) True is no such number"),
        ([{"overlap": [0.5]}], r"Window overlap \(overlap\) \[0.5\] is no such number"),
        ([{"window_batch": 2.5}], "Window batch 2.5 is no such number; use a whole number from 1 to 1024"),
        ([{"window_batch": "4"}], "Window batch '4' is a text, no number; use a whole number"),
        ([{"phases": "3,2"}], "Phases '3,2' cannot be used; use one of progressive, double, direct, or a rising list"),
        ([{"phases": None}], "Phases None cannot be used"),
        ([{"tiled_vae": "False"}], "Tiled VAE 'False' is neither true nor false"),
        ([{"save_phases": 1}], "Save intermediate phases 1 is neither true nor false"),
        ([{"upscaler": " "}], "Upscaler ' ' cannot be used; use one of lanczos, bicubic, latent, or an upscaler's name"),
    ],
)
def test_bad_values_are_one_sentence(args, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(args)
    assert "\n" not in str(caught.value)


JUNK = [None, True, False, 0, 1, -1, 10**30, 0.5, float("nan"), float("inf"), "", "auto", "direct", "1,2", "x", [], [1], {}, {"a": 1}, "Fast", "zero"]


@limits(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from([control.name for control in CONTROLS]), st.sampled_from(JUNK), max_size=4))
def test_whatever_is_named_makes_a_request_or_a_sentence(named):
    sentence, request = "", None
    try:
        request = parse([named])
    except ValueError as error:
        sentence = str(error)
    assert request is not None or re.fullmatch(r"[^\n]+", sentence)


def test_fields_are_replaced_and_checked():
    request = parse([{"save_phases": True}])
    assert replaced(request, {"matching": 0.5, "window_batch": 2.0}) == Request(Options(matching=0.5, window_batch=2), save_phases=True)
    with pytest.raises(ValueError, match="Method 'magic'"):
        replaced(request, {"method": "magic"})


def test_the_infotext_has_everything_that_changes_the_picture():
    whole = infotext(Request(Options(regions="0-50% x 0-100%: snow")))
    written = {name.removeprefix("APT ").replace(" ", "_") for name in whole}
    assert written == set(settings()) - UNWRITTEN | {"tiled_VAE"}
    assert {control.infotext for control in CONTROLS if control.infotext} == set(whole)
    assert set(whole) - set(infotext(Request())) == {"APT regions"}, "none are written where there are none"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_infotext_is_the_same_whether_a_preset_or_the_page_hands_its_numbers_over(preset):
    by_preset = parse([preset])
    as_a_page_does = {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in preset_values(preset).items()}
    assert any(isinstance(getattr(Options, name), float) and isinstance(value, int) for name, value in as_a_page_does.items())
    assert str(infotext(parse([{"preset": CUSTOM} | as_a_page_does]))) == str(infotext(by_preset))


UNUSUAL = {"method": "accdiffusion", "phases": "1.5,2", "matching": 0.5, "gamma": -0.25, "overlap": 0.125, "jitter": 0.5, "residual_decay": 2.0}
UNUSUAL |= {"dilated_decay": 1.5, "blur_decay": 2.0, "blur": 0.5, "border": "over", "fill": "zero", "feather": 0.3, "tolerance": 0.02, "reanchor": "on"}
UNUSUAL |= {
    "tiled_vae": False,
    "word_threshold": 0.4,
    "skip_residual": False,
    "upscaler": "bicubic",
    "colour_fix": 4.0,
    "window": "128x64",
    "regions": '0-50% x 0-100%: snow\n50-100% x 0-100%: a red barn, "old"',
}


@pytest.mark.parametrize("named", [{}, UNUSUAL, {"preset": "Published"}], ids=["defaults", "unusual", "published"])
def test_a_pasted_infotext_restores_the_controls(host, named):
    request = parse([named])
    parsed = {name: str(value) for name, value in infotext(request).items()}
    pasted = {name: read(parsed) for name, read in host.accordion.paste_functions().items()}
    shown = {name: value for name, value in pasted.items() if value is not None}
    away = defaults() | {
        "regions": "0-9% x 0-9%: ice",
        "method": "multidiffusion",
        "overlap": 0.75,
        "gamma": 1.0,
        "blur": 3.0,
        "tiled_vae": not request.tiled_vae,
        "reanchor": "off",
    }
    assert parse([], away | shown) == request
    assert shown["preset"] == CUSTOM


@pytest.mark.parametrize(
    ("written", "method", "blur"),
    [("auto", "demofusion", 1.0), ("0.8", "accdiffusion", 1.0), ("1.5", "demofusion", 1.5), ("0.0", "multidiffusion", 1.0)],
)
def test_an_infotext_of_an_earlier_version_is_still_read(host, written, method, blur):
    former = {"APT method": method, "APT residual": "2.0", "APT dilated": "1.5", "APT sharpen": "0.5", "APT words": "0.4", "APT blur": written}
    former |= {"APT gamma": "auto", "APT dilated every": "1"}
    shown = {name: value for name, read in host.accordion.paste_functions().items() if (value := read(former)) is not None}
    options = parse([], defaults() | shown).options
    assert (options.residual_decay, options.dilated_decay, options.blur_decay, options.word_threshold) == (2.0, 1.5, 0.5, 0.4)
    assert (options.method, options.blur, options.gamma) == (method, blur, Options.gamma)


def test_a_foreign_infotext_leaves_the_controls_alone(host):
    assert {read({"Steps": "20"}) for read in host.accordion.paste_functions().values()} == {None}


def test_the_page_has_every_control_in_the_order_of_the_arguments(host):
    script = host.adapter("script").APTScript()
    host.settings.add_settings()
    enabled, *components = script.ui(False)
    assert enabled.kwargs["value"] is False
    assert [component.kwargs["label"] for component in components] == [control.label for control in CONTROLS]
    assert [component.kwargs["value"] for component in components] == list(defaults().values())
    assert len(script.infotext_fields) == 1 + len(CONTROLS)
    assert set(script.paste_field_names) == set(infotext(Request())) | {"APT regions"}


def test_choosing_a_preset_fills_the_controls_that_it_sets(host):
    made, _ = host.accordion.build(defaults(), str)
    event = made["preset"].events[0]
    updates = event["fn"]("Fast")
    filled = {name: update["value"] for name in made for output, update in zip(event["outputs"], updates, strict=True) if output is made[name] and update}
    assert filled == preset_values("Fast")
    assert not any(event["fn"](CUSTOM))


def test_choosing_a_preset_tells_the_page_what_it_wants_of_the_hosts_fields(host):
    made, _ = host.accordion.build(defaults(), lambda name: f"script_img2img_apt_{name}")
    (script,) = [event["_js"] for event in made["preset"].events if event.get("_js")]
    call = re.fullmatch(r"\(preset\) => aptFillHost\('script_img2img_apt_preset', (\{.*\})\[preset\]\)", script)
    assert call
    for name, wanted in json.loads(call[1]).items():
        own = PRESETS[name].schedule
        assert (wanted["steps"], wanted["denoising"], wanted["upscaler"]) == (own.steps, own.strength, PRESETS[name].options.upscaler)
        assert wanted["hires_steps"] == len(shortcut_sigmas(torch.arange(own.steps + 1), own.strength)) - 1
    assert list(json.loads(call[1])) == list(PRESETS)


@pytest.mark.parametrize(("preset", "name"), [("Balanced", "Lanczos"), ("Published", "Latent (bicubic)")])
def test_a_preset_fills_the_hosts_own_upscaler_which_decides_in_its_hires_pass(host, preset, name):
    script, field = host.adapter("script").APTScript(), object()
    script.after_component("another", elem_id="txt2img_hr_scale")
    script.after_component(field, elem_id="txt2img_hr_upscaler")
    preset_control = script.ui(False)[1]
    (event,) = [event for event in preset_control.events if event.get("outputs") == [field]]
    assert event["fn"](preset) == {"value": name}
    assert event["fn"](CUSTOM) == {}
    shown = dict(zip([control.name for control in CONTROLS], script.ui(False)[1:], strict=True))
    assert not shown["upscaler"].kwargs["visible"]
    assert shown["colour_fix"].kwargs["visible"]


def test_elsewhere_apts_own_upscaler_is_shown_with_the_hosts(host):
    shown = dict(zip([control.name for control in CONTROLS], host.adapter("script").APTScript().ui(True)[1:], strict=True))
    assert shown["upscaler"].kwargs["visible"]
    assert shown["upscaler"].kwargs["choices"] == ["lanczos", "bicubic", "latent", "Nearest"]


def test_the_settings_page_gives_the_defaults(host):
    host.settings.add_settings()
    assert host.settings.default_values() == defaults()
    host.shared.opts.apt_default_overlap = 0.25
    assert host.settings.default_values()["overlap"] == 0.25
    assert {name for name in host.shared.opts.added if name.startswith("apt_window_")} == {f"apt_window_{family}" for family in host.adapter("model").FAMILIES}


def test_the_panel_sends_every_control():
    script = (Path(__file__).parents[3] / "javascript" / "apt.js").read_text()
    (names,) = re.findall(r"const NAMES = \[(.*?)\];", script, re.DOTALL)
    assert re.findall(r'"(\w+)"', names) == [control.name for control in CONTROLS]
