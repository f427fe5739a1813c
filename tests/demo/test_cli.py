"""The command line, run as a user runs it: results, repeatability, Ctrl-C, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apt_ext.demo.cli import main
from apt_ext.options import PRESETS, preset_named

ROOT = Path(__file__).parents[2]
FAST = ["--steps", "8", "--quiet"]


@pytest.fixture
def picture(tmp_path):
    x, y = np.meshgrid(np.linspace(0, 255, 45), np.linspace(0, 255, 34))
    path = tmp_path / "my photo.png"
    Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save(path)
    return path


def run(*arguments):
    return main([str(a) for a in arguments])


def test_upscale_writes_a_picture_of_the_exact_size_and_a_report(picture, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert run("upscale", picture, "--scale", 2.5, "--matching", 1, "-o", out, *FAST) == 0
    result = Image.open(out / "my photo_demofusion_apt_2.5x.png")
    assert result.size == (112, 85)  # 45 and 34 times 2.5, rounded
    assert "APT seed: 1" in result.info["parameters"]
    report = json.loads((out / "my photo_demofusion_apt_2.5x.json").read_text())
    assert report["seed"] == 1
    assert report["settings"]["options"]["matching"] == 1
    assert report["window_evaluations"] == sum(p["window_evaluations"] for p in report["phases"]) > 0
    assert report["phases"][-1]["statistics_shift"]["matched"]["std"] == pytest.approx(1, abs=1e-3)
    assert report["phases"][-1]["statistics_shift"]["enlarged"]["std"] != pytest.approx(1, abs=1e-3)
    assert report["seconds"] > 0
    assert sorted(p.suffix for p in out.iterdir()) == [".json", ".png"], "phases in between are removed when the job is done"
    assert "my photo_demofusion_apt_2.5x.png" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "heun"])
def test_same_seed_same_file(picture, tmp_path, sampler):
    files = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        assert run("upscale", picture, "--scale", 2, "--seed", seed, "--sampler", sampler, "-o", tmp_path / name, *FAST) == 0
        files.append((tmp_path / name / "my photo_demofusion_apt_2x.png").read_bytes())
    assert files[0] == files[1] != files[2]


def test_window_batch_does_not_change_the_picture(picture, tmp_path):
    pictures = []
    for n in (1, 7, 64):
        assert run("upscale", picture, "--scale", 3, "--window-batch", n, "-o", tmp_path / str(n), *FAST) == 0
        pictures.append(np.asarray(Image.open(tmp_path / str(n) / "my photo_demofusion_apt_3x.png"), int))
    assert max(np.abs(p - pictures[0]).max() for p in pictures) <= 1


@pytest.mark.parametrize("method", ["multidiffusion", "demofusion", "accdiffusion"])
@pytest.mark.parametrize("switch", ["--apt", "--no-apt"])
def test_methods(picture, tmp_path, method, switch):
    assert run("upscale", picture, "--scale", 2, "--method", method, switch, "-o", tmp_path / "out", *FAST) == 0
    (result,) = (tmp_path / "out").glob("*.png")
    assert result.stem == f"my photo_{method}{'_apt' if switch == '--apt' else ''}_2x"


def test_accdiffusion_says_what_does_not_apply(picture, tmp_path, capsys):
    run("upscale", picture, "--scale", 1.5, "--steps", 8, "--method", "accdiffusion", "-o", tmp_path / "out", "--quiet")
    assert "words per window do not apply" in capsys.readouterr().err


def test_transparency_and_phases_are_kept(tmp_path):
    rgba = np.full((32, 32, 4), 200, np.uint8)
    rgba[:, 16:, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "logo.png")
    assert run("upscale", tmp_path / "logo.png", "--scale", 3, "--phases", "progressive", "--keep-phases", "-o", tmp_path / "out", *FAST) == 0
    result = Image.open(tmp_path / "out" / "logo_demofusion_apt_3x.png")
    assert result.mode == "RGBA"
    alpha = np.asarray(result.getchannel("A"))
    assert (alpha[:, :40] > 190).all()
    assert (alpha[:, 56:] < 10).all()
    assert Image.open(tmp_path / "out" / "logo_demofusion_apt_3x_phase1of2.png").size == (64, 64)


def test_generate_and_scene(tmp_path):
    assert run("generate", "--style", "pebbles", "--seed", 3, "--scale", 1.5, "-o", tmp_path, *FAST) == 0
    assert Image.open(tmp_path / "pebbles_3.png").size == (64, 64)
    assert Image.open(tmp_path / "pebbles_3_demofusion_apt_1.5x.png").size == (96, 96)
    assert run("scene", "--style", "moss", "--size", 40, "-o", tmp_path) == 0
    assert Image.open(tmp_path / "moss_1_40.png").size == (40, 40)


def test_demo_of_an_own_picture_lays_the_methods_side_by_side(picture, tmp_path, capsys):
    assert run("demo", picture, "--scale", 2, "--published", "-o", tmp_path / "out", *FAST) == 0
    report = json.loads((tmp_path / "out" / "my photo_report.json").read_text())
    assert list(report["results"]) == ["my photo, DemoFusion", "my photo, APT balanced"]
    plain, apt = report["results"].values()
    assert apt["window_evaluations"] < plain["window_evaluations"]
    assert plain["settings"]["schedule"]["strength"] == 1
    assert (plain["settings"]["options"]["fill"], plain["settings"]["options"]["upscaler"]) == ("zero", "latent")
    assert apt["agreement_with_input_db"] > plain["agreement_with_input_db"]
    assert (tmp_path / "out" / apt["file"]).exists()
    sheet = Image.open(tmp_path / "out" / "my photo_sheet.png")
    assert 4 * 384 < sheet.width < 5 * 384
    assert "my photo_sheet.png" in capsys.readouterr().out


def test_the_demo_without_a_picture_shows_a_photograph_and_a_scene_beside_the_truth(tmp_path):
    assert run("demo", "-o", tmp_path, "--preset", "fast", *FAST) == 0
    names = [f"{subject}_{name}" for subject in ("owl", "scene") for name in ("apt_fast", "input", "true")]
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == sorted(["demo_sheet", *names])
    for subject, size in (("owl", (96, 72)), ("scene", (96, 64))):
        small, large, made = (Image.open(tmp_path / f"{subject}_{name}.png") for name in ("input", "true", "apt_fast"))
        assert small.size == size
        assert large.size == made.size == (4 * size[0], 4 * size[1])
        shrunk = np.asarray(large, float).reshape(size[1], 4, size[0], 4, 3).mean((1, 3))
        assert 10 * np.log10(255**2 / np.mean((shrunk - np.asarray(small, float)) ** 2)) > 28, "the truth is the same picture"
    report = json.loads((tmp_path / "demo_report.json").read_text())
    assert report["peak_memory_mib"] is None or report["peak_memory_mib"] > 100
    assert [facts["settings"]["style"] for facts in report["results"].values()] == ["photo", "pebbles"]


@pytest.mark.parametrize("size", [(300, 16), (16, 100), (192, 64), (16, 16)])
def test_the_demo_takes_any_proportions_and_shrinks_what_is_large(size, tmp_path, capsys):
    Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "strip.png")
    assert run("demo", tmp_path / "strip.png", "--scale", 2, "-o", tmp_path / "out", *FAST) == 0
    shrunk = size[0] * size[1] > 96 * 64
    assert ("shrinks" in capsys.readouterr().err) == shrunk
    assert (Image.open(tmp_path / "out" / "strip_apt_balanced.png").size == (2 * size[0], 2 * size[1])) != shrunk


def test_earlier_results_are_not_overwritten(picture, tmp_path):
    for seed in (1, 2):
        assert run("upscale", picture, "--scale", 1.5, "--seed", seed, "-o", tmp_path / "out", *FAST) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["my photo_demofusion_apt_1.5x.png", "my photo_demofusion_apt_1.5x_2.png"]


def test_plan_and_job_agree(picture, tmp_path, capsys):
    assert run("plan", "45x34", "--scale", 2.5, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert run("upscale", picture, "--scale", 2.5, "-o", tmp_path / "out", "--quiet") == 0
    report = json.loads((tmp_path / "out" / "my photo_demofusion_apt_2.5x.json").read_text())
    assert [p["size"] for p in plan["phases"]] == [p["size"] for p in report["phases"]]
    assert plan["window_evaluations"] == report["window_evaluations"]


@pytest.mark.parametrize(("preset", "most"), [("fast", 0.05), ("Balanced", 0.10), ("quality", 0.22)])
def test_presets_stay_under_their_share_of_demofusions_evaluations(preset, most, capsys):
    assert run("plan", "1024x1024", "--model", "sdxl", "--scale", 4, "--preset", preset, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["window_evaluations"] == sum(p["local"] + p["dilated"] for p in plan["phases"]) <= most * 5600
    assert plan["settings"]["schedule"] == asdict(preset_named(preset).schedule)


def test_what_is_given_beside_a_preset_goes_before_it(capsys):
    assert run("plan", "1024x1024", "--model", "sdxl", "--preset", "fast", "--steps", 7, "--sampler", "euler", "--json") == 0
    plan = json.loads(capsys.readouterr().out)["settings"]
    assert plan["schedule"] == asdict(PRESETS["Fast"].schedule) | {"steps": 7, "sampler": "euler"}
    assert plan["options"] == asdict(PRESETS["Fast"].options)


def test_plan_says_what_demofusion_costs(capsys):
    """DemoFusion's published job, 1024 to 4096 with windows of 128 latents: 50 x (9 + 25 + 49 local and 4 + 9 + 16 dilated) views,
    less those of the last step, whose noise level gives the dilated path no weight."""
    assert run("plan", "1024x1024", "--model", "sdxl", "--steps", 50, "--no-apt", "--tolerance", 0, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [p["size"] for p in plan["phases"]] == [[2048, 2048], [3072, 3072], [4096, 4096]]
    assert [p["local"] for p in plan["phases"]] == [450, 1250, 2450]
    assert [p["dilated"] for p in plan["phases"]] == [4 * 49, 9 * 49, 16 * 49]
    assert plan["demofusion_published"] == plan["window_evaluations"]
    assert run("plan", "64x64") == 0
    assert "total:" in capsys.readouterr().out


BAD = [
    (["upscale", "missing.png"], "picture 'missing.png' does not exist"),
    (["upscale", "{text}"], "is not a picture in a format that can be read"),
    (["upscale", "{dot}"], "is 1 x 1 pixels; use sides from 16 to 16384"),
    (["upscale", "{picture}", "--scale", "0.5"], "scale 0.5 is out of range; use a number above 1 and up to 16"),
    (["upscale", "{picture}", "--scale", "1000"], "scale 1000.0 is out of range"),
    (["upscale", "{picture}", "--scale", "nan"], "'nan' is not a finite number"),
    (["upscale", "{picture}", "--scale", "big"], "invalid number value: 'big'"),
    (["upscale", "{picture}", "--steps", "20", "--shortcut", "0.05", "--sampler", "dpmpp_2m_sde"], "needs at least 2 steps in a phase"),
    (["upscale", "{picture}", "--steps", "10", "--strength", "0.02"], "strength 0.02 of 10 steps leaves no step to run"),
    (["upscale", "{picture}", "--upscaler", "missing.pth"], "upscaler 'missing.pth' does not exist; use lanczos"),
    (["demo", "--scale", "3"], "scale 3 is not the examples'; give a picture of your own with it"),
    (["upscale", "{large}", "--scale", "2"], "would make 12000 x 64 pixels, more than 8192 a side; use a scale up to 1.36"),
    (["upscale", "x" * 300 + ".png"], "does not exist"),
    (["demo", "--no-apt"], "unrecognized arguments: --no-apt"),
    (["upscale", "{picture}", "--guidance", "inf"], "'inf' is not a finite number"),
    (["upscale", "{picture}", "--guided-above", "-1"], "guided above -1.0 is out of range; use a noise level from 0 to 100"),
    (["upscale", "{picture}", "--sampler", "magic"], "sampler 'magic' does not exist; use one of euler"),
    (["upscale", "{picture}", "--sampler", "dpm_adaptive"], "sampler 'dpm_adaptive' chooses its own noise levels"),
    (["upscale", "{picture}", "--spacing", "magic"], "Schedule type (spacing) 'magic' does not exist; use one of karras"),
    (["upscale", "{picture}", "--style", "magic"], "style 'magic' does not exist"),
    (["upscale", "{picture}", "--device", "abacus"], "device 'abacus' cannot be used"),
    (["upscale", "{picture}", "--seed", "-1"], "seed -1 is out of range"),
    (["upscale", "{picture}", "--phases", "3,9"], "phase ratio 9 does not lie between"),
    (["upscale", "{picture}", "-o", "{picture}/inside"], "cannot be written to"),
    (["upscale", "{picture}", "--no-apt", "--gamma", "1"], "--no-apt and --gamma contradict each other"),
    (["demo", "{text}"], "is not a picture"),
    (["generate", "--style", "magic"], "style 'magic' does not exist"),
    (["plan", "1024"], "size '1024' is not a size such as 1024x1024"),
    (["plan", "64x64", "--model", "sd9"], "model 'sd9' does not exist"),
    (["plan", "64x64", "--preset", "best"], "preset 'best' does not exist; use one of Fast, Balanced, Quality, Published"),
    (["plan", "64x64", "--preset", "fast", "--no-apt"], "--no-apt and --preset fast contradict each other"),
    (["scene", "--size", "9999"], "size 9999 is out of range"),
    (["upscale"], "the following arguments are required: image"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_sentence_with_status_2_and_leaves_nothing(arguments, sentence, picture, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (6000, 32)).save(tmp_path / "large.png")
    places = {"{large}": str(tmp_path / "large.png"), "{picture}": str(picture), "{text}": str(tmp_path / "text.png"), "{dot}": str(tmp_path / "dot.png")}
    for place, path in places.items():
        arguments = [a.replace(place, path) for a in arguments]
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status: object
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    shown = capsys.readouterr()
    assert status == 2
    said = [line for line in shown.err.splitlines() if line.startswith("apt_ext: ")]
    assert len(said) == 1
    assert sentence in said[0]
    assert "Traceback" not in shown.err
    assert sorted(tmp_path.rglob("*")) == before, "neither a file nor a folder is left behind"


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_leaves_the_last_finished_phase(picture, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "apt_ext", "upscale", str(picture), "--scale", "8", "--steps", "40", "--phases", "double", "-o", str(out)]
    # A shell that runs tests in the background has Ctrl-C ignored, and children inherit that.
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    first = out / "my photo_demofusion_apt_8x_phase1of3.png"
    deadline = time.monotonic() + 240
    while not first.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"stopped; the last finished picture is {first}" in errors or "phase" in errors.partition("stopped; the last finished picture is ")[2]
    assert "Traceback" not in errors
    left = sorted(p.name for p in out.iterdir())
    assert first.name in left
    assert all("phase" in name for name in left), left
    assert Image.open(first).size == (90, 68)
