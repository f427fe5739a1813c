"""Other people's extensions, asked of a running WebUI that has them.

With EXTENSIONS_SHEET=folder the pictures are kept there, each row's with APT alone and with both, to be looked at. FreeU acts on a checkpoint alone whose
layers are as wide as those of Stable Diffusion for its width: WEBUI_WIDE_CHECKPOINT names one. WEBUI_WORKER is the address of another WebUI with this
extension and the same checkpoints, which the one under test has as a worker of stable-diffusion-webui-distributed.
"""

import base64
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.acceptance.conftest import SIDE, Refused, apt
from tests.acceptance.ways import Rig

ASKED = {"colour_fix": 0.0}  # its colours would be the smaller picture's
PLAIN = apt(**ASKED)
WIDE = os.environ.get("WEBUI_WIDE_CHECKPOINT")


def keep(name, picture):
    if folder := os.environ.get("EXTENSIONS_SHEET"):
        picture.save(Path(folder) / f"{name}.png")


@pytest.fixture
def installed(webui):
    """(name, {place: value}, img2img) -> a script's arguments, all others as on its page; skips where it is not installed."""
    scripts = {(one["name"], one["is_img2img"]): one for one in webui.call("/sdapi/v1/script-info")}

    def arguments(name, changed, img2img=False):
        if (name, img2img) not in scripts:
            pytest.skip(f"needs a running WebUI with the extension {name!r}")
        values = [one["value"] for one in scripts[name, img2img]["args"]]
        for place, value in changed.items():
            values[place] = value
        return {name: {"args": values}}

    return arguments


@pytest.fixture(scope="module")
def ordinary(webui):
    before = webui.txt2img()
    return lambda: webui.txt2img().same(before)


@pytest.fixture(autouse=True)
def nothing_left_behind(ordinary):
    yield
    assert ordinary(), "an ordinary job after this one differs from the one before"


@pytest.fixture
def run(webui, picture):
    """("hires" or "img2img", other scripts' arguments, what differs) -> the answer, with APT on."""

    def run(kind, beside=None, asked=ASKED, **given):
        scripts = {"alwayson_scripts": ({} if asked is None else apt(**asked)) | (beside or {})}
        return webui.hires(**scripts | given) if kind == "hires" else webui.img2img(picture, **scripts | given)

    return run


def far(one, other):
    return np.abs(np.asarray(one.picture(), int) - np.asarray(other.picture(), int)).max()


class Row(NamedTuple):
    """An extension that changes the picture: its script, what is changed of its arguments, in img2img where that differs, and what is asked of the job."""

    name: str
    changed: dict[int, Any]
    img2img: dict[int, Any] | None = None
    asked: Mapping[str, Any] = MappingProxyType({})


def daemon(mode):
    own: dict[int, Any] = {0: True, 1: True, 3: mode, 7: 1.0}
    return Row("detail daemon", own | {2: True}, own | {2: False})


WORK = {
    "NegPiP": Row("negpip", {0: True}, asked={"prompt": "a leaf, (stone:-1.5)"}),
    "Regional Prompter": Row("regional prompter", {0: True}, asked={"prompt": "a leaf BREAK a stone", "negative_prompt": "blurry BREAK dark"}),
    "Detail Daemon, both": daemon("both"),
    "Detail Daemon, cond": daemon("cond"),
    "Detail Daemon, uncond": daemon("uncond"),
    "Dynamic Thresholding": Row(
        "dynamic thresholding (cfg scale fix)",
        {0: True, 1: 1.0, 2: 0.9},
        asked={"cfg_scale": 30, "prompt": "a red leaf, (stone:1.5), moss", "denoising_strength": 0.8},
    ),
    "CADS": Row("cads", {0: True, 6: True}),
    "Kohya hires fix": Row("kohya hires.fix", {0: True, 1: False, 4: 0.3, 5: 0.5}),
    "FreeU": Row("freeu", {0: True, 1: 0.0, 2: 1.0, 4: "1"}, asked={"steps": 2, "override_settings": {"sd_model_checkpoint": WIDE}}),
}


@pytest.mark.parametrize("kind", ["hires", "img2img"])
@pytest.mark.parametrize("extension", WORK)
def test_it_changes_the_picture_and_any_window_batch_makes_the_same(installed, run, extension, kind):
    row = WORK[extension]
    if extension == "FreeU" and not WIDE:
        pytest.skip("needs a checkpoint whose layers it knows, named by WEBUI_WIDE_CHECKPOINT")
    beside = installed(row.name, row.changed if kind == "hires" or row.img2img is None else row.img2img, kind == "img2img")
    if extension == "Kohya hires fix":
        run(kind, beside, None)  # also without APT, its first picture after one without it is not the next one's
    one, many = (run(kind, beside, ASKED | {"window_batch": batch}, **row.asked) for batch in (1, 4))
    alone = run(kind, **row.asked)
    keep(f"{extension} {kind} 1 alone", alone.picture())
    keep(f"{extension} {kind} 2 beside", many.picture())
    assert far(one, many) <= 2
    assert far(one, alone) > 2
    assert "APT method" in one.text


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("self attention guidance", {0: True}, "self-attention of the whole picture"),
        ("regional prompter", {0: True, 2: "Prompt"}, "mode 'Prompt'"),
    ],
)
@pytest.mark.parametrize("kind", ["hires", "img2img"])
def test_what_needs_the_whole_picture_s_attention_is_refused(installed, run, name, changed, words, kind):
    beside = installed(name, changed, kind == "img2img")
    with pytest.raises(Refused, match=words) as refused:
        run(kind, beside, prompt="a leaf on stone BREAK stone, leaf")
    assert refused.value.status == 422


