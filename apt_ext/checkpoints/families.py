"""What there is to know of a kind of checkpoint, as data."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

__all__ = ["FAMILIES", "Family", "family_of_class", "family_of_names", "kind_of_config", "names_in"]


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    Attributes:
        name: short, as the command `plan` calls it. `label`: for people.
        pipeline: diffusers' class that reads it. `classes`: beginnings of the names of other classes of the same parts.
        network: the pipeline's part that denoises. `needed`: the parts that a pipeline cannot do without.
        guidance: its usual classifier-free guidance. `negative`: whether it takes a negative prompt.
        half: its usual 16-bit numbers. `control`: diffusers' class of its ControlNets.
        mark: a tensor's name, or a part of it, that only its single files have.
        file: its other parts with weights -> how the names of their tensors begin in a single file.
    """

    name: str
    label: str
    pipeline: str
    classes: tuple[str, ...]
    network: str
    needed: tuple[str, ...]
    guidance: float
    negative: bool
    half: str
    control: str
    mark: str
    file: Mapping[str, str | tuple[str, ...]]


VAE = ("first_stage_model.", "vae.")
CLIP_L, CLIP_G, T5 = (f"text_encoders.{name}." for name in ("clip_l", "clip_g", "t5xxl"))

# In the order in which a file is looked at: the last mark is in SDXL's files too.
FAMILIES = (
    Family(
        "sdxl",
        "SDXL",
        "StableDiffusionXLPipeline",
        ("StableDiffusionXL",),
        "unet",
        ("vae", "unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        7.0,
        True,
        "float16",
        "ControlNetModel",
        "model.diffusion_model.label_emb.",
        {"vae": VAE, "text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1."},
    ),
    Family(
        "sd3",
        "SD3",
        "StableDiffusion3Pipeline",
        ("StableDiffusion3",),
        "transformer",
        ("vae", "transformer", "text_encoder", "text_encoder_2"),
        4.5,
        True,
        "bfloat16",
        "SD3ControlNetModel",
        "joint_blocks.0.context_block.",
        {"vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5},
    ),
    Family(
        "flux",
        "Flux",
        "FluxPipeline",
        ("Flux",),
        "transformer",
        ("vae", "transformer", "text_encoder", "text_encoder_2"),
        3.5,
        False,
        "bfloat16",
        "FluxControlNetModel",
        "double_blocks.0.img_mod.lin.",
        {"vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": T5},
    ),
    Family(
        "sd",
        "Stable Diffusion",
        "StableDiffusionPipeline",
        ("StableDiffusionPipeline", "StableDiffusionImg2Img"),
        "unet",
        ("vae", "unet", "text_encoder", "tokenizer"),
        7.0,
        True,
        "float16",
        "ControlNetModel",
        "model.diffusion_model.input_blocks.",
        {"vae": VAE, "text_encoder": "cond_stage_model."},
    ),
)
OTHERS = ("Inpaint", "ControlNet", "Upscale", "Pix2Pix", "Kontext", "Fill", "Redux", "Control", "Adapter", "PAG")
READ = "use an SD 1.x, SD 2.x, SDXL, SD3 or Flux checkpoint"


def family_of_class(name: str, of: str) -> Family:
    """The family that a pipeline's class belongs to.

    Args:
        name: of the class. `of`: the model's name, for the sentence.

    Raises:
        ValueError: for a class whose parts are others.
    """
    found = next((family for family in FAMILIES if name.startswith(family.classes)), None)
    if found is None or any(other in name for other in OTHERS):
        raise ValueError(f"model {of!r} is a {name}, which windows are not made for here; {READ}")
    return found


def kind_of_config(folder: Path) -> str:
    """The class that a folder's model_index.json names.

    Raises:
        ValueError: for a folder that is no pipeline.
    """
    try:
        return str(json.loads((folder / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"folder {str(folder)!r} is no diffusers pipeline (it has no model_index.json that names one); give the folder that has it") from None


def names_in(path: Path) -> list[str]:
    """The names of a .safetensors file's tensors; nothing is loaded.

    Raises:
        ValueError: for a file that cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model {str(path)!r} cannot be read as safetensors ({str(error).splitlines()[0]}); download it anew") from None


def family_of_names(names: Collection[str], of: str) -> Family:
    """The family of a single file.

    Args:
        names: of its tensors. `of`: its own, for the sentence.

    Raises:
        ValueError: for a file that is no checkpoint.
    """
    found = next((family for family in FAMILIES if any(family.mark in name for name in names)), None)
    if found is None:
        raise ValueError(f"model {of!r} holds none of the checkpoints that are known here (a LoRA, a VAE or a text encoder, perhaps?); {READ}")
    return found
