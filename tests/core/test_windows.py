"""Local windows: every pixel seen, at every step, for any size and setting; cutting and placing undo each other."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from apt_ext.core.borders import extend
from apt_ext.core.windows import Window, axis_starts, cover, draw_windows, feather_weights, gather_windows, place_windows
from tests.core.made import denoise_local

MANY = settings(deadline=None, max_examples=120)
SOME = settings(deadline=None, max_examples=50)

BORDER = st.sampled_from(["inside", "over"])
FILL = st.sampled_from(["reflect", "zero"])
OVERLAP = st.floats(0, 0.75)
SHARE = st.floats(0, 1)


@st.composite
def layouts(draw: Any, longest: int = 70) -> dict[str, Any]:
    """Arguments of `draw_windows`; sizes below one window, odd ones and very flat ones included."""
    window = (draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    size = (draw(st.integers(1, longest)), draw(st.integers(1, longest)))
    return {
        "size": size,
        "window": window,
        "overlap": draw(OVERLAP),
        "jitter": draw(SHARE),
        "border": draw(BORDER),
        "seed": draw(st.integers(0, 2**63 - 1)),
    }


def count_slowly(size: tuple[int, int], windows: list[Window]) -> np.ndarray:
    """Coverage pixel by pixel, which owes nothing to slicing."""
    count = np.zeros(size, dtype=np.int64)
    for w in windows:
        for r in range(w.top, w.top + w.height):
            for c in range(w.left, w.left + w.width):
                if 0 <= r < size[0] and 0 <= c < size[1]:
                    count[r, c] += 1
    return count


@MANY
@given(layouts(), st.integers(0, 10**6))
@example({"size": (5, 64), "window": (16, 16), "overlap": 0.5, "jitter": 1.0, "border": "inside", "seed": 0}, 3)
@example({"size": (64, 5), "window": (16, 16), "overlap": 0.0, "jitter": 1.0, "border": "over", "seed": 7}, 3)
def test_every_pixel_is_covered(layout: dict[str, Any], step: int) -> None:
    """An uncovered pixel would be a hole in the picture; a window outside would be work for nothing."""
    size, window = layout["size"], layout["window"]
    windows = draw_windows(step, **layout)
    count = count_slowly(size, windows)
    assert count.min() >= 1
    assert np.array_equal(cover(size, windows).numpy(), count)
    for w in windows:
        assert (w.height, w.width) == (min(window[0], size[0]), min(window[1], size[1]))
        assert -w.height < w.top < size[0], "a window that sees nothing"
        assert -w.width < w.left < size[1], "a window that sees nothing"
        if layout["border"] == "inside":
            assert w.top >= 0
            assert w.left >= 0
            assert w.top + w.height <= size[0]
            assert w.left + w.width <= size[1]


@MANY
@given(st.integers(1, 200), st.integers(1, 40), OVERLAP, SHARE, BORDER)
def test_axis_is_covered_and_ascending(size: int, window: int, overlap: float, shift: float, border: str) -> None:
    """One axis on its own: ascending starts, no gap, reaching both ends, at any shift."""
    starts = axis_starts(size, window, overlap, border, shift)
    length = min(window, size)
    assert starts == sorted(starts)
    assert starts[0] <= 0
    assert starts[-1] + length >= size
    assert all(b - a <= length for a, b in itertools.pairwise(starts))
    stride = max(1, int(length * (1 - overlap)))
    if border == "over":
        assert all(b - a == stride for a, b in itertools.pairwise(starts))
        assert starts[0] > -stride
    else:
        assert starts[0] == 0
        assert starts[-1] == size - length
        assert len(starts) == -(-(size - length) // stride) + 1, "more windows than the overlap asks for"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((128, 64, 0.5), [0, 32, 64]),
        ((128, 64, 0.5, "inside", 0.0), [0, 0, 64]),
        ((128, 64, 0.5, "inside", 1.0), [0, 64, 64]),
        ((100, 40, 0.25), [0, 30, 60]),
        ((100, 40, 0.25, "inside", 1.0), [0, 40, 60]),
        ((64, 64, 0.5), [0]),
        ((20, 64, 0.5), [0]),
        ((65, 64, 0.5), [0, 1]),
        ((128, 64, 0.0, "over", 0.0), [0, 64]),
        ((128, 64, 0.0, "over", 0.5), [-32, 32, 96]),
        ((96, 64, 0.75, "over", 0.25), [-4, 12, 28, 44]),
    ],
)
def test_known_positions(arguments: tuple[Any, ...], expected: list[int]) -> None:
    """Worked by hand from MultiDiffusion's even stride and the greatest shift that still covers."""
    assert axis_starts(*arguments) == expected


