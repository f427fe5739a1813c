"""Runs when the WebUI starts. Everything APT needs comes with the WebUI, so this only looks and says what is missing; it installs nothing."""

from importlib.util import find_spec

missing = [name for name in ("torch", "einops", "numpy", "gradio") if find_spec(name) is None]
if missing:
    print(f"APT: {', '.join(missing)} cannot be found, though the WebUI brings it; start the WebUI by its own script, or reinstall it.")
