"""The fused denoiser: what must come out whatever the settings, and that batches, calls and steps do not change it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_ext.core.dilated import dilated_grid
from apt_ext.core.paths import blurred
from apt_ext.core.views import even_batches
from apt_ext.core.weights import PathWeights
from apt_ext.core.windows import Window, draw_windows
from tests.core.made import denoise_local, fused_denoiser

SOME = settings(deadline=None, max_examples=40)
FEW = settings(deadline=None, max_examples=20)
FILL = st.sampled_from(["reflect", "zero"])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Conv:
    """A small model that mixes neighbours and channels, is not linear and knows the noise level; calls and views are counted."""

    def __init__(self, channels: int = 3, padding: str = "zeros"):
        self.weight, self.mode, self.calls, self.seen = 0.3 * noise(channels, channels, 3, 3, seed=9), padding, 0, 0

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        self.calls, self.seen = self.calls + 1, self.seen + x.shape[0]
        assert sigma.shape == x.shape[:1]
        v = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular" if self.mode == "circular" else "constant")
        v = torch.nn.functional.conv2d(v, self.weight.to(x.dtype))
        return torch.tanh(v) / (1 + sigma.view(-1, 1, 1, 1)).to(x.dtype) + 0.3 * x


@st.composite
def setups(draw: Any) -> tuple[tuple[int, int], dict[str, Any]]:
    """A latent size with arguments of `fused_denoiser`: any mix of paths, borders, paddings, jitter, feather, blur and batch size."""
    size = (draw(st.integers(2, 26)), draw(st.integers(2, 26)))
    layout = {
        "size": size,
        "window": (draw(st.integers(1, 12)), draw(st.integers(1, 12))),
        "overlap": draw(st.floats(0, 0.75)),
        "jitter": draw(st.floats(0, 1)),
        "border": draw(st.sampled_from(["inside", "over"])),
        "seed": draw(st.integers(0, 99)),
    }
    grid = dilated_grid(size, (draw(st.integers(1, 4)), draw(st.integers(1, 4))), draw(FILL), draw(st.integers(1, 2)))
    paths = draw(st.sampled_from(["both", "both", "local", "dilated"]))
    c2, c3 = draw(st.floats(0, 1)), draw(st.floats(0.01, 1))
    return size, {
        "windows": (lambda step: draw_windows(step, **layout)) if paths != "dilated" else None,
        "grid": grid if paths != "local" else None,
        "weights": lambda sigma: PathWeights(0.0, c2, c3),
        "step": lambda: 4,
        "blur": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "tolerance": draw(st.sampled_from([0.0, 0.05])),
        "window_batch": draw(st.integers(1, 9)),
        "fill": draw(FILL),
        "feather": draw(st.sampled_from([0.0, 0.4, 1.0])),
    }


@SOME
@given(setups(), st.floats(-20, 20))
def test_constant_model_gives_a_constant(setup: tuple[tuple[int, int], dict[str, Any]], c: float) -> None:
    """Without blur for any state, with blur for a flat one (a blurred state is x - g + c): weights and coverage must cancel."""
    size, arguments = setup
    for x, blur in ((noise(2, 3, *size), 0.0), (torch.full((2, 3, *size), 1.5), arguments["blur"])):
        zero_blur = blur > 0 and arguments["grid"] is not None and arguments["grid"].fill == "zero"
        if zero_blur and (arguments["grid"].top or arguments["grid"].left or arguments["grid"].views > 1):
            continue  # zeros beyond the border are not flat
        out = fused_denoiser(lambda v, s: torch.full_like(v, c), **arguments | {"blur": blur})(x, torch.ones(2))
        torch.testing.assert_close(out, torch.full_like(x, c), rtol=1e-5, atol=2e-5)


@SOME
@given(setups())
def test_identity_gives_the_state_back(setup: tuple[tuple[int, int], dict[str, Any]]) -> None:
    """x - g + g = x, and the mean of equal windows is the window: nothing may be lost at borders or in padding."""
    size, arguments = setup
    x = noise(2, 3, *size)
    before = x.clone()
    out = fused_denoiser(lambda v, s: v, **arguments)(x, torch.full((2,), 3.0))
    torch.testing.assert_close(out, x, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before), "the sampler's tensor was written to"


@SOME
@given(setups(), st.floats(-2, 2), st.floats(-2, 2))
def test_pointwise_linear_model_is_exact(setup: tuple[tuple[int, int], dict[str, Any]], a: float, b: float) -> None:
    """D(v) = a v + b: local a x + b; dilated x - g + a g + b; fused (1 - c2) and c2 of them."""
    size, arguments = setup
    x = noise(2, 3, *size)
    fused = fused_denoiser(lambda v, s: a * v + b, **arguments)
    local = a * x + b
    dilated = local
    grid = arguments["grid"]
    if grid is not None and arguments["blur"] > 0:
        _, g = blurred(x, grid, arguments["blur"] * arguments["weights"](1.0).c3)
        dilated = x + (a - 1) * g[..., grid.top : grid.top + size[0], grid.left : grid.left + size[1]] + b
    c2 = arguments["weights"](1.0).c2
    if arguments["windows"] is None or (grid is not None and 1 - c2 < arguments["tolerance"]):
        c2 = 1.0
    elif grid is None or c2 < arguments["tolerance"]:
        c2 = 0.0
    assert fused.shares(1.0) == (1 - c2, c2)
    assert sum(fused.shares(1.0)) == 1
    torch.testing.assert_close(fused(x, torch.ones(2)), (1 - c2) * local + c2 * dilated, rtol=1e-4, atol=2e-5)


@FEW
@given(setups())
def test_each_sample_is_alone(setup: tuple[tuple[int, int], dict[str, Any]]) -> None:
    """A picture must not depend on what else is in its batch: its blur statistics, its place among the views."""
    size, arguments = setup
    x = noise(3, 3, *size) * torch.tensor([1.0, 8.0, 0.2]).view(3, 1, 1, 1) + torch.tensor([0.0, 5.0, -1.0]).view(3, 1, 1, 1)
    fused = fused_denoiser(Conv(), **arguments)
    together = fused(x, torch.full((3,), 1.7))
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], fused(x[b : b + 1], torch.full((1,), 1.7)), rtol=1e-5, atol=2e-5)


@FEW
@given(setups())
def test_window_batch_does_not_change_the_picture(setup: tuple[tuple[int, int], dict[str, Any]]) -> None:
    """Memory and speed only."""
    size, arguments = setup
    x = noise(2, 3, *size)
    outs = [fused_denoiser(Conv(), **arguments | {"window_batch": n})(x, torch.full((2,), 0.8)) for n in (1, 3, 8, 100)]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-5, atol=1e-5)


def fixed(c2: float, **change: Any) -> dict[str, Any]:
    """Both paths on 16 x 16: four windows of 8 x 8 side by side, 2 x 2 views, no blur, no padding."""
    tiles = [Window(top, left, 8, 8) for top in (0, 8) for left in (0, 8)]
    return {"windows": lambda step: tiles, "grid": dilated_grid((16, 16), (2, 2)), "weights": lambda s: PathWeights(0, c2, 1), "blur": 0.0} | change


@FEW
@given(
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
    st.floats(0.05, 0.95),
)
def test_a_shifted_input_gives_a_shifted_output(window: Any, count: Any, dilation: Any, windows: Any, c2: float) -> None:
    """Where the grid allows: windows side by side by whole windows, the dilated views of a periodic model by any number of pixels."""
    size = tuple(w * n * d for w, n, d in zip(window, count, dilation, strict=True))
    by = tuple(w * k for w, k in zip(window, windows, strict=True))
    x, sigma = noise(1, 3, *size), torch.ones(1)
    tiles = draw_windows(0, size=size, window=window, overlap=0.0, jitter=0.0)
    fused = fused_denoiser(Conv(padding="circular"), **fixed(c2, windows=lambda step: tiles, grid=dilated_grid(size, dilation)))
    torch.testing.assert_close(fused(x.roll(by, (-2, -1)), sigma), fused(x, sigma).roll(by, (-2, -1)), rtol=1e-5, atol=1e-5)
    one = tuple(k + 1 for k in windows)
    dilated = fused_denoiser(Conv(padding="circular"), **fixed(c2, windows=None, grid=dilated_grid(size, dilation)))
    torch.testing.assert_close(dilated(x.roll(one, (-2, -1)), sigma), dilated(x, sigma).roll(one, (-2, -1)), rtol=1e-5, atol=1e-5)


def test_a_shift_that_the_grid_does_not_allow_shows() -> None:
    x, sigma = noise(2, 3, 16, 16), torch.ones(2)
    local = fused_denoiser(Conv(), **fixed(0.5, grid=None))
    assert not torch.allclose(local(x.roll(3, -1), sigma), local(x, sigma).roll(3, -1), atol=1e-3), "there are no windows"


@pytest.mark.parametrize(
    ("c2", "tolerance", "shares"),
    [
        (0.3, 0.0, (0.7, 0.3)),
        (0.3, 0.4, (1.0, 0.0)),
        (0.7, 0.4, (0.0, 1.0)),
        (0.02, 0.01, (0.98, 0.02)),
        (0.004, 0.01, (1.0, 0.0)),
        (0.996, 0.01, (0.0, 1.0)),
        (0.0, 0.0, (1.0, 0.0)),
        (1.0, 0.0, (0.0, 1.0)),
    ],
)
@pytest.mark.parametrize("window_batch", [1, 3, 8])
def test_a_path_of_no_weight_costs_nothing(c2: float, tolerance: float, shares: tuple[float, float], window_batch: int) -> None:
    """The free speed: model calls and views are counted; the other path gets all the weight."""
    model, done = Conv(), []
    fused = fused_denoiser(model, **fixed(c2, tolerance=tolerance, window_batch=window_batch, on_views=done.append))
    assert fused.shares(1.0) == pytest.approx(shares)
    assert sum(fused.shares(1.0)) == pytest.approx(1, abs=1e-15)
    x, sigma = noise(2, 3, 16, 16), torch.ones(2)
    out = fused(x, sigma)
    paths = sum(share > 0 for share in shares)
    assert model.calls == paths * -(-4 // window_batch)
    assert model.seen == paths * 4 * 2
    assert sum(done) == paths * 4
    assert len(done) == model.calls
    assert max(done) <= window_batch
    expected = shares[0] * fused.estimate_local(x, sigma, 0, {}) + shares[1] * fused.estimate_dilated(x, sigma, 0, {}, 1.0)
    torch.testing.assert_close(out, expected)


def test_one_path_takes_all() -> None:
    """A path that is left out has no share, whatever the weights say."""
    assert fused_denoiser(Conv(), **fixed(0.9, grid=None)).shares(1.0) == (1.0, 0.0)
    assert fused_denoiser(Conv(), **fixed(0.1, windows=None)).shares(1.0) == (0.0, 1.0)


def test_steps_choose_the_windows() -> None:
    """From the clock where there is one (second-order samplers call twice a step), else one per call."""
    asked: list[int] = []

    def windows(step: int) -> list[Window]:
        asked.append(step)
        return draw_windows(step, size=(16, 16), window=(8, 8))

    counted = fused_denoiser(Conv(), **fixed(0.5, windows=windows))
    for _ in range(3):
        counted(noise(1, 3, 16, 16), torch.ones(1))
    clocked = fused_denoiser(Conv(), **fixed(0.5, windows=windows, step=lambda: 7))
    clocked(noise(1, 3, 16, 16), torch.ones(1))
    assert asked == [0, 1, 2, 7]


def test_weights_and_blur_follow_the_noise_level() -> None:
    """c2 weighs, c3 narrows the blur, both at the level of the call."""
    levels: list[float] = []

    def weights(sigma: float) -> PathWeights:
        levels.append(sigma)
        return PathWeights(0.0, sigma / 10, sigma / 8)

    x, model = noise(1, 3, 16, 16), Conv()
    fused = fused_denoiser(model, **fixed(0.0, weights=weights, blur=1.2))
    constant = fused_denoiser(model, **fixed(0.4, weights=lambda s: PathWeights(0.0, 0.4, 0.5), blur=1.2))
    torch.testing.assert_close(fused(x, torch.full((1,), 4.0)), constant(x, torch.full((1,), 4.0)))
    assert set(levels) == {4.0}


def test_rows_keep_noise_levels_of_their_own() -> None:
    """An extension may lower the prompt's rows alone: each row is as if all stood at its level, with the weights of the highest."""
    x, levels = noise(2, 3, 16, 16), torch.tensor([1.25, 2.5])
    weights = {"weights": lambda sigma: PathWeights(0, sigma / 10, 1)}
    together = fused_denoiser(Conv(), **fixed(0.25, blur=1.0, **weights))(x, levels)
    for row, level in enumerate(levels):
        alone = fused_denoiser(Conv(), **fixed(0.25, blur=1.0))(x[row : row + 1], level[None])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_halves_of_a_batch_stay_halves() -> None:
    """Extensions take the first half of a call's rows for the prompt and the second for the negative one: so it has to be in every call."""
    x = torch.cat([torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)])
    halves: list[list[float]] = []

    def model(v: Tensor, s: Tensor) -> Tensor:
        halves.append([float(half.mean()) for half in v.chunk(2)])
        return v

    fused_denoiser(model, **fixed(0.5, window_batch=3))(x, torch.ones(4))
    assert halves == [[0.0, 1.0]] * 4


