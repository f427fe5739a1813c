"""The ways into a job besides the accordion: the dropdown entry, the plot, and the plan that promises what a job will do."""

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from apt_ext.core.clock import CALLS_PER_STEP
from apt_ext.options import METHODS, PRESETS, Schedule
from tests.host.double.jobs import ON, far, left_on_p

pytestmark = pytest.mark.usefixtures("settings_page")

ROOT = Path(__file__).parents[2]


def upscaled(host, p, *args):
    p.scripts = host.script(False)
    host.shared.state = host.shared.State()
    return host.adapter("script").APTUpscaleScript().run(p, *args)


def test_the_dropdown_entry_turns_hires_fix_on(host):
    p = host.text_job(enable_hr=False, denoising_strength=None, hr_resize_x=999)
    (made,) = upscaled(host, p, 3.0, "Fast")
    assert made.size == (192, 192)
    assert (p.enable_hr, p.hr_scale, p.denoising_strength, p.hr_upscaler) == (True, 3.0, Schedule().strength, "Lanczos")
    assert p.extra_generation_params["APT method"] == PRESETS["Fast"].options.method
    assert not left_on_p(p)


@pytest.mark.parametrize("args", [(2.0,), (2.0, "Custom", "demofusion"), ({},), ({"scale": 2}, "another script's")])
def test_the_dropdown_entry_takes_its_arguments_as_the_accordion_does(host, args):
    expected = host.run(host.text_job(ON))[0]
    assert far(upscaled(host, host.text_job(enable_hr=False), *args)[0], expected) == 0


def test_another_machine_that_is_sent_the_accordion_s_arguments_does_what_the_dropdown_entry_asks(host, monkeypatch):
    script, sent = host.adapter("script").APTScript, []
    begin = script.before_process
    monkeypatch.setattr(script, "before_process", lambda self, p, *args: sent.append(json.dumps(p.script_args)) or begin(self, p, *args))
    p = host.text_job(enable_hr=False)
    (made,) = upscaled(host, p, {"scale": 2, "preset": "Fast", "overlap": 0.5, "regions": "0-50% x 0-100%: reeds"})
    (args,) = sent
    monkeypatch.undo()
    there = host.text_job(*json.loads(args), hr_upscaler=p.hr_upscaler)
    assert far(host.run(there)[0], made) == 0
    assert there.extra_generation_params == p.extra_generation_params


def test_the_dropdown_entry_sets_the_size_of_img2img(host, picture):
    p = host.picture_job(init_images=[picture.resize((72, 60))])
    (made,) = upscaled(host, p, {"scale": 2.5})
    assert (p.width, p.height) == made.size == (184, 152)


def test_the_dropdown_entry_takes_only_a_mask_s_part_as_it_is(host, picture):
    p = host.picture_job(init_images=[picture], image_mask=Image.new("L", (64, 64), 255), inpaint_full_res=True, width=64, height=64)
    assert upscaled(host, p, 2.0)[0].size == (128, 128)


@pytest.mark.parametrize("scale", [0.5, 100, "two", None, True, float("nan")])
def test_bad_scales_are_refused(host, scale):
    with pytest.raises(host.adapter("errors").APTError, match=r"scale .* is out of range; use a number from 1 to 8"):
        upscaled(host, host.text_job(), {"scale": scale})
    assert not host.model.calls


def test_the_plot_s_axes_replace_settings_and_the_switch(host):
    p = host.text_job(False)
    p.apt_axis_enabled, p.apt_axis_phases, p.apt_axis_matching = True, "direct", 0.5
    host.run(p)
    assert (p.extra_generation_params["APT phases"], p.extra_generation_params["APT matching"]) == ("direct", 0.5)
    p = host.text_job(ON)
    p.apt_axis_enabled = False
    host.run(p)
    assert "APT method" not in p.extra_generation_params


