"""Words per window on a checkpoint: where its UNet sees the words of a prompt, and what each window keeps of them.

Source: AccDiffusion (Lin et al., ECCV 2024), section 3.2. As in the WebUI, a picture is looked at in one short pass over its base latent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apt_ext.checkpoints.job import PromptJob
from apt_ext.checkpoints.prompts import tokens_of
from apt_ext.core.attention import AttentionMaps, listening, map_size
from apt_ext.core.conditioning import Condition, ViewBatch, own_rows
from apt_ext.core.noise_levels import shortcut_start
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.types import Size, size_of
from apt_ext.core.upscale import enlarge
from apt_ext.core.windows import Window
from apt_ext.core.words import box_share, kept_words, token_masks, window_shares, word_masks
from apt_ext.demo.wanted import Source

__all__ = ["Seen", "WindowWords", "seen_in"]

HALF = 0.5  # of the smaller of a window and a region
TIMESTEPS = (701, 501, 301)  # where a picture's layout is decided


class Seen(NamedTuple):
    """The words of a prompt that can be told apart: (k, h, w) masks, one for each of the words. The others stay in every window."""

    words: list[str]
    judged: list[int]
    masks: Tensor


def _word_tokens(tokenizer: Any, text: str) -> list[list[int]] | None:
    """Positions of each word's tokens in the encoded prompt, behind its mark of start; None where words and prompt are not cut into the same tokens."""
    at, found, ids = 1, [], []
    for word in text.split():
        own = tokens_of(tokenizer, word)
        found.append(list(range(at, at + len(own))))
        ids += own
        at += len(own)
    return found if ids == tokens_of(tokenizer, text) else None


@torch.no_grad()
def seen_in(model: Any, job: PromptJob, source: Source, noise: Callable[..., Tensor], rows: Mapping[str, Tensor]) -> Seen | None:
    """Where the words of a job's prompt are seen in its picture; None where they cannot be told apart.

    Args:
        model: a `Checkpoint`. `noise`: its UNet. `rows`: the prompt's.
    """
    words = job.prompt.split()
    positions = _word_tokens(model.pipe.tokenizer, job.prompt)
    if positions is None or len(words) < 2:
        return None
    own, multiple = size_of(source.base), model.facts.multiple
    size = Size(*(max(multiple, round(side / multiple) * multiple) for side in own))
    z = (source.base if size == own else enlarge(source.base, size)).to(model.device)
    n = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    maps = AttentionMaps(map_size(size))
    alphas = 1 / (1 + model.sigmas.cpu().double() ** 2)
    given = {**rows, **({"time_ids": model._sized(rows, (size.rows * model.factor, size.columns * model.factor))["time_ids"]} if "pooled" in rows else {})}
    with listening(model.network, maps):
        maps.rows = [(0, (0, job.prompt))]
        for timestep in TIMESTEPS:
            a = float(alphas[min(timestep, len(alphas) - 1)])
            noise(a**0.5 * z + (1 - a) ** 0.5 * n, torch.full((1,), timestep, device=z.device), **given)
    means = maps.means().get((0, job.prompt))
    if means is None:
        return None
    masks = next(model.ranks.map(token_masks, [means]))  # several processes have to see the same
    judged = [index for index, (word, of) in enumerate(zip(words, positions, strict=True)) if re.search(r"\w", word) and of and of[-1] < len(masks)]
    return Seen(words, judged, word_masks(masks, [positions[index] for index in judged])) if judged else None


class WindowWords:
    """The prompts of a phase's local windows, all of them encoded before it begins.

    Args:
        seen: where the words are, or None where every window keeps all of them. `setup`: the phase. `job`: whose prompt it is, and whose regions, whose
            texts follow it in the windows that they have at least half in common with.
        encoded: text -> its rows.
    """

    def __init__(self, seen: Seen | None, setup: PhaseSetup, job: PromptJob, encoded: Callable[[str], Mapping[str, Tensor]]):
        self.seen, self.size, self.threshold, self.prompt, self.encoded = seen, setup.phase.size, setup.options.word_threshold, job.prompt, encoded
        self._kept: dict[Window, str] = {}
        self._regions = setup.options.parts()
        run = job.schedule.steps - shortcut_start(job.schedule.steps, job.schedule.strength)
        for text in dict.fromkeys(self.text(window) for step in range(run) for window in setup.windows(step)):
            encoded(text)

    def text(self, window: Window) -> str:
        """What a window keeps of the prompt."""
        if window not in self._kept:
            added = [region.text for region in self._regions if box_share(region[:4], window, self.size) >= HALF]
            kept = self._own_words(window)
            self._kept[window] = ", ".join(part for part in (kept.rstrip(" ,"), *added) if part) if added else kept
        return self._kept[window]

    def _own_words(self, window: Window) -> str:
        seen = self.seen
        if seen is None:
            return self.prompt
        (kept,) = kept_words(window_shares(seen.masks, [window], self.size), self.threshold)
        gone = set(seen.judged) - {seen.judged[index] for index in kept}
        return " ".join(word for index, word in enumerate(seen.words) if index not in gone) if gone else self.prompt

    def condition(self, inner: Condition) -> Condition:
        """`inner`, after which every local window sees its own words."""

        def with_words(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
            cut = inner(extra, batch)
            if batch.grid is not None:
                return cut
            changed = {
                name: own_rows(cut["prompt"][name], batch, self._own(name, cut["prompt"][name])) for name in ("context", "pooled") if name in cut["prompt"]
            }
            return {**cut, "prompt": {**cut["prompt"], **changed}}

        return with_words

    def _own(self, name: str, like: Tensor) -> Callable[[Window, int], Tensor | None]:
        def own(window: Window, row: int) -> Tensor | None:
            text = self.text(window)
            return None if text == self.prompt else self.encoded(text)[name][0].to(like)

        return own
