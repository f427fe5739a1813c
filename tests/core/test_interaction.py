"""Window interaction: a bijection over the views at every position, undone exactly, from a generator of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import DilatedGrid, dilated_grid
from apt_ext.core.interaction import draw_permutations, exchange, exchange_back
from apt_ext.core.weights import PathWeights
from apt_ext.core.windows import draw_windows
from tests.core.made import denoise_dilated, denoise_local, fused_denoiser

SOME = settings(deadline=None, max_examples=50)
SHAPE = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(views: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return draw_permutations(views, shape, torch.Generator().manual_seed(seed))


def toy(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
    """Not pointwise, so that an exchange shows."""
    return 0.5 * torch.tanh(x + 0.3 * x.roll(1, -1)) + 0.2 * x.roll(1, -2)


@SOME
@given(st.integers(1, 16), SHAPE, st.integers(0, 1000))
def test_bijection_at_every_position(views: int, shape: tuple[int, ...], seed: int) -> None:
    """Every view's pixel is used once at each position: nothing lost, nothing doubled."""
    order = drawn(views, shape, seed)
    assert order.shape == (views, *shape)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort(dim=0).values, torch.arange(views).view(-1, 1, 1, 1, 1).expand(views, *shape))


@SOME
@given(st.integers(1, 16), SHAPE, st.integers(0, 1000))
def test_exchange_back_undoes_exchange(views: int, shape: tuple[int, ...], seed: int) -> None:
    """To the last bit, and what comes between is the indexing of the text."""
    order, x = drawn(views, shape, seed), noise(views, *shape, seed=seed)
    mixed = exchange(x, order)
    assert torch.equal(exchange_back(mixed, order), x)
    assert torch.equal(exchange(exchange_back(x, order), order), x)
    naive = np.take_along_axis(x.numpy(), order.numpy(), axis=0)
    assert np.array_equal(mixed.numpy(), naive)


def test_positions_and_channels_are_drawn_apart() -> None:
    """One permutation for a whole view would only rename the views; all orders must come up, about equally often."""
    order = drawn(3, (1, 4, 32, 32))
    codes = (order[0] * 9 + order[1] * 3 + order[2]).flatten()
    found, counts = codes.unique(return_counts=True)
    assert len(found) == 6
    assert counts.min() > 0.8 * counts.sum() / 6
    assert counts.max() < 1.2 * counts.sum() / 6
    assert not torch.equal(order[:, :, 0], order[:, :, 1]), "the channels share their order"
    assert not torch.equal(drawn(3, (1, 4, 32, 32), seed=1), order)
    assert torch.equal(drawn(3, (1, 4, 32, 32)), order)


def test_global_random_state_is_left_alone() -> None:
    """The generator is the caller's; the host's own draws must not move."""
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy(), random.getstate()
    generator = torch.Generator().manual_seed(3)
    first = draw_permutations(4, (2, 2, 5, 5), generator)
    assert not torch.equal(first, draw_permutations(4, (2, 2, 5, 5), generator)), "the generator did not advance"
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state(legacy=False)["state"]["key"])
    assert before[2] == random.getstate()
    torch.manual_seed(2)
    assert torch.equal(drawn(4, (2, 2, 5, 5), 3), first)


Permutations = Callable[[slice, tuple[int, ...]], Tensor]


def permutations(part: slice, shape: tuple[int, ...]) -> Tensor:
    return drawn(part.stop - part.start, shape, seed=part.start + 17)


def naive(x: Tensor, grid: DilatedGrid, orders: list[tuple[int, Tensor]]) -> Tensor:
    """Loops over samples, channels and pixels; no padding, no blur."""
    d, sigma = grid.dilation, torch.ones(1, dtype=torch.float64)
    views = [x[:, :, i :: d[0], j :: d[1]] for i in range(d[0]) for j in range(d[1])]
    out = torch.empty_like(x)
    for start, order in orders:
        group = views[start : start + len(order)]
        mixed = [torch.empty_like(v) for v in group]
        for index in np.ndindex(*views[0].shape):
            for k in range(len(group)):
                mixed[k][index] = group[int(order[k][index])][index]
        estimates = [m - toy(m, sigma) for m in mixed]
        back = [torch.empty_like(v) for v in group]
        for index in np.ndindex(*views[0].shape):
            for k in range(len(group)):
                back[int(order[k][index])][index] = estimates[k][index]
        for k, v in enumerate(group):
            i, j = divmod(start + k, d[1])
            out[:, :, i :: d[0], j :: d[1]] = v - back[k]
    return out