@pytest.fixture
def axes(host, monkeypatch):
    """The plot's axes by label, as the host's script would hold them."""

    class AxisOption:
        def __init__(self, label, type, apply, **more):
            self.label, self.type, self.apply, self.more = label, type, apply, more

    plot = SimpleNamespace(axis_options=[], AxisOption=AxisOption)
    data = SimpleNamespace(module=plot, script_class=type("Script", (), {"__module__": "xyz_grid.py"}))
    monkeypatch.setattr(host.scripts, "scripts_data", [data])
    for _ in range(2):  # a page reload asks again
        host.adapter("axes").add_axes()
    assert len({option.label for option in plot.axis_options}) == len(plot.axis_options) > 5
    return {option.label.removeprefix("[APT] "): option for option in plot.axis_options}


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("name", ["Fast", "fast"])
def test_a_preset_on_an_axis_brings_its_steps_and_start_and_other_axes_go_before_it(host, job_of_kind, axes, kind, name):
    p = job_of_kind(kind)
    axes["Preset"].apply(p, name, [name])
    axes["Window overlap"].apply(p, 0.125, [0.125])
    assert axes["Preset"].more["choices"]() == list(PRESETS)
    host.run(p)
    options, own = PRESETS["Fast"].options, PRESETS["Fast"].schedule
    assert (p.extra_generation_params["APT method"], p.extra_generation_params["APT overlap"]) == (options.method, 0.125)
    assert p.denoising_strength == own.strength
    if kind == "text":
        assert (p.hr_second_pass_steps, p.hr_upscaler) == (round(own.steps * own.strength), "Lanczos")
    else:
        assert p.steps == own.steps


def test_the_axes_are_there_as_soon_as_the_script_is_loaded(host, monkeypatch):
    """An API without the page lists them before it says that the page is about to be made."""
    plot = SimpleNamespace(axis_options=[], AxisOption=lambda label, type, apply, **more: SimpleNamespace(label=label))
    data = SimpleNamespace(module=plot, script_class=type("Script", (), {"__module__": "xyz_grid.py"}))
    monkeypatch.setattr(host.scripts, "scripts_data", [data])
    runpy.run_path(str(ROOT / "scripts" / "apt.py"))
    assert "[APT] On" in [option.label for option in plot.axis_options]


TYPED = {"window": "128x64", "regions": "0-50% x 0-100%: snow"}


def test_every_setting_that_changes_the_picture_has_an_axis(host, axes):
    wanted = {control.label: control for control in host.controls.CONTROLS if control.infotext}
    assert set(axes) == {"On", "Preset"} | set(wanted)
    for label, control in wanted.items():
        axis = axes[label]
        typed = TYPED.get(control.name, 0.5)
        other = not control.default if isinstance(control.default, bool) else next((one for one in control.choices if one != control.default), typed)
        value = axis.type(str(other))
        assert value == other
        listed = axis.more["choices"]
        assert listed is None or str(other) in listed()
        p = host.text_job(ON)
        axis.apply(p, value, [value])
        made = host.request.infotext(host.request.replaced(host.request.parse([]), host.axes.overrides_of(p)))
        assert made[control.infotext] == other


def test_a_window_s_size_is_typed_into_the_plot_and_reaches_the_job(host, axes):
    """The plot takes nothing but what an axis offers, where it offers something."""
    axis = axes["Window"]
    assert axis.more["choices"] is None
    p = host.text_job({"enabled": True, "method": "multidiffusion"})
    axis.apply(p, "128x64", ["128x64"])
    host.run(p)
    assert p.extra_generation_params["APT window"] == "128x64"


@pytest.mark.parametrize(("axis", "text", "words"), [("On", "maybe", "On 'maybe' is neither true nor false"), ("Tiled VAE", "2", "Tiled VAE '2' is neither")])
def test_a_switch_on_an_axis_is_true_or_false(host, axes, axis, text, words):
    assert [axes[axis].type(one) for one in ("True", "off", " Yes ", "0")] == [True, False, True, False]
    p = host.text_job(ON)
    axes[axis].apply(p, axes[axis].type(text), [text])
    with pytest.raises(host.adapter("errors").APTError, match=words):
        host.run(p)
    assert not host.model.calls


@pytest.mark.parametrize("args", [({"enabled": "True"},), ("False",), (1,), ([],)])
def test_the_switch_itself_is_true_or_false(host, args):
    with pytest.raises(host.adapter("errors").APTError, match=r"enabled .* is neither true nor false"):
        host.run(host.text_job(*args))
    assert not host.model.calls


def test_an_unknown_preset_on_an_axis_is_refused(host, axes):
    p = host.text_job(ON)
    axes["Preset"].apply(p, "Magic", ["Magic"])
    with pytest.raises(host.adapter("errors").APTError, match="preset 'Magic' does not exist; use one of Custom, Fast, Balanced, Quality, Published"):
        host.run(p)
    assert not host.model.calls


