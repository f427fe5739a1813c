"""Options, state and the loaded checkpoint."""

from types import SimpleNamespace

import torch
from modules.options import OptionInfo, Options
from modules.shared_state import State
from modules.shared_total_tqdm import TotalTQDM

__all__ = ["OptionInfo", "Options", "State", "TotalTQDM"]

cmd_opts = SimpleNamespace(api_auth=None)
device = torch.device("cpu")
sd_model = None
latent_upscale_default_mode = "Latent"
latent_upscale_modes = {"Latent": {"mode": "bilinear", "antialias": False}, "Latent (bicubic)": {"mode": "bicubic", "antialias": False}}
sd_upscalers = [SimpleNamespace(name=name) for name in ("None", "Lanczos", "Nearest")]
opts, state, total_tqdm = Options(), State(), TotalTQDM()