@pytest.mark.parametrize("kind", ["hires", "img2img"])
def test_beside_tiled_diffusion_and_its_tiled_vae_the_picture_is_apt_s_own(installed, run, kind):
    """Both ticked, and each alone; Tiled VAE's tiles are its own, so that picture is not to the bit."""
    side = {3: False, 4: 2 * SIDE, 5: 2 * SIDE} if kind == "img2img" else {}
    diffusion = installed("tiled diffusion", {0: True, 6: 16, 7: 16, 8: 8} | side, kind == "img2img")
    tiles = installed("tiled vae", {0: True, 1: 256, 2: 48, 4: False, 5: False}, kind == "img2img")
    alone = run(kind)
    keep(f"Tiled Diffusion {kind} 1 alone", alone.picture())
    both = run(kind, diffusion | tiles)
    keep(f"Tiled Diffusion {kind} 2 beside", both.picture())
    assert run(kind, diffusion).same(alone)
    assert far(both, alone) <= 12
    assert far(run(kind, tiles), both) <= 2
    assert run(kind).same(alone)
    assert "APT method" in both.text


def test_where_tiled_diffusion_s_demofusion_takes_the_sampling_over_the_infotext_says_nothing_of_apt(installed, run):
    beside = installed("demofusion", {0: True, 3: 16, 4: 8}, img2img=True)
    size = {"width": SIDE, "height": SIDE}
    made = run("img2img", beside, **size)
    keep("DemoFusion of Tiled Diffusion img2img 2 beside", made.picture())
    assert far(made, run("img2img", beside, None, **size)) <= 1
    assert "APT method" not in made.text


def test_ultimate_sd_upscale_runs(webui, picture):
    rig = Rig(webui)
    if ("ultimate sd upscale", True) not in rig.scripts:
        pytest.skip("needs a running WebUI with the extension Ultimate SD Upscale")
    asked = rig.script("ultimate sd upscale", True, {1: SIDE, 2: SIDE, 4: 16, 8: 0, 10: 0, 13: 0, 14: 0})
    made, alone = webui.img2img(picture, alwayson_scripts=PLAIN, **asked), webui.img2img(picture, **asked)
    keep("Ultimate SD Upscale img2img 1 alone", alone.picture())
    keep("Ultimate SD Upscale img2img 2 beside", made.picture())
    assert made.picture().size == (2 * SIDE, 2 * SIDE)
    assert "APT method" in made.text


def portrait(side):
    """A photograph with a face in the middle."""
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.astronaut()).crop((96, 0, 352, 256)).resize((side, side), Image.Resampling.LANCZOS)


