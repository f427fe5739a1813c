"""Stable Diffusion checkpoints outside the WebUI, by diffusers. An extra: `pip install -r requirements/checkpoints.txt`."""
