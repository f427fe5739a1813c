"""Seamless pictures: what goes round the border, and that no place of the picture is another than the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_ext.core.blur import gaussian_blur
from apt_ext.core.borders import NOWHERE, extend, fill_around, goes_around, interpolate
from apt_ext.core.colour import fix_colour
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import MARGIN, dilated_grid, gather_dilated, scatter_dilated
from apt_ext.core.hints import view_hints
from apt_ext.core.types import Around
from apt_ext.core.windows import Window, cover, draw_windows, feather_weights, gather_windows, place_windows
from tests.core.made import denoise_dilated, denoise_local

SOME = settings(deadline=None, max_examples=60)
AROUND = st.sampled_from([Around(True, True), Around(True, False), Around(False, True)])
SIZE = st.tuples(st.integers(1, 40), st.integers(1, 40))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wide(x: Tensor, reach: tuple[int, int], around: Around) -> np.ndarray:
    """numpy's padding, axis by axis."""
    made: Any = x.numpy()
    for axis, on in enumerate(around):
        places = np.arange(made.shape[2 + axis])
        index = np.pad(places, reach[axis], mode="wrap") if on else np.pad(places, reach[axis], mode="reflect")
        made = made.take(index, axis=2 + axis)
    return np.asarray(made)


@st.composite
def layouts(draw: Any) -> dict[str, Any]:
    """Arguments of `draw_windows` for a seamless latent."""
    return {
        "size": draw(SIZE),
        "window": draw(st.tuples(st.integers(1, 24), st.integers(1, 24))),
        "overlap": draw(st.floats(0, 0.75)),
        "jitter": draw(st.floats(0, 1)),
        "border": draw(st.sampled_from(["inside", "over"])),
        "seed": draw(st.integers(0, 2**40)),
        "around": draw(AROUND),
    }


@SOME
@given(layouts(), st.integers(0, 100))
def test_windows_that_go_round_cover_everything_and_are_at_least_two(layout: dict[str, Any], step: int) -> None:
    """A lone window of the picture's own length would have its two edges against each other."""
    size, around = layout["size"], layout["around"]
    windows = draw_windows(step, **layout)
    slowly = np.zeros(size, dtype=int)
    for w in windows:
        for r in range(w.top, w.top + w.height):
            for c in range(w.left, w.left + w.width):
                row, column = (r % size[0] if around.rows else r), (c % size[1] if around.columns else c)
                if 0 <= row < size[0] and 0 <= column < size[1]:
                    slowly[row, column] += 1
    assert slowly.min() >= 1
    assert np.array_equal(cover(size, windows, around).numpy(), slowly)
    for on, starts, length, own in (
        (around.rows, [w.top for w in windows], size[0], windows[0].height),
        (around.columns, [w.left for w in windows], size[1], windows[0].width),
    ):
        if on:
            assert all(0 <= start < length for start in starts)
            assert len(set(starts)) > 1 or length == 1
            assert own <= length


@SOME
@given(layouts(), st.sampled_from([None, 0.5, 1.0]))
def test_placing_undoes_gathering_around_the_border(layout: dict[str, Any], feather: float | None) -> None:
    """A model that changes nothing changes nothing."""
    x, around, windows = noise(2, 3, *layout["size"]), layout["around"], draw_windows(1, **layout)
    patches = gather_windows(x, windows, fill_around("reflect", around))
    far = wide(x, (64, 64), around)
    for k, w in enumerate(windows):
        assert np.array_equal(patches[k :: len(windows)], far[:, :, 64 + w.top : 64 + w.top + w.height, 64 + w.left : 64 + w.left + w.width])
    weight = None if feather is None else feather_weights(windows[0].height, windows[0].width, feather).double()
    value, count = torch.zeros_like(x), torch.zeros_like(x)
    place_windows(value, patches, windows, weight, around)
    place_windows(count, torch.ones_like(patches), windows, weight, around)
    torch.testing.assert_close(value / count, x)


