"""Prompts per window in the host: which text each of its model's rows is conditioned on, what of it each window keeps, and its encoding.

Source: AccDiffusion (Lin et al., ECCV 2024), section 3.2. Unlike its published code: maps need not be square, a window that would keep
nothing keeps the whole prompt, a word may have several tokens, the windows' true positions of every step count, and the host's syntax
(weights, AND, prompt editing, BREAK, textual inversions) keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from modules import devices, prompt_parser, sd_hijack, shared
from torch import Tensor

from apt_ext.core.conditioning import Condition, ViewBatch, own_rows
from apt_ext.core.phases import Size, base_size
from apt_ext.core.prompts import kept_words, token_masks, window_shares, word_masks
from apt_ext.core.windows import Window
from apt_ext.webui.attention import AttentionMaps, listening, map_size
from apt_ext.webui.family import POOLED
from apt_ext.webui.resizing import resized
from apt_ext.webui.words import Word, join_words, split_words, token_positions

__all__ = [
    "Crop",
    "Encodings",
    "PromptRows",
    "Schedules",
    "Seen",
    "WindowPrompts",
    "gather_from_latent",
    "gathering",
    "prompt_schedules",
    "seen_words",
    "text_at",
]

Schedules = list[list[list[tuple[int, str]]]]  # [picture][part between ANDs] -> (last step, text), ...
GATHER_TIMESTEPS = (701, 501, 301)  # where the picture's layout is decided


class Crop(NamedTuple):
    """The part of the picture that the phases enlarge: `top`, `left` and its `size`, of a `whole` (rows, columns) that the maps show."""

    top: int
    left: int
    size: Size
    whole: Size


class Seen(NamedTuple):
    """What was gathered: (picture, text) -> a mask for each of the text's words, or None where it was not seen among the tokens."""

    words: dict[tuple[int, str], list[tuple[Word, Tensor | None]]]

    def masks(self, picture: int, text: str) -> tuple[list[Word], dict[int, Tensor]]:
        """The words of a text, and the masks of those that are known: from this very text, or from the same words in another one."""
        own = self.words.get((picture, text))
        if own is not None:
            return [word for word, _ in own], {index: mask for index, (_, mask) in enumerate(own) if mask is not None}
        known: dict[str, Tensor] = {}
        for (other, _), words in self.words.items():
            for word, mask in words if other == picture else ():
                if mask is not None:
                    known[word.core] = known[word.core] | mask if word.core in known else mask
        words_of_text = split_words(text, _emphasis())
        return words_of_text, {index: known[word.core] for index, word in enumerate(words_of_text) if word.core in known}


def _emphasis() -> bool:
    return bool(shared.opts.emphasis != "None")


def prompt_schedules(p: Any, cond: Any) -> Schedules | None:
    """The texts behind a pass's conditioning, as the host made it from the prompts of this batch; None where it is of another making."""
    prompts = p.hr_prompts if p.is_hr_pass else p.prompts
    last = cond.batch[0][0].schedules[-1].end_at_step
    indexes, flat, _ = prompt_parser.get_multicond_prompt_list(prompt_parser.SdConditioning(prompts))
    hires = last if p.is_hr_pass else None
    made = prompt_parser.get_learned_conditioning_prompt_schedules(flat, p.firstpass_steps, hires, shared.opts.use_old_scheduling)
    texts = [[[(int(end), str(text)) for end, text in made[index]] for index, _ in parts] for parts in indexes]
    ends = [[[end for end, _ in schedule] for schedule in parts] for parts in texts]
    given = [[[int(one.end_at_step) for one in part.schedules] for part in parts] for parts in cond.batch]
    return texts if ends == given else None


def text_at(schedule: Sequence[tuple[int, str]], step: int) -> str:
    """The text in force at a step, as the host chooses it."""
    return next((text for end, text in schedule if step <= end), schedule[0][1])


class PromptRows:
    """Which rows of the model's calls belong to which part of which picture's prompt.

    The host calls its model with all prompts first and the negative prompts after them, in one call or in several.
    """

    def __init__(self, denoiser: Any):
        self._denoiser, self._at = denoiser, 0

    def begin(self) -> None:
        """The denoiser is called."""
        self._at = 0

    def take(self, count: int) -> list[tuple[int, int, int]]:
        """The next `count` rows: (row among them, picture, part) of those that have a prompt."""
        parts = self.cond.batch
        owners = [(picture, part) for picture, of_picture in enumerate(parts) for part in range(len(of_picture))]
        start, self._at = self._at, self._at + count
        return [(row - start, *owners[row]) for row in range(start, min(start + count, len(owners)))]

    @property
    def cond(self) -> Any:
        """The conditioning in force; the refiner brings its own."""
        return self._denoiser.sampler.sampler_extra_args["cond"]

    @property
    def step(self) -> int:
        """The host's count of the denoiser's calls."""
        return int(self._denoiser.step)


