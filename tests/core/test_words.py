"""Words per window: AccDiffusion's recorded masks, shares and prompts exactly, and what this project does differently."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_ext.core.types import Around
from apt_ext.core.windows import Window
from apt_ext.core.words import box_share, kept_words, open_masks, token_masks, window_shares, word_masks

HERE = Path(__file__).parents[1] / "golden"
FOLDER = Path(os.environ.get("APT_GOLDEN", HERE))
FOLDER = FOLDER if (FOLDER / "accdiffusion_prompts.npz").exists() else HERE
NPZ = np.load(FOLDER / "accdiffusion_prompts.npz")
JSON = json.loads((FOLDER / "accdiffusion_prompts.json").read_text())


@pytest.mark.parametrize("stack", JSON)
def test_recorded_masks_shares_and_prompts(stack):
    case = JSON[stack]
    maps = torch.from_numpy(NPZ[f"{stack}_maps"]).permute(2, 0, 1)
    raw = maps > maps.mean(dim=(1, 2), keepdim=True)
    assert np.array_equal(raw.numpy(), NPZ[f"{stack}_mask_raw"] > 0)
    masks = token_masks(maps)
    assert np.array_equal(masks.numpy(), NPZ[f"{stack}_mask_dil"] > 0)
    words = [case["vocab"][token] for token in case["tokens"]][1:-1]
    resolution = case["res"]
    pad = (resolution - resolution // 2) // 4
    for scale, views in case["views"].items():
        side = resolution * int(scale)
        windows = [Window(top - pad, left - pad, bottom - top, right - left) for top, bottom, left, right in views]
        shares = window_shares(masks[1:-1], windows, (side, side), visible=False)
        np.testing.assert_allclose(shares.numpy(), NPZ[f"{stack}_frac_s{scale}"], atol=1e-6)
        kept = kept_words(shares, case["c"])
        said = [" ".join(words[index] for index in window) for window in kept]
        recorded = [prompt or " ".join(words) for prompt in case["view_prompts"][scale]]  # an empty one becomes the full prompt here
        assert said == recorded


def test_opening_equals_its_definition_on_any_shape():
    masks = torch.rand(3, 11, 23, generator=torch.Generator().manual_seed(1)) > 0.2
    for times in (0, 1, 2):
        x: np.ndarray = masks.numpy()
        for grow in [False] * times + [True] * times:
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=not grow)
            shifted = np.stack([padded[:, i : i + 11, j : j + 23] for i in range(3) for j in range(3)])
            x = (np.any if grow else np.all)(shifted, axis=0)
        assert np.array_equal(open_masks(masks, times).numpy(), x)


def test_a_window_over_the_border_is_judged_by_what_it_shows():
    masks = torch.ones(1, 8, 8, dtype=torch.bool)
    window = [Window(-8, 0, 16, 16)]
    assert window_shares(masks, window, (32, 32)).item() == 1
    assert window_shares(masks, window, (32, 32), visible=False).item() == 0.5
    with pytest.raises(ValueError, match=r"Window\(top=40, left=0, height=16, width=16\) shows nothing"):
        window_shares(masks, [Window(40, 0, 16, 16)], (32, 32))


def test_shares_on_latents_that_are_no_multiple_of_the_maps():
    masks = torch.zeros(2, 6, 10, dtype=torch.bool)
    masks[0, :3] = True
    masks[1, :, 5:] = True
    shares = window_shares(masks, [Window(0, 0, 10, 35), Window(10, 0, 11, 35), Window(0, 18, 21, 17)], (21, 35))
    top_rows = (torch.arange(21) * 6 // 21 < 3).double()
    right = (torch.arange(35) * 10 // 35 >= 5).double()
    expected = [[top_rows[:10].mean(), top_rows[10:].mean(), top_rows.mean()], [right.mean(), right.mean(), right[18:].mean()]]
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float64))


def test_words_of_several_tokens_and_empty_windows():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 0], masks[1, 1], masks[2, 3] = True, True, True
    merged = word_masks(masks, [[0, 1], [2]])
    assert merged[0].sum(dim=1).tolist() == [4, 4, 0, 0]
    shares = window_shares(merged, [Window(0, 0, 2, 4), Window(2, 0, 1, 4), Window(2, 0, 2, 4)], (4, 4))
    assert kept_words(shares, 0.3) == [[0], [0, 1], [1]]  # the second window shows neither, and keeps both
    assert word_masks(masks, []).shape == (0, 4, 4)
    for bad in ([[]], [[3]]):
        with pytest.raises(ValueError, match="must name at least one of the 3 masks"):
            word_masks(masks, bad)
    with pytest.raises(ValueError, match=r"threshold 1\.5 is out of range"):
        kept_words(shares, 1.5)


@given(st.tuples(*[st.integers(0, 20)] * 2), st.tuples(*[st.integers(1, 12)] * 2), st.tuples(*[st.integers(0, 9)] * 2), st.tuples(*[st.integers(1, 10)] * 2))
def test_what_a_window_and_a_region_have_in_common_is_counted_pixel_by_pixel(at, window, first, length):
    """Of a picture of 20 x 20 that goes round along rows, with regions on its pixels' edges."""
    w = Window(at[0], at[1] - 4, *window)
    last = [min(10, a + b) for a, b in zip(first, length, strict=True)]
    box = (first[0] / 10, first[1] / 10, last[0] / 10, last[1] / 10)
    seen = {(r % 20, c) for r in range(w.top, w.top + w.height) for c in range(w.left, w.left + w.width) if 0 <= c < 20}
    asked = {(r, c) for r in range(2 * first[0], 2 * last[0]) for c in range(2 * first[1], 2 * last[1])}
    expected = len(seen & asked) / min(len(seen), len(asked)) if seen else 0.0
    assert box_share(box, w, (20, 20), Around(True, False)) == pytest.approx(expected)