@pytest.mark.parametrize(("word", "on"), [("True", True), ("on", True), ("False", False)])
def test_the_switch_on_an_axis(host, axes, word, on):
    p = host.text_job(not on)
    axes["On"].apply(p, axes["On"].type(word), [word])
    host.run(p)
    assert ("APT method" in p.extra_generation_params) is on


def test_an_upscaler_on_an_axis_goes_into_the_field_that_decides(host, axes, picture):
    p = host.text_job(ON, hr_upscaler="Latent")
    axes["Upscaler"].apply(p, "nearest", ["nearest"])
    host.run(p)
    assert p.hr_upscaler == "Nearest"
    q = host.picture_job(ON, init_images=[picture])
    axes["Upscaler"].apply(q, "bicubic", ["bicubic"])
    host.run(q)
    assert q.extra_generation_params["APT upscaler"] == "bicubic"
    r = host.text_job(ON)
    axes["Upscaler"].apply(r, "Magic", ["Magic"])
    with pytest.raises(host.adapter("errors").APTError, match="upscaler 'Magic'"):
        host.run(r)


def test_an_ordinary_picture_beside_apt_s_does_not_inherit_its_infotext(host):
    p = host.text_job(ON)
    host.run(p)
    plain = host.text_job(False, extra_generation_params=p.extra_generation_params)
    host.run(plain)
    assert not [name for name in plain.extra_generation_params if name.startswith("APT")]


