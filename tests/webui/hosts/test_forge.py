"""On Forge the same job gives the picture that it gives on 1.10.1, and the host has everything back afterwards."""

from functools import wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.contract_forge import SCHEDULES_READ
from tests.host.double.jobs import ON, far, pixels
from tests.host.double.model import MIX, Model
from tests.host.forge import become_forge, forged, neo_s_passes
from tests.host.forge.backend import FREE, UnetPatcher

pytestmark = pytest.mark.usefixtures("settings_page")
PROMPT = "a butterfly, on (red:1.3) flowers AND the sky : 0.5"
METHODS = ["demofusion", "accdiffusion", "multidiffusion"]


@pytest.fixture(autouse=True)
def memory():
    FREE.rows, FREE.asked = 1_000_000, []


@pytest.fixture
def forge(host, tmp_path, monkeypatch):
    """The double, as Forge from now on when called; `package` says which of its kin."""
    return lambda package="backend": become_forge(host, tmp_path, monkeypatch, package)


@pytest.fixture
def on_both(host, forge, job_of_kind):
    """Job -> its pictures on 1.10.1, and its pictures on Forge."""

    def run(kind, *args, package="backend", **given):
        def once():
            host.model.calls.clear()
            p = job_of_kind(kind, *args, **given)
            made = host.run(p)
            assert not p.scripts.reports
            return made, sum(shape[0] for shape in host.model.calls), p

        first = once()
        forge(package)
        return first, once()

    return run


def claims(p):
    return {name: value for name, value in p.extra_generation_params.items() if name.startswith("APT")}


def nothing_left(host, samplers):
    for sampler in samplers:
        assert type(sampler.model_wrap_cfg).__module__.startswith("modules.")
        assert not {name for name in vars(sampler.model_wrap_cfg) if name.startswith("apt")}
    for objects in (host.model.forge_objects, host.model.forge_objects_after_applying_lora):
        assert "model_function_wrapper" not in objects.unet.model_options
        assert not vars(objects.unet).keys() & {"apt_own"}


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


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_the_refiner_s_model_gets_the_engine_too(host, samplers, forge, job_of_kind, kind):
    forge()
    refiner = forged(Model("refiner", width=3))
    host.sd_models.known["refiner"] = refiner
    given = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    p = job_of_kind(kind, {"phases": "progressive"}, steps=8, refiner_checkpoint_info="refiner", refiner_switch_at=0.4, **given)
    (made,) = host.run(p)
    assert made.size == (192, 192)
    assert refiner.calls
    assert {shape[-2:] for shape in refiner.calls} == {(8, 8)}
    assert not p.scripts.reports
    nothing_left(host, samplers)
    assert "model_function_wrapper" not in refiner.forge_objects.unet.model_options


class Unit:
    """One of Forge's ControlNet units: what it is shown is added to the estimate."""

    told_options = global_average_pooling = False
    advanced_mask_weighting = advanced_frame_weighting = None

    def __init__(self, hint, previous=None):
        self.cond_hint_original, self.cond_hint, self.previous_controlnet, self.transformer_options = hint, None, previous, {}
        self.ran, self.shown = [], []

    def pre_run(self, model, percent_to_timestep_function):
        self.ran.append("begin")

    def cleanup(self):
        self.ran.append("end")
        self.cond_hint = None

    def get_control(self, x_noisy, t, cond, batched_number):
        if self.cond_hint is None or self.cond_hint.shape[-1] != 8 * x_noisy.shape[-1]:
            self.cond_hint = torch.nn.functional.interpolate(self.cond_hint_original, scale_factor=x_noisy.shape[-1] * 8 / self.cond_hint_original.shape[-1])
        assert len(self.transformer_options["cond_mark"]) == len(x_noisy)
        self.shown.append(tuple(self.cond_hint.shape))
        before = 0 if self.previous_controlnet is None else self.previous_controlnet.get_control(x_noisy, t, cond, batched_number)
        return before + 0.1 * torch.nn.functional.avg_pool2d(self.cond_hint, 8).mean(1, keepdim=True) * MIX.sum(1)[:, None, None]


class Newer(Unit):
    """One of reForge's, which is told the options of its call."""

    told_options = True

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):  # type: ignore[override]
        self.transformer_options = transformer_options
        if self.previous_controlnet is not None:
            self.previous_controlnet.transformer_options = transformer_options
        return super().get_control(x_noisy, t, cond, batched_number)


