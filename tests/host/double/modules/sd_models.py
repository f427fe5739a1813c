from contextlib import nullcontext


class SdModelData:
    sd_model = None


class SkipWritingToConfig(nullcontext):
    pass


model_data = SdModelData()
known = {}
"""Checkpoints by their information; the first is the one that is chosen in the page's field."""


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    from modules import shared

    model_data.sd_model = shared.sd_model = known[next(iter(known)) if info is None else info]
