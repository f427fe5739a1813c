"""A checkpoint from its name to a model that is ready for jobs: what the command line, the library call and the pipeline class share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from apt_ext.checkpoints.controls import Control
from apt_ext.checkpoints.families import family_of_class
from apt_ext.checkpoints.loading import load_controls, load_pipeline, place
from apt_ext.checkpoints.model import Checkpoint
from apt_ext.checkpoints.packages import diffusers
from apt_ext.demo.model import choose_device

__all__ = ["from_pipeline", "number_type", "open_checkpoint"]


def number_type(name: str, device: torch.device, half: str = "float16") -> torch.dtype:
    """The type of numbers of a name; "auto" is `half` on a GPU and float32 elsewhere.

    Raises:
        ValueError: for one that does not exist, or that the device cannot compute with.
    """
    if name == "auto":
        name = "float32" if device.type == "cpu" else half
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(name)
    if dtype is None:
        raise ValueError(f"dtype {name!r} does not exist; use auto, float32, float16 or bfloat16")
    return dtype


def open_checkpoint(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offload: str = "none",
    config: str | None = None,
    vae: str | None = None,
    loras: Sequence[str] = (),
    controls: Sequence[str] = (),
    native: int | None = None,
    prediction: str | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        name: a folder of diffusers', a single .safetensors file, or a name on the Hugging Face hub.
        device: "cpu", "cuda", ...; "auto" is a GPU where there is one. `dtype`: "float32", "float16", "bfloat16"; "auto" is 16 bits on a GPU.
        offload: "none"; "model" and "sequential" keep parts, or layers, in main memory until a GPU needs them.
        config: for a single file, the folder or the hub name whose parts it is a checkpoint of, and which lends those that it lacks; found by itself with
            a network.
        vae: another VAE: a folder, a file or a hub name. `loras`: files, each as "file" or "file:0.8".
        controls: ControlNets, each a folder, a file or a hub name, as "name", "name:0.8" or, to let it act in a share of the steps, "name:0.8:0-50%".
        native: side in pixels of the pictures that it composes, and of its windows; the checkpoint's own where it is left out.
        prediction: "epsilon" or "v_prediction", where a single file's UNet predicts what its family does not.
        allow_pickle: load files other than safetensors too, which can run any program.

    Raises:
        ValueError: in one sentence, for whatever cannot be used.
    """
    where = choose_device(device)
    diffusers()
    number_type(dtype, where)
    loaded = load_pipeline(name, numbers=lambda family: number_type(dtype, where, family.half), config=config, vae=vae, loras=loras, allow_pickle=allow_pickle)
    nets = load_controls(controls, number_type(dtype, where, loaded.family.half), loaded.family, allow_pickle)
    for net in nets:
        net.network.to(where)
    place(loaded.pipe, where, offload)
    return Checkpoint(loaded.pipe, loaded.family, name, where, native=native, prediction=prediction, controls=nets)


def from_pipeline(pipe: object, *, native: int | None = None, prediction: str | None = None, controls: Sequence[Control] = ()) -> Checkpoint:
    """A pipeline of diffusers' that is loaded already, where and as it is.

    Raises:
        ValueError: for one whose parts cannot be used.
    """
    diffusers()
    name = type(pipe).__name__
    family = family_of_class(name, name)
    origin = str(getattr(getattr(pipe, "config", None), "_name_or_path", "") or name)
    device = torch.device(pipe._execution_device)  # type: ignore[attr-defined]
    by_layers = any(hasattr(layer, "_hf_hook") for layer in pipe.vae.decoder.modules())  # type: ignore[attr-defined]
    return Checkpoint(pipe, family, origin, device, by_layers=by_layers, native=native, prediction=prediction, controls=controls)