def blobs(size=128, seed=0):
    rough = torch.rand(1, 3, size // 16, size // 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, (size, size), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize(("package", "kind_of_unit"), [("backend", Unit), ("ldm_patched", Newer)])
@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("method", ["multidiffusion", "demofusion"])
def test_control_follows_the_hint_over_the_whole_picture(host, forge, job_of_kind, kind, method, package, kind_of_unit, monkeypatch):
    forge(package)
    settings = {"method": method, "colour_fix": 0.0}
    plain = host.run(job_of_kind(kind, settings))[0]
    unit = kind_of_unit(blobs(), previous=Unit(blobs(seed=1) * 0))
    host.model.forge_objects_after_applying_lora.unet.controlnet_linked_list = unit
    if kind == "text":  # not in the first pass
        get = unit.get_control
        monkeypatch.setattr(unit, "get_control", wraps(get)(lambda x, *args: get(x, *args) if host.shared.state.textinfo else x[:, :1] * 0))
    made = host.run(job_of_kind(kind, settings))[0]

    def of_latent(values):
        return values.reshape(16, 8, 16, 8, -1).mean((1, 3, 4))

    ends = np.isin(pixels(made), (0, 255)) | np.isin(pixels(plain), (0, 255))
    seen = of_latent(ends.astype(float)) == 0  # where no pixel is cut off at black or white
    assert seen.sum() > 64
    change = of_latent(pixels(made) - pixels(plain))[seen]

    def follows(hint):
        return np.corrcoef(change, of_latent(hint.mean(1)[0].numpy())[seen])[0, 1]

    assert follows(blobs()) > 0.9
    assert follows(torch.nn.functional.interpolate(blobs(), (64, 64), mode="area").tile(1, 1, 2, 2)) < 0.3
    assert {shape[-2:] for shape in unit.shown if shape[-1] != 128} == {(64, 64)}
    assert unit.ran.count("begin") == unit.ran.count("end") == (2 if kind == "text" else 1)
    assert unit.cond_hint is None


@pytest.mark.parametrize("of_latents", [{"cond_hint_original": None}, {"latent_format": object()}, {"extra_concat_orig": [blobs()]}])
def test_units_whose_hint_is_no_picture_are_refused_in_a_sentence(host, forge, of_latents):
    forge()
    unit = Newer(blobs())
    vars(unit).update(of_latents)
    host.model.forge_objects.unet.controlnet_linked_list = unit
    with pytest.raises(ValueError, match="a ControlNet unit of the kind Newer cannot be cut to windows; turn that unit off"):
        host.detect.host().control_of(None)


def test_sdxl_is_told_every_window_s_corner(host, forge):
    forge()
    host.model.is_sdxl, host.model.embedder = True, lambda n: n[:, None].expand(-1, 256)
    embed = host.detect.host().crop_embedding(host.model)
    assert embed(torch.tensor([[3.0, 5.0], [7.0, 9.0]])).tolist() == [[3.0] * 256 + [5.0] * 256, [7.0] * 256 + [9.0] * 256]


@pytest.mark.parametrize(("marks", "family"), [({}, "sd1"), ({"is_sd2": True}, "sd2"), ({"is_sd2": True}, "sd2v"), ({"is_sdxl": True}, "sdxl")])
def test_families(host, forge, monkeypatch, marks, family):
    forge()
    for name, value in marks.items():
        monkeypatch.setattr(host.model, name, value)
    if family == "sd2v":
        monkeypatch.setattr(host.model.forge_objects.unet.model.predictor, "prediction_type", "v_prediction")
    assert host.checkpoint.family_of(host.model) == family


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_model_that_is_not_known_is_refused_in_a_sentence(host, forge, job_of_kind, kind):
    forge()
    host.model.is_sd1 = False
    with pytest.raises(host.adapter("errors").APTError, match=r"Model checkpoints are not supported yet; choose an SD 1\.x, SD 2\.x, SDXL, SD3 or Flux"):
        host.run(job_of_kind(kind))
    assert not host.model.calls


def test_a_sampler_that_is_another_one_there_is_refused_in_a_sentence(host, forge, job_of_kind, monkeypatch):
    """Neo's UniPC goes by noise levels."""
    forge()
    monkeypatch.delattr(host.sd_samplers_timesteps.CompVisSampler, "get_timesteps")
    asked = {"enabled": True, "method": "multidiffusion", "skip_residual": False}
    with pytest.raises(host.adapter("errors").APTError, match="sampler 'unipc' is not one that this version knows; use Euler a"):
        host.run(job_of_kind("picture", asked, sampler_name="unipc", steps=6))
    assert not host.model.calls


def test_sd3_is_refused_by_those_that_keep_1_10_1_s_checkpoints(host, forge):
    forge("ldm_patched")
    host.model.is_sd3 = True
    with pytest.raises(host.adapter("errors").APTError, match=r"SD3 checkpoints are not supported yet; choose an SD 1\.x, SD 2\.x or SDXL checkpoint"):
        host.run(host.text_job(ON))


def test_a_copy_of_the_units_list_of_options_copies_no_engine(host, forge):
    forge()
    sampler = host.sd_samplers.create_sampler("euler", host.model)
    run = SimpleNamespace(begin=lambda x, t: None, wrap=lambda model: model, end=lambda x, t, out: out)
    with host.adapter("forge_seam").fused_inside(sampler.model_wrap_cfg, run):
        unet = host.model.forge_objects.unet
        copied = unet.clone()
        assert isinstance(copied, UnetPatcher)
        assert copied.model_options["model_function_wrapper"] is unet.model_options["model_function_wrapper"]


def test_before_the_first_job_there_is_no_checkpoint(host, forge, monkeypatch):
    forge()
    assert host.detect.host().loaded() is host.model
    monkeypatch.setattr(host.sd_models.model_data, "sd_model", SimpleNamespace(cond_stage_model=None))
    assert host.detect.host().loaded() is None


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


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_tiling_that_the_host_does_not_do_is_refused_in_a_sentence(host, forge, monkeypatch, job_of_kind, kind):
    forge()
    monkeypatch.setattr(host.sd_hijack.model_hijack, "apply_circular", lambda on: None)
    with pytest.raises(host.adapter("errors").APTError, match="Tiling is on, but this host has left the checkpoint as it is"):
        host.run(job_of_kind(kind, tiling=True))
    assert not host.model.calls


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


@pytest.mark.parametrize("package", ["backend", "ldm_patched"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_every_phase_begins_with_what_the_pass_has_put_on_its_own_checkpoint(host, forge, job_of_kind, monkeypatch, kind, package):
    """Networks, ControlNet's units and other extensions' functions, after the refiner too, which the host gives its networks alone."""
    forge(package)
    refiner, unit, seen = forged(Model("refiner", width=3)), Unit(blobs(192)), []
    host.sd_models.known["refiner"] = refiner
    for model in (host.model, refiner):
        monkeypatch.setattr(model, "on_call", lambda model=model: seen.append([host.shared.state.textinfo, model.sd_checkpoint_info, model.strength]))
    get = unit.get_control

    def theirs(apply, args):
        made = apply(args["input"], args["timestep"], **args["c"])
        seen[-1] += ["unit" if "control" in args["c"] else "", "function"]
        return made

    monkeypatch.setattr(unit, "get_control", wraps(get)(lambda x, *args: get(x, *args) if host.shared.state.textinfo else x[:, :1] * 0))
    tell = host.processing.StableDiffusionProcessing.tell_scripts

    def attach(self, *args, **kwargs):
        """As an extension does before a pass, and the engine after it."""
        run = self.scripts.process_before_every_sampling

        def process_before_every_sampling(**given):
            unet = host.shared.sd_model.forge_objects.unet = host.shared.sd_model.forge_objects.unet.clone()
            unet.controlnet_linked_list = unit
            unet.set_model_unet_function_wrapper(theirs)
            run(**given)

        self.scripts.process_before_every_sampling = process_before_every_sampling
        tell(self, *args, **kwargs)
        self.scripts.process_before_every_sampling = run

    monkeypatch.setattr(host.processing.StableDiffusionProcessing, "tell_scripts", attach)
    given = {"hr_scale": 3.0, "hr_prompt": "a leaf <lora:0.2>"} if kind == "text" else {"width": 192, "height": 192}
    p = job_of_kind(kind, {"phases": "progressive"}, prompt="a leaf <lora:0.1>", steps=8, refiner_checkpoint_info="refiner", refiner_switch_at=0.4, **given)
    host.run(p)
    of_pass = [("base", 0.2 if kind == "text" else 0.1, "unit", "function"), ("refiner", 0.1)]
    found = [(text.split()[2], *rest) for text, *rest in seen if text]
    assert [one for index, one in enumerate(found) if index == 0 or one != found[index - 1]] == [(phase, *one) for phase in ("1/2", "2/2") for one in of_pass]
    assert p.extra_network_data == {"lora": [0.1]}


@pytest.mark.parametrize("package", [None, "backend", "ldm_patched"])
def test_a_checkpoint_that_is_made_anew_is_the_one_that_the_sampler_prepares(host, forge, package):
    if package:
        forge(package)
    sampler = host.sd_samplers.create_sampler("euler", host.model)
    first = host.detect.host().first_checkpoint(SimpleNamespace(disable_extra_networks=True), sampler.model_wrap_cfg)
    host.sd_models.known |= {"refiner": forged(Model("refiner")), "base": forged(Model("base"))}
    host.sd_models.reload_model_weights(info="refiner")
    first.restore()
    assert host.shared.sd_model is host.sd_models.known["base"] is not host.model
    assert sampler.model_wrap is sampler.model_wrap_cfg.model_wrap
    assert sampler.model_wrap.inner_model is host.shared.sd_model
