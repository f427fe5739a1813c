"""Which host this is, looked up once."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

import modules

from apt_ext.webui.hosts.host import Host

__all__ = ["check_host", "host", "kind_of"]

# The first package that is there tells the backend. Forge before August 2024 had `ldm_patched` too.
# Named, not imported: each imports what its own host has and another one may not (Neo has no `sd_hijack`).
BACKENDS: tuple[tuple[str, str | None], ...] = (("backend", "forge.Forge"), ("ldm_patched", "ldm_patched.LdmPatched"), ("modules_forge", None))
FIRST = "a1111.A1111"


def kind_of(root: Path) -> tuple[str, str | None]:
    """Of the host in a folder: the package that gives its backend away, and the file and class of what is known of it; None for one that is not served."""
    return next(((package, known) for package, known in BACKENDS if (root / package).is_dir()), ("", FIRST))


def _root() -> Path:
    return Path(next(iter(modules.__path__))).parent


@cache
def host() -> Host:
    """The host that this is. For one that is not served the first one's answers are enough for its page, and `check_host` refuses its jobs."""
    file, _, name = (kind_of(_root())[1] or FIRST).partition(".")
    known: Host = getattr(import_module(f"apt_ext.webui.hosts.{file}"), name)()
    return known


def check_host() -> None:
    """Make sure that the model is called the way that APT listens to.

    Raises:
        ValueError: for a host with another backend, where a job would come out as if APT were off.
    """
    package, known = kind_of(_root())
    if known is None:
        raise ValueError(
            f"this WebUI has a backend of its own ({package}), which APT does not reach yet; turn APT off, or use WebUI 1.10.1, Forge or one of its kin"
        )
