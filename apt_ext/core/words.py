"""Which words a local window keeps of its prompt: from cross-attention maps to masks to windows.

Source: AccDiffusion (Lin et al., ECCV 2024), section 3.2, "Patch-Content-Aware Prompt".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ext.core.borders import NOWHERE, stretches
from apt_ext.core.types import Around
from apt_ext.core.windows import Window

__all__ = ["box_share", "kept_words", "open_masks", "token_masks", "window_shares", "word_masks"]


def open_masks(masks: Tensor, times: int) -> Tensor:
    """Morphological opening: specks and thin bridges go, larger shapes stay.

    Args:
        masks: (T, h, w) bool.
        times: how often the 3 x 3 square erodes, and then dilates. What lies beyond the border does neither.

    Returns:
        (T, h, w) bool.
    """
    x = masks.float()
    for _ in range(times):
        x = -F.max_pool2d(-x, 3, stride=1, padding=1)
    for _ in range(times):
        x = F.max_pool2d(x, 3, stride=1, padding=1)
    return x > 0.5


def token_masks(maps: Tensor, times: int | None = None) -> Tensor:
    """Where each token is seen in the picture.

    Args:
        maps: (T, h, w) cross-attention of T tokens, averaged over heads, layers and steps. Need not be square.
        times: how often the masks are opened; a sixteenth of the shorter side when left out.

    Returns:
        (T, h, w) bool: above the token's own mean, and opened.
    """
    above = maps > maps.mean(dim=(1, 2), keepdim=True)
    return open_masks(above, min(maps.shape[1:]) // 16 if times is None else times)


def word_masks(masks: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """Masks of words that are made of several tokens: a word is where any of its tokens is.

    Args:
        masks: (T, h, w) bool. `words`: indices of each word's tokens.

    Returns:
        (number of words, h, w) bool.

    Raises:
        ValueError: for a word without tokens, or with a token that has no mask.
    """
    for word in words:
        if not word or not all(0 <= token < len(masks) for token in word):
            raise ValueError(f"word tokens {list(word)} must name at least one of the {len(masks)} masks")
    if not words:
        return masks.new_zeros((0, *masks.shape[1:]))
    return torch.stack([masks[list(word)].any(dim=0) for word in words])


def window_shares(masks: Tensor, windows: Sequence[Window], size: tuple[int, int], visible: bool = True, around: Around = NOWHERE) -> Tensor:
    """How much of each window a mask covers.

    Args:
        masks: (T, h, w) bool, stretched to the latent by nearest neighbours.
        windows: k windows of a latent.
        size: (rows, columns) of that latent.
        around: the axes along which the picture is seamless, so that windows go on at its other side.
        visible: a window that reaches over the border is judged by the part that shows the picture. AccDiffusion's own code takes
            the whole window, so that its outer windows lose words; False does the same.

    Returns:
        (T, k) float64 in 0..1.

    Raises:
        ValueError: for a window that shows nothing of the picture.
    """
    rows, columns = size
    # How many of a window's latent pixels fall into each cell of the mask, along either axis: the latent itself is never laid out.
    down = torch.zeros((len(windows), masks.shape[1]), dtype=torch.float64)
    across = torch.zeros((len(windows), masks.shape[2]), dtype=torch.float64)
    area = torch.empty(len(windows), dtype=torch.float64)
    for k, window in enumerate(windows):
        seen = [
            [pixel for place, _ in stretches(start, length, whole, on) for pixel in range(whole)[place]]
            for start, length, whole, on in zip(window[:2], window[2:], size, around, strict=True)
        ]
        if not all(seen):
            raise ValueError(f"{window} shows nothing of a latent of {rows} x {columns} pixels")
        down[k] = torch.bincount(torch.tensor(seen[0]) * masks.shape[1] // rows, minlength=masks.shape[1])
        across[k] = torch.bincount(torch.tensor(seen[1]) * masks.shape[2] // columns, minlength=masks.shape[2])
        area[k] = len(seen[0]) * len(seen[1]) if visible else window.height * window.width
    return torch.einsum("kh,thw,kw->tk", down, masks.cpu().double(), across) / area


def kept_words(shares: Tensor, threshold: float = 0.3) -> list[list[int]]:
    """The words that each window keeps, in the prompt's order.

    Args:
        shares: (T, k), from `window_shares`. `threshold`: c; words that cover less of a window are dropped from it.

    Returns:
        k lists of word indices. A window that would keep none keeps them all, since an empty prompt says nothing about it;
        AccDiffusion's own code leaves it empty.

    Raises:
        ValueError: for a threshold outside 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is out of range; use 0 to 1")
    everything = list(range(len(shares)))
    kept = (shares >= threshold).T.tolist()
    return [[index for index, keep in enumerate(window) if keep] or everything for window in kept]


def box_share(box: tuple[float, float, float, float], window: Window, size: tuple[int, int], around: Around = NOWHERE) -> float:
    """How much a window and a part of the picture have in common.

    Args:
        box: (top, left, bottom, right), shares of the picture, 0 to 1. `size`: (rows, columns) of the latent.
        around: the axes along which the picture is seamless, so that windows go on at its other side.

    Returns:
        What lies in both over the smaller of the two, as far as they show the picture: 0 to 1.
    """
    common, seen, asked = 1.0, 1.0, 1.0
    for start, length, whole, on, first, last in zip(window[:2], window[2:], size, around, box[:2], box[2:], strict=True):
        places = [place for place, _ in stretches(start, length, whole, on)]
        seen *= sum(place.stop - place.start for place in places)
        common *= sum(max(0.0, min(place.stop, last * whole) - max(place.start, first * whole)) for place in places)
        asked *= (last - first) * whole
    return common / min(seen, asked) if seen else 0.0
