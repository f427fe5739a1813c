"""Every way that the host has of making a picture, with APT on: what comes of it, what the infotext claims, and whether it leaves the host as it was.

With WAYS_TABLE=docs/ways.md what came of each is written into its row there.
"""

import os
from pathlib import Path

import pytest

from tests.acceptance.conftest import SIDE, Refused
from tests.acceptance.ways import NEUTRAL, QUICK, WAYS, Rig
from tests.ways_table import Row, put_rows


@pytest.fixture(scope="module")
def rig(webui):
    before, webui.settings = webui.settings, webui.settings | NEUTRAL
    yield Rig(webui)
    webui.settings = before


@pytest.fixture(scope="module")
def ordinary(rig):
    """Jobs without APT, which must come out the same ever after."""

    def jobs():
        return rig.webui.txt2img(steps=2), rig.webui.img2img(rig.picture, steps=2, width=SIDE, height=SIDE)

    before = jobs()
    return lambda: all(now.same(then) for now, then in zip(jobs(), before, strict=True))


def _note(way, row):
    if page := os.environ.get("WAYS_TABLE"):
        put_rows(Path(page), {way.what: row})


def _lacks(rig, needs):
    if needs == "probe":
        return ("apt probe", False) not in rig.scripts and "needs tests/acceptance/probe in the WebUI's extensions"
    if needs == "lora":
        folder = Path(rig.webui.call("/sdapi/v1/cmd-flags")["lora_dir"])
        return not (folder.is_dir() and os.access(folder, os.W_OK)) and "needs the WebUI's folder of LoRAs on this machine"
    if needs == "checkpoints":
        return len(rig.webui.call("/sdapi/v1/sd-models")) < 2 and "needs two checkpoints"
    return False


@pytest.mark.parametrize("way", [way for ways in WAYS.values() for way in ways], ids=lambda way: way.what)
def test_it_works_or_is_refused_and_leaves_the_host_as_it_was(rig, ordinary, way):
    if reason := _lacks(rig, way.needs):
        pytest.skip(reason)
    made = rig.webui.outcome(lambda: way.run(rig))
    same = ordinary()
    if isinstance(made, Refused):
        said = made.sentence or made.body.get("errors", "")
        _note(way, Row(f"{'refused' if made.status == 422 else 'error'}: {said}", "", same))
        assert way.refused, made
        assert way.refused in str(made)
        assert "\n" not in said
    else:
        texts = made.info["infotexts"]
        named = sum("APT method" in (text or "") for text in texts)  # the plot leaves those of empty cells out
        sizes = [made.picture(index).size for index in range(len(made.images))]
        _note(way, Row(f"{len(sizes)} of {sizes[0][0]} x {sizes[0][1]}" if sizes else "made, not sent", f"{named} of {len(texts)}", same))
        assert not way.refused
        assert len(sizes) == way.number
        assert way.size is None or set(sizes) == {way.size}
        assert named == (len(texts) if way.claims is None else way.claims)
    assert same, "an ordinary job after this one differs from the one before"


FIRST_PASS = 2  # calls, one a step
LONGER = {"hr_second_pass_steps": 5, "denoising_strength": 1.0}  # so that the dilated path ends on the way
PLANNED = [
    ({"method": "multidiffusion", "overlap": 0.25}, {"hr_scale": 2}),
    ({"method": "demofusion", "phases": "double", "jitter": 0.5}, {"hr_scale": 3}),
    ({"preset": "Balanced"}, {"width": SIDE - 8, "height": SIDE + 24, "hr_resize_x": SIDE, "hr_resize_y": SIDE}),
    ({"method": "accdiffusion", "word_threshold": 0.0}, {"sampler_name": "Euler a"}),
    *(
        ({"method": "demofusion", "tolerance": 0.2}, LONGER | {"hr_sampler_name": name})
        for name in ("Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "PLMS", "DDIM", "LCM")
    ),
    ({"method": "demofusion", "tolerance": 0.2}, LONGER | {"hr_sampler_name": "DPM2 a", "eta": 0.4}),
    ({"method": "demofusion", "tolerance": 0.2}, LONGER | {"hr_sampler_name": "Heun", "override_settings": {"s_churn": 2.0}}),
]


@pytest.mark.parametrize(("settings", "asked"), PLANNED)
def test_the_model_is_called_as_often_as_planned(rig, settings, asked):
    if reason := _lacks(rig, "probe"):
        pytest.skip(reason)
    made = rig.hires(rig.probe(count=True), apt=settings, hr_upscaler="Lanczos", **asked)
    (rows,) = (int(part.removeprefix("Probe rows: ")) for part in made.text.split(", ") if part.startswith("Probe rows"))
    first, target = (asked.get("width", SIDE), asked.get("height", SIDE)), made.picture().size
    page = {"img2img": False, "first": first, "target": target, "cut": True, "steps": 2, "upscaler": "Lanczos"}
    page |= {"hires_steps": asked.get("hr_second_pass_steps", 0), "denoising": asked.get("denoising_strength", 0.6)}
    page |= {"sampler": asked.get("hr_sampler_name", asked.get("sampler_name", "Euler")), "scheduler": "Automatic", "settings": QUICK | settings}
    windows = {name: value for name, value in rig.webui.settings.items() if name.startswith("apt_window")} | {"eta_ancestral": asked.get("eta", 1.0)}
    windows |= {"s_churn": 0.0} | asked.get("override_settings", {})
    before = {name: value for name, value in rig.webui.call("/sdapi/v1/options").items() if name in windows}
    rig.webui.call("/sdapi/v1/options", windows)
    try:
        planned = rig.webui.call("/apt/plan", page)
    finally:
        rig.webui.call("/sdapi/v1/options", before)
    assert rows == 2 * (planned["evaluations"] + FIRST_PASS), planned


def test_a_job_inside_another_changes_nothing_of_it(rig):
    if reason := _lacks(rig, "probe"):
        pytest.skip(reason)
    asked = {"n_iter": 2, "batch_size": 2}
    alone = rig.hires(rig.probe(count=True), **asked)
    for where in ("image", "end"):
        made = rig.hires(rig.probe(inner=where), **asked)
        assert made.same(alone), where
        without = [[part for part in text.split(", ") if not part.startswith("Probe rows")] for one in (made, alone) for text in one.info["infotexts"]]
        assert without[:4] == without[4:], where


def test_a_lora_acts_in_the_pass_that_names_it_and_is_gone_afterwards(rig):
    if reason := _lacks(rig, "lora"):
        pytest.skip(reason)
    named = f"a leaf <lora:{rig.lora('apt-one', 1)}:1>"
    plain, whole, second = rig.hires(), rig.hires(prompt=named), rig.hires(hr_prompt=named)
    first = rig.hires(prompt=named, hr_prompt="a leaf")
    made = [plain, whole, second, first]
    assert not any(one.same(other) for at, one in enumerate(made) for other in made[:at])
    assert rig.hires().same(plain)