@pytest.mark.parametrize(("group", "starts"), [(None, [0]), (2, [0, 2, 4]), (4, [0, 4]), (6, [0])])
@pytest.mark.parametrize("window_batch", [1, 3, 100])
def test_path_with_interaction_equals_the_naive_one(group: int | None, starts: list[int], window_batch: int) -> None:
    """Mixed before the model, un-mixed after, within each group of views, in any batch size."""
    grid = dilated_grid((6, 12), (2, 3))
    x = noise(2, 2, 6, 12)
    orders = [(s, permutations(slice(s, min(6, s + (group or 6))), (2, 2, 3, 4))) for s in starts]
    out = denoise_dilated(toy, x, torch.ones(2, dtype=torch.float64), {}, grid, permutations=permutations, interaction_group=group, window_batch=window_batch)
    torch.testing.assert_close(out, naive(x, grid, orders))
    assert not torch.allclose(out, denoise_dilated(toy, x, torch.ones(2, dtype=torch.float64), {}, grid), atol=1e-3)


@pytest.mark.parametrize("fill", ["reflect", "zero"])
def test_interaction_is_invisible_where_it_must_be(fill: str) -> None:
    """The identity order changes nothing, and a pointwise model cannot tell the views apart; padding and blur included."""
    grid = dilated_grid((13, 17), (2, 3), fill, 2)
    x, sigma = noise(2, 2, 13, 17), torch.ones(2, dtype=torch.float64)

    def identity(part: slice, shape: tuple[int, ...]) -> Tensor:
        return torch.arange(part.stop - part.start).view(-1, *[1] * len(shape)).expand(-1, *shape)

    def pointwise(v: Tensor, _: Tensor) -> Tensor:
        return 0.3 * v + v.tanh()

    plain = denoise_dilated(toy, x, sigma, {}, grid, blur=0.7)
    torch.testing.assert_close(denoise_dilated(toy, x, sigma, {}, grid, blur=0.7, permutations=identity), plain)
    plain = denoise_dilated(pointwise, x, sigma, {}, grid, blur=0.7)
    torch.testing.assert_close(denoise_dilated(pointwise, x, sigma, {}, grid, blur=0.7, permutations=permutations), plain)


def test_samples_do_not_exchange() -> None:
    """Only views of the same picture are mixed: the second sample must not reach the first."""
    grid, sigma = dilated_grid((8, 8), (2, 2)), torch.ones(2, dtype=torch.float64)
    x = noise(2, 2, 8, 8)
    other = x.clone()
    other[1] += 10
    first, second = (denoise_dilated(toy, v, sigma, {}, grid, blur=0.5, permutations=permutations) for v in (x, other))
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


@pytest.mark.parametrize("window_batch", [1, 2, 100])
@pytest.mark.parametrize("group", [None, 2, 4])
def test_conditions_keep_their_views_in_groups(group: int | None, window_batch: int) -> None:
    """Pixels are exchanged, conditions are not: each view keeps its own, whatever group and call it falls into."""
    grid, x = dilated_grid((9, 11), (2, 3)), noise(2, 2, 9, 11)
    spatial = noise(2, 1, 9, 11, seed=5)

    def model(v: Tensor, _: Tensor, spatial: Tensor) -> Tensor:
        return v + spatial

    out = denoise_dilated(
        model,
        x,
        torch.ones(2, dtype=torch.float64),
        {"spatial": spatial},
        grid,
        permutations=lambda part, shape: torch.arange(part.stop - part.start).view(-1, 1, 1, 1, 1).expand(-1, *shape),
        interaction_group=group,
        window_batch=window_batch,
    )
    torch.testing.assert_close(out, x + spatial)


def test_fused_denoiser_hands_its_settings_on() -> None:
    """Every setting of the wrapper reaches the path that it is for, and the step reaches the draws."""
    x, sigma, grid = noise(2, 2, 13, 17), torch.ones(2, dtype=torch.float64), dilated_grid((13, 17), (2, 3))
    windows = draw_windows(0, size=(13, 17), window=(6, 7), border="over")

    def condition(extra: Any, batch: ViewBatch) -> Any:
        return {"shift": extra["shift"] * (1 if batch.grid is None else 2)}

    def model(v: Tensor, s: Tensor, shift: float) -> Tensor:
        return toy(v, s) + shift

    steps: list[int] = []

    def interaction(step: int) -> Permutations:
        steps.append(step)
        return permutations

    fused = fused_denoiser(
        model,
        windows=lambda step: windows,
        grid=grid,
        weights=lambda s: PathWeights(0, 0.25, 0.5),
        step=lambda: 5,
        blur=1.4,
        fill="zero",
        feather=0.7,
        condition=condition,
        permutations=interaction,
        interaction_group=2,
    )
    extra = {"shift": 0.3}
    local = denoise_local(model, x, sigma, extra, windows, fill="zero", feather=0.7, condition=condition)
    dilated = denoise_dilated(model, x, sigma, extra, grid, blur=0.7, condition=condition, permutations=permutations, interaction_group=2)
    torch.testing.assert_close(fused(x, sigma, **extra), 0.75 * local + 0.25 * dilated)
    assert steps == [5]
