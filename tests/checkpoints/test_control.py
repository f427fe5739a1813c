"""diffusers' ControlNets, shown to each window as it is."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.checkpoints.library import upscale
from apt_ext.checkpoints.opening import open_checkpoint
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import dilated_grid
from apt_ext.core.windows import Window

RAMP = torch.linspace(0, 1, 64)


@pytest.fixture(scope="module")
def control(checkpoints, tmp_path_factory):
    """(kind, weight) -> a checkpoint with a ControlNet that does something, saved and loaded."""
    from diffusers import ControlNetModel

    folder = tmp_path_factory.mktemp("control")

    def make(kind, weight="1.0"):
        path = folder / kind
        if not path.is_dir():
            torch.manual_seed(2)
            unet = open_checkpoint(str(checkpoints(kind)), device="cpu").network
            net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
            for block in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
                torch.nn.init.normal_(block.weight, std=0.3)
            net.save_pretrained(path)
        return open_checkpoint(str(checkpoints(kind)), device="cpu", controls=[f"{path}:{weight}"])

    return make


def test_a_whole_picture_of_the_window_s_size_is_the_pipeline_s(control, some):
    """The same UNet and ControlNet by diffusers' own pipeline, from the same noise."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionControlNetPipeline

    from apt_ext.checkpoints.job import PromptJob
    from apt_ext.demo.samplers import k_sampling, make_sigmas

    model = control("sd1", "0.8")
    parts = dict(model.pipe.components)
    parts["scheduler"] = EulerDiscreteScheduler.from_config(parts["scheduler"].config, timestep_spacing="linspace", steps_offset=0)
    theirs = StableDiffusionControlNetPipeline(**parts, controlnet=model.controls[0][0], requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    hint, noise = some(1, 3, 64, 64).clamp(0, 1), some(1, 4, 8, 8, seed=1)
    common = {"controlnet_conditioning_scale": 0.8, "guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "latent", "return_dict": False}
    wanted = theirs("a cat", image=hint, negative_prompt="fog", latents=noise, height=64, width=64, **common)[0]
    sigmas = make_sigmas("normal", 4, model.sigmas)
    made = model.conditioned(PromptJob(prompt="a cat", negative="fog", guidance=3.0))(None)
    with torch.no_grad():
        ours = k_sampling().sample_euler(made.denoiser, noise * sigmas[0], sigmas, extra_args=made.extra | {"hints": [hint]}, disable=True)
    assert torch.allclose(ours, wanted, atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_every_view_sees_its_part_of_the_hint(control, photo, kind):
    from apt_ext.checkpoints.job import PromptJob
    from apt_ext.demo.job import plan_job
    from apt_ext.demo.sources import from_picture

    model, job = control(kind), PromptJob(2.0, prompt="cat")
    source = from_picture(model, Image.open(photo).convert("RGB"), job)
    setup = plan_job(model, source, job).setups[-1]
    made = model.conditioned(job, source)(setup)
    (cut,) = made.condition(made.extra, ViewBatch(setup.phase.size, 1, (Window(0, 0, 8, 8), Window(16, 10, 8, 8))))["hints"]
    whole = torch.nn.functional.interpolate(source.picture / 2 + 0.5, (192, 144), mode="bilinear")
    assert torch.allclose(cut[0], whole[0, :, :64, :64], atol=1e-5)
    assert torch.allclose(cut[1], whole[0, :, 128:, 80:], atol=1e-5)
    (views,) = made.condition(made.extra, ViewBatch(setup.phase.size, 1, (), dilated_grid(setup.phase.size, (2, 2)), (0, 4)))["hints"]
    assert views.shape == (4, 3, 96, 72)
    assert abs(float((views[0] - torch.nn.functional.avg_pool2d(whole, 2)[0]).mean())) < 0.02


def test_a_control_net_changes_the_picture_by_its_weight(control, opened, photo):
    given: dict[str, Any] = {"prompt": "a cat", "scale": 2, "steps": 8, "strength": 0.4}
    none, zero, one = (np.asarray(upscale(model, photo, **given).image).astype(int) for model in (opened("sd1"), control("sd1", "0"), control("sd1")))
    other = np.asarray(upscale(control("sd1"), photo, control_images=[Image.new("RGB", (72, 96), "red")], **given).image)
    assert abs(none - zero).max() <= 1
    assert abs(none - one).mean() > 1
    assert (other != one).any()


@pytest.mark.parametrize(("kind", "name"), [("sd3", "SD3"), ("flux", "Flux")])
def test_a_flow_model_has_none(checkpoints, tmp_path, kind, name):
    with pytest.raises(ValueError, match=f"ControlNets of {name} cannot be shown to windows here; leave --control out"):
        open_checkpoint(str(checkpoints(kind)), device="cpu", controls=[str(tmp_path)])