@SOME
@given(layouts(), st.integers(0, 1000))
def test_windows_touch_no_global_random_state(layout: dict[str, Any], step: int) -> None:
    """The host's images depend on its global generators; and nothing of those may reach the windows."""
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy(), random.getstate()
    first = draw_windows(step, **layout)
    after = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"], random.getstate()
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    torch.manual_seed(2), np.random.seed(2), random.seed(2)
    assert draw_windows(step, **layout) == first


@SOME
@given(st.integers(0, 2**40), BORDER)
def test_steps_and_seeds_move_the_windows(seed: int, border: str) -> None:
    """Jitter that repeats itself leaves its seams in one place: steps, seeds and the two axes must differ."""
    arguments: dict[str, Any] = {"size": (160, 160), "window": (32, 32), "overlap": 0.25, "border": border}
    runs = [draw_windows(step, **arguments, seed=seed) for step in range(12)]
    assert len({tuple(run) for run in runs}) > 6
    assert len({tuple(draw_windows(0, **arguments, seed=seed + k)) for k in range(12)}) > 6
    tops, lefts = [sorted({w.top for w in run}) for run in runs], [sorted({w.left for w in run}) for run in runs]
    assert min(len({tuple(v) for v in axis}) for axis in (tops, lefts)) > 3, "one of the axes stands still"
    assert tops != lefts, "the axes move together"


@SOME
@given(layouts(), st.integers(0, 1000), st.integers(0, 1000))
def test_no_jitter_means_no_movement(layout: dict[str, Any], first: int, second: int) -> None:
    """Jitter 0 is plain MultiDiffusion: the same windows at every step and seed."""
    layout |= {"jitter": 0.0}
    assert draw_windows(first, **layout) == draw_windows(second, **layout | {"seed": layout["seed"] + 1})


def test_jitter_reaches_every_offset() -> None:
    """Over the border every phase of the grid must come up, about evenly, or seams gather somewhere."""
    firsts = [draw_windows(step, size=(64, 64), window=(8, 8), overlap=0.0, border="over")[0] for step in range(400)]
    for axis in ([w.top for w in firsts], [w.left for w in firsts]):
        share = np.bincount(-np.array(axis), minlength=8) / 400
        assert share.shape == (8,)
        assert share.min() > 0.06
        assert share.max() < 0.2
    inner = [draw_windows(step, size=(100, 100), window=(40, 40), overlap=0.25)[1].left for step in range(400)]
    assert (min(inner), max(inner)) == (20, 40)


@SOME
@given(layouts(40), FILL, st.sampled_from([None, 0.3, 1.0]), st.integers(1, 3))
def test_place_undoes_gather(layout: dict[str, Any], fill: str, feather: float | None, batch: int) -> None:
    """A model that changes nothing must change nothing: the weighted mean of the cut windows is the latent."""
    windows = draw_windows(1, **layout)
    x = torch.randn(batch, 2, *layout["size"], generator=torch.Generator().manual_seed(0))
    weight = None if feather is None else feather_weights(windows[0].height, windows[0].width, feather)
    value, count = torch.zeros_like(x), torch.zeros_like(x)
    patches = gather_windows(x, windows, fill)
    assert patches.shape == (len(windows) * batch, 2, windows[0].height, windows[0].width)
    place_windows(value, patches, windows, weight)
    place_windows(count, torch.ones_like(patches), windows, weight)
    torch.testing.assert_close(value / count, x, rtol=1e-5, atol=1e-5)
    if weight is None:
        assert torch.equal(count[0, 0].long(), cover(layout["size"], windows))


@SOME
@given(layouts(30), FILL)
def test_gather_is_indexing_a_padded_latent(layout: dict[str, Any], fill: str) -> None:
    """Sample-major order and the border's content, against numpy's padding."""
    windows = draw_windows(5, **layout)
    x = torch.randn(2, 3, *layout["size"], generator=torch.Generator().manual_seed(1))
    far = 30
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (far, far), (far, far)), mode="reflect" if fill == "reflect" else "constant")
    patches = gather_windows(x, windows, fill).numpy()
    for k, w in enumerate(windows):
        cut = wide[:, :, far + w.top : far + w.top + w.height, far + w.left : far + w.left + w.width]
        assert np.array_equal(patches[k :: len(windows)], cut)


