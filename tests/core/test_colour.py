"""The colour fix: colours come back, detail stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.colour import fix_colour


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def scene(side: int) -> Tensor:
    """Smooth colours with detail of one output pixel on top, (1, 3, side, side)."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side),) * 2, indexing="ij")
    return torch.stack([x, y, x * y])[None] * 0.5


@pytest.mark.parametrize("width", [0.5, 2.0, 6.0])
def test_a_shift_of_colour_is_undone_and_detail_stays(width: float) -> None:
    small, large = scene(24), scene(96) + 0.1 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(48, 48)
    cast = torch.tensor([0.2, -0.1, 0.05])[None, :, None, None] * (1 + scene(96)[:, :1])
    fixed = fix_colour(large + cast, small, width)
    assert (fixed - large).abs().mean() < 0.15 * cast.abs().mean()
    grain = (fixed - fix_colour(scene(96) + cast, small, width)) - (large - scene(96))
    assert grain.abs().max() < 1e-5, "what has no mean over a smaller pixel is not touched"


def test_a_picture_with_the_right_colours_is_left_alone() -> None:
    large = noise(2, 3, 40, 60)
    torch.testing.assert_close(fix_colour(large, F.interpolate(large, size=(10, 15), mode="area"), 2.0), large)


def test_no_width_changes_nothing_and_sizes_need_not_divide() -> None:
    large = noise(1, 3, 37, 53)
    assert fix_colour(large, noise(1, 3, 10, 15), 0.0) is large
    assert fix_colour(large, noise(1, 3, 10, 15), 3.0).shape == large.shape
    assert fix_colour(large, noise(1, 3, 37, 53), 64.0).shape == large.shape


def test_pictures_of_a_batch_have_their_own_colours() -> None:
    large, small = noise(2, 3, 32, 32), noise(2, 3, 8, 8)
    both = fix_colour(large, small, 1.0)
    for k in range(2):
        torch.testing.assert_close(both[k : k + 1], fix_colour(large[k : k + 1], small[k : k + 1], 1.0))


def test_the_wrong_order_is_refused() -> None:
    with pytest.raises(ValueError, match="colours of 32 x 32 pixels cannot be given to a picture of 8 x 8"):
        fix_colour(noise(1, 3, 8, 8), noise(1, 3, 32, 32), 1.0)
