"""Single files of every family, whole or the network alone, go through diffusers' own loading, without a network."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from apt_ext.demo.cli import main

KINDS = ("sd1", "sd2v", "sdxl", "sd3", "sd35", "flux")


@pytest.fixture
def open_file(checkpoints, narrow_flux):
    """A single file by its name, with the folder of its kind after --config."""
    from apt_ext.checkpoints.opening import open_checkpoint

    def opened(name, **more):
        kind = name.removesuffix(".safetensors").partition("-")[0]
        given = {"config": str(checkpoints(kind)), "native": 64 if kind == "flux" else None} | more
        return open_checkpoint(str(checkpoints(name)), device="cpu", **given)

    return opened


def same_weights(file, folder, besides=()):
    held = {name for name, part in folder.pipe.components.items() if hasattr(part, "state_dict")}
    assert {name for name, part in file.pipe.components.items() if hasattr(part, "state_dict")} == held
    for part in held - set(besides):
        ours, theirs = getattr(file.pipe, part).state_dict(), getattr(folder.pipe, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return held


@pytest.mark.parametrize("which", ["", "-wordless", "-alone"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_is_the_folder_it_was_made_from(open_file, opened, kind, which):
    """Whole, without text encoders, and the network alone; what it lacks comes from the folder after --config."""
    folder, file = opened(kind), open_file(f"{kind}{which}.safetensors")
    assert file.family == folder.family
    assert file.facts[:3] == folder.facts[:3]
    assert file.prediction == folder.prediction
    assert same_weights(file, folder) >= {"vae", folder.family.network, "text_encoder"}
    assert type(file.pipe).__name__ == type(folder.pipe).__name__


@pytest.mark.parametrize("kind", ["sd1", "sd3", "flux"])
def test_what_a_file_holds_is_its_own_and_only_what_it_lacks_the_folder_s(checkpoints, open_file, opened, tmp_path, kind):
    """The file of one set of weights, the folder of another."""
    other = {name: value + 0.25 if value.is_floating_point() else value for name, value in load_file(checkpoints(f"{kind}-wordless.safetensors")).items()}
    save_file(other, tmp_path / "other.safetensors")
    from apt_ext.checkpoints.opening import open_checkpoint

    folder, native = opened(kind), 64 if kind == "flux" else None
    file = open_checkpoint(str(tmp_path / "other.safetensors"), device="cpu", config=str(checkpoints(kind)), native=native)
    same_weights(file, folder, besides=("vae", folder.family.network))
    for part in ("vae", folder.family.network):
        ours, theirs = getattr(file.pipe, part).state_dict(), getattr(folder.pipe, part).state_dict()
        assert all(torch.allclose(ours[name], theirs[name] + 0.25) for name in theirs)


@pytest.mark.parametrize("which", ["", "-alone"])
def test_the_third_text_encoder_is_used_where_there_is_one_and_a_tokenizer_for_it(checkpoints, open_file, tmp_path, which):
    name, bare = f"sd35{which}.safetensors", tmp_path / "bare"
    shutil.copytree(checkpoints("sd35"), bare)
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(bare / part)
    index = bare / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}))
    with_it, without = open_file(name), open_file(name, config=str(bare))
    assert (with_it.pipe.text_encoder_3 is not None, without.pipe.text_encoder_3, without.pipe.tokenizer_3) == (True, None, None)
    contexts = [model.words("a red cat", "")[0]["context"] for model in (with_it, without)]
    assert contexts[0].shape == contexts[1].shape
    assert not torch.equal(*contexts)


def test_a_vae_s_file_is_read_by_the_sizes_of_the_folder(checkpoints, open_file, opened, tmp_path):
    """Flux's own comes beside its file, and diffusers would take it for Stable Diffusion's."""
    held = load_file(checkpoints("flux.safetensors"))
    save_file({name.removeprefix("first_stage_model."): value * 2 for name, value in held.items() if "first_stage" in name}, tmp_path / "ae.safetensors")
    made, before = open_file("flux-alone.safetensors", vae=str(tmp_path / "ae.safetensors")).pipe.vae.state_dict(), opened("flux").pipe.vae.state_dict()
    assert made.keys() == before.keys()
    assert all(torch.equal(made[name], 2 * before[name]) for name in before)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_command_makes_of_a_file_what_it_makes_of_the_folder(checkpoints, narrow_flux, photo, tmp_path, kind):
    common = ["upscale", str(photo), "--scale", "2", "--steps", "8", "--quiet", "--prompt", "a red cat", *(["--native", "64"] if kind == "flux" else [])]
    folder = str(checkpoints(kind))
    file = ["--model", str(checkpoints(f"{kind}-alone.safetensors")), "--config", folder]
    made = []
    for name, model in (("folder", ["--model", folder]), ("file", file)):
        assert main([*common, *model, "-o", str(tmp_path / f"{name}.png")]) == 0
        made.append(Image.open(tmp_path / f"{name}.png").tobytes())
    assert made[0] == made[1]
