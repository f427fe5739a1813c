"""Hints follow the latent into every view: what a view's hint shows of the picture is what its latent shows."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import dilated_grid
from apt_ext.core.hints import is_drawing, resized_hint, view_hints
from apt_ext.core.windows import Window

F = 8
pool = torch.nn.functional.avg_pool2d


def noise(rows, columns, seed=0):
    return torch.rand(1, 3, rows * F, columns * F, generator=torch.Generator().manual_seed(seed))


def ramp(rows, columns, factor=1):
    """A picture whose value is its own place, in latent pixels: its mean over a latent pixel is that pixel's number."""
    y, x = ((torch.arange(n * factor) + 0.5) / factor - 0.5 for n in (rows, columns))
    return torch.stack([y[:, None].expand(-1, len(x)), x[None, :].expand(len(y), -1)])[None]


def test_windows_see_the_hint_at_its_own_resolution():
    hint = noise(12, 20)
    windows = (Window(0, 0, 8, 8), Window(3, 11, 8, 8))
    seen = view_hints(hint, ViewBatch((12, 20), 2, windows))
    assert seen.shape == (2, 3, 64, 64)
    assert torch.equal(seen[0], hint[0, :, :64, :64])
    assert torch.equal(seen[1], hint[0, :, 24:88, 88:152])


@given(st.integers(2, 9), st.integers(2, 9), st.integers(-5, 8), st.integers(-6, 8), st.sampled_from(["reflect", "zero"]))
@settings(max_examples=60, deadline=None)
def test_beyond_the_border_the_hint_goes_on_as_the_latent_does(rows, columns, top, left, fill):
    assume(top < rows and left < columns)
    hint = noise(rows, columns)
    batch = ViewBatch((rows, columns), 1, (Window(top, left, 6, 7),), fill=fill)
    torch.testing.assert_close(pool(view_hints(hint, batch), F), batch.gather(pool(hint, F)))


def test_beyond_the_border_the_hint_is_mirrored_pixel_by_pixel():
    hint = noise(4, 4)
    seen = view_hints(hint, ViewBatch((4, 4), 1, (Window(-2, 0, 4, 4),)))
    # The latent is mirrored at the middle of its first pixel: 16 rows of pixels above, of which the lowest shows what lies below the first eight.
    assert torch.equal(seen[..., 15, :], hint[..., 8, :])
    assert torch.equal(seen[..., 0, :], hint[..., 23, :])


@pytest.mark.parametrize("dilation", [(2, 2), (3, 3), (1, 2), (4, 3)])
def test_dilated_views_see_what_lies_around_their_pixels(dilation):
    size = (dilation[0] * 6, dilation[1] * 7)
    grid = dilated_grid(size, dilation)
    batch = ViewBatch(size, 1, grid=grid, part=(0, grid.views))
    seen = pool(view_hints(ramp(*size, F), batch, F), F)
    torch.testing.assert_close(seen[..., 1:-1, 1:-1], batch.gather(ramp(*size))[..., 1:-1, 1:-1])


@pytest.mark.parametrize("fill", ["reflect", "zero"])
def test_a_padded_grid_has_a_hint_of_its_size(fill):
    size = (13, 11)
    grid = dilated_grid(size, (2, 3), fill, multiple=2)
    batch = ViewBatch(size, 2, grid=grid, part=(1, 4))
    views = batch.gather(torch.zeros(1, 4, *size))
    assert view_hints(noise(*size), batch).shape == (3, 3, views.shape[-2] * F, views.shape[-1] * F)


def test_a_part_of_the_dilated_views_is_a_part_of_all_of_them():
    size, hint = (8, 8), noise(8, 8)
    grid = dilated_grid(size, (2, 2))
    everything = view_hints(hint, ViewBatch(size, 1, grid=grid, part=(0, 4)))
    assert torch.equal(view_hints(hint, ViewBatch(size, 1, grid=grid, part=(1, 3))), everything[1:3])


def test_thin_lines_stay_lines():
    hint = torch.zeros(1, 3, 128, 128)
    hint[..., 67, :] = 1
    assert is_drawing(hint)
    assert not is_drawing(noise(2, 2))
    batch = ViewBatch((16, 16), 1, grid=dilated_grid((16, 16), (4, 4)), part=(0, 16))
    assert view_hints(hint, batch, drawing=True).amax(dim=(1, 2, 3)).tolist() == [1.0] * 16
    assert view_hints(hint, batch).amax() < 0.5
    assert resized_hint(hint, (32, 32), drawing=True).amax() == 1
    assert set(resized_hint(hint, (192, 200), drawing=True).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("size", [(40, 24), (16, 80), (64, 64), (90, 70)])
def test_resizing_keeps_what_the_hint_shows(size):
    hint = torch.nn.functional.interpolate(noise(1, 1), (64, 48), mode="bilinear")
    resized = resized_hint(hint, size)
    assert resized.shape[-2:] == size
    assert abs(float(resized.mean() - hint.mean())) < 0.01
    assert resized_hint(hint, (64, 48)) is hint


def test_a_hint_of_another_size_is_refused():
    with pytest.raises(ValueError, match="64, 64"):
        view_hints(noise(8, 9), ViewBatch((8, 8), 1, (Window(0, 0, 8, 8),)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("drawing", [False, True])
def test_half_precision_changes_the_rounding_alone(dtype, drawing):
    """Cut to windows the very values; shrunk or resized, the same to the precision of the type."""
    hint = noise(12, 12).to(dtype)
    windows = ViewBatch((12, 12), 1, (Window(3, 2, 8, 8), Window(-2, 5, 8, 8)))
    views = ViewBatch((12, 12), 1, grid=dilated_grid((12, 12), (2, 3)), part=(0, 6))
    assert torch.equal(view_hints(hint, windows, F, drawing), view_hints(hint.float(), windows, F, drawing).to(dtype))
    try:
        shrunk, resized = view_hints(hint, views, F, drawing), resized_hint(hint, (64, 120), drawing)
    except RuntimeError as error:
        pytest.skip(f"this torch's CPU cannot: {error}")
    close = 4 * torch.finfo(dtype).eps
    assert shrunk.dtype == resized.dtype == dtype
    torch.testing.assert_close(shrunk.float(), view_hints(hint.float(), views, F, drawing), atol=close, rtol=0)
    torch.testing.assert_close(resized.float(), resized_hint(hint.float(), (64, 120), drawing), atol=close, rtol=0)
