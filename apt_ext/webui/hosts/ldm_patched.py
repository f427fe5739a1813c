"""reForge and Forge Classic, with the package `ldm_patched`: 1.10.1's checkpoint and text encoder, and Forge's way to the model."""

from __future__ import annotations

from typing import Any

from modules import shared
from torch import Tensor

from apt_ext.webui.hosts.a1111 import A1111
from apt_ext.webui.hosts.forge_kin import ForgeKin

__all__ = ["LdmPatched"]


class LdmPatched(ForgeKin, A1111):
    """See `hosts.host.Host`."""

    name = "reForge or Forge Classic"

    def levels(self, model: Any) -> Tensor:
        """The model's own."""
        levels: Tensor = model.forge_objects.unet.model.model_sampling.sigmas
        return levels

    load_again = A1111.load_again

    def words_refused(self) -> str | None:
        """Classic has no old implementation."""
        return super().words_refused() if hasattr(shared.opts, "use_old_emphasis_implementation") else None
