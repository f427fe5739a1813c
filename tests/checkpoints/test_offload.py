"""Parts that come to the device when they are needed, by accelerate's own hooks."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.checkpoints.pipeline import AptUpscalePipeline

hooks = pytest.importorskip("accelerate.hooks")

GPU = torch.cuda.is_available()
WAYS = [
    ("enable_model_cpu_offload", "cpu"),
    ("enable_sequential_cpu_offload", "cpu"),
    pytest.param("enable_model_cpu_offload", "cuda", marks=pytest.mark.skipif(not GPU, reason="no GPU")),
    pytest.param("enable_sequential_cpu_offload", "cuda", marks=pytest.mark.skipif(not GPU, reason="no GPU")),
]


@pytest.fixture
def layers_move(monkeypatch):
    """accelerate's own moving of layers with a CPU as where they compute: there it leaves a bare tensor where it wants a parameter the next time."""
    put = hooks.set_module_tensor_to_device

    def as_parameter(module, name, *given, **more):
        put(module, name, *given, **more)
        where, _, last = name.rpartition(".")
        held = module.get_submodule(where)._parameters
        if held.get(last) is not None and not isinstance(held[last], torch.nn.Parameter):
            held[last] = torch.nn.Parameter(held[last], requires_grad=False)

    monkeypatch.setattr(hooks, "set_module_tensor_to_device", as_parameter)


@pytest.mark.usefixtures("layers_move")
@pytest.mark.parametrize(("way", "device"), WAYS)
@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_the_picture_is_the_same_and_so_is_the_next_one(checkpoints, photo, kind, way, device):
    plain, offloaded = (AptUpscalePipeline.from_pretrained(checkpoints(kind)) for _ in range(2))
    plain.to(device)
    getattr(offloaded, way)(device=device)
    away = [name for name, weight in getattr(offloaded.pipe, "unet" if kind == "sdxl" else "transformer").named_parameters() if weight.is_meta]
    assert bool(away) == (way == "enable_sequential_cpu_offload")
    given: dict[str, Any] = {"prompt": "a cat", "image": Image.open(photo), "scale": 2, "steps": 4, "method": "multidiffusion"}
    one, other, again = (np.asarray(pipe(**given).images[0]).astype(int) for pipe in (plain, offloaded, offloaded))
    assert abs(one - other).max() <= 1
    assert (again == other).all()
