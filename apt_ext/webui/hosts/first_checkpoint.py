"""The checkpoint that a pass begins with, for all of its phases: the host's refiner puts another in its place within one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import shared

from apt_ext.webui.hosts.networks import Networks

__all__ = ["FirstCheckpoint"]


class FirstCheckpoint:
    """The loaded one.

    Args:
        p: the job.
        denoiser: the CFG denoiser of the sampler that is about to make the pass.
        load_again: has the host load a checkpoint, by its information.
        put_back: has a newly loaded one carry what the host and its extensions had put on this one.
    """

    def __init__(self, p: Any, denoiser: Any, load_again: Callable[[Any], None], put_back: Callable[[], None]):
        self._denoiser, self._load_again, self._put_back = denoiser, load_again, put_back
        self._own, self._networks = shared.sd_model.sd_checkpoint_info, Networks(p)

    def restore(self) -> None:
        """Have it loaded again before a later phase, with the extra networks and whatever else the pass has put on it.

        A checkpoint of another kind is made anew, and then the host lets go of the networks.
        """
        if shared.sd_model.sd_checkpoint_info == self._own:
            return
        self._load_again(self._own)
        self._networks.activate()
        self._put_back()
        self._denoiser.model_wrap = None  # made anew for the loaded one
        self._denoiser.sampler.model_wrap = self._denoiser.inner_model  # it has kept the old one, and the Forge family prepares its UNet