@pytest.mark.parametrize("sampler", ["euler", "ddim", "plms"])
@pytest.mark.parametrize("img2img", [False, True])
def test_the_plan_counts_what_the_job_does(host, job_of_kind, img2img, sampler):
    settings = {"phases": "2,3"}
    asked = {"img2img": img2img, "first": [64, 64], "target": [192, 192], "given": [64, 64], "resize_mode": 0, "steps": 8, "hires_steps": 0}
    made = host.panel.plan(asked | {"denoising": 0.6, "sampler": sampler, "scheduler": "Automatic", "settings": settings})
    assert [phase["size"] for phase in made["phases"]] == [[128, 128], [192, 192]]
    views = []

    def on_call():
        if host.shared.state.textinfo:
            views.append(host.model.calls[-1][0] // 2)

    host.model.on_call = on_call
    scaled = {"width": 192, "height": 192} if img2img else {"hr_scale": 3.0}
    host.run(job_of_kind("picture" if img2img else "text", settings, sampler_name=sampler, steps=8, **scaled))
    assert sum(views) == made["evaluations"]


MOVED = {"eta": 0.3, "s_churn": 3.0, "s_tmin": 0.3, "s_tmax": 5.0}


@pytest.mark.parametrize(
    ("method", "sampler", "given"),
    [
        *((method, sampler, {}) for method in METHODS for sampler in ("heun", "plms")),
        *(("demofusion", sampler, MOVED) for sampler in [*CALLS_PER_STEP, "ddim"]),
    ],
)
def test_the_plan_counts_what_every_sampler_does(host, job_of_kind, method, sampler, given):
    """Where the dilated path ends between the calls of one step, too. `given`: by the API to the job, by the settings page to the plan."""
    settings = {"method": method, "phases": "2,3", "tolerance": 0.2, "word_threshold": 0.0}
    asked = {"img2img": True, "target": [192, 192], "given": [64, 64], "resize_mode": 0, "steps": 7, "denoising": 1.0, "sampler": sampler}
    views = []
    host.model.on_call = lambda: views.append(host.model.calls[-1][0] // 2)
    host.run(job_of_kind("picture", settings, sampler_name=sampler, steps=7, denoising_strength=1.0, width=192, height=192, **given))
    for name, value in given.items():
        setattr(host.shared.opts, "eta_ancestral" if name == "eta" else name, value)
    made = host.panel.plan(asked | {"scheduler": "Automatic", "settings": settings})
    assert sum(views) == made["evaluations"] == sum(phase["evaluations"] for phase in made["phases"])
    assert [phase["dilated"] for phase in made["phases"]] == ([0, 0] if method == "multidiffusion" else [4, 9])


@pytest.mark.parametrize("gamma", [0.75, -0.5])
def test_a_schedule_may_begin_above_the_checkpoint_s_own_levels(host, job_of_kind, gamma):
    host.shared.opts.sigma_max = 20.0
    p = job_of_kind("picture", {"gamma": gamma}, sampler_name="heun", steps=6, denoising_strength=1.0)
    assert host.run(p)[0].size == (128, 128)


def test_an_eta_that_no_plan_can_follow_is_refused(host, job_of_kind):
    with pytest.raises(host.adapter("errors").APTError, match="eta 2 cannot be followed with sampler 'dpm_2_ancestral'; use one from 0 to 1"):
        host.run(job_of_kind("picture", {}, sampler_name="dpm_2_ancestral", eta=2.0))
    assert not host.model.calls
    host.run(job_of_kind("picture", {"method": "multidiffusion"}, sampler_name="euler_ancestral", eta=2.0))


@pytest.mark.parametrize("target", [(128, 96), (72, 120), (96, 64)])
def test_the_plan_of_another_aspect_is_the_job_s(host, target):
    first = {"width": 64, "height": 96}
    asked = {"img2img": False, "first": [64, 96], "target": list(target), "steps": 8, "hires_steps": 0, "denoising": 0.6, "sampler": "euler"}
    made = host.panel.plan(asked | {"cut": True, "upscaler": "Lanczos", "scheduler": "Automatic", "settings": {"method": "multidiffusion"}})
    views = []

    def on_call():
        if host.shared.state.textinfo:
            views.append(host.model.calls[-1][0] // 2)

    host.model.on_call = on_call
    p = host.text_job({"method": "multidiffusion"}, hr_resize_x=target[0], hr_resize_y=target[1], steps=8, **first)
    assert host.run(p)[0].size == target
    assert sum(views) == made["evaluations"]


@pytest.mark.parametrize(("size", "fits"), [((64, 64), True), ((96, 96), True), ((160, 160), False)])
def test_the_gallery_s_button_plans_from_its_own_picture(host, picture, size, fits):
    p = host.text_job({"method": "multidiffusion"}, firstpass_image=picture.resize(size))
    p.txt2img_upscale = True
    if fits:
        assert host.run(p)[0].size == (128, 128)
        return
    with pytest.raises(host.adapter("errors").APTError, match="is smaller than"):
        host.run(p)
    assert not host.model.calls


def test_the_panel_says_how_long_it_takes_once_something_was_measured(host, job_of_kind):
    asked = {"img2img": True, "given": [64, 64], "target": [128, 128], "resize_mode": 0, "steps": 8, "hires_steps": 0, "denoising": 0.5, "sampler": "euler"}
    asked |= {"scheduler": "Automatic", "settings": {"method": "multidiffusion"}}
    before = host.panel.plan(asked)
    assert (before["seconds"], before["memory"]) == (None, None)
    host.run(job_of_kind("picture", {"method": "multidiffusion"}, steps=8, denoising_strength=0.5))
    after = host.panel.plan(asked)
    pace = host.pace.last_pace("sd1", (8, 8))
    assert after["seconds"] == round(pace.seconds * after["evaluations"], 1)
    assert pace.seconds > 0
    assert host.pace.last_pace("sdxl", (8, 8)) is None
    assert (after["memory"], after["gpu"]) == (round(pace.memory) or None, torch.cuda.is_available())
    assert pace.memory > 100 or sys.platform == "win32", "torch alone takes more"
    assert before | {name: after[name] for name in ("seconds", "memory", "gpu")} == after


def test_the_strength_stands_beside_the_presets_and_is_the_hosts_whichever_comes_first(host):
    gradio = importlib.import_module("gradio")
    for first in (True, False):
        script, hosts = host.adapter("script").APTScript(), gradio.Slider()
        hosts.value = 0.75
        if first:
            script.after_component(hosts, elem_id="img2img_denoising_strength")
        script.ui(True)
        if not first:
            script.after_component(hosts, elem_id="img2img_denoising_strength")
        ours = script.strength
        assert ours.value == 0.75
        (moved,), (followed,) = ours.events, hosts.changes
        assert (moved["inputs"], moved["outputs"]) == ([ours], [hosts])
        assert (followed["inputs"], followed["outputs"]) == ([hosts], [ours])
