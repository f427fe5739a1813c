"""reForge and Forge Classic, with the package `ldm_patched`: 1.10.1's checkpoint and text encoder, and Forge's way to the model."""

from __future__ import annotations

from typing import Any

from modules import sd_models, shared
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

    def load_again(self, checkpoint: Any) -> None:
        """See `ForgeKin`."""
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=checkpoint)

    def words_refused(self) -> str | None:
        """Classic has no old implementation."""
        return super().words_refused() if hasattr(shared.opts, "use_old_emphasis_implementation") else None
