"""The extra networks of a pass (LoRA, hypernetworks): a checkpoint that is loaded again between its phases has none of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from modules import extra_networks

__all__ = ["Networks"]

READ = ("extra_network_data", "hr_extra_network_data")
"""What a job's prompts ask for, in the first pass and in the hires pass; Forge Neo's refiner writes names of its own into it."""


class Networks:
    """Those that are on in a job as a pass begins."""

    def __init__(self, p: Any):
        self._p, self._read = p, {name: deepcopy(getattr(p, name)) for name in READ if hasattr(p, name)}

    def activate(self) -> None:
        """Let them act on the loaded checkpoint, as the host does before a pass."""
        p, prompts = self._p, getattr(self._p, "all_prompts", None)
        for name, read in self._read.items():
            setattr(p, name, deepcopy(read))
        if p.disable_extra_networks:
            return
        extra_networks.activate(p, p.hr_extra_network_data if p.is_hr_pass else p.extra_network_data)
        p.all_prompts = prompts  # to which the network of the host's own settings has added itself once more
