"""Folders and single files go through diffusers' own loading; what cannot be used is one sentence and status 2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from apt_ext.demo.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kind", "family", "prediction", "window", "multiple"),
    [
        ("sd1", "sd", "epsilon", 64, 4),
        ("sd2v", "sd", "v_prediction", 64, 4),
        ("sdxl", "sdxl", "epsilon", 64, 4),
        ("sd3", "sd3", "flow", 64, 2),
        ("flux", "flux", "flow", 64, 2),
    ],
)
def test_what_the_engine_has_to_know_comes_from_the_configuration(opened, kind, family, prediction, window, multiple):
    model = opened(kind)
    assert (model.about["family"], model.about["prediction"], model.about["window"], model.facts.multiple) == (family, prediction, window, multiple)
    assert model.factor == 8
    assert model.facts.sigma_max == float(model.sigmas[-1])
    if prediction != "flow":
        assert model.facts.sigma_max == pytest.approx(14.6146, abs=1e-3)


def test_sixteen_bit_numbers_keep_an_autoencoder_that_overflows_in_them_at_32(opened):
    model = opened("sdxl", dtype="float16")
    assert model.network.dtype == torch.float16
    assert model.pipe.vae.dtype == torch.float32


def test_another_vae_and_a_lora_change_the_model_and_their_absence_does_not(checkpoints, opened, tmp_path):
    from peft import LoraConfig

    from apt_ext.checkpoints.opening import open_checkpoint
    from tests.checkpoints.tiny import pipeline, vae

    torch.manual_seed(5)
    vae().save_pretrained(tmp_path / "vae")
    pipe = pipeline("sd1", tmp_path / "words")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    from peft.utils import get_peft_model_state_dict

    type(pipe).save_lora_weights(tmp_path / "lora", unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    plain, file = opened("sd1"), str(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    x, sigma = torch.ones(1, 4, 8, 8), torch.ones(1)

    def estimate(*loras):
        model = open_checkpoint(str(checkpoints("sd1")), device="cpu", vae=str(tmp_path / "vae"), loras=loras)
        assert not torch.equal(model.decode(x), plain.decode(x))
        return model._denoiser(x, sigma, **model.words("a cat", "")[0])

    none, zero, whole = estimate(), estimate(f"{file}:0"), estimate(file)
    assert torch.equal(none, plain._denoiser(x, sigma, **plain.words("a cat", "")[0]))
    assert torch.allclose(none, zero, atol=1e-6)
    assert not torch.allclose(none, whole, atol=1e-4)


def _bad(tmp_path, checkpoints, photo):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no model")
    (tmp_path / "broken.safetensors").write_bytes(b"no model either")
    (tmp_path / "old.ckpt").write_bytes(b"pickled")
    save_file({"lora_unet_x": torch.ones(1)}, tmp_path / "lora.safetensors")
    save_file({"double_blocks.0.img_mod.linear.weight": torch.ones(1)}, tmp_path / "hunyuan.safetensors")
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    folder = str(checkpoints("sd1"))
    files = {kind: str(checkpoints(f"{kind}-alone.safetensors")) for kind in ("sdxl", "sd3", "flux")}
    shutil.copytree(checkpoints("sd3"), tmp_path / "descriptions", ignore=shutil.ignore_patterns("*.safetensors"))
    return {
        **files,
        "sd3_folder": str(checkpoints("sd3")),
        "model": folder,
        "tmp": str(tmp_path),
        "photo": str(photo),
        "file": str(checkpoints("sd1.safetensors")),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{photo} --model {tmp}/empty", "is no diffusers pipeline"),
        ("{photo} --model {tmp}/text.txt", "is no checkpoint"),
        ("{photo} --model {tmp}/broken.safetensors", "cannot be read as safetensors"),
        ("{photo} --model {tmp}/lora.safetensors", "none of the checkpoints that are known"),
        ("{photo} --model {tmp}/hunyuan.safetensors", "none of the checkpoints that are known"),
        ("{photo} --model {sd3}", "has no vae and no text_encoder and no text_encoder_2; name a whole diffusers folder of SD3 with --config"),
        ("{photo} --model {flux}", "has no vae and no text_encoder and no text_encoder_2; name a whole diffusers folder of Flux with --config"),
        ("{photo} --model {sdxl}", "has no vae and no text_encoder and no text_encoder_2; name a whole diffusers folder of SDXL with --config"),
        ("{photo} --model {sd3} --config {tmp}/descriptions", "descriptions'; name a whole diffusers folder of SD3 with --config"),
        ("{photo} --model {flux} --config {sd3_folder}", "of Flux and --config"),
        ("{photo} --model {flux} --config somebody/something", "network"),
        ("{photo} --model {tmp}/old.ckpt", "--allow-pickle"),
        ("{photo} --model {tmp}/nothing.safetensors", "does not exist"),
        ("{photo} --model {tmp}/nowhere/at/all", "does not exist"),
        ("{photo} --model {tmp}/video", "WanPipeline"),
        ("{photo} --model somebody/something", "network"),
        ("{photo} --model {file}", "--config"),
        ("{photo} --model {model} --device abacus", "device 'abacus' cannot be used"),
        ("{photo} --model {model} --device cuda:7", "device 'cuda:7' cannot be used"),
        ("{photo} --model {model} --offload model", "leave --offload out"),
        ("{photo} --model {model} --offload sequential", "leave --offload out"),
        ("{photo} --model {model} --native 60", "multiple of 32"),
        ("{photo} --model {model} --lora {tmp}/none.safetensors", "does not exist"),
        ("{photo} --model {model} --lora {tmp}/lora.safetensors", "LoRA"),
        ("{photo} --model {model} --lora {tmp}/lora.safetensors:much", "weight 'much'"),
        ("{photo} --model {model} --vae {tmp}/empty", "VAE"),
        ("{photo} --model {model} --control {tmp}/empty", "ControlNet"),
        ("{photo} --model {model} --control-image {photo}", "name one for each with --control"),
        ("{photo} --model {model} --style moss", "--style moss is of the embedded model"),
        ("{photo} --model {model} --mask {tmp}/none.png", "does not exist"),
        ("{photo} --model {model} --upscaler none.pth", "upscaler 'none.pth' does not exist"),
        ("{tmp}/small.png --model {model} --scale 2", "window of 64 x 64 is larger; use a scale of at least 3.2"),
        ("{photo} --prompt cat", "--prompt needs a checkpoint"),
        ("{photo} --model {model} --scale 16 --phases 3,2", "Phases"),
    ],
)
def test_bad_input_is_one_sentence_with_status_2_and_leaves_nothing(checkpoints, photo, tmp_path, capsys, arguments, said):
    names = _bad(tmp_path, checkpoints, photo)
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(**names) for word in arguments.split()]
    assert main(["upscale", *words, "--quiet", "-o", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("apt_ext: ")
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hub_name_that_was_fetched_before_needs_no_network(checkpoints, photo, tmp_path):
    """The hub's own cache on disk, as its package lays it out."""
    there, commit = tmp_path / "hub" / "models--somebody--tiny", "0123456789" * 4
    shutil.copytree(checkpoints("sd1"), there / "snapshots" / commit)
    (there / "refs").mkdir()
    (there / "refs" / "main").write_text(commit)
    job = ["upscale", str(photo), "--scale", "2", "--steps", "4", "--prompt", "a cat", "--quiet"]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "apt_ext", *job, "--model", "somebody/tiny", "-o", str(tmp_path / "named.png")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert main([*job, "--model", str(checkpoints("sd1")), "-o", str(tmp_path / "folder.png")]) == 0
    assert Image.open(tmp_path / "named.png").tobytes() == Image.open(tmp_path / "folder.png").tobytes()
    assert "Model: tiny," in Image.open(tmp_path / "named.png").info["parameters"]