def test_interruption_passes_through() -> None:
    """The host stops a run by raising between two calls."""

    def stop(views: int) -> None:
        raise InterruptedError(views)

    model = Conv()
    with pytest.raises(InterruptedError):
        fused_denoiser(model, **fixed(0.5, on_views=stop, window_batch=2))(noise(1, 3, 16, 16), torch.ones(1))
    assert model.calls == 1


@pytest.mark.parametrize("blur", [0.0, 1.0])
@pytest.mark.parametrize("c2", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, c2: float, blur: float) -> None:
    """At a high noise level the state is large and the estimate small: the error must be the estimate's rounding, not the state's."""
    sigma = 14.6

    def model(v: Tensor, s: Tensor, **_: Any) -> Tensor:
        assert v.dtype == dtype or v.dtype == torch.float32
        return (2 * torch.tanh(v.float() / 10)).to(v.dtype)

    x = (sigma * noise(2, 4, 16, 16)).to(dtype)
    fused = fused_denoiser(model, **fixed(c2, blur=blur))
    out = fused(x, torch.full((2,), sigma))
    expected = fused(x.float(), torch.full((2,), sigma))
    assert out.dtype == dtype
    assert expected.dtype == torch.float32
    bound = torch.finfo(dtype).eps * (1 + expected.abs())
    assert bool(((out.float() - expected).abs() <= bound).all()), float((out.float() - expected).abs().max())


