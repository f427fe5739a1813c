"""ControlNet's units in a job: their hints lie over the whole picture, and everything is given back."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.double.jobs import ON, far, pixels
from tests.host.double.model import Model

pytestmark = pytest.mark.usefixtures("settings_page")

PLAIN = {**ON, "colour_fix": 0.0}  # its colours would be the smaller picture's


@pytest.fixture
def controlnet(host):
    import importlib

    from tests.host.double import controlnet

    return importlib.reload(controlnet)  # against this host's modules


def blobs(size=(128, 128), seed=0):
    """A hint that is no repetition of itself at any scale."""
    rough = np.random.default_rng(seed).random((size[1] // 16, size[0] // 16)) * 255
    return Image.fromarray(rough.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def follows(made, plain, hint, window=64):
    """Correlation of what the hint has changed with the hint, and with the hint shrunk into every window: of latent pixels, which are 8 x 8."""

    def latent(picture):
        return picture.reshape(picture.shape[0] // 8, 8, -1, 8).mean((1, 3))

    small = np.asarray(hint.resize((window, window), Image.Resampling.BOX).convert("L"), dtype=float)
    tiled = np.tile(small, (-(-made.height // window), -(-made.width // window)))[: made.height, : made.width]
    change, whole = (pixels(made) - pixels(plain)).mean(-1), np.asarray(hint.convert("L"), dtype=float)
    return [np.corrcoef(latent(change).ravel(), latent(other).ravel())[0, 1] for other in (whole, tiled)]


@pytest.fixture
def run(host, job_of_kind, controlnet):
    """Job with these units -> (its pictures, ControlNet's script)."""

    def run(kind, *units, asked=PLAIN, **given):
        p = job_of_kind(kind, asked, **given)
        script = controlnet.with_units(p, *units)
        made = host.run(p)
        assert not p.scripts.reports
        assert script.latest_network is None
        return made, script

    return run


def plain(host, job_of_kind, kind, asked=PLAIN, **given):
    return host.run(job_of_kind(kind, asked, **given))


SIZES = [(2, (64, 64)), (4, (64, 64)), (2, (96, 64)), (3, (64, 96))]


@pytest.mark.parametrize(("scale", "first"), SIZES)
@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("unit", ["ControlNet", "T2I_Adapter", "InstantID"])
def test_the_picture_follows_the_hint_and_not_the_shrunk_one(host, job_of_kind, run, kind, scale, first, unit):
    target = (first[0] * scale, first[1] * scale)
    given = {"width": first[0], "height": first[1], "hr_scale": scale} if kind == "text" else {"width": target[0], "height": target[1]}
    hint = blobs(target)
    (made,), _ = run(kind, (hint, unit, {"passes": "high"} if kind == "text" else {}), **given)
    whole, shrunk = follows(made, plain(host, job_of_kind, kind, **given)[0], hint)
    assert made.size == target
    assert whole > 0.85
    assert shrunk < 0.15


def test_lite_units_follow_it_in_img2img_and_stay_out_of_the_hires_pass_as_the_extension_has_it(host, job_of_kind, run):
    hint = blobs()
    (made,), _ = run("picture", (hint, "Controlllite", {}))
    assert follows(made, plain(host, job_of_kind, "picture")[0], hint)[0] > 0.85
    (low,), _ = run("text", (hint, "Controlllite", {}))
    (only,), _ = run("text", (hint, "ControlNet", {"passes": "low"}))
    assert far(low, only) <= 1


UNITS = [("ControlNet", {}), ("T2I_Adapter", {}), ("ControlNet", {"name": "tile_colorfix"}), ("AttentionInjection", {}), ("IPAdapter", {})]


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("unit", UNITS)
def test_any_window_batch_and_prompts_together_or_apart_make_the_same_picture(host, job_of_kind, run, kind, unit):
    units = [(blobs(), *unit)]
    made = [run(kind, *units, asked={**PLAIN, "window_batch": n})[0][0] for n in (1, 16)]
    host.shared.opts.batch_cond_uncond = False
    apart = run(kind, *units)[0][0]
    assert far(*made) <= 1
    # With prompts apart, the extension itself gives the negative prompt of a first pass what an adapter has made for the prompt.
    assert far(made[0], apart) <= 1 or (kind, unit[0]) == ("text", "IPAdapter")
    assert far(made[0], plain(host, job_of_kind, kind)[0]) > 0


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_batch_is_what_its_pictures_are_alone(run, kind):
    units = [(blobs(), "ControlNet", {"cfg": True}), (blobs(seed=1), "T2I_Adapter", {"weight": 0.5})]
    together, _ = run(kind, *units, batch_size=2)
    alone = [run(kind, *units, seed=seed)[0][0] for seed in (11, 12)]
    assert far(*alone) > 5
    assert [far(*pair) <= 1 for pair in zip(together, alone, strict=True)] == [True, True]


def test_of_a_hires_job_the_first_pass_sees_the_small_hint(run):
    _, script = run("text", (blobs(), "ControlNet", {}))
    shapes = {tuple(hint.shape[-2:]) for hint, _, _ in script.used[0].seen}
    assert shapes == {(64, 64)}  # of the first pass, and of windows
    hires = [hint for hint, _, rows in script.used[0].seen if rows > 2]
    assert all(len(hint) == rows for hint, _, rows in script.used[0].seen if rows > 2)
    assert hires


def test_a_unit_for_the_first_pass_alone_stays_out_of_the_phases(host, job_of_kind, run):
    hint = blobs()
    (low,), _ = run("text", (hint, "ControlNet", {"passes": "low"}))
    (both,), _ = run("text", (hint, "ControlNet", {}))
    assert far(low, both) > 5


def test_a_mask_keeps_a_unit_to_its_region(host, job_of_kind, run):
    region = torch.zeros(1, 1, 64, 64)
    region[..., :, 32:] = 1
    asked = {**PLAIN, "method": "multidiffusion"}  # nothing that moves the whole picture's brightness
    (made,), _ = run("picture", (Image.new("RGB", (128, 128), "white"), "ControlNet", {"region": region}), asked=asked)
    change = np.abs(pixels(made) - pixels(plain(host, job_of_kind, "picture", asked)[0])).mean(-1)
    assert change[:, 96:].mean() > 5 * change[:, :32].mean() + 1


def test_guidance_alone_is_controlled_by_an_adapter_one_view_at_a_time(host, run):
    _, script = run("picture", (blobs(), "T2I_Adapter", {"cfg": True}))
    assert {rows for _, _, rows in script.used[0].seen} == {2}


def test_units_for_one_picture_each_are_counted_by_rows(host, job_of_kind, controlnet):
    p = job_of_kind("picture", PLAIN, batch_size=2)
    script = controlnet.with_units(p, (blobs(), "ControlNet", {}))
    script.ui_batch_option_state = ["Each ControlNet unit for each image in a batch", False]
    host.run(p)
    assert {rows for _, _, rows in script.used[0].seen} == {4}


@pytest.mark.parametrize("unit", [("AttentionInjection", {}), ("ControlNet", {"pooled": True})])
def test_what_has_no_place_in_the_picture_is_shown_whole_to_every_view(run, unit):
    hint = blobs()
    _, script = run("picture", (hint, *unit))
    whole = torch.from_numpy(np.asarray(hint.resize((64, 64), Image.Resampling.BOX).convert("L"), dtype=np.float32) / 255)
    for seen, latent, rows in script.used[0].seen:
        assert seen.shape == (1, 3, 64, 64)
        torch.testing.assert_close(seen[0, 0], whole, atol=0.01, rtol=0)
        assert latent is None or len(latent) == rows


@pytest.mark.parametrize("kind", ["IPAdapter", "ReVision", "T2I_StyleAdapter"])
def test_the_picture_of_what_acts_without_a_place_is_left_alone(run, kind):
    _, script = run("picture", (blobs(), kind, {}))
    assert {tuple(hint.shape[-2:]) for hint, _, _ in script.used[0].seen} == {(128, 128)}


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_nothing_that_an_adapter_made_for_windows_is_left_for_another_pass(host, job_of_kind, controlnet, kind):
    p = job_of_kind(kind, PLAIN)
    script = controlnet.with_units(p, (blobs(), "IPAdapter", {}))
    left = []
    script.postprocess = lambda p, processed: left.extend(param.control_model.cache for param in script.latest_network.control_params)
    host.run(p)
    assert left == [{}]


def test_in_a_hires_pass_an_adapter_acts_for_the_prompt_alone_and_the_host_s_prompts_stay_what_they_are(host, job_of_kind, controlnet, monkeypatch):
    act, marks, given = controlnet.PlugableIPAdapter.forward, [], []
    monkeypatch.setattr(controlnet.PlugableIPAdapter, "forward", lambda self, x, mark: marks.append(float(mark.mean())) or act(self, x, mark))
    p = job_of_kind("text", PLAIN)
    tell = p.tell_scripts
    p.tell_scripts = lambda x, noise, c, uc: given.append((c, uc)) or tell(x, noise, c, uc)
    controlnet.with_units(p, (blobs(), "IPAdapter", {}))
    host.run(p)
    assert set(marks) == {0.5}
    conds = [[uc, *(one.cond for parts in c.batch for part in parts for one in part.schedules)] for c, uc in given]
    marked = [{controlnet.prompt_context_is_marked(cond) for cond in of_pass} for of_pass in conds]
    assert marked == [{True}, {False}]


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize(("steps", "inside"), [((0.0, 0.4), {0.0, 0.4}), ((0.5, 1.0), {0.5, 0.8})])
def test_start_and_end_count_within_every_phase(host, job_of_kind, run, kind, steps, inside):
    """Of ten steps; a hires job has a first pass before its two phases."""
    asked, hint = {**PLAIN, "phases": "progressive"}, blobs((192, 192))
    given = {"steps": 10, "denoising_strength": 0.99} | ({"hr_scale": 3, "hr_second_pass_steps": 10} if kind == "text" else {"width": 192, "height": 192})
    (made,), script = run(kind, (hint, "ControlNet", {"steps": steps}), asked=asked, **given)
    shares = [round(share, 3) for share in script.used[0].acted]
    passes = 1 + sum(after < before for before, after in pairwise(shares))
    assert passes == (3 if kind == "text" else 2)
    assert {min(shares), max(shares)} == inside
    (always,), _ = run(kind, (hint, "ControlNet", {}), asked=asked, **given)
    assert min(far(made, always), far(made, plain(host, job_of_kind, kind, asked, **given)[0])) > 2


def test_an_encoded_hint_is_encoded_once_a_phase_and_cut_like_the_latent(host, job_of_kind, run, monkeypatch):
    encoded, asked = [], {**PLAIN, "method": "multidiffusion"}
    encode = host.model.encode_first_stage
    monkeypatch.setattr(host.model, "encode_first_stage", lambda pixels: encoded.append(tuple(pixels.shape)) or encode(pixels))
    plain(host, job_of_kind, "picture", asked)
    without = len(encoded)
    _, script = run("picture", (blobs(), "ControlNet", {"name": "tile_colorfix"}), asked=asked)
    assert len(encoded) - without == without + 1
    assert encoded.count((1, 3, 128, 128)) > 1
    for hint, latent, rows in script.used[0].seen:
        assert len(latent) == rows
        torch.testing.assert_close(latent, host.model.first_stage_model.encoder(hint * 2 - 1).repeat(rows // len(hint), 1, 1, 1))


def test_windows_with_prompts_of_their_own_keep_controlnets_mark(run):
    asked = {**PLAIN, "method": "accdiffusion", "word_threshold": 0.9}
    for kind in ("text", "picture"):
        (made,), _ = run(kind, (blobs(), "ControlNet", {}), asked=asked, prompt="a leaf over water, reeds")
        assert made.size == (128, 128)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_units_have_their_own_hints_back(host, job_of_kind, controlnet, kind):
    p = job_of_kind(kind, PLAIN)
    units = [(blobs(), name, {}) for name in ("ControlNet", "T2I_Adapter", "Controlllite", "AttentionInjection")]
    script = controlnet.with_units(p, *units)
    before, after = [], []

    def state():
        params = script.latest_network.control_params
        return [(param.hint_cond, param.hr_hint_cond, param.effective_region_mask) for param in params] + [
            module.cond_image for module in params[2].control_model.modules.values()
        ]

    begin = p.scripts.process
    p.scripts.process = lambda p: (begin(p), before.extend(state()))
    script.postprocess = lambda p, processed: after.extend(state())
    host.run(p)
    flat = [[item for part in states for item in (part if isinstance(part, tuple) else (part,))] for states in (before, after)]
    assert len(flat[0]) == 13
    assert all(one is other for one, other in zip(*flat, strict=True))


def hooked(host):
    return "_original_forward" in vars(host.model.model.diffusion_model)


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("how", ["success", "seamless", "interrupt", "error", "memory", "refusal", "wrong request"])
def test_the_next_ordinary_job_is_the_same_to_the_bit(host, job_of_kind, controlnet, kind, how):
    ordinary = job_of_kind(kind)
    ordinary.scripts = None
    before = host.run(ordinary)[0]
    asked = {**PLAIN, **{"wrong request": {"method": "no such"}, "refusal": {"window": "33x33"}}.get(how, {})}
    p = job_of_kind(kind, asked, tiling=how == "seamless")
    controlnet.with_units(p, (blobs(), "ControlNet", {}), (blobs(), "T2I_Adapter", {}))
    calls = []

    def trouble():
        calls.append(1)
        if len(calls) < 8 or how in ("success", "seamless", "refusal", "wrong request"):
            return
        if how == "interrupt":
            host.shared.state.interrupted = True
        elif how == "error":
            raise ValueError("a broken model")
        elif len(calls) == 8:
            raise RuntimeError("CUDA out of memory")

    host.model.on_call = trouble
    if how in ("success", "seamless", "interrupt", "memory"):
        assert host.run(p)
    else:
        with pytest.raises(ValueError, match=r"broken model|does not fit|no such"):
            host.run(p)
    host.model.on_call = lambda: None
    assert not hooked(host)
    ordinary = job_of_kind(kind)
    ordinary.scripts = None
    assert far(host.run(ordinary)[0], before) == 0


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_units_act_in_phases_after_a_refiner_of_another_kind(host, job_of_kind, controlnet, kind):
    other, refiner = Model("base"), Model("refiner")
    host.sd_models.known["refiner"] = refiner
    refiner.on_call = lambda: host.sd_models.known.update(base=other)  # in the network that is made anew
    phases = []
    host.model.on_call = other.on_call = lambda: phases.append((host.shared.state.textinfo or "in the first pass").split()[2])
    size = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    given = {**size, "steps": 8, "refiner_checkpoint_info": "refiner", "refiner_switch_at": 0.4}
    units = [(blobs((192, 192)), name, {}) for name in ("ControlNet", "Controlllite")]
    p = job_of_kind(kind, {**PLAIN, "phases": "progressive"}, **given)
    script = controlnet.with_units(p, *units)
    assert host.run(p)[0].size == (192, 192)
    assert {"1/2", "2/2"} <= set(phases)
    assert len(script.used[0].seen) == len(units) * len(phases)
    assert not any("_original_forward" in vars(one.model.diffusion_model) for one in (host.model, other))
    assert any("type Controlllite acted before it alone" in comment for comment in p.comments)


def refused(host, job_of_kind, controlnet, match, *units, change=None):
    p = job_of_kind("picture", PLAIN)
    script = controlnet.with_units(p, *units)
    process = script.process
    script.process = lambda p: (process(p), change and change(script))
    calls = len(host.model.calls)
    with pytest.raises(ValueError, match=match):
        host.run(p)
    assert len(host.model.calls) == calls
    assert not hooked(host)


def test_what_cannot_be_cut_is_refused_before_sampling(host, job_of_kind, controlnet):
    def refuse(match, *units, change=None):
        refused(host, job_of_kind, controlnet, match, *units, change=change)

    def frames(script):
        param = script.latest_network.control_params[0]
        param.hint_cond = torch.cat([param.hint_cond] * 2)

    unit = (blobs(), "ControlNet", {})
    refuse("'MasaCtrl' cannot be cut to windows; turn that unit off", (blobs(), "MasaCtrl", {}))
    refuse("several pictures for one", unit, change=frames)
    refuse("take its region mask away", (blobs(), "IPAdapter", {"region": torch.ones(1, 1, 8, 8)}))


def test_another_version_of_the_extension_is_refused_in_words(host, job_of_kind, controlnet):
    unit = (blobs(), "ControlNet", {})

    def without_hr(script):
        del script.latest_network.control_params[0].hr_hint_cond

    def renamed(script):
        del script.latest_network.control_params

    refused(host, job_of_kind, controlnet, "its units have no hr_hint_cond.*use version", unit, change=without_hr)
    refused(host, job_of_kind, controlnet, "its hook has no control_params", unit, change=renamed)


def test_a_job_without_units_is_what_it_was(host, job_of_kind, run):
    made, _ = run("picture")
    assert far(made[0], plain(host, job_of_kind, "picture")[0]) == 0


@pytest.mark.parametrize(("width", "kind", "said"), [(0.25, "picture", True), (4.0, "picture", True), (0.0, "picture", False), (0.25, "text", False)])
def test_where_the_colour_fix_undoes_what_a_unit_does_to_brightness_that_is_said(host, job_of_kind, controlnet, width, kind, said):
    p = job_of_kind(kind, ON | {"colour_fix": width})
    controlnet.with_units(p, (blobs(), "ControlNet", {}))
    host.run(p)
    assert (host.job.COLOURS_KEPT in p.comments) == said
    q = job_of_kind(kind, ON | {"colour_fix": width})
    host.run(q)
    assert host.job.COLOURS_KEPT not in q.comments
