"""Where a pass sees the words of its prompts: its cross-attention, gathered while it samples or from a finished picture.

Source: AccDiffusion (Lin et al., ECCV 2024), section 3.2. Unlike its published code: maps need not be square, a word may have several
tokens, and the host's syntax (weights, AND, prompt editing, BREAK, textual inversions) keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from modules import prompt_parser, shared
from torch import Tensor

from apt_ext.core.attention import AttentionMaps, listening, map_size
from apt_ext.core.phases import base_size
from apt_ext.core.types import Size, size_of
from apt_ext.core.words import token_masks, word_masks
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.latents.resizing import resized
from apt_ext.webui.words.text import Word, split_words, token_positions

__all__ = ["PromptRows", "Schedules", "Seen", "emphasis", "gather_from_latent", "gathering", "prompt_schedules", "seen_words", "text_at"]

Schedules = list[list[list[tuple[int, str]]]]  # [picture][part between ANDs] -> (last step, text), ...
GATHER_TIMESTEPS = (701, 501, 301)  # where the picture's layout is decided


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
        words_of_text = split_words(text, emphasis())
        return words_of_text, {index: known[word.core] for index, word in enumerate(words_of_text) if word.core in known}


def emphasis() -> bool:
    """Whether the host reads brackets as weights."""
    return bool(shared.opts.emphasis != "None")


def prompt_schedules(p: Any, cond: Any) -> Schedules | None:
    """The texts behind a pass's conditioning, as the host made it from the prompts of this batch; None where it is of another making."""
    prompts = p.hr_prompts if p.is_hr_pass else p.prompts
    last = cond.batch[0][0].schedules[-1].end_at_step
    indexes, flat, _ = prompt_parser.get_multicond_prompt_list(prompt_parser.SdConditioning(prompts))
    hires = last if p.is_hr_pass else None
    made = host().prompt_schedules(flat, p.firstpass_steps, hires)
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

    def take(self, count: int, marked: Sequence[int | None] | None = None) -> list[tuple[int, int, int]]:
        """The next `count` rows: (row among them, picture, part) of those that have a prompt.

        Args:
            marked: the parts of equal shares of the rows, each with all pictures, where the host says so; see `Host.parts_of`.
        """
        parts = self.cond.batch
        if marked is not None:
            pictures = count // max(1, len(marked))
            return [(at * pictures + picture, picture, part) for at, part in enumerate(marked) if part is not None for picture in range(pictures)]
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
        taken = listener.prompts.take(len(x), host().parts_of(self._model))
        listener.maps.rows = [(row, (picture, text_at(listener.schedules[picture][part], step))) for row, picture, part in taken]
        return self._model(x, t, **extra)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@contextmanager
def gathering(denoiser: Any, schedules: Schedules, latent: Size) -> Iterator[AttentionMaps]:
    """Within the block, a pass's own model calls gather the maps of its prompts.

    Args:
        denoiser: the sampler's. `latent`: (rows, columns) that it samples.
    """
    maps = AttentionMaps(map_size(latent))
    with listening(host().unet(shared.sd_model), maps), host().inside(denoiser, _Listener(maps, PromptRows(denoiser), schedules)):
        yield maps


@torch.no_grad()
def gather_from_latent(z: Tensor, cond: Any, schedules: Schedules, image_conditioning: Callable[[Size], Tensor], window: Size, multiple: int) -> AttentionMaps:
    """Maps of a finished picture: its latent at base size, noised to a few levels, goes through the model once with every text.

    Args:
        z: (B, C, h, w). `cond`: the host's conditioning of the pass. `image_conditioning`: size -> the model's, for B pictures.
        window: the model's native (rows, columns); `multiple`: what its sides have to be multiples of.
    """
    model = shared.sd_model
    size = Size(*(max(multiple, round(side / multiple) * multiple) for side in base_size(size_of(z), window, multiple)))
    small = resized(z, size, "bicubic")
    # The same noise for every picture, or one in a batch would differ from the same one alone.
    noise = torch.randn(small.shape[1:], generator=torch.Generator().manual_seed(0)).to(small)
    maps = AttentionMaps(map_size(size))
    owners = [(picture, part) for picture, parts in enumerate(schedules) for part in range(len(parts))]
    pictures = [picture for picture, _ in owners]
    image = image_conditioning(size)[pictures]
    heard: set[tuple[str, ...]] = set()
    with listening(host().unet(model), maps):
        for step in sorted({end for parts in schedules for schedule in parts for end, _ in schedule}):
            texts = tuple(text_at(schedules[picture][part], step) for picture, part in owners)
            if texts in heard:
                continue
            heard.add(texts)
            _, tensor = prompt_parser.reconstruct_multicond_batch(cond, step)
            maps.rows = [(row, (picture, text)) for row, ((picture, _), text) in enumerate(zip(owners, texts, strict=True))]
            for timestep in GATHER_TIMESTEPS:
                host().evaluate(model, small[pictures], noise, timestep, tensor, image)
    return maps


def seen_words(maps: AttentionMaps) -> Seen:
    """Masks of the words of every text that was gathered, by the tokens of the loaded checkpoint."""
    of_model = host().text(shared.sd_model)
    found: dict[tuple[int, str], list[tuple[Word, Tensor | None]]] = {}
    for (picture, text), means in maps.means().items():
        words = split_words(text, emphasis())
        positions = token_positions(words, of_model.process_texts([text])[0][0], of_model.tokenize, of_model.embedding_at)
        masks = token_masks(means)
        visible = [[one for one in of_word if one < len(masks)] if word.core else [] for word, of_word in zip(words, positions, strict=True)]
        of_words = iter(word_masks(masks, [of_word for of_word in visible if of_word]))
        found[picture, text] = [(word, next(of_words) if of_word else None) for word, of_word in zip(words, visible, strict=True)]
    return Seen(found)
