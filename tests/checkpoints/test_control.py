"""diffusers' ControlNets, shown to each window as it is."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.checkpoints.controls import Control, Shown, _span, acts
from apt_ext.checkpoints.library import upscale
from apt_ext.checkpoints.opening import open_checkpoint
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import dilated_grid
from apt_ext.core.hints import view_hints
from apt_ext.core.windows import Window
from tests.checkpoints.control_nets import CONTROLS, KINDS, saved_control

RAMP = torch.linspace(0, 1, 64)


@pytest.fixture(scope="module")
def control(checkpoints, tmp_path_factory):
    """(kind, weight, number) -> a checkpoint with ControlNets that do something, saved and loaded."""
    folder = tmp_path_factory.mktemp("control")

    def make(kind, weight="1.0", count=1):
        family, path = kind.partition("-")[0], folder / kind
        if not path.is_dir():
            saved_control(open_checkpoint(str(checkpoints(family)), device="cpu").network, kind, path)
        native = 64 if family == "flux" else None
        return open_checkpoint(str(checkpoints(family)), device="cpu", controls=[f"{path}:{weight}"] * count, native=native)

    return make


def test_a_whole_picture_of_the_window_s_size_is_the_pipeline_s(control, some):
    """The same UNet and ControlNet by diffusers' own pipeline, from the same noise."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionControlNetPipeline

    from apt_ext.checkpoints.job import PromptJob
    from apt_ext.demo.samplers import k_sampling, make_sigmas

    model = control("sd1", "0.8")
    parts = dict(model.pipe.components)
    parts["scheduler"] = EulerDiscreteScheduler.from_config(parts["scheduler"].config, timestep_spacing="linspace", steps_offset=0)
    theirs = StableDiffusionControlNetPipeline(**parts, controlnet=model.controls[0].network, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    hint, noise = some(1, 3, 64, 64).clamp(0, 1), some(1, 4, 8, 8, seed=1)
    common = {"controlnet_conditioning_scale": 0.8, "guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "latent", "return_dict": False}
    wanted = theirs("a cat", image=hint, negative_prompt="fog", latents=noise, height=64, width=64, **common)[0]
    sigmas = make_sigmas("normal", 4, model.sigmas)
    made = model.conditioned(PromptJob(prompt="a cat", negative="fog", guidance=3.0))(None)
    with torch.no_grad():
        ours = k_sampling().sample_euler(made.denoiser, noise * sigmas[0], sigmas, extra_args=made.extra | {"hints": [Shown(hint)]}, disable=True)
    assert torch.allclose(ours, wanted, atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_s_whole_picture_is_the_pipeline_s(control, some, monkeypatch, kind):
    """From the middle, with two ControlNets, until two thirds of the steps; the picture's latent is the mean, of which diffusers draws."""
    import diffusers
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    from apt_ext.checkpoints.job import PromptJob
    from apt_ext.demo.samplers import k_sampling

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    family, model = kind.partition("-")[0], control(kind, "0.6:0-67%", count=2)
    name, several = {"sd3": ("StableDiffusion3ControlNetPipeline", "SD3MultiControlNetModel"), "flux": ("FluxControlNetPipeline", "FluxMultiControlNetModel")}[
        family
    ]
    nets = getattr(diffusers.models, several)([one.network for one in model.controls])
    theirs = getattr(diffusers, name)(**model.pipe.components, controlnet=nets)
    theirs.set_progress_bar_config(disable=True)
    hint, start = some(1, 3, 64, 64).clamp(-1, 1), some(1, 16, 8, 8, seed=1)
    latents = start if family == "sd3" else theirs._pack_latents(start, 1, 16, 8, 8)
    common = {"prompt": "a red cat", "guidance_scale": 3.0, "num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent", "return_dict": False}
    acting = {"control_image": [hint, hint], "controlnet_conditioning_scale": [0.6, 0.6], "control_guidance_end": 0.67}
    words = {"negative_prompt": "fog"} if family == "sd3" else {}
    wanted = theirs(**common, **words, **acting, latents=latents, sigmas=[0.7, 0.4, 0.2])[0]
    if family == "flux":
        wanted = theirs._unpack_latents(wanted, 64, 64, theirs.vae_scale_factor)
    times = theirs.scheduler.sigmas.float()
    levels = times / (1 - times)
    made = model.conditioned(PromptJob(prompt="a red cat", negative=words.get("negative_prompt", ""), guidance=3.0))(None)
    z = model.autoencoder.encode(hint, model.device)
    zero = model.autoencoder.shift * model.autoencoder.scale if kind == "sd3-zeros" else 0
    rows, acts_until = hint if kind == "flux-pixels" else z + zero, float(levels[1])

    def ours(*shown):
        with torch.no_grad():
            return k_sampling().sample_euler(made.denoiser, start * (1 + levels[0]), levels, extra_args=made.extra | {"hints": shown}, disable=True)

    made_here, always, never = ours(*[Shown(rows, acts_until)] * 2), ours(*[Shown(rows)] * 2), ours(*[Shown(rows, 1e9)] * 2)
    assert torch.allclose(made_here, wanted, atol=2e-4 * float(wanted.abs().max()))
    assert not torch.allclose(always, wanted, atol=2e-3 * float(wanted.abs().max()))
    assert not torch.allclose(never, wanted, atol=2e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.0, 0.5), (0.3, 1.0), (0.25, 0.75), (0.9, 1.0), (0.5, 0.52)])
@pytest.mark.parametrize("steps", [3, 10])
def test_the_steps_in_which_a_control_net_acts_are_diffusers(start, end, steps):
    levels = [float(level) for level in torch.linspace(9, 0.5, steps)]
    low, high = _span(Control(None, 1.0, start, end), levels)
    ours = [acts([Shown(RAMP, low, high)], torch.tensor([level]))[0] is not None for level in levels]
    assert ours == [not (i / steps < start or (i + 1) / steps > end) for i in range(steps)]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_every_view_sees_its_part_of_the_hint(control, photo, kind):
    from apt_ext.checkpoints.job import PromptJob
    from apt_ext.demo.job import plan_job
    from apt_ext.demo.sources import from_picture

    model, job = control(kind), PromptJob(2.0, prompt="cat")
    source = from_picture(model, Image.open(photo).convert("RGB"), job)
    setup = plan_job(model, source, job).setups[-1]
    made = model.conditioned(job, source)(setup)
    ((cut, *span),) = made.condition(made.extra, ViewBatch(setup.phase.size, 1, (Window(0, 0, 8, 8), Window(16, 10, 8, 8))))["hints"]
    whole = torch.nn.functional.interpolate(source.picture / 2 + 0.5, (192, 144), mode="bilinear")
    assert torch.allclose(cut[0], whole[0, :, :64, :64], atol=1e-5)
    assert torch.allclose(cut[1], whole[0, :, 128:, 80:], atol=1e-5)
    assert span == [0.0, math.inf]
    ((views, *_),) = made.condition(made.extra, ViewBatch(setup.phase.size, 1, (), dilated_grid(setup.phase.size, (2, 2)), (0, 4)))["hints"]
    assert views.shape == (4, 3, 96, 72)
    assert abs(float((views[0] - torch.nn.functional.avg_pool2d(whole, 2)[0]).mean())) < 0.02


def test_a_control_net_changes_the_picture_by_its_weight(control, opened, photo):
    given: dict[str, Any] = {"prompt": "a cat", "scale": 2, "steps": 8, "strength": 0.4}
    none, zero, one = (np.asarray(upscale(model, photo, **given).image).astype(int) for model in (opened("sd1"), control("sd1", "0"), control("sd1")))
    other = np.asarray(upscale(control("sd1"), photo, control_images=[Image.new("RGB", (72, 96), "red")], **given).image)
    assert abs(none - zero).max() <= 1
    assert abs(none - one).mean() > 1
    assert (other != one).any()


@pytest.mark.parametrize("kind", ["sd3", "sd3-zeros", "flux", "flux-pixels"])
def test_every_view_of_a_flow_sees_its_part_of_the_hint(control, photo, kind):
    """Windows are cut from the picture's latent; a dilated view is a small picture with a latent of its own."""
    from apt_ext.checkpoints.job import PromptJob
    from apt_ext.demo.job import plan_job
    from apt_ext.demo.sources import from_picture

    model, job = control(kind), PromptJob(2.0, prompt="cat")
    source = from_picture(model, Image.open(photo).convert("RGB"), job)
    setup = plan_job(model, source, job).setups[-1]
    made = model.conditioned(job, source)(setup)
    whole = torch.nn.functional.interpolate(source.picture, (192, 144), mode="bilinear")
    moved = model.autoencoder.shift * model.autoencoder.scale if kind == "sd3-zeros" else 0

    def latent(pixels):
        return pixels if kind == "flux-pixels" else model.autoencoder.encode(pixels, model.device) + moved

    unit, z = 8 if kind == "flux-pixels" else 1, latent(whole)
    (cut,) = made.condition(made.extra, ViewBatch(setup.phase.size, 2, (Window(0, 0, 8, 8), Window(16, 10, 8, 8))))["hints"]
    assert torch.allclose(cut.rows[0], z[0, :, : 8 * unit, : 8 * unit], atol=1e-5)
    assert torch.allclose(cut.rows[1], z[0, :, 16 * unit :, 10 * unit :], atol=1e-5)
    assert torch.equal(cut.rows[:2], cut.rows[2:])
    assert setup.grid is not None
    assert setup.grid.views > 4
    (views,) = made.condition(made.extra, ViewBatch(setup.phase.size, 1, (), setup.grid, (1, 4)))["hints"]
    shrunk = view_hints(whole, ViewBatch(setup.phase.size, 1, (), setup.grid, (1, 4)))
    assert torch.allclose(views.rows, torch.cat([latent(one[None]) for one in shrunk]), atol=1e-5)


@pytest.mark.parametrize("kind", ["sd3", "flux", "flux-pixels"])
def test_a_flow_s_control_net_changes_the_picture_by_its_weight_and_share(control, opened, photo, kind):
    given: dict[str, Any] = {"prompt": "a cat", "scale": 2, "steps": 8, "strength": 0.4}
    family = kind.partition("-")[0]
    models = (opened(family), *(control(kind, weight) for weight in ("0", "1.0:0-1%", "1.0", "1.0:0-50%")))
    none, zero, never, one, half = (np.asarray(upscale(model, photo, **given).image).astype(int) for model in models)
    assert abs(none - zero).max() <= 1
    assert (none == never).all()
    assert abs(none - one).mean() > 0.3
    assert (half != one).any()
    assert (half != none).any()
    other = np.asarray(upscale(control(kind), photo, control_images=[Image.new("RGB", (72, 96), "red")], **given).image)
    assert (other != one).any()


@pytest.mark.parametrize(
    ("kind", "of", "given", "said"),
    [
        ("flux", "sd1", "{}", "is a ControlNetModel, and Flux takes a FluxControlNetModel"),
        ("sd1", "sd3", "{}", "is a SD3ControlNetModel, and Stable Diffusion takes a ControlNetModel"),
        ("sdxl", "sd1", "{}", "the ControlNet is 32 wide and the checkpoint 80"),
        ("flux", "flux", "{}/diffusion_pytorch_model.safetensors", "is a single file, which of Flux is not read; give its diffusers folder"),
        ("sd1", "sd1", "{}:0.8:50-20%", "is no part of the steps"),
        ("sd1", "sd1", "{}:much:0-50%", "weight 'much'"),
    ],
)
def test_a_control_net_that_does_not_go_with_the_checkpoint_is_refused(control, checkpoints, tmp_path, kind, of, given, said):
    control(of).controls[0].network.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=re.escape(said)):
        open_checkpoint(str(checkpoints(kind)), device="cpu", controls=[given.format(tmp_path / "net")])


@pytest.mark.parametrize(("kind", "more", "said"), [("flux", {"num_mode": 7}, "knows 7 kinds"), ("sd3", {"extra_conditioning_channels": 1}, "wants a mask")])
def test_a_control_net_that_wants_more_than_a_picture_is_refused(opened, checkpoints, tmp_path, kind, more, said):
    net, _ = CONTROLS[kind](opened(kind).network, **more)
    net.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=said):
        open_checkpoint(str(checkpoints(kind)), device="cpu", controls=[str(tmp_path / "net")], native=64)
