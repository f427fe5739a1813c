"""The command line with --model, run as a user runs it, on tiny pipelines."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apt_ext.core.clock import FREE_SAMPLERS
from apt_ext.demo.cli import main
from apt_ext.webui.page.controls import CONTROLS, pasted
from tests.checkpoints.control_nets import saved_control

ROOT = Path(__file__).parents[2]
WORDS = ["--prompt", "a red cat, sleeping", "--negative", "fog"]


@pytest.fixture
def run(checkpoints, photo, tmp_path):
    """A command on a kind of checkpoint -> its status, and the files that it wrote."""

    def go(kind, *more, command="upscale", scale=2, steps=8):
        model = [str(photo)] if command == "upscale" else []
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        window = ["--native", "64"] if kind == "flux" else []
        arguments = [command, *model, "--model", str(checkpoints(kind)), "--scale", str(scale), "--steps", str(steps), *window, "--quiet", "-o", str(out)]
        status = main([*arguments, *(WORDS if kind != "flux" else WORDS[:2]), *map(str, more)])
        return status, {path.name: path for path in sorted(out.iterdir())} if out.is_dir() else {}

    return go


def picture_of(files):
    (name,) = [name for name in files if name.endswith(".png")]
    return files[name]


@pytest.mark.parametrize("kind", ["sd1", "sd2v", "sdxl", "sd3", "flux"])
def test_each_family_enlarges_a_picture_and_reports_it(run, kind):
    status, files = run(kind, scale=2.5)
    assert status == 0
    assert Image.open(picture_of(files)).size == (180, 240)
    report = json.loads(files["photo_demofusion_apt_2.5x.json"].read_text())
    assert report["model"]["family"] == {"sd1": "sd", "sd2v": "sd"}.get(kind, kind)
    assert report["settings"]["prompt"] == "a red cat, sleeping"
    assert report["settings"]["guidance"] == {"sd3": 4.5, "flux": 3.5}.get(kind, 7.0)
    assert report["settings"]["options"]["window_batch"] == 4
    assert report["window_evaluations"] == sum(phase["window_evaluations"] for phase in report["phases"]) > 0
    assert [phase["size"] for phase in report["phases"]][-1] == [184, 240]


def test_the_same_seed_makes_the_same_file_and_another_one_another(run):
    same, again, other = (picture_of(run("sdxl", "--seed", seed)[1]).read_bytes() for seed in (3, 3, 4))
    assert same == again != other


def test_the_prompt_and_the_guidance_change_the_picture(run):
    made = {picture_of(run("sd1", *more)[1]).read_bytes() for more in ((), ("--guidance", 1), ("--prompt", "blue"), ("--negative", "rain"))}
    assert len(made) == 4


def test_the_window_batch_changes_the_picture_by_rounding_alone(run):
    """AccDiffusion: windows with words of their own, dilated views that interact, and guidance."""
    one, many = (np.asarray(Image.open(picture_of(run("sdxl", "--window-batch", n, "--method", "accdiffusion")[1])), int) for n in (1, 16))
    assert abs(one - many).max() <= 1


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "heun", *sorted(FREE_SAMPLERS)[:1]])
def test_a_sampler_of_each_sort_carries_a_job(run, sampler):
    options = ["--method", "multidiffusion"] if sampler in FREE_SAMPLERS else []
    assert run("sd1", "--sampler", sampler, *options, steps=12)[0] == 0


@pytest.mark.parametrize(("kind", "spacing"), [("sd2v", "normal"), ("sd3", "normal"), ("sd3", "exponential")])
def test_other_spacings_carry_a_job(run, kind, spacing):
    assert run(kind, "--spacing", spacing, "--preset", "fast")[0] == 0


def test_the_picture_holds_what_the_webui_reads(run):
    """The host's own reading of an infotext: the prompt, its negative, and names with values, quoted where they hold a comma."""
    text = Image.open(picture_of(run("sdxl", "--phases", "1.5,2", "--matching", 0.5)[1])).info["parameters"]
    prompt, negative, fields = text.split("\n")
    assert (prompt, negative) == ("a red cat, sleeping", "Negative prompt: fog")
    read = {
        name: json.loads(value) if value.startswith('"') else value
        for name, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', fields)
    }
    assert (read["Steps"], read["Sampler"], read["Schedule type"], read["Size"]) == ("8", "DPM++ 2M", "Karras", "144x192")
    assert (read["CFG scale"], read["Seed"], read["Model"], read["Denoising strength"]) == ("7", "1", "sdxl", "0.25")
    controls = {control.name: pasted(control, read) for control in CONTROLS if control.infotext and control.name != "tiled_vae"}
    assert None not in controls.values()
    assert (controls["phases"], controls["matching"], controls["skip_residual"], controls["method"]) == ("1.5,2", 0.5, True, "demofusion")