@pytest.mark.parametrize("name", ["folder", "file.ckpt"])
def test_files_that_can_run_programs_are_loaded_where_that_is_asked_for_and_only_there(checkpoints, opened, tmp_path, name):
    from apt_ext.checkpoints.opening import open_checkpoint

    config = str(checkpoints("sd1")) if name == "file.ckpt" else None
    if config:
        torch.save(load_file(checkpoints("sd1.safetensors")), tmp_path / name)
    else:
        shutil.copytree(checkpoints("sd1"), tmp_path / name)
        safe = tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(safe), safe.with_suffix(".bin"))
        safe.unlink()
    with pytest.raises(ValueError, match="--allow-pickle"):
        open_checkpoint(str(tmp_path / name), device="cpu", config=config)
    made = open_checkpoint(str(tmp_path / name), device="cpu", allow_pickle=True, config=config).network.state_dict()
    wanted = opened("sd1").network.state_dict()
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[part], wanted[part]) for part in wanted)


def test_parts_whose_numbers_are_of_several_types_are_refused(opened, checkpoints):
    from apt_ext.checkpoints.loading import load_pipeline
    from apt_ext.checkpoints.opening import from_pipeline

    pipe = load_pipeline(str(checkpoints("sd1")), numbers=lambda family: torch.float32).pipe
    pipe.unet.conv_in.half()
    with pytest.raises(ValueError, match=r"mixes numbers of several types .*float16.*float32.*--dtype float32"):
        from_pipeline(pipe)


def test_an_inpainting_checkpoint_is_refused_with_the_remedy(tmp_path):
    from apt_ext.checkpoints.opening import from_pipeline
    from tests.checkpoints.tiny import pipeline, unet

    pipe = pipeline("sd1", tmp_path)
    pipe.unet = unet(32, in_channels=9, out_channels=4)
    with pytest.raises(ValueError, match=r"takes 9 channels .* --mask"):
        from_pipeline(pipe)


def test_without_the_extra_it_is_said_what_to_install(photo, tmp_path):
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name in ('diffusers', 'transformers') else find(name, *rest)\n"
        f"from apt_ext.demo.cli import main\nsys.exit(main(['upscale', {str(photo)!r}, '--model', 'some/model', '-o', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "apt_ext: a checkpoint of your own needs diffusers, transformers, which is not installed; run: pip install -r requirements/checkpoints.txt\n"
    )


def test_the_command_line_by_itself_pulls_none_of_the_extra_in():
    code = (
        "import sys\nfrom apt_ext.demo.cli import kind_of, main, make_parser\nkind_of(make_parser().parse_args(['upscale', 'photo.png']))\n"
        "sys.exit(any(name in sys.modules for name in ('diffusers', 'transformers', 'apt_ext.checkpoints')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0
