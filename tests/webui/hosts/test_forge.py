"""On Forge the same job gives the picture that it gives on 1.10.1, and the host has everything back afterwards."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.host.contract_forge import SCHEDULES_READ
from tests.host.double.jobs import ON, far
from tests.host.forge import neo_s_passes, nothing_left
from tests.host.forge.backend import FREE

pytestmark = pytest.mark.usefixtures("memory", "settings_page")
METHODS = ["demofusion", "accdiffusion", "multidiffusion"]
PROMPT = "a butterfly, on (red:1.3) flowers AND the sky : 0.5"


def claims(p):
    return {name: value for name, value in p.extra_generation_params.items() if name.startswith("APT")}


@pytest.mark.parametrize("package", ["backend", "ldm_patched"])
@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("method", METHODS)
def test_a_job_gives_the_picture_of_1_10_1_with_as_many_evaluations(host, samplers, on_both, kind, method, package):
    given = {"prompt": PROMPT.partition(" AND")[0], "steps": 6, "package": package}
    (expected, rows, p), (made, forge_rows, q) = on_both(kind, {"method": method, "word_threshold": 0.5}, **given)
    assert far(made[0], expected[0]) <= 1
    assert forge_rows == rows
    assert claims(q) == claims(p)
    nothing_left(host, samplers)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "heun", "ddim", "plms", "dpmpp_sde"])
def test_every_kind_of_sampler_does(on_both, sampler):
    (expected, rows, _), (made, forge_rows, _) = on_both("picture", ON, sampler_name=sampler, steps=6)
    assert far(made[0], expected[0]) <= 1
    assert forge_rows == rows


def test_a_batch_with_a_mask_does(on_both, picture):
    mask = Image.linear_gradient("L").resize((64, 64)).point(lambda value: 255 * (value > 128))
    (expected, *_), (made, *_) = on_both("picture", ON, image_mask=mask, batch_size=2, sampler_name="euler")
    # Forge draws other noise over what the mask keeps, which windows across its edge see.
    assert [far(one.crop((0, 0, 128, 56)), other.crop((0, 0, 128, 56))) for one, other in zip(made, expected, strict=True)] == [0, 0]
    assert far(made[0].crop((0, 72, 128, 128)), expected[0].crop((0, 72, 128, 128))) < 64


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_mask_with_an_axis_for_the_batch_is_the_same_mask(host, forge, monkeypatch, picture, batch_size):
    """As Neo has it; 1.10.1's and Forge's begins with the channels."""
    mask = Image.linear_gradient("L").resize((64, 64)).point(lambda value: 255 * (value > 128))
    settings = {"enabled": True, "phases": "progressive", "colour_fix": 4.0}

    def once():
        torch.manual_seed(1)  # Forge's noise over what the mask keeps has no seed of its own
        p = host.picture_job(settings, init_images=[picture], width=192, height=192, image_mask=mask, batch_size=batch_size, sampler_name="euler")
        made = host.run(p)
        assert not p.scripts.reports
        return made

    forge()
    expected = once()
    init = host.processing.StableDiffusionProcessingImg2Img.init

    def with_an_axis(self, *args):
        init(self, *args)
        self.mask, self.nmask = self.mask[None], self.nmask[None]

    monkeypatch.setattr(host.processing.StableDiffusionProcessingImg2Img, "init", with_an_axis)
    assert [far(one, other) for one, other in zip(once(), expected, strict=True)] == [0] * batch_size


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_prompts_of_several_parts_keep_their_words_in_whichever_order_the_rows_come(host, on_both, kind):
    settings = {"method": "accdiffusion", "word_threshold": 0.5}
    (expected, *_), (made, *_) = on_both(kind, settings, prompt=PROMPT, batch_size=2)
    assert max(far(one, other) for one, other in zip(made, expected, strict=True)) <= 1


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_prompt_and_negative_prompt_one_after_the_other_give_the_same_picture(host, forge, job_of_kind, kind, monkeypatch):
    forge()
    asked = {"method": "accdiffusion", "word_threshold": 0.5, "window_batch": 2}
    together = host.run(job_of_kind(kind, asked, prompt=PROMPT))[0]
    done = []
    measured = host.pace.Measuring.done
    monkeypatch.setattr(host.pace.Measuring, "done", lambda self, count: done.append(count) or measured(self, count))
    FREE.rows = 0
    apart = host.run(job_of_kind(kind, asked, prompt=PROMPT))[0]
    assert far(together, apart) <= 1
    apart_done = sum(done)
    FREE.rows, done[:] = 1_000_000, []
    host.run(job_of_kind(kind, asked, prompt=PROMPT))
    assert sum(done) == apart_done, "views count once"


def test_memory_is_asked_for_by_what_the_views_need(host, forge, job_of_kind, monkeypatch):
    forge()
    host.run(job_of_kind("picture", {"window_batch": 2}, width=512, height=512))
    whole, window = 2 * 64 * 64, 2 * 2 * 8 * 8
    assert set(FREE.asked) == {window}
    FREE.rows = window + 1  # enough for them, and far too little for the whole picture: so prompt and negative prompt stay together
    host.model.calls.clear()
    host.run(job_of_kind("picture", {"window_batch": 2, "method": "multidiffusion"}, width=512, height=512))
    assert FREE.rows < whole
    assert max(shape[0] for shape in host.model.calls) == 4


def test_neo_asks_the_clone_itself_for_memory(host, forge):
    forge()
    sampler = host.sd_samplers.create_sampler("euler", host.model)
    run = SimpleNamespace(begin=lambda x, t: None, wrap=lambda model: model, end=lambda x, t, out: out)
    at_once = host.adapter("host").AtOnce(3, (8, 8))
    with host.adapter("forge_seam").fused_inside(sampler.model_wrap_cfg, run, at_once):
        assert host.model.forge_objects.unet.memory_required([2, 4, 64, 48]) == 2 * 3 * 8 * 8
    assert host.model.forge_objects.unet.memory_required([2, 4, 64, 48]) == 2 * 64 * 48


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_an_ordinary_job_before_and_after_is_the_same(host, samplers, forge, job_of_kind, kind):
    forge()
    before = host.run(job_of_kind(kind, False))[0]
    assert far(host.run(job_of_kind(kind))[0], before) > 0
    assert far(host.run(job_of_kind(kind, False))[0], before) == 0
    nothing_left(host, samplers)


@pytest.mark.parametrize("ending", [RuntimeError, KeyboardInterrupt, None])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_however_a_job_ends_the_host_has_its_own_again(host, samplers, forge, job_of_kind, kind, ending):
    forge()

    def stop():
        if host.shared.state.textinfo:
            if ending:
                raise ending("broken")
            host.shared.state.interrupted = True

    host.model.on_call = stop
    if ending:
        with pytest.raises(ending):
            host.run(job_of_kind(kind))
    else:
        assert host.run(job_of_kind(kind))[0].size == (128, 128)
    nothing_left(host, samplers)


def test_what_stands_inside_is_taken_out_again_and_another_extensions_stays(host, forge):
    forge()
    hosts = host.adapter("forge_seam")
    objects, seen = host.model.forge_objects, []

    def theirs(apply, args):
        seen.append(tuple(args["input"].shape))
        return apply(args["input"], args["timestep"], **args["c"])

    objects.unet.set_model_unet_function_wrapper(theirs)
    own, options = objects.unet, dict(objects.unet.model_options)
    sampler = host.sd_samplers.create_sampler("euler", host.model)
    kind, attributes = type(sampler.model_wrap_cfg), set(vars(sampler.model_wrap_cfg))
    run = SimpleNamespace(begin=lambda x, t: None, wrap=lambda model: model, end=lambda x, t, out: out)
    for _ in range(2):
        with hosts.fused_inside(sampler.model_wrap_cfg, run):
            assert objects.unet is not own
            x, level = torch.randn(1, 4, 8, 8), torch.tensor([2.0])
            options_of_call = {"cond_or_uncond": [0], "cond_mark": torch.zeros(1), "cond_indices": [0], "uncond_indices": []}
            c = {"c_crossattn": torch.zeros(1, 3, 2), "transformer_options": options_of_call}
            args = {"input": x, "timestep": level, "c": c, "cond_or_uncond": [0]}
            objects.unet.model_options["model_function_wrapper"](objects.unet.model.apply_model, args)
        assert objects.unet is own
        assert own.model_options == options
        assert type(sampler.model_wrap_cfg) is kind
        assert set(vars(sampler.model_wrap_cfg)) == attributes
    assert seen == [(1, 4, 8, 8)] * 2


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_another_extensions_function_sees_every_window(host, forge, job_of_kind, kind):
    forge()
    plain, seen = host.run(job_of_kind(kind))[0], set()

    def theirs(apply, args):
        seen.add(tuple(args["input"].shape[-2:]))
        return apply(args["input"], args["timestep"], **args["c"])

    for objects in (host.model.forge_objects, host.model.forge_objects_after_applying_lora):
        objects.unet.set_model_unet_function_wrapper(theirs)
    assert far(host.run(job_of_kind(kind))[0], plain) == 0
    assert seen == {(8, 8)}


def test_the_dropdown_entry_s_hires_pass_goes_by_the_first_pass(host, forge):
    forge()
    p = host.text_job(enable_hr=False, cfg_scale=4.5)
    p.scripts = host.script(False)
    p.hr_cfg, p.hr_distilled_cfg, p.distilled_cfg_scale, p.hr_additional_modules = 1.0, 3.5, 2.5, None
    host.shared.state = host.shared.State()
    assert host.adapter("script").APTUpscaleScript().run(p, 2.0)[0].size == (128, 128)
    assert (p.hr_cfg, p.hr_distilled_cfg, p.hr_additional_modules) == (4.5, 2.5, ["Use same choices"])


def test_the_dropdown_entry_gives_a_job_no_fields_that_the_host_has_not(host, forge):
    forge("ldm_patched")
    p = host.text_job(enable_hr=False)
    p.scripts = host.script(False)
    host.shared.state = host.shared.State()
    host.adapter("script").APTUpscaleScript().run(p, 2.0)
    assert not {name for name in vars(p) if name in ("hr_cfg", "hr_distilled_cfg", "hr_additional_modules")}


@pytest.mark.parametrize("given", [{}, {"firstpass_image": Image.effect_noise((64, 64), 60).convert("RGB")}, {"hr_upscaler": "Latent"}, False])
def test_a_first_pass_that_hands_its_pictures_over_in_0_to_1(host, forge, monkeypatch, given):
    """As Neo's does: they are what they are elsewhere, and so is the job made of them; False: an ordinary one."""
    settings, given = ({"enabled": True, "colour_fix": 4.0}, given) if given is not False else (False, {})
    forge()
    expected = host.run(host.text_job(settings, **given))[0]
    neo_s_passes(host, monkeypatch)
    assert far(host.run(host.text_job(settings, **given))[0], expected) <= 1


