"""Units of sd-webui-controlnet, asked of a running WebUI that has the extension.

WEBUI_CONTROL, WEBUI_CONTROL_ADAPTER and WEBUI_CONTROL_LITE name a ControlNet, a T2I-Adapter and a ControlLLLite that brighten the picture where their
control picture is bright; random weights will do for the rest of them. With CONTROL_TABLE=docs/control.md what was measured is written into its row there;
rows of another family than SD 1.x begin with what CONTROL_ROWS says, such as "SDXL, ".
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.acceptance.conftest import SIDE, apt, encoded
from tests.acceptance.control import BARS, KINDS, UNITS, Bar
from tests.ways_table import put_rows

MODELS = {"ControlNet": "WEBUI_CONTROL", "T2I-Adapter": "WEBUI_CONTROL_ADAPTER", "ControlLLLite": "WEBUI_CONTROL_LITE"}
PLAIN = {"colour_fix": 0.0}  # its colours would be the smaller picture's
LEAST, MOST = 0.85, 0.15  # correlation with the whole control picture, and with the one shrunk into every window


class Found(NamedTuple):
    """Correlations of what a unit changes with its control picture, with that shrunk into every window, and those of the host alone with the former."""

    whole: float
    shrunk: float
    alone: float

    def line(self, what):
        figures = ("" if np.isnan(value) else f"{value:.2f}" for value in self)
        return f"| {what} | {' | '.join(figures)} |"


def note(what, found):
    if page := os.environ.get("CONTROL_TABLE"):
        put_rows(Path(page), {os.environ.get("CONTROL_ROWS", "") + what: found})


@pytest.fixture(scope="module")
def ordinary(webui):
    """Jobs without APT and units, which must come out the same ever after."""

    def jobs():
        return webui.txt2img(steps=2), webui.img2img(blobs((SIDE, SIDE), 9), steps=2, width=SIDE, height=SIDE)

    before = jobs()
    return lambda: [np.abs(np.asarray(now.picture(), int) - np.asarray(then.picture(), int)).max() for now, then in zip(jobs(), before, strict=True)]


@pytest.fixture(autouse=True)
def nothing_left_behind(ordinary):
    yield
    assert ordinary() == [0, 0], "an ordinary job after this one differs from the one before"


def blobs(size, seed=0):
    """A control picture that is hardly a repetition of itself."""
    return min((_blobs(size, 10 * seed + one) for one in range(10)), key=lambda picture: abs(alike(lightness(picture), shrunk(picture))))


def _blobs(size, seed):
    rough = np.random.default_rng(seed).random((round(size[1] / 32), round(size[0] / 32)))
    fine = np.asarray(Image.fromarray((rough * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC), float)
    return Image.fromarray(((fine - fine.min()) / np.ptp(fine) * 255).astype(np.uint8)).convert("RGB")


def lightness(picture):
    return np.asarray(picture.convert("RGB"), float).mean(-1)


def coarse(values):
    """Of latent pixels, which are 8 x 8."""
    return values.reshape(values.shape[0] // 8, 8, -1, 8).mean((1, 3))


def alike(one, other):
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def beyond(change, there, tiled):
    """Correlation of a change with what the shrunk picture has beyond the whole one, for pictures that are a little like themselves."""
    own = alike(there, tiled)
    return (alike(change, tiled) - alike(change, there) * own) / (1 - own**2) ** 0.5


def shrunk(picture):
    """The whole of it, as if it stood in every window."""
    small, (width, height) = lightness(picture.resize((SIDE, SIDE), Image.Resampling.BOX)), picture.size
    return np.tile(small, (-(-height // SIDE), -(-width // SIDE)))[:height, :width]


@pytest.fixture(scope="module")
def unit():
    """(type, control picture or None, what differs) -> a unit as the API has it; skips where no such model is named."""

    def unit(kind, hint, **given):
        model = os.environ.get(MODELS[kind])
        if not model:
            pytest.skip(f"needs a WebUI with sd-webui-controlnet and a {kind} that brightens, named by {MODELS[kind]}")
        own = {"enabled": True, "module": "none", "model": model, "weight": 2.0, "resize_mode": "Just Resize", "save_detected_map": False}
        return own | ({} if hint is None else {"image": encoded(hint)}) | given

    return unit


@pytest.fixture(scope="module")
def run(webui):
    """(txt2img's hires pass or img2img, scale, size of the smaller picture, units, APT's settings or None, what differs) -> the answer; each job once."""
    made = {}

    def once(*args, **given):
        key = repr((args, given))
        if key not in made:
            made[key] = run(*args, **given)
        return made[key]

    def run(kind, scale=2, first=(SIDE, SIDE), units=(), asked=PLAIN, scripts=None, **given):
        beside = ({} if asked is None else apt(**asked)) | ({"controlnet": {"args": list(units)}} if units else {}) | (scripts or {})
        if kind == "hires":
            size = {"width": first[0], "height": first[1], "hr_scale": scale, "hr_upscaler": webui.lanczos, "hr_second_pass_steps": 4}
            return webui.hires(**{"alwayson_scripts": beside, "denoising_strength": 0.4, "steps": 5} | size | given)
        size = {"width": first[0] * scale, "height": first[1] * scale}
        return webui.img2img(blobs(first, 7), **{"alwayson_scripts": beside, "denoising_strength": 0.5} | size | given)

    return once


def found(run, kind, scale, first, units, hint, **given):
    """What the units change with APT and without, beside their control picture."""
    change = {}
    for asked in (PLAIN, None):
        made, plain = run(kind, scale, first, units, asked, **given), run(kind, scale, first, (), asked, **given)
        assert made.picture().size == (first[0] * scale, first[1] * scale)
        change[asked is None] = lightness(made.picture()) - lightness(plain.picture())
    with_apt = change[False]
    return Found(alike(with_apt, lightness(hint)), alike(with_apt, shrunk(hint)), alike(change[True], lightness(hint))), change


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.what)
def test_the_picture_follows_the_control_picture_and_not_the_shrunk_one(run, unit, bar: Bar):
    first = (SIDE, SIDE) if bar.square else (SIDE * 3 // 2, SIDE)
    hint = blobs((first[0] * bar.scale, first[1] * bar.scale))
    made, _ = found(run, bar.kind, bar.scale, first, [unit(bar.unit, hint)], hint)
    note(bar.what, made)
    assert made.whole >= LEAST
    assert made.shrunk < MOST


@pytest.mark.parametrize("row", UNITS, ids=lambda row: row.what)
def test_every_field_of_a_unit_means_what_it_means_without_apt(run, unit, row):
    hint = blobs((2 * SIDE, 2 * SIDE))
    balanced, changed = [unit(row.unit, hint)], [unit(row.unit, hint, **row.given)] * row.times
    made, change = found(run, row.kind, 2, (SIDE, SIDE), changed, hint)
    note(row.what, made)
    assert made.whole >= LEAST
    assert made.shrunk < MOST
    _, full = found(run, row.kind, 2, (SIDE, SIDE), balanced, hint)
    shares = [np.abs(change[alone]).mean() / np.abs(full[alone]).mean() for alone in (False, True)]
    assert shares[0] == pytest.approx(shares[1], rel=0.35)


@pytest.mark.parametrize("kind", KINDS)
def test_low_vram_makes_the_same_picture_to_rounding(run, unit, kind):
    plain, low = (run(kind, units=[unit("ControlNet", blobs((2 * SIDE, 2 * SIDE)), **given)]) for given in ({}, {"low_vram": True}))
    assert np.abs(np.asarray(low.picture(), int) - np.asarray(plain.picture(), int)).max() <= 1
    assert not run(kind).same(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_any_window_batch_and_prompts_apart_make_the_same_picture(run, unit, kind):
    units = [unit("ControlNet", blobs((2 * SIDE, 2 * SIDE)), control_mode="ControlNet is more important", weight=1.0)]
    units += [unit("T2I-Adapter", blobs((2 * SIDE, 2 * SIDE), 1), weight=0.5)]
    made = [run(kind, units=units, asked=PLAIN | {"window_batch": batch}) for batch in (1, 16)]
    made += [run(kind, units=units, override_settings={"batch_cond_uncond": False})]
    assert max(np.abs(lightness(one.picture()) - lightness(made[0].picture())).max() for one in made) <= 1
    assert not made[0].same(run(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_several_units_act_together(run, unit, kind):
    hints = [blobs((2 * SIDE, 2 * SIDE), seed) for seed in (0, 1)]
    units = [unit("ControlNet", hints[0]), unit("T2I-Adapter", hints[1], weight=1.0)]
    change = lightness(run(kind, units=units).picture()) - lightness(run(kind).picture())
    parts = np.stack([np.ones(change.size), *(lightness(hint).ravel() for hint in hints)], 1)
    shares, *_ = np.linalg.lstsq(parts, change.ravel(), rcond=None)
    whole = alike(parts @ shares, change)
    small = max(abs(alike(change, shrunk(hint))) for hint in hints)
    note(f"{kind} 2x, ControlNet and T2I-Adapter, two control pictures", Found(whole, small, float("nan")))
    assert min(shares[1:]) > 0
    assert whole >= LEAST
    assert small < MOST


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_its_pictures_are_alone(run, unit, kind):
    units = [unit("ControlNet", blobs((2 * SIDE, 2 * SIDE))), unit("T2I-Adapter", blobs((2 * SIDE, 2 * SIDE), 1), weight=0.5)]
    together = run(kind, units=units, batch_size=2)
    assert len(together.images) >= 2
    for index in (0, 1):
        alone = run(kind, units=units, seed=11 + index).picture()
        assert np.abs(lightness(together.picture(index + len(together.images) - 2)) - lightness(alone)).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_pixel_perfect_edges_lie_where_the_preprocessor_found_them(run, unit, kind):
    """Of a control picture twice the target's size, which pixel perfect reads at the target's. In a hires pass the extension makes edges ten times weaker by
    itself, so there are three units alike, and the first pass is left alone."""
    sharp = blobs((4 * SIDE, 4 * SIDE)).point(lambda value: 255 * (value > 127))
    edged = {"module": "canny", "pixel_perfect": True, "threshold_a": 100, "threshold_b": 200, "hr_option": "High res only", "save_detected_map": True}
    units = [unit("ControlNet", sharp, **edged)] * (3 if kind == "hires" else 1)
    change = {}
    for asked in (PLAIN, None):
        made, plain = run(kind, units=units, asked=asked), run(kind, asked=asked)
        change[asked is None] = coarse(lightness(made.picture()) - lightness(plain.picture()))
    (edges, *_) = (one for at in range(1, len(made.images)) if (one := made.picture(at)).size == (2 * SIDE, 2 * SIDE))
    there, tiled = coarse(lightness(edges)), coarse(shrunk(edges))
    whole, alone, small = alike(change[False], there), alike(change[True], there), beyond(change[False], there, tiled)
    note(f"{kind} 2x, ControlNet, *canny* with pixel perfect", Found(whole, small, alone))
    assert whole >= min(LEAST, alone - 0.1)
    assert small < MOST


@pytest.fixture
def hole():
    """What an inpainting unit is to fill of a picture of twice the side: white, its right half but for a border."""
    mask = Image.new("RGB", (2 * SIDE, 2 * SIDE), "black")
    mask.paste("white", (SIDE, SIDE // 2, 2 * SIDE - 16, 2 * SIDE - 16))
    return mask


@pytest.mark.parametrize("kind", KINDS)
def test_an_inpainting_unit_sees_its_hole_where_it_lies(run, unit, kind, hole):
    given = blobs((2 * SIDE, 2 * SIDE))
    one = unit("ControlNet", given, module="inpaint", mask=encoded(hole))
    hidden = lightness(hole) > 127
    seen = Image.fromarray(np.where(hidden, 0, 128 + lightness(given) / 2).astype(np.uint8))  # what such a model is told: -1 in the hole, else 0 to 1
    made, _ = found(run, kind, 2, (SIDE, SIDE), [one], seen)
    note(f"{kind} 2x, ControlNet, *inpaint_global_harmonious*", made)
    assert made.whole >= LEAST
    assert made.shrunk < MOST


@pytest.mark.parametrize("kind", KINDS)
def test_inpaint_only_keeps_everything_but_its_hole(run, unit, kind, hole):
    given = blobs((2 * SIDE, 2 * SIDE), 3)
    one = unit("ControlNet", given, module="inpaint_only", mask=encoded(hole), weight=1.0)
    made = [run(kind, units=[one], asked=PLAIN | {"window_batch": batch}).picture() for batch in (1, 16)]
    assert np.abs(lightness(made[0]) - lightness(made[1])).max() <= 1
    grown = lightness(hole.filter(ImageFilter.MaxFilter(17))) > 0  # the extension blends over seven pixels
    assert np.abs(lightness(made[0]) - lightness(given))[~grown].max() <= 2
    assert np.abs(lightness(made[0]) - lightness(given))[lightness(hole) > 127].mean() > 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_inpainting_checkpoint_follows_a_unit_too(webui, run, unit, kind):
    names = [one["model_name"] for one in webui.call("/sdapi/v1/sd-models") if "inpaint" in one["model_name"]]
    if not names:
        pytest.skip("needs an inpainting checkpoint of the same family")
    hint = blobs((2 * SIDE, 2 * SIDE))
    made, _ = found(run, kind, 2, (SIDE, SIDE), [unit("ControlNet", hint)], hint, override_settings={"sd_model_checkpoint": names[0]})
    note(f"{kind} 2x, ControlNet, an inpainting checkpoint", made)
    assert made.whole >= LEAST
    assert made.shrunk < MOST


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("start", "end", "once"), [(0.0, 0.4, "10"), (0.5, 1.0, "01")])
def test_start_and_end_count_within_every_phase(webui, run, unit, kind, start, end, once):
    """At 4x there are two phases, and a hires job has its first pass before them."""
    if not any(one["name"] == "apt probe" for one in webui.call("/sdapi/v1/script-info")):
        pytest.skip("needs tests/acceptance/probe in the WebUI's extensions")
    one = unit("ControlNet", blobs((4 * SIDE, 4 * SIDE)), guidance_start=start, guidance_end=end)
    probe = {"APT probe": {"args": [{"control": True}]}}
    text = run(kind, 4, units=[one], scripts=probe, **({"steps": 10} if kind == "img2img" else {})).text
    (acts,) = (part.removeprefix("Probe control: acts ") for part in text.split(", ") if part.startswith("Probe control"))
    assert acts == once * (3 if kind == "hires" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lite_unit_acts_as_without_apt(webui, run, unit, kind):
    """Queries of attention do not brighten: it is where, not how much. The extension leaves these units out of every hires pass."""
    hint = Image.new("RGB", (2 * SIDE, 2 * SIDE), "black")
    for left, top, right, bottom in ((0, 0, 40, 40), (70, 30, 110, 70), (20, 90, 60, 120)):
        hint.paste("white", (left * SIDE // 64, top * SIDE // 64, right * SIDE // 64, bottom * SIDE // 64))
    one = unit("ControlLLLite", hint, weight=1.0)
    named = os.environ.get("WEBUI_CONTROL_LITE_CHECKPOINT")  # one whose attention is not nil
    _, change = found(run, kind, 2, (SIDE, SIDE), [one], hint, override_settings={"sd_model_checkpoint": named} if named else {})
    ours, alone = (alike(coarse(np.abs(change[host])), coarse(lightness(hint))) for host in (False, True))
    note(f"{kind} 2x, ControlLLLite, where it acts", Found(ours, alike(coarse(np.abs(change[False])), coarse(shrunk(hint))), alone))
    if kind == "img2img":
        assert ours >= alone - 0.1
        assert np.abs(change[False]).max() > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_control_pictures_is_enlarged_picture_by_picture(run, unit, kind, tmp_path):
    """The extension goes through the host's job once for each file; the folder has to be on the WebUI's machine."""
    hints = [blobs((2 * SIDE, 2 * SIDE), seed) for seed in (0, 1)]
    for at, hint in enumerate(hints):
        hint.save(tmp_path / f"{at}.png")
    made = run(
        kind, units=[unit("ControlNet", None, input_mode="batch", batch_images=str(tmp_path))], override_settings={"controlnet_show_batch_images_in_ui": True}
    )
    assert all("APT method" in text for text in made.info["infotexts"])
    for at, hint in enumerate(hints):
        alone = run(kind, units=[unit("ControlNet", hint)]).picture()
        assert np.abs(np.asarray(made.picture(at), int) - np.asarray(alone, int)).max() <= 1


@pytest.mark.parametrize("strength", [0.35, 0.6])
def test_the_recipe_with_a_tile_model_takes_the_enlarged_picture(webui, run, unit, strength):
    """As docs/recipes.md says it: a unit without a picture of its own, a preset's values."""
    one = unit("ControlNet", None, weight=0.6)
    asked, given = {"preset": "Balanced", "colour_fix": 0.0}, {"steps": 40, "denoising_strength": strength, "sampler_name": "DPM++ 2M"}
    change = lightness(run("img2img", units=[one], asked=asked, **given).picture()) - lightness(run("img2img", asked=asked, **given).picture())
    enlarged = blobs((SIDE, SIDE), 7).resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    whole, small = alike(change, lightness(enlarged)), beyond(change, lightness(enlarged), shrunk(enlarged))
    note(f"img2img 2x, the recipe with a tile model, strength {strength}", Found(whole, small, float("nan")))
    assert whole >= LEAST
    assert small < MOST