@MANY
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(*[st.integers(0, 40)] * 4), FILL)
@example((1, 1), (3, 0, 0, 5), "reflect")
@example((2, 3), (40, 40, 40, 40), "reflect")
def test_extend_is_numpys_pad(size: tuple[int, int], reach: tuple[int, int, int, int], fill: str) -> None:
    """Windows may reach further over the border than a small latent is long, where torch's own padding gives up."""
    top, left, bottom, right = reach
    inside = max(top, bottom) < size[0] and max(left, right) < size[1]
    assume(inside or fill == "zero" or np.lib.NumpyVersion(np.__version__) >= "2.0.0")  # earlier ones mirror a long reach wrongly
    x = torch.arange(2.0 * 3 * size[0] * size[1]).reshape(2, 3, *size) + 1
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), mode="reflect" if fill == "reflect" else "constant")
    assert np.array_equal(extend(x, top, left, bottom, right, fill).numpy(), expected)


def test_feather_weights_values() -> None:
    """Linear towards the edges, symmetric, never zero; 0 counts all alike."""
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(feather_weights(4, 4, 1.0), row[:, None] * row[None, :])
    torch.testing.assert_close(feather_weights(8, 1, 0.5)[:, 0], torch.tensor([0.25, 0.75, 1, 1, 1, 1, 0.75, 0.25]))
    assert torch.equal(feather_weights(5, 7, 0.0), torch.ones(5, 7))
    for feather in (0.1, 0.5, 1.0):
        w = feather_weights(9, 6, feather)
        assert float(w.min()) > 0
        assert float(w.max()) <= 1
        assert torch.equal(w, w.flip(0, 1))


@pytest.mark.parametrize("fill", ["reflect", "zero"])
@pytest.mark.parametrize("feather", [0.0, 0.6])
def test_local_path_equals_the_naive_one(fill: str, feather: float) -> None:
    """Windows of two sizes in any order, over the border, one after the other in float64; the batch's samples at levels of their own."""
    x = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sigma = torch.tensor([0.5, 3.0], dtype=torch.float64)

    def model(v: torch.Tensor, s: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.tanh(v + 0.3 * v.roll(1, -1)) / (1 + s.view(-1, 1, 1, 1)) + 0.2 * v.flip(-2)

    windows = [*draw_windows(3, size=(13, 17), window=(6, 7), overlap=0.3, border="over"), Window(2, 3, 5, 9), Window(-2, 8, 5, 9)]
    order = np.random.default_rng(0).permutation(len(windows))
    windows = [windows[k] for k in order]
    value, count = np.zeros(x.shape), np.zeros((13, 17))
    for w in windows:
        wide = np.pad(x.numpy(), ((0, 0), (0, 0), (20, 20), (20, 20)), mode="reflect" if fill == "reflect" else "constant")
        view = wide[:, :, 20 + w.top : 20 + w.top + w.height, 20 + w.left : 20 + w.left + w.width]
        estimate = model(torch.from_numpy(view.copy()), sigma).numpy()
        weight = feather_weights(w.height, w.width, feather).numpy()
        for r in range(w.height):
            for c in range(w.width):
                y, z = w.top + r, w.left + c
                if 0 <= y < 13 and 0 <= z < 17:
                    value[:, :, y, z] += weight[r, c] * estimate[:, :, r, c]
                    count[y, z] += weight[r, c]
    out = denoise_local(model, x, sigma, {}, windows, fill=fill, feather=feather, window_batch=4)
    np.testing.assert_allclose(out.numpy(), value / count, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "quoted"),
    [
        ({"overlap": 0.8}, "0.8"),
        ({"overlap": -0.25}, "-0.25"),
        ({"overlap": float("nan")}, "nan"),
        ({"jitter": 1.5}, "1.5"),
        ({"jitter": -0.125}, "-0.125"),
        ({"border": "wrap"}, "wrap"),
        ({"size": (0, 17)}, r"\(0, 17\)"),
        ({"window": (16, -3)}, r"\(16, -3\)"),
    ],
)
def test_bad_arguments_are_quoted(change: dict[str, Any], quoted: str) -> None:
    """The user must see which number was wrong."""
    with pytest.raises(ValueError, match=quoted):
        draw_windows(0, **{"size": (32, 32), "window": (16, 16)} | change)


def test_unknown_fill_is_quoted() -> None:
    """Also where nothing would have to be filled: a typing mistake must not pass by luck."""
    x = torch.zeros(1, 1, 4, 4)
    for call in (lambda: extend(x, 0, 0, 0, 0, "edge"), lambda: extend(x, 1, 0, 0, 0, "edge"), lambda: gather_windows(x, [Window(0, 0, 2, 2)], "edge")):
        with pytest.raises(ValueError, match="edge"):
            call()
