"""What other extensions do to the loaded checkpoint that does not go together with windows: refused, or set aside for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from modules import errors
from torch import nn

from apt_ext.webui.hosts.detect import host

__all__ = ["HYPERTILE", "check_extensions", "ended_on_failure", "hypertile_aside", "idle"]

HYPERTILE = "APT: Hypertile takes every window for a picture of the whole one's aspect, so inside the windows the U-Net works without it."
# Whose hooks stay on the model until their script is told of the end of the job.
HOOKED = ("Self Attention Guidance", "Kohya Hires.fix", "NegPiP", "Regional Prompter")
ENDED = "apt_ended"  # on an error: those extensions have been told
MODEL_SAMPLING = "Advanced Model Sampling for reForge"  # its first two arguments: whether it is on, and its mode
AS_FLOW = ("SD3", "Aura Flow", "Flux")
"""Its modes that take any checkpoint for one of rectified flow. It puts an image pass of its own before the sampler's, where APT has its own."""
HYPERTILE_LAYER = "__webui_hypertile_params"  # on a layer of the UNet that Hypertile has in its hands


def check_extensions(p: Any) -> None:
    """Make sure that no other extension makes another kind of checkpoint of the loaded one.

    Raises:
        ValueError: where one does, which no window would know of.
    """
    for script in getattr(getattr(p, "scripts", None), "alwayson_scripts", ()):
        if script.title() != MODEL_SAMPLING:
            continue
        given: list[Any] = [*list(p.script_args or ())[script.args_from : script.args_to], False, ""]
        on, mode, *_ = given
        if on and mode in AS_FLOW:
            raise ValueError(
                f"Advanced Model Sampling's mode {mode!r} makes this checkpoint one of rectified flow, which no window knows of; turn it or APT off"
            )


@contextmanager
def hypertile_aside(model: Any) -> Iterator[bool]:
    """Within the block, the host's Hypertile leaves the UNet alone; afterwards it is as it was.

    Yields:
        Whether it was at work.
    """
    layers = [vars(layer).get(HYPERTILE_LAYER) for layer in host().unet(model).modules()]
    working = [layer for layer in layers if layer is not None and layer.enabled]
    try:
        for layer in working:
            layer.enabled = False
        yield bool(working)
    finally:
        for layer in working:
            layer.enabled = True


@contextmanager
def ended_on_failure(p: Any) -> Iterator[None]:
    """Where the block fails, let extensions that hang on the model end their part of the job: the host tells them of jobs alone that end well."""
    try:
        yield
    except BaseException as error:
        told, error.__dict__[ENDED] = ENDED in error.__dict__, True  # such blocks lie in each other
        for script in () if told else getattr(getattr(p, "scripts", None), "alwayson_scripts", ()):
            if script.title() in HOOKED:
                try:
                    args = p.script_args[script.args_from : script.args_to]
                    script.postprocess(p, SimpleNamespace(images=[], infotexts=[], extra_generation_params={}), *args)
                except Exception:
                    errors.report(f"APT: {script.title()} could not be taken off the model", exc_info=True)
        raise


def idle(module: nn.Module, method: str = "forward") -> bool:
    """Whether a method is the module's class's own, also where an extension has put it back as an attribute of the instance."""
    found = vars(module).get(method)
    return found is None or (getattr(found, "__self__", None) is module and getattr(found, "__func__", None) is getattr(type(module), method))
