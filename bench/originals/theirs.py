"""The published pipelines, from a user's own checkouts, and a record of all that they draw and make.

Nothing of their code is here. They were written for diffusers 0.21; with the releases of today they need three things, all of them given from outside:
`_init_step_index` on the scheduler, whole numbers for `random.randint`, which later Pythons insist on, and no watermark, which is not a part of the method.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

from apt_ext.checkpoints.packages import diffusers, missing
from apt_ext.core.statistics import reanchor
from apt_ext.core.windows import Window

__all__ = ["PUBLISHED", "Pass", "Published", "Record", "open_checkout", "run_theirs"]

SDXL_STEPS = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}  # as SDXL's own configuration has them
WHOLE = 2048  # pixels up to which AccDiffusion decodes a picture in one piece
VIEW_BATCH = 16  # their default; AccDiffusion exchanges pixels within such a batch


@dataclass(frozen=True)
class Published:
    """A published pipeline.

    Attributes:
        method: as `Options` calls it. `repository`: where its checkout comes from. `file`, `name`: its module and its class.
        packages: what it imports that nothing else here needs.
        given: what its own command line sets besides the defaults.
    """

    method: str
    repository: str
    file: str
    name: str
    packages: tuple[str, ...]
    given: dict[str, Any]


FLAGS = ("use_multidiffusion", "use_dilated_sampling", "use_guassian", "use_skip_residual", "use_progressive_upscaling", "use_md_prompt", "shuffle")
PUBLISHED = {
    "demofusion": Published(
        "demofusion", "github.com/PRIS-CV/DemoFusion", "pipeline_demofusion_sdxl.py", "DemoFusionSDXLPipeline", ("matplotlib",), {"multi_decoder": True}
    ),
    "accdiffusion": Published(
        "accdiffusion",
        "github.com/lzhxmu/AccDiffusion",
        "accdiffusion_sdxl.py",
        "AccDiffusionSDXLPipeline",
        ("matplotlib", "cv2"),
        {"cross_attention_kwargs": {"edit_type": "visualize"}, "upscale_mode": "bicubic_latent", "c": 0.3, **dict.fromkeys(FLAGS, True)},
    ),
}


@dataclass
class Pass:
    """What a phase drew and made; the first one, the base pass, draws no more than its noise.

    Attributes:
        noise: (1, C, H, W), of unit variance. `after`: the latents after each step, in the scheduler's own scale.
        windows: of each step, in pixels of the latent, beyond whose border they may reach.
        words: a window's own prompt, where it has one.
        chance: the state of torch's generator at the start of each step, from which the exchange of pixels is drawn.
    """

    noise: Tensor
    after: list[Tensor] = field(default_factory=list)
    windows: list[list[Window]] = field(default_factory=list)
    words: dict[Window, str] = field(default_factory=dict)
    chance: list[Tensor] = field(default_factory=list)


@dataclass
class Record:
    """A run of a published pipeline.

    Attributes:
        levels: (N + 1,) k-diffusion's noise levels of its steps, and the one that it ends at.
        beyond: how many latent pixels its windows may reach over the border.
        passes: the base pass, then every phase. `pictures`: of each. `decode`: the last latent to its picture, as it does.
    """

    levels: Tensor
    beyond: int
    passes: list[Pass]
    pictures: list[Image.Image]
    decode: Callable[[Tensor], Image.Image]

    @property
    def latent(self) -> Tensor:
        """What is decoded in the end: what the last step left, with the base's mean and deviation."""
        return reanchor(self.passes[-1].after[-1], self.passes[0].after[-1])