def test_generate_makes_a_picture_from_words_and_enlarges_it(run):
    status, files = run("sd1", command="generate")
    assert status == 0
    assert {name: Image.open(path).size for name, path in files.items() if name.endswith(".png")} == {
        "a_red_cat_sleeping_1.png": (64, 64),
        "a_red_cat_sleeping_1_demofusion_apt_2x.png": (128, 128),
    }
    status, files = run("sd1", "--size", "96x64", command="generate")
    assert Image.open(files["a_red_cat_sleeping_1.png"]).size == (96, 64)
    assert run("sd1", "--size", "90x64", command="generate") == (2, {})


def test_a_folder_of_pictures_is_enlarged_each_as_if_it_were_alone(run, photo, checkpoints, tmp_path):
    (tmp_path / "many").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "many" / name).write_bytes(photo.read_bytes())
    Image.new("RGB", (20, 20)).save(tmp_path / "many" / "small.png")
    alone = picture_of(run("sd1")[1]).read_bytes()
    arguments = ["upscale", str(tmp_path / "many"), "--model", str(checkpoints("sd1")), "--scale", "2", "--steps", "8", "--quiet", "-o", str(tmp_path / "all")]
    assert main([*arguments, *WORDS]) == 2  # the small one is left out, and said
    made = {path.name: path.read_bytes() for path in (tmp_path / "all").glob("*.png")}
    assert made == {"a_demofusion_apt_2x.png": alone, "b_demofusion_apt_2x.png": alone}


def test_a_picture_smaller_than_the_window_is_enlarged_to_it_first(run, photo):
    Image.open(photo).resize((36, 48)).save(photo)
    status, files = run("sd1", scale=4)
    assert status == 0
    assert Image.open(picture_of(files)).size == (144, 192)
    report = json.loads(next(path for name, path in files.items() if name.endswith(".json")).read_text())
    assert report["input"] == [36, 48]
    assert report["base"] == [56, 72]
    assert report["phases"][-1]["size"] == [160, 192]


def test_outside_the_mask_the_picture_stays_the_plain_enlargement(run, photo, tmp_path):
    mask = Image.new("L", (72, 96), 0)
    mask.paste(255, (0, 48, 72, 96))
    mask.save(tmp_path / "mask.png")
    own = Image.open(photo)
    plain = np.asarray(own.resize((144, 192), Image.Resampling.LANCZOS), int)
    made, free = (np.asarray(Image.open(picture_of(run("sd1", "--strength", 0.4, *more)[1])), int) for more in (("--mask", tmp_path / "mask.png"), ()))
    assert (made[:90] == plain[:90]).all()
    assert abs(made[100:] - plain[100:]).mean() > 3
    assert abs(free[:90] - plain[:90]).mean() > 3
    Image.new("L", (72, 96), 255).save(tmp_path / "mask.png")
    everything = np.asarray(Image.open(picture_of(run("sd1", "--strength", 0.4, "--reanchor", "off", "--mask", tmp_path / "mask.png")[1])), int)
    assert (everything == np.asarray(Image.open(picture_of(run("sd1", "--strength", 0.4, "--reanchor", "off")[1])), int)).all()


def test_two_control_nets_with_pictures_of_their_own_act_each_in_its_share_of_the_steps(run, opened, tmp_path):
    net = saved_control(opened("sd1").network, "sd1", tmp_path / "net")
    for name in ("red", "blue"):
        Image.new("RGB", (72, 96), name).save(tmp_path / f"{name}.png")
    first, second = ["--control", f"{net}:0.8:0-50%"], ["--control", f"{net}:0.5"]
    red, blue = (["--control-image", tmp_path / f"{name}.png"] for name in ("red", "blue"))
    settings = ["--strength", "0.5"]
    made = [first + red, first + blue, second, first + second, first + second + red, first + second + red + blue]
    pictures = [picture_of(run("sd1", *settings, *one)[1]).read_bytes() for one in made]
    assert len(set(pictures)) == len(made)


def test_ctrl_c_leaves_the_last_finished_phase(checkpoints, photo, tmp_path):
    out = tmp_path / "stopped"
    command = f"upscale {photo} --model {checkpoints('sd1')} --scale 8 --strength 1 --steps 12 --quiet -o {out}"
    handled = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it, and the command would inherit that
    process = subprocess.Popen(
        [sys.executable, "-m", "apt_ext", *command.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    signal.signal(signal.SIGINT, handled)
    started = time.time()
    while not list(out.glob("*phase1of3.png")) and process.poll() is None and time.time() - started < 120:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the last finished picture is" in err
    assert list(out.glob("*phase1of3.png"))
