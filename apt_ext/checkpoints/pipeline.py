"""The same in the form that users of diffusers know: `AptUpscalePipeline.from_pretrained(...)(prompt=..., image=..., scale=4)`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from apt_ext.checkpoints.controls import Control
from apt_ext.checkpoints.library import Picture, Progress, Upscaled, upscale
from apt_ext.checkpoints.loading import load_pipeline, offload_layers
from apt_ext.checkpoints.opening import from_pipeline

__all__ = ["AptOutput", "AptUpscalePipeline"]


@dataclass
class AptOutput:
    """The pictures, and a report for each, as `upscale` gives them."""

    images: list[Image.Image]
    reports: list[dict[str, Any]] = field(default_factory=list)


class AptUpscalePipeline:
    """A pipeline of diffusers' that enlarges. What is not its own, such as `enable_model_cpu_offload` or `load_lora_weights`, is that pipeline's.

    Args:
        pipe: a loaded pipeline of SD 1.x, SD 2.x, SDXL, SD3 or Flux.
        native: side in pixels of the pictures that it composes, and of its windows; the checkpoint's own where it is left out.
        prediction: "epsilon" or "v_prediction", where the scheduler's configuration does not know.
        controlnet: a ControlNet, or several.

    Raises:
        ValueError: in one sentence, for a pipeline whose parts cannot be used.
    """

    def __init__(self, pipe: Any, *, native: int | None = None, prediction: str | None = None, controlnet: Any = ()):
        self.pipe, self._native, self._prediction = pipe, native, prediction
        self._controls = list(controlnet) if isinstance(controlnet, (list, tuple)) else [controlnet]
        self._model()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        torch_dtype: torch.dtype = torch.float32,
        config: str | None = None,
        vae: str | None = None,
        allow_pickle: bool = False,
        **more: Any,
    ) -> AptUpscalePipeline:
        """Load a folder, a single .safetensors file or a hub name; the parts are on the CPU. `more`: of the class.

        Raises:
            ValueError: in one sentence, for whatever cannot be used.
        """
        loaded = load_pipeline(str(name), numbers=lambda family: torch_dtype, config=config, vae=vae, allow_pickle=allow_pickle)
        return cls(loaded.pipe, **more)

    from_single_file = from_pretrained

    def to(self, *where: Any, **more: Any) -> AptUpscalePipeline:
        """Bring all parts to a device or a type of numbers, ControlNets too."""
        self.pipe.to(*where, **more)
        for net in self._controls:
            net.to(*where, **more)
        return self

    def enable_sequential_cpu_offload(self, **given: Any) -> None:
        """Keep layers in main memory until they are needed; see `offload_layers`."""
        offload_layers(self.pipe, **given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["pipe"], name)

    def _model(self, *settings: Any) -> Any:
        """`settings`: weights, starts and ends of the ControlNets, one for all or one for each."""
        count = len(self._controls)
        each = [_several(setting) * count if len(_several(setting)) == 1 else _several(setting) for setting in settings]
        if any(len(setting) != count for setting in each):
            raise ValueError(f"{count} ControlNets are loaded and {max(map(len, each))} weights, starts or ends given; give one for all, or one for each")
        controls = list(itertools.starmap(Control, zip(self._controls, *each, strict=True)))
        return from_pipeline(self.pipe, native=self._native, prediction=self._prediction, controls=controls)

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        image: Picture | Sequence[Picture] | None = None,
        scale: float = 4.0,
        *,
        negative_prompt: str = "",
        preset: str = "Balanced",
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        strength: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        mask_image: Picture | None = None,
        control_image: Picture | Sequence[Picture] = (),
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        on_progress: Progress | None = None,
        interrupted: Callable[[], bool] | None = None,
        **given: Any,
    ) -> AptOutput:
        """Enlarge one picture or several, one after the other, so that each comes out as if it were alone.

        Args:
            prompt, image: one for all, or one for each. Without an image, the checkpoint makes one first.
            num_images_per_prompt: how many of each, of seeds that count up.
            seed, generator: of the first; a generator gives the seed that it was made with.
            control_guidance_start, control_guidance_end: the share of a phase's steps in which the ControlNets act.
            num_inference_steps: of the whole schedule, of which `strength` runs a share. They and everything else: see `upscale`.

        Raises:
            ValueError: see `upscale`.
        """
        model = self._model(controlnet_conditioning_scale, control_guidance_start, control_guidance_end)
        given |= {name: value for name, value in (("steps", num_inference_steps), ("strength", strength)) if value is not None}
        first = seed if seed is not None else generator.initial_seed() % 2**32 if generator is not None else 1
        prompts, images = _several(prompt), _several(image)
        count = max(len(prompts), len(images))
        if {len(prompts), len(images)} - {1, count}:
            raise ValueError(f"{len(prompts)} prompts and {len(images)} pictures do not go together; give one for all, or one for each")
        made: list[Upscaled] = []
        for number in range(count):
            for copy in range(num_images_per_prompt):
                made.append(
                    upscale(
                        model,
                        images[number % len(images)],
                        prompt=prompts[number % len(prompts)],
                        negative=negative_prompt,
                        scale=scale,
                        preset=preset,
                        guidance=guidance_scale,
                        seed=first + copy,
                        mask=mask_image,
                        control_images=[one for one in _several(control_image) if one is not None],
                        on_progress=on_progress,
                        interrupted=interrupted,
                        **given,
                    )
                )
                if not made[-1].complete:
                    return AptOutput([one.image for one in made], [one.report for one in made])
        if hasattr(self.pipe, "maybe_free_model_hooks"):
            self.pipe.maybe_free_model_hooks()
        return AptOutput([one.image for one in made], [one.report for one in made])


def _several(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [given]