def open_checkout(root: str | Path, published: Published) -> ModuleType:
    """The module of a checkout.

    Raises:
        ValueError: where the folder is no such checkout, or a package that it imports is not installed.
    """
    path = Path(root).expanduser() / published.file
    if not path.is_file():
        raise ValueError(f"{str(root)!r} is no checkout of {published.repository} (it has no {published.file}); run: git clone https://{published.repository}")
    lacking = missing(*published.packages)
    if lacking:
        named = " and ".join("opencv-python-headless" if name == "cv2" else name for name in lacking)
        raise ValueError(f"{published.file} imports {', '.join(lacking)}, which is not installed; run: pip install {named}")
    library, before = diffusers(), set(sys.modules)
    spec = importlib.util.spec_from_file_location(f"published_{published.method}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # its own modules have names such as "utils"
    try:
        with mock.patch.object(library.utils, "is_invisible_watermark_available", return_value=False):
            spec.loader.exec_module(module)
    except ImportError as error:
        raise ValueError(
            f"{str(path)!r} cannot be imported with diffusers {library.__version__} ({error}); use diffusers 0.42, which it was tried with"
        ) from None
    finally:
        sys.path.remove(str(path.parent))
        own = [name for name in set(sys.modules) - before if str(getattr(sys.modules[name], "__file__", "")).startswith(str(path.parent))]
        for name in own:
            sys.modules[name].random = SimpleNamespace(randint=lambda a, b: random.randint(int(a), int(b)))  # type: ignore[attr-defined]
            del sys.modules[name]
    return module


def _scheduler(config: Any, passes: list[Pass]) -> Any:
    class Listening(diffusers().DDIMScheduler):  # type: ignore[misc]
        """Keeps every phase's noise."""

        def _init_step_index(self, timestep: Any) -> None:
            pass

        def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            if passes[-1].noise is not noise:
                passes.append(Pass(noise, chance=[torch.get_rng_state()]))
            return super().add_noise(clean, noise, timesteps)

    return Listening.from_config(config, **SDXL_STEPS)


def _pipeline(module: ModuleType, published: Published, pipe: Any, passes: list[Pass], beyond: int) -> Any:
    def as_windows(views: list[tuple[int, int, int, int]], unit: int = 1) -> list[Window]:
        return [Window(*(int(n) for n in (a * unit - beyond, c * unit - beyond, (b - a) * unit, (d - c) * unit))) for a, b, c, d in views]

    class Listening(getattr(module, published.name)):  # type: ignore[misc]
        """Keeps every step's windows, and takes sizes other than multiples of 1024 pixels."""

        def check_inputs(self, *given: Any, **more: Any) -> None:
            pass

        def get_views(self, *given: Any, **more: Any) -> Any:
            views = super().get_views(*given, **more)
            if more.get("random_jitter"):
                passes[-1].windows.append(as_windows(views))
            return views

    if hasattr(module, "get_multidiffusion_prompts"):
        find = module.get_multidiffusion_prompts
        unit = module_unit(pipe)

        def listening(**given: Any) -> Any:
            prompts, views = find(**given)
            kept.update({scale: dict(zip(as_windows(views[scale], unit), prompts[scale], strict=True)) for scale in views})
            return prompts, views

        kept: dict[int, dict[Window, str]] = {}
        module.get_multidiffusion_prompts = listening  # type: ignore[attr-defined]
        Listening.words_of_windows = kept
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")}
    zeros = bool(pipe.config.get("force_zeros_for_empty_prompt"))
    return Listening(**parts, scheduler=_scheduler(pipe.scheduler.config, passes), force_zeros_for_empty_prompt=zeros)


def module_unit(pipe: Any) -> int:
    """Latent pixels for each pixel of the attention maps by which AccDiffusion tells what a window shows."""
    return 32 // 2 ** (len(pipe.vae.config.block_out_channels) - 1)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators that they draw from, seeded, and left as they were."""
    state, chance = random.getstate(), torch.get_rng_state()
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        torch.set_rng_state(chance)


def run_theirs(
    module: ModuleType, published: Published, pipe: Any, *, prompt: str, negative: str, scale: int, steps: int, guidance: float, seed: int, blur: float
) -> Record:
    """Run a published pipeline on the parts of an SDXL pipeline of diffusers', with DDIM, as in the papers.

    Args:
        scale: whole; the picture is square. `blur`: std of the dilated path's, their `sigma`.
    """
    window = int(pipe.unet.config.sample_size)
    stride, side = window // 2, window * 2 ** (len(pipe.vae.config.block_out_channels) - 1) * scale
    beyond, device = (window - stride) // 4, pipe._execution_device
    channels = int(pipe.unet.config.in_channels)
    first = torch.randn((1, channels, window, window), generator=torch.Generator(device).manual_seed(seed), device=device, dtype=pipe.unet.dtype)
    passes = [Pass(first)]
    found = getattr(module, "get_multidiffusion_prompts", None)
    theirs = _pipeline(module, published, pipe, passes, beyond)
    theirs.set_progress_bar_config(disable=True)

    def after(step: int, timestep: Any, latents: Tensor) -> None:
        passes[-1].after.append(latents.clone())
        passes[-1].chance.append(torch.get_rng_state())

    common = {"prompt": prompt, "negative_prompt": negative or None, "height": side, "width": side, "num_inference_steps": steps, "guidance_scale": guidance}
    common |= {"latents": first, "view_batch_size": VIEW_BATCH, "stride": stride, "sigma": blur, "callback": after}
    own = dict(published.given)
    try:
        with tempfile.TemporaryDirectory() as kept, _seeded(seed), contextlib.redirect_stdout(io.StringIO()):
            if published.method == "accdiffusion":
                own |= {"multi_guidance_scale": guidance, "result_path": kept}
            pictures = theirs(**common, **own)
    finally:
        pipe.vae.disable_tiling()
        if found is not None:
            module.get_multidiffusion_prompts = found  # type: ignore[attr-defined]
    words: dict[int, dict[Window, str]] = getattr(type(theirs), "words_of_windows", {})
    for number, one in enumerate(passes[1:], 2):
        one.words = words.get(number, {})
        one.windows = one.windows or [list(one.words)] * steps
    return Record(_levels(theirs.scheduler), beyond, passes, pictures, lambda latent: _decoded(theirs, published.method, latent, side))


@torch.no_grad()
def _decoded(theirs: Any, method: str, latent: Tensor, side: int) -> Image.Image:
    theirs.lowvram = False
    if method == "demofusion":
        image = theirs.tiled_decode(latent, side, side)
    else:
        if side > WHOLE:
            theirs.vae.enable_tiling()
        image = theirs.vae.decode(latent / theirs.vae.config.scaling_factor, return_dict=False)[0]
        theirs.vae.disable_tiling()
    return theirs.image_processor.postprocess(image, output_type="pil")[0]


def _levels(scheduler: Any) -> Tensor:
    alphas = scheduler.alphas_cumprod[scheduler.timesteps.cpu()].double()
    alphas = torch.cat([alphas, scheduler.final_alpha_cumprod.double()[None]])
    return (1 / alphas - 1).sqrt()
