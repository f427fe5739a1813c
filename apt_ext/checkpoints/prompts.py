"""Prompts to what a checkpoint's network is told, by the pipeline's own encoders; long and weighted ones by compel."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from apt_ext.checkpoints.families import Family
from apt_ext.checkpoints.packages import compel_or_none

__all__ = ["encode", "is_plain", "tokens_of"]

Rows = dict[str, Tensor]
"""What a network is told of a prompt, with one row: context (1, T, C) and, for some, pooled (1, P)."""

MARKS = 2  # of start and end
HOST_WEIGHT = re.compile(r"\(([^()]*):([0-9.]+)\)")
WEIGHTED = re.compile(r"\)[0-9.]+|[\w)][+]{1,}|[\w)]-{1,}(?=\s|$|,)|\.(?:and|blend)\(")
NO_COMPEL = "run: pip install compel"


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without the marks of start and end."""
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def _in_compel_s_words(text: str) -> str:
    """The WebUI's "(word:1.3)" as compel writes it, "(word)1.3"."""
    return HOST_WEIGHT.sub(r"(\1)\2", text)


def is_plain(pipe: Any, text: str) -> bool:
    """Whether a prompt has no weights and fits the text encoder."""
    return not HOST_WEIGHT.search(text) and not WEIGHTED.search(text) and len(tokens_of(pipe.tokenizer, text)) <= pipe.tokenizer.model_max_length - MARKS


def encode(pipe: Any, family: Family, prompt: str, negative: str) -> tuple[Rows, Rows | None]:
    """What the network is told of a prompt and of a negative one; None for the latter where the family has none.

    Raises:
        ValueError: for a long or weighted prompt without compel, or a negative one where there is no place for it.
    """
    if negative and not family.negative:
        raise ValueError(f"{family.label} has no place for a negative prompt ({negative[:40]!r}); leave it out")
    with torch.no_grad():
        if family.network != "unet":
            return _by_transformers(pipe, family, prompt, negative)
        if is_plain(pipe, prompt) and is_plain(pipe, negative):
            return _by_pipeline(pipe, family, prompt, negative)
        return _by_compel(pipe, family, prompt, negative)


def _by_pipeline(pipe: Any, family: Family, prompt: str, negative: str) -> tuple[Rows, Rows | None]:
    device = pipe._execution_device
    if family.name == "sd":
        context, without = pipe.encode_prompt(prompt, device, 1, True, negative)
        return {"context": context}, {"context": without}
    # Without a negative prompt, SDXL was trained on zeros; the pipeline knows from its configuration.
    context, without, pooled, pooled_without = pipe.encode_prompt(prompt, device=device, negative_prompt=negative or None)
    return {"context": context, "pooled": pooled}, {"context": without, "pooled": pooled_without}


def _by_transformers(pipe: Any, family: Family, prompt: str, negative: str) -> tuple[Rows, Rows | None]:
    device = pipe._execution_device
    if family.name == "flux":
        context, pooled, _ = pipe.encode_prompt(prompt, None, device=device)
        return {"context": context, "pooled": pooled}, None
    context, without, pooled, pooled_without = pipe.encode_prompt(prompt, None, None, device=device, negative_prompt=negative)
    return {"context": context, "pooled": pooled}, {"context": without, "pooled": pooled_without}


def _by_compel(pipe: Any, family: Family, prompt: str, negative: str) -> tuple[Rows, Rows | None]:
    compel = compel_or_none()
    if compel is None:
        long = next((text for text in (prompt, negative) if not is_plain(pipe, text)), prompt)
        most = pipe.tokenizer.model_max_length - MARKS
        raise ValueError(f"prompt {long[:40]!r} has weights or more than {most} tokens, which needs the package compel; {NO_COMPEL}, or shorten it")
    maker = (compel.CompelForSD if family.name == "sd" else compel.CompelForSDXL)(pipe, device=pipe._execution_device)
    try:
        made = maker(_in_compel_s_words(prompt), negative_prompt=_in_compel_s_words(negative))
    except Exception as error:  # its parser raises what it likes
        raise ValueError(f"prompt {prompt[:60]!r} cannot be read by compel ({str(error)[:60]}); mend it, or leave the weights out") from None
    if family.name == "sd":
        return {"context": made.embeds}, {"context": made.negative_embeds}
    zero = not negative and bool(pipe.config.get("force_zeros_for_empty_prompt"))
    rows = {"context": made.negative_embeds, "pooled": made.negative_pooled_embeds}
    return {"context": made.embeds, "pooled": made.pooled_embeds}, {name: torch.zeros_like(value) if zero else value for name, value in rows.items()}