class _Listener:
    """In a denoiser's place for `fused_inside`: hands the host's model on, and tells the maps whose rows are coming."""

    def __init__(self, maps: AttentionMaps, rows: PromptRows, schedules: Schedules):
        self.maps, self.prompts, self.schedules = maps, rows, schedules

    def begin(self, x: Tensor, t: Tensor) -> None:
        self.prompts.begin()

    def wrap(self, model: Any) -> Any:
        return _Heard(model, self)


class _Heard:
    def __init__(self, model: Any, listener: _Listener):
        self._model, self._listener = model, listener

    def __call__(self, x: Tensor, t: Tensor, **extra: Any) -> Tensor:
        listener = self._listener
        step = listener.prompts.step
        listener.maps.rows = [(row, (picture, text_at(listener.schedules[picture][part], step))) for row, picture, part in listener.prompts.take(len(x))]
        return self._model(x, t, **extra)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@contextmanager
def gathering(denoiser: Any, schedules: Schedules, latent: Size, inside: Callable[[Any, Any], Any]) -> Iterator[AttentionMaps]:
    """Within the block, a pass's own model calls gather the maps of its prompts.

    Args:
        denoiser: the sampler's. `latent`: (rows, columns) that it samples. `inside`: `fused_inside`.
    """
    maps = AttentionMaps(map_size(latent))
    with listening(shared.sd_model.model.diffusion_model, maps), inside(denoiser, _Listener(maps, PromptRows(denoiser), schedules)):
        yield maps


@torch.no_grad()
def gather_from_latent(z: Tensor, cond: Any, schedules: Schedules, image_conditioning: Callable[[Size], Tensor], window: Size, multiple: int) -> AttentionMaps:
    """Maps of a finished picture: its latent at base size, noised to a few levels, goes through the model once with every text.

    Args:
        z: (B, C, h, w). `cond`: the host's conditioning of the pass. `image_conditioning`: size -> the model's, for B pictures.
        window: the model's native (rows, columns); `multiple`: what its sides have to be multiples of.
    """
    model = shared.sd_model
    rows, columns = (max(multiple, round(side / multiple) * multiple) for side in base_size((z.shape[-2], z.shape[-1]), window, multiple))
    small = resized(z, (rows, columns), "bicubic")
    # The same noise for every picture, or one in a batch would differ from the same one alone.
    noise = torch.randn(small.shape[1:], generator=torch.Generator().manual_seed(0)).to(small)
    maps = AttentionMaps(map_size((rows, columns)))
    owners = [(picture, part) for picture, parts in enumerate(schedules) for part in range(len(parts))]
    pictures = [picture for picture, _ in owners]
    image = image_conditioning((rows, columns))[pictures]
    heard: set[tuple[str, ...]] = set()
    with listening(model.model.diffusion_model, maps):
        for step in sorted({end for parts in schedules for schedule in parts for end, _ in schedule}):
            texts = tuple(text_at(schedules[picture][part], step) for picture, part in owners)
            if texts in heard:
                continue
            heard.add(texts)
            _, tensor = prompt_parser.reconstruct_multicond_batch(cond, step)
            maps.rows = [(row, (picture, text)) for row, ((picture, _), text) in enumerate(zip(owners, texts, strict=True))]
            for timestep in GATHER_TIMESTEPS:
                a = float(model.alphas_cumprod[timestep])
                x = (a**0.5 * small + (1 - a) ** 0.5 * noise)[pictures]
                model.apply_model(x, torch.full((len(owners),), timestep, device=x.device), _model_cond(tensor, image))
    return maps


def _model_cond(tensor: Any, image: Tensor) -> dict[str, Any]:
    """A prompt's conditioning as the host's denoiser hands it to its model."""
    if shared.sd_model.model.conditioning_key == "crossattn-adm":
        return {"c_crossattn": [tensor], "c_adm": image}
    text = dict(tensor) if isinstance(tensor, dict) else {"c_crossattn": [tensor]}
    return {**text, "c_concat": [image]}


def seen_words(maps: AttentionMaps) -> Seen:
    """Masks of the words of every text that was gathered, by the tokens of the loaded checkpoint."""
    stage, database = shared.sd_model.cond_stage_model, sd_hijack.model_hijack.embedding_db
    found: dict[tuple[int, str], list[tuple[Word, Tensor | None]]] = {}
    for (picture, text), means in maps.means().items():
        words = split_words(text, _emphasis())
        positions = token_positions(words, stage.process_texts([text])[0][0], stage.tokenize, database.find_embedding_at_position)
        masks = token_masks(means)
        visible = [[one for one in of_word if one < len(masks)] if word.core else [] for word, of_word in zip(words, positions, strict=True)]
        of_words = iter(word_masks(masks, [of_word for of_word in visible if of_word]))
        found[picture, text] = [(word, next(of_words) if of_word else None) for word, of_word in zip(words, visible, strict=True)]
    return Seen(found)


