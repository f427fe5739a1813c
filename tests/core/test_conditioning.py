"""Conditioning of views: what is spatial is cut like the latent, what belongs to a sample follows it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_ext.core.conditioning import ViewBatch, condition_views
from apt_ext.core.dilated import DilatedGrid, dilated_grid, gather_dilated
from apt_ext.core.windows import Window, draw_windows, gather_windows
from tests.core.made import denoise_dilated, denoise_local

SOME = settings(deadline=None, max_examples=40)
FILL = st.sampled_from(["reflect", "zero"])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def local(size: tuple[int, int], samples: int, fill: str = "reflect", border: str = "inside") -> ViewBatch:
    windows = draw_windows(3, size=size, window=(6, 5), overlap=0.4, border=border)
    return ViewBatch(size, samples, windows=tuple(windows), fill=fill)


@SOME
@given(st.tuples(st.integers(2, 20), st.integers(2, 20)), st.integers(1, 3), FILL, st.sampled_from(["inside", "over"]))
def test_tensors_at_latent_size_are_cut_like_the_latent(size: tuple[int, int], samples: int, fill: str, border: str) -> None:
    """Masks and concat channels must stay on their pixels, beyond the border too."""
    mask = noise(samples, 5, *size)
    batch = local(size, samples, fill, border)
    assert torch.equal(condition_views({"mask": mask}, batch)["mask"], gather_windows(mask, batch.windows, fill))
    grid = dilated_grid(size, (2, 3), fill, 2)
    every = gather_dilated(mask, grid)
    for part in ((0, 6), (2, 5), (5, 6)):
        batch = ViewBatch(size, samples, grid=grid, part=part, fill=fill)
        assert batch.count == part[1] - part[0]
        assert torch.equal(condition_views({"mask": mask}, batch)["mask"], every[:, part[0] : part[1]].flatten(0, 1))
        assert tuple(batch.view_size) == tuple(every.shape[-2:])


def test_what_views_have_of_their_own_is_laid_beside_what_is_cut_for_them() -> None:
    """A row for each view of each sample, in one order, for windows and for dilated views."""
    size, samples = (14, 11), 3
    marks = torch.arange(14.0 * 11).view(1, 1, *size)
    for batch in (local(size, samples), ViewBatch(size, samples, grid=dilated_grid(size, (2, 1), "reflect", 1), part=(0, 2))):
        cut = batch.gather(marks.repeat(samples, 1, 1, 1))
        assert tuple(cut.shape[-2:]) == tuple(batch.view_size)
        assert torch.equal(batch.spread(batch.gather(marks)), cut)
        assert torch.equal(batch.spread(batch.gather(marks)[:, 0, 0, 0]), cut[:, 0, 0, 0])


@pytest.mark.parametrize("factor", [2, 8])
def test_hints_are_cut_to_the_windows_pixels(factor: int) -> None:
    """A control hint is a picture at eight times the latent's size: each window gets the pixels that it will become."""
    size, samples = (14, 11), 2
    hint = noise(samples, 3, factor * size[0], factor * size[1])
    batch = local(size, samples)
    out = condition_views({"control": {"hint": hint}}, batch)["control"]["hint"]
    assert out.shape[0] == batch.count * samples
    for k, (top, left, height, width) in enumerate(batch.windows):
        pixels = hint[:, :, factor * top : factor * (top + height), factor * left : factor * (left + width)]
        assert torch.equal(out[k :: batch.count], pixels)


def test_hints_of_dilated_views_keep_their_blocks() -> None:
    """A dilated view's latent pixel takes its whole block of hint pixels along."""
    factor, d, samples = 8, (2, 3), 2
    hint = noise(samples, 3, 8 * 6, 8 * 9)
    out = condition_views({"hint": hint}, ViewBatch((6, 9), samples, grid=dilated_grid((6, 9), d), part=(1, 6)))["hint"]
    for k in range(1, 6):
        i, j = divmod(k, d[1])
        for r in range(3):
            for c in range(3):
                y, x = factor * (i + d[0] * r), factor * (j + d[1] * c)
                got = out[k - 1 :: 5, :, factor * r : factor * (r + 1), factor * c : factor * (c + 1)]
                assert torch.equal(got, hint[:, :, y : y + factor, x : x + factor])