def test_the_model_sees_the_states_dtype() -> None:
    """A half-precision model cannot take the float32 that the blur is computed in."""
    seen: set[torch.dtype] = set()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        seen.clear()
        out = fused_denoiser(lambda v, s, seen=seen: (seen.add(v.dtype), v)[1], **fixed(0.5, blur=1.0))(noise(1, 3, 16, 16, dtype=dtype), torch.ones(1))
        assert seen == {dtype}
        assert out.dtype == dtype


@SOME
@given(st.integers(0, 300), st.integers(-1, 40))
def test_even_batches(count: int, most: int) -> None:
    """All views in order, none above the limit, as few calls as possible, sizes within one of each other."""
    parts = even_batches(count, most)
    assert [k for p in parts for k in range(p.start, p.stop)] == list(range(count))
    sizes = [p.stop - p.start for p in parts]
    assert len(parts) == -(-count // max(1, most))
    assert not sizes or (max(sizes) <= max(1, most) and max(sizes) - min(sizes) <= 1)


def test_errors_quote_what_is_wrong() -> None:
    """No path, a hole in the windows, an unknown fill."""
    x = noise(2, 3, 16, 16)
    with pytest.raises(ValueError, match="at least one"):
        fused_denoiser(Conv(), **fixed(0.5, windows=None, grid=None))
    with pytest.raises(ValueError, match="64 of 16 x 16"):
        denoise_local(Conv(), x, torch.ones(2), {}, [Window(0, 0, 8, 8), Window(8, 0, 8, 8), Window(0, 8, 8, 8)])
    with pytest.raises(ValueError, match="edge"):
        dilated_grid((16, 16), (2, 2), "edge")
    for change in ({"fill": "edge"}, {"grid": dilated_grid((16, 16), (2, 2))._replace(fill="edge", right=2)}):
        with pytest.raises(ValueError, match="edge"):
            fused_denoiser(Conv(), **fixed(0.5, **change))(x, torch.ones(2))
