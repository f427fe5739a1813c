"""Whatever a loader stumbles over, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from apt_ext.core.ranks.status import OutOfMemory

__all__ = ["explained"]


@contextmanager
def explained(what: str, hub: bool = False) -> Iterator[None]:
    """Within the block, what a loader stumbles over is one sentence.

    Args:
        what: is loaded. `hub`: whether it is fetched to begin with.

    Raises:
        ValueError: for whatever the loader raises.
    """
    try:
        yield
    except (MemoryError, OutOfMemory, KeyboardInterrupt):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        kind = f"{type(error).__name__} {text}".lower()
        if hub or any(word in kind for word in ("connect", "offline", "resolve", "localentrynotfound", "couldn't find", "timed out", "timeout")):
            raise ValueError(
                f"{what} cannot be fetched from the hub ({text[:160]}); check its name and the network, or give a folder or a .safetensors file that is here"
            ) from None
        if "safetensors" in kind and ("no file" in kind or "found in" in kind or "use_safetensors" in kind or "not found" in kind):
            raise ValueError(f"{what} has no safetensors ({text[:160]}); use one that has, or --allow-pickle if you trust its files") from None
        raise ValueError(f"{what} cannot be loaded ({text[:200]}); check that it is whole and of a kind that diffusers reads") from None