@pytest.mark.parametrize("inside", [False, True])
def test_adetailer_draws_a_face_that_it_found_anew_and_nothing_else(webui, installed, inside):
    """By mediapipe's detector, whose weights are in its package. `inside`: ADetailer's own jobs have APT on, too."""
    face = {"ad_model": "mediapipe_face_full", "ad_confidence": 0.3, "ad_denoising_strength": 0.6, "ad_use_inpaint_width_height": True}
    face |= {"ad_inpaint_width": 2 * SIDE, "ad_inpaint_height": 2 * SIDE, "ad_mask_blur": 0}
    adetailer = installed("adetailer", {0: True, 1: False, 2: face}, img2img=True)
    scripts = "dynamic_prompting,dynamic_thresholding" + (",apt" if inside else "")
    given = {"denoising_strength": 0.1, "n_iter": 2, "override_settings": {"ad_script_names": scripts, "ad_bbox_sortby": "None"}}

    def job(beside):
        return webui.img2img(portrait(SIDE), alwayson_scripts=apt() | beside, **given)

    made, alone = job(adetailer), job({})
    at = len(made.images) - 2  # a grid may come first
    for one in (0, 1):
        change = np.abs(np.asarray(made.picture(at + one), int) - np.asarray(alone.picture(at + one), int)).max(-1)
        keep(f"ADetailer{' with APT inside' if inside else ''} img2img picture {one} 1 alone", alone.picture(at + one))
        keep(f"ADetailer{' with APT inside' if inside else ''} img2img picture {one} 2 beside", made.picture(at + one))
        changed = change > 2
        assert 0.01 < changed.mean() < 0.5
        assert not changed[:, : SIDE // 8].any()
        assert not changed[-SIDE // 8 :].any()
    texts = made.info["infotexts"]
    assert all("APT method" in text and "ADetailer model: mediapipe_face_full" in text for text in texts)
    own = [[part for part in text.replace("\n", ", ").split(", ") if part.startswith("APT")] for text in (*texts, *alone.info["infotexts"])]
    assert all(one == own[0] for one in own)


def test_agent_scheduler_makes_the_same_picture(webui, run):
    if "/agent-scheduler/v1/queue/txt2img" not in webui.call("/openapi.json")["paths"]:
        pytest.skip("needs a running WebUI with the extension agent-scheduler")
    given = {"prompt": "a leaf", "negative_prompt": "blurry", "seed": 11, "steps": 4, "width": SIDE, "height": SIDE, "sampler_name": "Euler", "cfg_scale": 5}
    given |= {"enable_hr": True, "hr_scale": 2, "hr_upscaler": webui.upscaler, "denoising_strength": 0.6, "scheduler": "Automatic"}
    task = webui.call("/agent-scheduler/v1/queue/txt2img", given | {"alwayson_scripts": PLAIN, "override_settings": webui.settings})["task_id"]
    for _ in range(240):
        found = [one for one in webui.call("/agent-scheduler/v1/history")["tasks"] if one["id"] == task]
        if found and found[0]["status"] in ("done", "failed"):
            break
        time.sleep(1)
    assert found[0]["status"] == "done"
    (made,) = webui.call(f"/agent-scheduler/v1/task/{task}/results")["data"]
    assert "APT method" in made["infotext"]
    picture = Image.open(io.BytesIO(base64.b64decode(made["image"].partition(",")[2]))).convert("RGB")
    keep("agent-scheduler hires 2 beside", picture)
    assert picture.tobytes() == webui.hires(**given, alwayson_scripts=PLAIN).picture().tobytes()


@pytest.fixture
def lora(webui):
    """A LoRA of random weights for the loaded checkpoint."""
    folder = Path(webui.call("/sdapi/v1/cmd-flags")["lora_dir"])
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        pytest.skip("needs the WebUI's folder of LoRAs on this machine")
    return Rig(webui).lora("apt-blocks", 3)


HALF = ",".join("1" if block % 2 else "0" for block in range(17))  # of the text encoder and the U-Net's sixteen blocks


@pytest.mark.parametrize("kind", ["hires", "img2img"])
def test_lora_block_weight_acts_block_by_block(installed, run, lora, kind):
    beside = installed("lora block weight", {}, kind == "img2img")
    named = {weights: f"a leaf <lora:{lora}:1{weights}>" for weights in ("", f":lbw={HALF}", f":lbw={','.join('0' * 17)}")}
    whole, half, none = (run(kind, beside, prompt=prompt) for prompt in named.values())
    plain = run(kind, beside)
    keep(f"LoRA Block Weight {kind} 1 alone", plain.picture())
    keep(f"LoRA Block Weight {kind} 2 beside", half.picture())
    assert far(none, plain) <= 1
    assert min(far(whole, plain), far(half, plain), far(half, whole)) > 2
    batches = [run(kind, beside, ASKED | {"window_batch": batch}, prompt=named[f":lbw={HALF}"]) for batch in (1, 16)]
    assert far(*batches) <= 1
    assert "APT method" in half.text


def test_lora_block_weight_changes_between_the_passes(installed, run, lora):
    """Other blocks in the hires prompt: the first pass is that of its own prompt, and every way differs."""
    beside = installed("lora block weight", {})
    other = ",".join("0" if block % 2 else "1" for block in range(17))
    one, two = (f"a leaf <lora:{lora}:1:lbw={weights}>" for weights in (HALF, other))
    made = [run("hires", beside, prompt=first, hr_prompt=second) for first, second in ((one, one), (one, two), (two, two), ("a leaf", one), (one, "a leaf"))]
    assert min(far(a, b) for at, a in enumerate(made) for b in made[:at]) > 2
    assert run("hires", beside, prompt=one, hr_prompt=two).same(made[1])


@pytest.mark.parametrize("dropdown", [False, True])
def test_another_machine_makes_its_share_with_apt(webui, run, dropdown):
    """stable-diffusion-webui-distributed: of two pictures one is the worker's, and each is what it is alone."""
    if not os.environ.get("WEBUI_WORKER"):
        pytest.skip("needs stable-diffusion-webui-distributed with a worker, named by WEBUI_WORKER")
    # APT's own upscaler, for the dropdown entry fills the host's field with it.
    given = {"hr_upscaler": webui.lanczos}
    asked = {"script_name": "APT upscale", "script_args": [ASKED | {"scale": 2}]}
    made = webui.txt2img(batch_size=2, denoising_strength=0.6, **asked) if dropdown else run("hires", batch_size=2, **given)
    texts = made.info["infotexts"]
    assert len(made.info["all_seeds"]) == 1  # of this machine's own
    assert ["APT method" in text for text in texts] == [True, True]
    at = len(made.images) - 2
    for one in (0, 1):
        keep(f"distributed{' from the dropdown' if dropdown else ''} hires {one} 2 beside", made.picture(at + one))
        assert np.abs(np.asarray(made.picture(at + one), int) - np.asarray(run("hires", seed=11 + one, **given).picture(), int)).max() <= 2