def test_unequal_factors_are_not_a_hint() -> None:
    """Twice as high but three times as wide is no picture of the latent: it belongs to the sample as a whole."""
    value = noise(2, 3, 2 * 14, 3 * 11)
    batch = local((14, 11), 2)
    assert torch.equal(condition_views({"v": value}, batch)["v"], value.repeat_interleave(batch.count, 0))


@pytest.mark.parametrize("shape", [(2, 7, 14), (2, 14), (2, 3, 14, 11, 2), (2,)])
def test_only_four_dimensions_are_pictures(shape: tuple[int, ...]) -> None:
    """A text embedding whose length happens to be the latent's height is still a text embedding."""
    value, batch = noise(*shape), local((14, 11), 2)
    assert torch.equal(condition_views({"v": value}, batch)["v"], value.repeat_interleave(batch.count, 0))


class Pair(NamedTuple):
    """A container that takes its items one by one."""

    first: Any
    second: Any


def test_containers_are_searched_and_the_rest_is_passed_on() -> None:
    """Hosts nest their conditioning; scalars, strings, None and foreign tensors must come through as they are."""
    size, samples = (12, 10), 2
    batch = local(size, samples)
    text, spatial, other, scalar, marker = noise(2, 7, 4), noise(2, 1, 12, 10), noise(5, 3), torch.tensor(0.5), object()
    extra: dict[str, Any] = {"cond": {"crossattn": [text], "concat": (spatial, "name")}, "scale": 7.5, "none": None, "s": scalar, "o": other, "m": marker}
    out: Any = condition_views(extra, batch)
    repeated = text.repeat_interleave(batch.count, 0)
    assert isinstance(out["cond"]["crossattn"], list)
    assert torch.equal(out["cond"]["crossattn"][0], repeated)
    assert isinstance(out["cond"]["concat"], tuple)
    assert out["cond"]["concat"][1] == "name"
    assert torch.equal(out["cond"]["concat"][0], gather_windows(spatial, batch.windows))
    assert out["scale"] == 7.5
    assert out["none"] is None
    assert out["s"] is scalar
    assert out["o"] is other
    assert out["m"] is marker
    assert extra["cond"]["crossattn"][0] is text, "the caller's own mapping was changed"


def test_named_tuples_stay_named_tuples() -> None:
    """They are tuples, but are not made from one list."""
    batch = local((12, 10), 2)
    text = noise(2, 7)
    out: Any = condition_views({"pair": Pair(text, 3)}, batch)
    assert isinstance(out["pair"], Pair)
    assert torch.equal(out["pair"].first, text.repeat_interleave(batch.count, 0))
    assert out["pair"].second == 3


@pytest.mark.parametrize("size", [(12, 10), (1, 10), (12, 1), (1, 1)])
def test_dummies_of_one_pixel_are_not_cut(size: tuple[int, int]) -> None:
    """The WebUI gives models without image conditioning a 1 x 1 dummy: repeated with its sample, or passed on where it has a batch of its own."""
    batch = ViewBatch(size, 2, windows=tuple(draw_windows(0, size=size, window=(6, 5))))
    own, foreign = noise(2, 5, 1, 1), noise(1, 5, 1, 1)
    out: Any = condition_views({"own": own, "foreign": foreign}, batch)
    assert torch.equal(out["own"], own.repeat_interleave(batch.count, 0))
    assert out["foreign"] is foreign


