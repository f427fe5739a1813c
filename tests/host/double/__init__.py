"""A double of the host: as much of its `modules` package as the adapter uses, around k-diffusion's real samplers.

What it has in common with the host is written down in `tests/host/contract.py` and checked against both.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
ADAPTER = Path(__file__).parents[3] / "apt_ext" / "webui"
OURS = ("modules", "apt_ext.webui", "gradio", "fastapi")

__all__ = ["Host", "loaded_host"]


def _taken(name: str) -> bool:
    return any(name == ours or name.startswith(ours + ".") for ours in OURS)


class Host:
    """The double's modules and the adapter's, imported on demand: `host.shared`, `host.job`. Where both have one, it is the double's."""

    def __init__(self, model: Any):
        self.model = model
        self.runners: list[Any] = []
        self.sd_models.known[model.sd_checkpoint_info] = model
        self.sd_models.reload_model_weights()

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(f"modules.{name}") if (HERE / "modules" / f"{name}.py").exists() else self.adapter(name)

    def script(self, *args: Any) -> Any:
        """A runner of the accordion's script with these arguments."""
        self.runners.append(self.scripts.ScriptRunner(self.adapter("script").APTScript(), *args))
        return self.runners[-1]

    def text_job(self, *args: Any, **given: Any) -> Any:
        """A txt2img job with Hires. fix."""
        return self.processing.StableDiffusionProcessingTxt2Img(scripts=self.script(*args), **{"enable_hr": True} | given)

    def picture_job(self, *args: Any, **given: Any) -> Any:
        """An img2img job."""
        return self.processing.StableDiffusionProcessingImg2Img(scripts=self.script(*args), **{"width": 128, "height": 128} | given)

    def adapter(self, name: str) -> ModuleType:
        """A module of the adapter's, in whichever room it is."""
        found = list(ADAPTER.rglob(f"{name}.py"))
        if len(found) != 1:
            raise AttributeError(f"{len(found)} modules of the adapter are called {name!r}")
        return importlib.import_module(".".join(("apt_ext.webui", *found[0].relative_to(ADAPTER).with_suffix("").parts)))

    def run(self, p: Any) -> Any:
        """Take a job through the host."""
        self.shared.state = state = self.shared.State()
        assert state.job_no == 0
        return self.processing.process_images(p)


@contextmanager
def loaded_host() -> Iterator[Host]:
    """Within the block, `modules` is the double and the adapter is freshly imported against it; afterwards nothing of both is left."""
    import apt_ext

    before = {name: sys.modules.pop(name) for name in [*sys.modules] if _taken(name)}
    paths = [str(HERE), str(HERE / "stubs")]
    sys.path[:0] = paths
    try:
        from tests.host.double.model import Model

        yield Host(Model())
    finally:
        for path in paths:
            sys.path.remove(path)
        for name in [name for name in sys.modules if _taken(name)]:
            del sys.modules[name]
        vars(apt_ext).pop("webui", None)
        sys.modules.update(before)
        if "apt_ext.webui" in before:
            apt_ext.webui = before["apt_ext.webui"]  # type: ignore[attr-defined]
