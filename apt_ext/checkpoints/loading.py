"""Pipelines from folders, single files and the hub, by diffusers' own loading; whatever cannot be used is refused in one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from apt_ext.checkpoints.controls import Control
from apt_ext.checkpoints.explained import explained
from apt_ext.checkpoints.families import Family, family_of_class, kind_of_config
from apt_ext.checkpoints.packages import diffusers, missing
from apt_ext.checkpoints.single_file import family_of_file, lent_parts

__all__ = ["Loaded", "check_numbers", "load_controls", "load_pipeline", "offload_layers", "place", "split_weight"]


class Loaded(NamedTuple):
    """A pipeline of diffusers', its family and where it came from."""

    pipe: Any
    family: Family
    name: str


def split_weight(text: str) -> tuple[str, float]:
    """ "file:0.8" -> its parts; without a weight it is 1. A drive's letter is no weight.

    Raises:
        ValueError: for a weight that is no number.
    """
    name, colon, weight = text.rpartition(":")
    if not colon or os.sep in weight or "/" in weight:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise ValueError(f"weight {weight!r} of {name!r} is no number; write {name}:0.8, say") from None


def _is_file(name: str, allow_pickle: bool) -> bool:
    """Whether a model's name means a file here.

    Raises:
        ValueError: for a file that is missing or may not be loaded.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf") or Path(name).is_dir():
        if Path(name).is_file():
            raise ValueError(f"model {name!r} is no checkpoint; use a .safetensors file, a diffusers folder or a name on the hub")
        return False
    if not Path(name).is_file():
        raise ValueError(f"model {name!r} does not exist; give the path of a .safetensors file, a diffusers folder or a name on the hub")
    if suffix != ".safetensors" and not allow_pickle:
        raise ValueError(f"model {name!r} is a {suffix} file, which can run programs as it is loaded; use .safetensors, or --allow-pickle if you trust it")
    return True


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not Path(name.partition("/")[0]).is_dir()


def load_pipeline(
    name: str,
    *,
    numbers: Callable[[Family], torch.dtype],
    config: str | None = None,
    vae: str | None = None,
    loras: Sequence[str] = (),
    allow_pickle: bool = False,
) -> Loaded:
    """Load a pipeline; its parts are in main memory.

    Args:
        name: a folder of diffusers', a single file, or a name on the hub.
        numbers: a family -> their type; those of a VAE that overflows in float16 are float32.
        config: for a single file, the folder or the hub name whose parts it is a checkpoint of; diffusers finds it by itself with a network. Text encoders
            and a VAE that the file lacks are loaded from there.
        vae: another VAE, likewise. `loras`: files, each with ":weight" behind it or without.
        allow_pickle: whether files other than safetensors may be loaded.

    Raises:
        ValueError: in one sentence, for whatever cannot be used.
    """
    library, what = diffusers(), f"model {name!r}"

    def parts(family: Family) -> dict[str, Any]:
        of = {"config": config, "subfolder": "vae"} if config is not None else {}
        own = {} if vae is None else {"vae": _load_part(library.AutoencoderKL, vae, "VAE", numbers(family), allow_pickle, **of)}
        return {"dtype": numbers(family), **own}

    if _is_file(name, allow_pickle):
        family = family_of_file(name, config)
        own = parts(family)
        if name.endswith(".safetensors"):
            loading = {"dtype": numbers(family), "use_safetensors": None if allow_pickle else True}
            own |= lent_parts(library, name, family, config, own, **loading)
        with explained(what if config else f"{what}, whose parts are described on the hub and, without a network, by a folder after --config,"):
            pipe = getattr(library, family.pipeline).from_single_file(name, **({"config": config} if config else {}), **own)
    else:
        if Path(name).is_dir():
            kind = kind_of_config(Path(name))
        elif _is_hub_name(name):
            with explained(what, hub=True):
                kind = str(library.DiffusionPipeline.load_config(name)["_class_name"])
        else:
            raise ValueError(f"model {name!r} does not exist; give the path of a .safetensors file, a diffusers folder or a name on the hub")
        family = family_of_class(kind, name)
        without: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False} if family.name == "sd" else {}
        if family.name == "sd3" and not (Path(name) / "text_encoder_3").is_dir() and Path(name).is_dir():
            without |= {"text_encoder_3": None, "tokenizer_3": None}  # its largest encoder, which many leave out
        with explained(what):
            pipe = getattr(library, family.pipeline).from_pretrained(name, use_safetensors=None if allow_pickle else True, **without, **parts(family))
    lacking = [part for part in family.needed if getattr(pipe, part, None) is None]
    if lacking:
        raise ValueError(f"{what} has no {' and no '.join(lacking)}; use a whole checkpoint, or the folder that it is a part of")
    if pipe.vae.config.get("force_upcast") and pipe.vae.dtype == torch.float16:
        pipe.vae.to(torch.float32)
    _add_loras(pipe, loras, allow_pickle)
    return Loaded(pipe, family, name)


def _load_part(kind: Any, given: str, label: str, dtype: torch.dtype, allow_pickle: bool, **of: str) -> Any:
    """A part from a folder, a hub name or a file. `of`: what says how large a file's is; it is fetched from the hub otherwise."""
    with explained(f"{label} {given!r}"):
        if _is_file(given, allow_pickle):
            return kind.from_single_file(given, dtype=dtype, **of)
        return kind.from_pretrained(given, dtype=dtype, use_safetensors=None if allow_pickle else True)


