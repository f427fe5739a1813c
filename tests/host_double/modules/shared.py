"""Options, state and the loaded checkpoint."""

import torch
from modules.options import OptionInfo, Options
from modules.shared_state import State
from modules.shared_total_tqdm import TotalTQDM

__all__ = ["OptionInfo", "Options", "State", "TotalTQDM"]

device = torch.device("cpu")
sd_model = None
latent_upscale_default_mode = "Latent"
latent_upscale_modes = {"Latent": {"mode": "bilinear", "antialias": False}}
opts, state, total_tqdm = Options(), State(), TotalTQDM()
