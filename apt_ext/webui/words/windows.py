"""Prompts per window in the host: what each window keeps of the text that its rows are conditioned on, what its regions add, and its encoding.

Source: AccDiffusion (Lin et al., ECCV 2024), section 3.2. Unlike its published code, a window that would keep nothing keeps the whole
prompt, and the windows' true positions of every step count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from modules import devices, prompt_parser, sd_samplers_common, shared
from torch import Tensor

from apt_ext.core.borders import NOWHERE
from apt_ext.core.conditioning import Condition, ViewBatch, own_rows
from apt_ext.core.types import Around, Size
from apt_ext.core.windows import Window
from apt_ext.core.words import box_share, kept_words, window_shares
from apt_ext.options import Region
from apt_ext.webui.hosts.checkpoint import family_of
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.model import FAMILIES
from apt_ext.webui.words.seen import PromptRows, Schedules, Seen, emphasis, text_at
from apt_ext.webui.words.text import join_words

__all__ = ["Crop", "Encodings", "WindowPrompts"]

HALF = 0.5  # of the smaller of a window and a region
MARK = 1024  # of either sign, in all of ControlNet's vector


class Crop(NamedTuple):
    """The part of the picture that the phases enlarge: `top`, `left` and its `size`, of a `whole` (rows, columns) that the maps show."""

    top: int
    left: int
    size: Size
    whole: Size


class WindowPrompts:
    """The prompts of a phase's local windows.

    Args:
        seen: from the pass before; None leaves the prompt whole. `schedules`: of this pass.
        threshold: AccDiffusion's c. `size`: (rows, columns) of the phase. `crop`: what it shows of the picture that was seen.
        rows: of the sampler's denoiser. `encoded`: (text) -> its conditioning, shared by the phases of a job.
        around: the axes along which the picture is seamless.
        regions: with texts of their own, which follow the prompt's first part in the windows that they have at least half in common with. The
            windows overlap and move, so where two regions meet their estimates blend by themselves.
    """

    def __init__(
        self,
        seen: Seen | None,
        schedules: Schedules,
        threshold: float,
        size: Size,
        crop: Crop,
        rows: PromptRows,
        encoded: Encodings,
        *,
        around: Around = NOWHERE,
        regions: Sequence[Region] = (),
    ):
        self.seen, self.schedules, self.threshold, self.rows, self.encoded = seen, schedules, threshold, rows, encoded
        self.size, self.around, self.regions, self._longest = size, around, regions, 0
        scale = (size[0] / crop.size[0], size[1] / crop.size[1])
        self._whole = (round(crop.whole[0] * scale[0]), round(crop.whole[1] * scale[1]))
        self._offset = (round(crop.top * scale[0]), round(crop.left * scale[1]))
        self._kept: dict[tuple[int, str, Window], str] = {}
        self._current: list[tuple[int, int, int]] = []

    def texts(self, picture: int, text: str, windows: Sequence[Window]) -> list[str]:
        """What each window keeps of a picture's text."""
        if self.seen is None:
            return [text] * len(windows)
        fresh = [window for window in dict.fromkeys(windows) if (picture, text, window) not in self._kept]
        if fresh:
            words, masks = self.seen.masks(picture, text)
            judged = sorted(index for index in masks if words[index].core)
            unseen = {index for index, word in enumerate(words) if word.core and index not in judged}
            moved = [window._replace(top=window.top + self._offset[0], left=window.left + self._offset[1]) for window in fresh]
            of_windows: list[list[int]] = [[] for _ in fresh]
            if judged:
                of_windows = kept_words(window_shares(torch.stack([masks[index] for index in judged]), moved, self._whole, around=self.around), self.threshold)
            for window, kept in zip(fresh, of_windows, strict=True):
                everything = len(kept) == len(judged)
                self._kept[picture, text, window] = text if everything else join_words(words, unseen | {judged[index] for index in kept}, emphasis())
        return [self._kept[picture, text, window] for window in windows]

    def prompts(self, picture: int, part: int, text: str, windows: Sequence[Window]) -> list[str]:
        """Each window's own prompt, of a part of a picture's: what it keeps of it, and what its regions say."""
        kept = self.texts(picture, text, windows)
        return [self._with_regions(one, window) for one, window in zip(kept, windows, strict=True)] if self.regions and part == 0 else kept

    def _with_regions(self, text: str, window: Window) -> str:
        added = [region.text for region in self.regions if box_share(region[:4], window, self.size, self.around) >= HALF]
        return ", ".join(one for one in (text.rstrip(" ,"), *added) if one) if added else text

    def prepare(self, calls: Sequence[int], windows: Callable[[int], Sequence[Window]], evaluated: Sequence[bool], cond: Any) -> None:
        """Encode, before the phase begins, every prompt that its windows will ask for.

        Args:
            calls: of the denoiser in each step. `windows`: of a step. `evaluated`: whether a step's local path is.
            cond: the host's conditioning that they stand in for.
        """
        needed: dict[str, None] = {}
        done = 0
        for step, count in enumerate(calls):
            placed = windows(step) if evaluated[step] else ()
            for picture, parts in enumerate(self.schedules):
                for part, schedule in enumerate(parts):
                    # In the order of the calls: a set's own would change the order of the encodings from run to run.
                    for text in dict.fromkeys(text_at(schedule, call) for call in range(done, done + count)):
                        needed |= dict.fromkeys(one for one in self.prompts(picture, part, text, placed) if one != text)
            done += count
        self.encoded.encode(list(needed), cond)
        # A region's text may take more chunks than the prompt: then the whole phase's prompts are as long as the longest.
        self._longest = self.encoded.longest(needed) if self.regions else 0

    def next_call(self, count: int, parts: Sequence[int | None] | None = None) -> None:
        """The model is about to be called with `count` rows at the phase's size. `parts`: see `Host.parts_of`."""
        self._current = self.rows.take(count, parts)

    def condition(self, inner: Condition) -> Condition:
        """`inner`, after which every local window's prompt rows see its own words."""

        def with_words(extra: Mapping[str, Any], batch: ViewBatch) -> Mapping[str, Any]:
            cut = inner(extra, batch)
            if batch.grid is not None or not self._current:
                return cut
            owners = {row: (picture, part) for row, picture, part in self._current}
            step = self.rows.step

            def own(window: Window, row: int) -> tuple[str, str] | None:
                if row not in owners:
                    return None
                picture, part = owners[row]
                text = text_at(self.schedules[picture][part], step)
                kept = self.prompts(picture, part, text, [window])[0]
                return None if kept == text else (text, kept)

            return self._with_rows(cut, batch, own)

        return with_words

    def _with_rows(self, extra: Mapping[str, Any], batch: ViewBatch, own: Callable[[Window, int], tuple[str, str] | None]) -> Mapping[str, Any]:
        def sequence(value: Tensor) -> Tensor:
            missing = self._longest + _is_marked(value[0]) - value.shape[1]
            if missing > 0:
                value = torch.cat([value, value[:, -1:].expand(-1, missing, -1)], dim=1)

            def row(window: Window, number: int) -> Tensor | None:
                found = own(window, number)
                return None if found is None else _fitted(self.encoded.of(found[1], self.rows.cond)[0].to(value), value[number])

            return own_rows(value, batch, row)

        def pooled(value: Tensor) -> Tensor:
            def row(window: Window, number: int) -> Tensor | None:
                found = own(window, number)
                return None if found is None else self.encoded.of(found[1], self.rows.cond)[1].to(value)

            # Only the pooled prompt is the window's own; sizes and crop corner stay as they are.
            length = _pooled(value.shape[1])
            return torch.cat([own_rows(value[:, :length], batch, row), value[:, length:]], dim=1)

        whole, vector = host().arguments.text_of(extra)
        assert whole is not None
        return host().arguments.with_text(extra, sequence(whole), None if vector is None else pooled(vector))

    def labels(self, windows: Sequence[Window]) -> list[list[str]]:
        """[picture][window] -> the words it keeps at the first step, parts joined by AND."""
        made = []
        for picture, parts in enumerate(self.schedules):
            columns = [self.prompts(picture, part, text_at(schedule, 0), windows) for part, schedule in enumerate(parts)]
            made.append([" AND ".join(texts) for texts in zip(*columns, strict=True)])
        return made