def test_a_bright_first_picture_in_minus_1_to_1_is_not_taken_for_one_in_0_to_1(host, forge):
    forge()
    bright = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(host.adapter("detect").host().first_pictures(bright), bright)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_the_panel_s_stand_in_for_a_job_has_all_that_a_host_s_schedule_reads(host, forge, monkeypatch, kind):
    """Neo's asks for the checkpoint's family, and for the picture's sides."""
    forge()
    asked = {"img2img": kind == "picture", "first": [64, 64], "given": [64, 64], "target": [192, 128], "resize_mode": 0, "steps": 8, "hires_steps": 0}
    asked |= {"denoising": 0.6, "sampler": "euler", "scheduler": "Automatic", "upscaler": "Lanczos", "settings": {}}
    expected = host.panel.plan(asked)
    own, read = host.sd_samplers_kdiffusion.KDiffusionSampler.get_sigmas, []

    def get_sigmas(self, p, steps):
        read.append({name: getattr(p, name) for name in SCHEDULES_READ})
        return own(self, p, steps)

    monkeypatch.setattr(host.sd_samplers_kdiffusion.KDiffusionSampler, "get_sigmas", get_sigmas)
    assert host.panel.plan(asked) == expected
    assert read[0]["sd_model"] is host.model
    assert [read[0][name] for name in ("width", "height", "hr_upscale_to_x", "hr_upscale_to_y")] == [192, 128] * 2


def test_words_where_prompt_editing_is_read_in_one_way_alone(host, forge, monkeypatch):
    """Neo has neither the option nor the argument."""
    given = {"method": "accdiffusion", "word_threshold": 0.5}
    expected = host.run(host.text_job({"enabled": True, **given}, prompt="a [castle:tower:2] on a hill, red sky"))[0]
    forge()
    read = host.prompt_parser.get_learned_conditioning_prompt_schedules
    monkeypatch.setattr(host.prompt_parser, "get_learned_conditioning_prompt_schedules", lambda prompts, steps, hires=None: read(prompts, steps, hires))
    monkeypatch.delattr(type(host.shared.opts), "use_old_scheduling")
    p = host.text_job({"enabled": True, **given}, prompt="a [castle:tower:2] on a hill, red sky")
    assert far(host.run(p)[0], expected) <= 1
    assert not p.scripts.reports
