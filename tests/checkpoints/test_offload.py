"""Parts that come to the device when they are needed, by accelerate's own hooks."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.checkpoints.pipeline import AptUpscalePipeline

GPU = torch.cuda.is_available()
WAYS = [
    ("enable_model_cpu_offload", "cpu"),
    pytest.param("enable_model_cpu_offload", "cuda", marks=pytest.mark.skipif(not GPU, reason="no GPU")),
    pytest.param("enable_sequential_cpu_offload", "cuda", marks=pytest.mark.skipif(not GPU, reason="no GPU, and accelerate moves no layers to a CPU")),
]


@pytest.mark.parametrize(("way", "device"), WAYS)
@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_the_picture_is_the_same_and_so_is_the_next_one(checkpoints, photo, kind, way, device):
    plain, offloaded = (AptUpscalePipeline.from_pretrained(checkpoints(kind)) for _ in range(2))
    plain.to(device)
    getattr(offloaded, way)(device=device)
    given: dict[str, Any] = {"prompt": "a cat", "image": Image.open(photo), "scale": 2, "steps": 8}
    one, other, again = (np.asarray(pipe(**given).images[0]).astype(int) for pipe in (plain, offloaded, offloaded))
    assert abs(one - other).max() <= 1
    assert (again == other).all()
