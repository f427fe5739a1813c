"""Which host this is, looked up once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import modules

from apt_ext.webui.hosts.a1111 import A1111
from apt_ext.webui.hosts.forge import Forge
from apt_ext.webui.hosts.host import Host
from apt_ext.webui.hosts.ldm_patched import LdmPatched

__all__ = ["check_host", "host", "kind_of"]

# The first package that is there tells the backend. Forge before August 2024 had `ldm_patched` too.
BACKENDS: tuple[tuple[str, type[Host] | None], ...] = (("backend", Forge), ("ldm_patched", LdmPatched), ("modules_forge", None))


def kind_of(root: Path) -> tuple[str, type[Host] | None]:
    """Of the host in a folder: the package that gives its backend away, and what is known of it; None for one that is not served."""
    return next(((package, known) for package, known in BACKENDS if (root / package).is_dir()), ("", A1111))


def _root() -> Path:
    return Path(next(iter(modules.__path__))).parent


@cache
def host() -> Host:
    """The host that this is. For one that is not served the first one's answers are enough for its page, and `check_host` refuses its jobs."""
    return (kind_of(_root())[1] or A1111)()


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
