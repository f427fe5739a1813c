"""The prompt syntax that tests use: AND with weights, [one:other:step], (text:weight), BREAK; nothing nested, no escapes but brackets'."""

import re
from typing import NamedTuple

import torch


class SdConditioning(list):
    def __init__(self, prompts, is_negative_prompt=False, width=None, height=None, copy_from=None):
        super().__init__(prompts)


class ScheduledPromptConditioning(NamedTuple):
    end_at_step: int
    cond: torch.Tensor


class ComposableScheduledPromptConditioning:
    def __init__(self, schedules, weight=1.0):
        self.schedules, self.weight = schedules, weight


class MulticondLearnedConditioning:
    def __init__(self, shape, batch):
        self.shape, self.batch = shape, batch


def get_multicond_prompt_list(prompts):
    flat, indexes = {}, []
    for prompt in prompts:
        parts = [re.match(r"(.*?)(?:\s*:\s*([\d.]+))?\s*$", part).groups() for part in re.split(r"\bAND\b", prompt)]
        indexes.append([(flat.setdefault(text, len(flat)), float(weight or 1)) for text, weight in parts])
    return indexes, SdConditioning(flat), flat


def get_learned_conditioning_prompt_schedules(prompts, base_steps, hires_steps=None, use_old_scheduling=False):
    steps = hires_steps or base_steps
    made = []
    for prompt in prompts:
        ends = sorted({min(steps, int(end)) for end in re.findall(r"\[[^\]:]*:[^\]:]*:(\d+)\]", prompt)} | {steps})
        made.append([[end, re.sub(r"\[([^\]:]*):([^\]:]*):(\d+)\]", lambda m, end=end: m[1] if end <= int(m[3]) else m[2], prompt)] for end in ends])
    return made


def get_multicond_learned_conditioning(model, prompts, steps, hires_steps=None):
    indexes, flat, _ = get_multicond_prompt_list(prompts)
    learned = []
    for schedule in get_learned_conditioning_prompt_schedules(flat, steps, hires_steps):
        conds = model.get_learned_conditioning(SdConditioning([text for _, text in schedule]))
        learned.append([ScheduledPromptConditioning(end, cond) for (end, _), cond in zip(schedule, conds, strict=True)])
    batch = [[ComposableScheduledPromptConditioning(learned[index], weight) for index, weight in parts] for parts in indexes]
    return MulticondLearnedConditioning((len(prompts),), batch)


def reconstruct_multicond_batch(c, current_step):
    tensors, parts_of_pictures = [], []
    for parts in c.batch:
        parts_of_pictures.append([(len(tensors) + k, part.weight) for k, part in enumerate(parts)])
        tensors += [next((one.cond for one in part.schedules if current_step <= one.end_at_step), part.schedules[0].cond) for part in parts]
    longest = max(map(len, tensors))
    return parts_of_pictures, torch.stack([torch.cat([one, one[-1:].repeat(longest - len(one), 1)]) for one in tensors])


def parse_prompt_attention(text):
    found = []
    for inner, weight, plain in re.findall(r"(?<!\\)\(((?:\\.|[^()\\])*):([+-]?[\d.]+)\)|((?:\\.|[^(\\])+)", text):
        pieces = re.split(r"\s*\bBREAK\b\s*", plain or inner)
        for number, piece in enumerate(pieces):
            found += [["BREAK", -1]] if number else []
            found.append([re.sub(r"\\(.)", r"\1", piece), float(weight or 1)])
    return found or [["", 1.0]]