def _is_marked(tokens: Tensor) -> bool:
    """(T, C): whether ControlNet's vector is in front."""
    return bool((tokens[0].abs() == MARK).all())


def _fitted(encoded: Tensor, full: Tensor) -> Tensor:
    """(t, C) as long as the whole prompt's (T, C), the last vector repeated, as the host does with prompts of different lengths.

    ControlNet tells prompts from negative prompts by a vector in front of them, which stays there.
    """
    if _is_marked(full):
        encoded = torch.cat([full[:1], encoded])
    missing = len(full) - len(encoded)
    return torch.cat([encoded, encoded[-1:].expand(missing, -1)]) if missing > 0 else encoded[: len(full)]


def _pooled(length: int) -> int:
    """How much of the loaded checkpoint's vector, of this length, is the prompt's own."""
    return FAMILIES[family_of(shared.sd_model)].pooled or length


class Encodings:
    """Conditioning of texts, each encoded once: text -> (t, C) and, for SDXL and flow models, the pooled (P,), kept on the CPU.

    Attributes:
        calls: of the text encoder.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[Tensor, Tensor]] = {}
        self._for: Any = None
        self.calls = 0

    def encode(self, texts: Sequence[str], cond: Any) -> None:
        """Encode what is not there yet, with the loaded checkpoint. `cond`: the conditioning that they stand in for; the refiner's is another."""
        if self._for is not cond:
            self._made, self._for = {}, cond
        for text in dict.fromkeys(texts):
            if text in self._made:
                continue
            if shared.state.interrupted or shared.state.skipped:
                return
            # One by one, as the host does: its emphasis brings the mean of everything that is encoded together back to what it was.
            with devices.autocast():
                made = shared.sd_model.get_learned_conditioning(prompt_parser.SdConditioning([text]))
            self.calls += 1
            # Lumina and Z-Image on Neo give a list, since their texts are as long as they are.
            sequence, vector = (made["crossattn"][0], made["vector"][0]) if isinstance(made, dict) else (made[0], made[0].new_zeros(0))
            self._made[text] = (sequence.to(devices.cpu), vector[: _pooled(len(vector))].to(devices.cpu))

    def longest(self, texts: Iterable[str]) -> int:
        """Tokens of the longest of them, of those that are encoded."""
        return max((len(self._made[text][0]) for text in texts if text in self._made), default=0)

    def of(self, text: str, cond: Any) -> tuple[Tensor, Tensor]:
        """The conditioning of one text.

        Raises:
            InterruptedException: where the user has stopped the job, so that the sampler gives its best so far. In the middle of a phase this happens
                while the refiner's prompts are encoded.
        """
        if self._for is not cond or text not in self._made:
            self.encode([text], cond)
        if text not in self._made:
            raise sd_samplers_common.InterruptedException
        return self._made[text]