def _add_loras(pipe: Any, loras: Sequence[str], allow_pickle: bool) -> None:
    if loras and missing("peft"):
        raise ValueError("a LoRA needs the package peft, which is not installed; run: pip install peft")
    named: dict[str, float] = {}
    for number, given in enumerate(loras):
        file, weight = split_weight(given)
        if not _is_file(file, allow_pickle):
            raise ValueError(f"LoRA {file!r} is no file; give the path of a .safetensors file")
        with explained(f"LoRA {file!r}"):
            named[f"lora_{number}"] = weight
            pipe.load_lora_weights(str(Path(file).parent), weight_name=Path(file).name, adapter_name=f"lora_{number}")
            if f"lora_{number}" not in pipe.get_active_adapters():
                raise ValueError("nothing of it fits this checkpoint")
    if named:
        pipe.set_adapters(list(named), list(named.values()))


def split_control(text: str) -> tuple[str, float, float, float]:
    """ "name:0.8:0-50%" -> its name, its weight, and the share of the steps in which it acts; either may be left out.

    Raises:
        ValueError: for a weight that is no number, or a share that is none.
    """
    name, colon, span = text.rpartition(":")
    if not colon or not span.endswith("%"):
        return (*split_weight(text), 0.0, 1.0)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)%", span)
    if not found or not float(found[1]) < float(found[2]) <= 100:
        raise ValueError(f"share {span!r} of {name!r} is no part of the steps; write {name}:0-50%, say")
    return (*split_weight(name), float(found[1]) / 100, float(found[2]) / 100)


def load_controls(given: Sequence[str], dtype: torch.dtype, family: Family, allow_pickle: bool = False) -> list[Control]:
    """ControlNets, each as "name", "name:0.8" or "name:0.8:0-50%".

    Raises:
        ValueError: for what is none, or of another family.
    """
    library, made = diffusers(), list[Control]()
    for one in given:
        name, weight, start, end = split_control(one)
        if not _is_file(name, allow_pickle):
            with explained(f"ControlNet {name!r}"):
                found = str(getattr(library, family.control).load_config(name).get("_class_name"))
            if found != family.control:
                raise ValueError(f"ControlNet {name!r} is a {found}, and {family.label} takes a {family.control}; use one that was made for it")
        elif family.network != "unet":
            raise ValueError(f"ControlNet {name!r} is a single file, which of {family.label} is not read; give its diffusers folder or its name on the hub")
        made.append(Control(_load_part(getattr(library, family.control), name, "ControlNet", dtype, allow_pickle), weight, start, end))
    return made


def check_numbers(parts: dict[str, nn.Module]) -> None:
    """Make sure that the parts that compute together have numbers of one type.

    Raises:
        ValueError: where they do not.
    """
    found: dict[torch.dtype, str] = {}
    for name, part in parts.items():
        if getattr(part, "hf_quantizer", None) is None:
            for parameter in part.parameters():
                if parameter.is_floating_point():
                    found.setdefault(parameter.dtype, name)
    if len(found) > 1:
        described = ", ".join(f"{str(dtype).removeprefix('torch.')} in its {name}" for dtype, name in found.items())
        raise ValueError(f"the model mixes numbers of several types ({described}); bring it to one, such as with --dtype float32 or pipe.to(torch.float32)")


def offload_layers(pipe: Any, **given: Any) -> None:
    """diffusers' `enable_sequential_cpu_offload`, with the VAE on the device as a whole: it is small, and its tiles share their normalisation so.

    Args:
        given: of diffusers' method.
    """
    pipe._exclude_from_cpu_offload = sorted({*pipe._exclude_from_cpu_offload, "vae"})
    pipe.enable_sequential_cpu_offload(**given)


def place(pipe: Any, device: torch.device, offload: str) -> None:
    """Bring a pipeline to a device, or let its parts come there when they are needed.

    Raises:
        ValueError: where its parts cannot be kept elsewhere.
    """
    if offload == "none":
        pipe.to(device)
        return
    if device.type == "cpu":
        raise ValueError(f"offload {offload!r} keeps parts in main memory until a GPU needs them, and the device is the CPU; leave --offload out")
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        offload_layers(pipe, device=device)
    else:
        raise ValueError(f"offload {offload!r} does not exist; use none, model or sequential")
