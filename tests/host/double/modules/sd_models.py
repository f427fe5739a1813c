from contextlib import nullcontext

from tests.host.double.model import CheckpointInfo

__all__ = ["CheckpointInfo", "SdModelData", "SkipWritingToConfig", "known", "model_data"]


class SdModelData:
    sd_model = None


class SkipWritingToConfig(nullcontext):
    pass


model_data = SdModelData()
known = {}
"""Checkpoints by their information; the first is the one that is chosen in the page's field."""


def get_closet_checkpoint_match(search_string):
    return next((info for info in known if search_string and search_string in info), None)


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    from modules import shared

    wanted = known[next(iter(known)) if info is None else info]
    if wanted is not shared.sd_model:
        made_anew(wanted)
    model_data.sd_model = shared.sd_model = wanted


def made_anew(model):
    """As checkpoints of different kinds are: the host lets go of the extra networks meanwhile."""
    model.strength = 0.0