class Recorder:
    """A model that checks what it is given against the view it sees, whose own content says where it is from."""

    def __init__(self, samples: int, at: str):
        self.samples, self.at, self.calls = samples, at, 0

    def __call__(self, x: Tensor, sigma: Tensor, *, spatial: Tensor, hint: Tensor, label: Tensor, level: float, **rest: Any) -> Tensor:
        self.calls += 1
        assert level == 3.0
        assert rest == {"flag": "on"}
        assert torch.equal(spatial, x), f"the condition of {self.at} views is not where the latent is"
        assert torch.equal(hint[..., ::4, ::4], x)
        assert torch.equal(hint[..., 1::4, 3::4], -x)
        assert label.shape[0] == sigma.shape[0] == x.shape[0]
        assert torch.equal(sigma, label[:, 0] + 1), "noise levels and labels are not repeated alike"
        return x + label[:, :1, None, None]


@pytest.mark.parametrize("window_batch", [1, 3, 100])
@pytest.mark.parametrize("fill", ["reflect", "zero"])
@pytest.mark.parametrize("path", ["local", "dilated"])
def test_conditions_follow_their_views_through_the_paths(path: str, fill: str, window_batch: int) -> None:
    """In any batch size, over the border and in the padding: the model must never see a neighbour's condition or another sample's."""
    size, samples = (13, 11), 3
    x, label = noise(samples, 2, *size), torch.arange(3.0)[:, None].expand(3, 4)
    blocks = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    rows, columns = torch.meshgrid(torch.arange(4 * 13) % 4 == 1, torch.arange(4 * 11) % 4 == 3, indexing="ij")
    hint = torch.where(rows & columns, -blocks, blocks)
    extra = {"spatial": x, "hint": hint, "label": label, "level": 3.0, "flag": "on"}
    model = Recorder(samples, path)
    sigma = label[:, 0] + 1  # a level of its own for each sample: the paths themselves allow it
    if path == "local":
        windows = draw_windows(2, size=size, window=(6, 5), overlap=0.3, border="over")
        out = denoise_local(model, x, sigma, extra, windows, fill=fill, window_batch=window_batch)
        views = len(windows)
    else:
        out = denoise_dilated(model, x, sigma, extra, dilated_grid(size, (2, 3), fill, 2), window_batch=window_batch)
        views = 6
    torch.testing.assert_close(out, x + label[:, :1, None, None])
    assert model.calls == -(-views // window_batch)


def test_a_host_can_wrap_the_condition_and_read_the_positions() -> None:
    """SDXL's crop coordinates need to know where each view lies, and that dilated views have no such place."""
    x, sigma = noise(2, 1, 16, 12), torch.ones(2)
    seen: list[Window | tuple[DilatedGrid, int, int]] = []

    def condition(extra: Any, batch: ViewBatch) -> Any:
        assert batch.size == (16, 12)
        assert batch.samples == 2
        seen.extend(batch.windows if batch.grid is None else [(batch.grid, k, batch.count) for k in range(*batch.part)])
        return {**condition_views(extra, batch), "corner": torch.tensor([[w.top, w.left] for _ in range(2) for w in batch.windows])}

    def model(v: Tensor, _: Tensor, corner: Tensor) -> Tensor:
        return corner[:, :1, None, None].expand_as(v).float() if len(corner) else v

    windows = [Window(0, 0, 8, 12), Window(8, 0, 8, 12)]
    out = denoise_local(model, x, sigma, {}, windows, condition=condition)
    assert seen == windows
    assert torch.equal(out, torch.tensor([0.0, 8.0]).repeat_interleave(8).view(1, 1, 16, 1).expand_as(x))
    seen.clear()
    grid = dilated_grid((16, 12), (2, 2))
    denoise_dilated(model, x, sigma, {}, grid, condition=condition, window_batch=3)
    assert seen == [(grid, k, 2) for k in range(4)]


def test_hint_rearrangement_is_the_blocks_own() -> None:
    """The order of rows, columns and channels inside a block, spelled out once more with einops."""
    hint = noise(1, 3, 16, 24)
    batch = ViewBatch((4, 6), 1, windows=(Window(1, 2, 2, 3),))
    out = condition_views({"hint": hint}, batch)["hint"]
    folded = rearrange(hint, "b c (h i) (w j) -> h w b c i j", i=4, j=4)[1:3, 2:5]
    assert torch.equal(out, rearrange(folded, "h w b c i j -> b c (h i) (w j)"))