class WindowPrompts:
    """The prompts of a phase's local windows.

    Args:
        seen: from the pass before. `schedules`: of this pass.
        threshold: AccDiffusion's c. `size`: (rows, columns) of the phase. `crop`: what it shows of the picture that was seen.
        rows: of the sampler's denoiser. `encoded`: (text) -> its conditioning, shared by the phases of a job.
    """

    def __init__(self, seen: Seen, schedules: Schedules, threshold: float, size: Size, crop: Crop, rows: PromptRows, encoded: Encodings):
        self.seen, self.schedules, self.threshold, self.rows, self.encoded = seen, schedules, threshold, rows, encoded
        scale = (size[0] / crop.size[0], size[1] / crop.size[1])
        self._whole = (round(crop.whole[0] * scale[0]), round(crop.whole[1] * scale[1]))
        self._offset = (round(crop.top * scale[0]), round(crop.left * scale[1]))
        self._kept: dict[tuple[int, str, Window], str] = {}
        self._current: list[tuple[int, int, int]] = []

    def texts(self, picture: int, text: str, windows: Sequence[Window]) -> list[str]:
        """What each window keeps of a picture's text."""
        fresh = [window for window in dict.fromkeys(windows) if (picture, text, window) not in self._kept]
        if fresh:
            words, masks = self.seen.masks(picture, text)
            judged = sorted(index for index in masks if words[index].core)
            unseen = {index for index, word in enumerate(words) if word.core and index not in judged}
            moved = [window._replace(top=window.top + self._offset[0], left=window.left + self._offset[1]) for window in fresh]
            of_windows: list[list[int]] = [[] for _ in fresh]
            if judged:
                of_windows = kept_words(window_shares(torch.stack([masks[index] for index in judged]), moved, self._whole), self.threshold)
            for window, kept in zip(fresh, of_windows, strict=True):
                everything = len(kept) == len(judged)
                self._kept[picture, text, window] = text if everything else join_words(words, unseen | {judged[index] for index in kept}, _emphasis())
        return [self._kept[picture, text, window] for window in windows]

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
                for schedule in parts:
                    # In the order of the calls: a set's own would change the order of the encodings from run to run.
                    for text in dict.fromkeys(text_at(schedule, call) for call in range(done, done + count)):
                        needed |= dict.fromkeys(one for one in self.texts(picture, text, placed) if one != text)
            done += count
        self.encoded.encode(list(needed), cond)

    def next_call(self, count: int) -> None:
        """The model is about to be called with `count` rows at the phase's size."""
        self._current = self.rows.take(count)

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
                kept = self.texts(picture, text, [window])[0]
                return None if kept == text else (text, kept)

            return {**cut, "cond": self._with_rows(cut["cond"], batch, own)}

        return with_words

    def _with_rows(self, cond: Mapping[str, Any], batch: ViewBatch, own: Callable[[Window, int], tuple[str, str] | None]) -> Mapping[str, Any]:
        def sequence(value: Tensor) -> Tensor:
            def row(window: Window, number: int) -> Tensor | None:
                found = own(window, number)
                return None if found is None else _fitted(self.encoded.of(found[1], self.rows.cond)[0].to(value), value[number])

            return own_rows(value, batch, row)

        def pooled(value: Tensor) -> Tensor:
            def row(window: Window, number: int) -> Tensor | None:
                found = own(window, number)
                return None if found is None else self.encoded.of(found[1], self.rows.cond)[1].to(value)

            # Only the pooled prompt is the window's own; sizes and crop corner stay as they are.
            return torch.cat([own_rows(value[:, :POOLED], batch, row), value[:, POOLED:]], dim=1)

        if "crossattn" in cond:
            return {**cond, "crossattn": sequence(cond["crossattn"]), "vector": pooled(cond["vector"])}
        return {**cond, "c_crossattn": [sequence(cond["c_crossattn"][0])]}

    def labels(self, windows: Sequence[Window]) -> list[list[str]]:
        """[picture][window] -> the words it keeps at the first step, parts joined by AND."""
        made = []
        for picture, parts in enumerate(self.schedules):
            columns = [self.texts(picture, text_at(schedule, 0), windows) for schedule in parts]
            made.append([" AND ".join(texts) for texts in zip(*columns, strict=True)])
        return made


def _fitted(encoded: Tensor, full: Tensor) -> Tensor:
    """(t, C) as long as the whole prompt's (T, C), the last vector repeated, as the host does with prompts of different lengths."""
    missing = len(full) - len(encoded)
    return torch.cat([encoded, encoded[-1:].expand(missing, -1)]) if missing > 0 else encoded[: len(full)]


class Encodings:
    """Conditioning of texts, each encoded once: text -> (t, C) and, for SDXL, the pooled (1280,), kept on the CPU.

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
            sequence, vector = (made["crossattn"][0], made["vector"][0, :POOLED]) if isinstance(made, dict) else (made[0], made.new_zeros(0))
            self._made[text] = (sequence.to(devices.cpu), vector.to(devices.cpu))

    def of(self, text: str, cond: Any) -> tuple[Tensor, Tensor]:
        """The conditioning of one text."""
        if self._for is not cond or text not in self._made:
            self.encode([text], cond)
        return self._made[text]