def bending(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
    """Sees its window's edge: what lies beyond is zero."""
    return torch.nn.functional.conv2d(torch.tanh(x), KERNEL, padding=2)


def circling(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
    """A model whose layers go round the border, for views of the whole picture."""
    return torch.nn.functional.conv2d(torch.nn.functional.pad(torch.tanh(x), (2, 2, 2, 2), "circular"), KERNEL)


KERNEL = noise(3, 3, 5, 5, seed=7)


@SOME
@given(layouts(), st.integers(-50, 50), st.integers(-50, 50), st.sampled_from([0.0, 0.6]))
def test_moving_picture_and_windows_round_the_border_moves_the_estimate(layout: dict[str, Any], down: int, across: int, feather: float) -> None:
    """No place of a seamless picture is special: not its border either."""
    x, around, sigma = noise(2, 3, *layout["size"]), layout["around"], torch.ones(2)
    shift = (down if around.rows else 0, across if around.columns else 0)
    windows, fill = draw_windows(3, **layout), fill_around("reflect", around)
    moved = [w._replace(top=w.top + shift[0], left=w.left + shift[1]) for w in windows]
    expected = denoise_local(bending, x, sigma, {}, windows, fill=fill, feather=feather).roll(shift, (-2, -1))
    made = denoise_local(bending, x.roll(shift, (-2, -1)), sigma, {}, moved, fill=fill, feather=feather)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blur", [0.0, 1.0])
@pytest.mark.parametrize("size", [(16, 24), (32, 16)])
def test_moving_the_picture_round_the_border_moves_its_dilated_estimate(size: tuple[int, int], blur: float) -> None:
    """Where the views divide: each is a seamless picture by itself."""
    x, grid = noise(1, 3, *size), dilated_grid(size, (2, 2), "around", 4)
    assert (grid.top, grid.left, grid.bottom, grid.right) == (0, 0, 0, 0)
    expected = denoise_dilated(circling, x, torch.ones(1), {}, grid, blur=blur).roll((3, -5), (-2, -1))
    made = denoise_dilated(circling, x.roll((3, -5), (-2, -1)), torch.ones(1), {}, grid, blur=blur)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


@SOME
@given(SIZE, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 8), AROUND)
def test_dilated_views_of_sides_that_do_not_divide_keep_their_borders_off(size: tuple[int, int], d: tuple[int, int], multiple: int, around: Around) -> None:
    grid = dilated_grid(size, d, fill_around("reflect", around), multiple)
    x = noise(1, 2, *size)
    assert torch.equal(scatter_dilated(gather_dilated(x, grid), grid), x)
    for on, before, after, n, k in zip(around, (grid.top, grid.left), (grid.bottom, grid.right), size, d, strict=True):
        assert (n + before + after) % (k * multiple) == 0
        if on:
            assert before + after == 0 or min(before, after) >= MARGIN * k
        else:
            assert before == 0


@SOME
@given(SIZE, st.tuples(*[st.integers(0, 90)] * 4), AROUND)
def test_extending_round_the_border_is_numpys_wrap(size: tuple[int, int], reach: tuple[int, int, int, int], around: Around) -> None:
    x, (top, left, bottom, right) = noise(1, 2, *size), reach
    far = wide(x, (90, 90), around)
    made = extend(x, top, left, bottom, right, fill_around("zero", around)).numpy()
    assert np.array_equal(made, far[:, :, 90 - top : 90 + size[0] + bottom, 90 - left : 90 + size[1] + right])


@SOME
@given(st.tuples(st.integers(2, 12), st.integers(2, 12)), st.integers(1, 3), st.integers(-9, 9), st.integers(-9, 9))
def test_enlarging_round_the_border_knows_no_border(size: tuple[int, int], times: int, down: int, across: int) -> None:
    x, larger = noise(1, 2, *size), (size[0] * times, size[1] * times)
    made = interpolate(x.roll((down, across), (-2, -1)), larger, Around(True, True))
    expected = interpolate(x, larger, Around(True, True)).roll((times * down, times * across), (-2, -1))
    torch.testing.assert_close(made, expected)


@SOME
@given(SIZE, st.tuples(st.integers(0, 40), st.integers(0, 40)), AROUND)
def test_enlarging_round_the_border_is_enlarging_nine_of_it(size: tuple[int, int], more: tuple[int, int], around: Around) -> None:
    """Of any ratio: the middle of three by three, laid side by side where it goes on."""
    x, larger = noise(1, 2, *size), (size[0] + more[0], size[1] + more[1])
    tiles = [3 if on else 1 for on in around]
    whole = torch.nn.functional.interpolate(x.repeat(1, 1, *tiles), size=[n * k for n, k in zip(larger, tiles, strict=True)], mode="bicubic")
    rows, columns = (slice(n, 2 * n) if k == 3 else slice(None) for n, k in zip(larger, tiles, strict=True))
    if min(size) > 2:  # of a line or two, three by three is no longer what a long reach sees
        torch.testing.assert_close(interpolate(x, larger, around), whole[..., rows, columns])
    assert torch.equal(interpolate(x, larger, NOWHERE), torch.nn.functional.interpolate(x, size=larger, mode="bicubic"))


def test_blur_and_colours_know_no_border_either() -> None:
    x, small, both, shift = noise(1, 3, 24, 32), noise(1, 3, 12, 16, seed=1), Around(True, True), (6, -10)

    def moved(value: Tensor, by: tuple[int, int] = shift) -> Tensor:
        return value.roll(by, (-2, -1))

    torch.testing.assert_close(gaussian_blur(moved(x), (9, 9), 2.0, "around"), moved(gaussian_blur(x, (9, 9), 2.0, "around")))
    for width in (0.25, 2.0):
        expected = moved(fix_colour(x, small, width, both))
        torch.testing.assert_close(fix_colour(moved(x), moved(small, (3, -5)), width, both), expected)
    assert not torch.allclose(fix_colour(moved(x), moved(small, (3, -5)), 2.0), moved(fix_colour(x, small, 2.0)))


@pytest.mark.parametrize("around", [Around(True, True), Around(True, False), Around(False, True)])
def test_hints_go_round_the_border_with_the_windows(around: Around) -> None:
    """Cut in pixels as the latent is in its own; both see the same place."""
    latent = noise(1, 1, 12, 10)
    hint = latent.repeat_interleave(4, -2).repeat_interleave(4, -1)
    fill = fill_around("reflect", around)
    windows = (Window(9, 7, 6, 6), Window(-2, 3, 6, 6)) if around != NOWHERE else ()
    batch = ViewBatch((12, 10), 1, windows=windows, fill=fill)
    assert torch.equal(view_hints(hint, batch, 4)[..., ::4, ::4][:, :, :], torch.cat([batch.gather(latent)]))
    grid = dilated_grid((12, 10), (2, 2), fill, 4)
    views = ViewBatch((12, 10), 1, grid=grid, part=(0, 4), fill=fill)
    seen, expected = view_hints(hint, views, 4), views.gather(latent)
    assert seen.shape[-2:] == (4 * expected.shape[-2], 4 * expected.shape[-1])


def test_the_names_of_the_fills_are_read_back() -> None:
    for around in (Around(True, True), Around(True, False), Around(False, True)):
        assert goes_around(fill_around("zero", around)) == around
    assert fill_around("zero", NOWHERE) == "zero"
    assert goes_around("reflect") == goes_around("zero") == NOWHERE
