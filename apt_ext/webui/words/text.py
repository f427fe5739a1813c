"""The words of a prompt in the host's syntax: taken apart, put together again without some of them, and found among its tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from modules import prompt_parser

__all__ = ["Word", "join_words", "split_words", "token_positions"]

HOST_BREAK = -1  # the host's own mark: the weight of the word BREAK, which begins a new chunk
BREAK = -math.inf  # ours: a user may give any other word a weight of -1
EDGES = re.compile(r"^([\W_]*)(.*?)([\W_]*)$", re.DOTALL)


class Word(NamedTuple):
    """What stands between two spaces, or where the weight changes.

    Attributes:
        text: as written, unescaped. `weight`: of the attention syntax; `BREAK` for the host's keyword.
        glued: whether it follows the word before without a space.
    """

    text: str
    weight: float
    glued: bool

    @property
    def core(self) -> str:
        """Without punctuation around it, in lower case: what a word is known by. Empty for punctuation alone."""
        match = EDGES.match(self.text)
        return match.group(2).lower() if match and self.weight != BREAK else ""


def split_words(text: str, emphasis: bool = True) -> list[Word]:
    """The words of one prompt, after prompt editing, AND and extra networks have been dealt with.

    Args:
        text: such as "a (red cat:1.2), sleeping". `emphasis`: whether the host reads brackets as weights.
    """
    parsed: list[Any] = prompt_parser.parse_prompt_attention(text) if emphasis else [[text, 1.0]]
    words: list[Word] = []
    open_end = False  # the segment before did not end in a space
    for segment, weight in parsed:
        if segment == "BREAK" and weight == HOST_BREAK:
            words.append(Word(segment, BREAK, False))
            open_end = False
            continue
        pieces = segment.split()
        for number, piece in enumerate(pieces):
            words.append(Word(piece, weight, number == 0 and open_end and not segment[0].isspace()))
        if pieces:
            open_end = not segment[-1].isspace()
        elif segment:
            open_end = False
    return words


def _escaped(text: str) -> str:
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def _weighted(text: str, weight: float) -> str:
    if weight == 1:
        return _escaped(text)
    return f"({_escaped(text)}:{f'{weight:.12f}'.rstrip('0').rstrip('.')})"


def join_words(words: Sequence[Word], kept: Collection[int], emphasis: bool = True) -> str:
    """The prompt of some of its words, with their weights; punctuation goes where the word before it goes.

    Args:
        words: from `split_words`. `kept`: indices of the words that stay; those without a core need not be named.
    """
    runs: list[tuple[float, str, bool]] = []  # weight, text, glued to the run before
    follows, last = True, -1
    for index, word in enumerate(words):
        if word.weight == BREAK:
            # A chunk that lost all its words takes its BREAK along.
            if runs and runs[-1][0] != BREAK:
                runs.append((BREAK, "BREAK", False))
            continue
        follows = index in kept if word.core else follows
        if not follows:
            continue
        glued = word.glued and last == index - 1
        if runs and runs[-1][0] == word.weight:
            runs[-1] = (word.weight, runs[-1][1] + ("" if glued else " ") + word.text, runs[-1][2])
        else:
            runs.append((word.weight, word.text, glued))
        last = index
    if runs and runs[-1][0] == BREAK:
        runs.pop()
    text = ""
    for weight, run, glued in runs:
        shown = run if weight == BREAK or not emphasis else _weighted(run, weight)
        text += shown if glued or not text else f" {shown}"
    return text


def token_positions(
    words: Sequence[Word],
    chunks: Sequence[Any],
    tokenize: Callable[[list[str]], list[list[int]]],
    find_embedding: Callable[[list[int], int], tuple[Any, int | None]],
) -> list[list[int]]:
    """Where each word's tokens stand in the encoded prompt.

    Args:
        words: from `split_words`. `chunks`: the host's `PromptChunk`s of the same prompt, 77 tokens each in a row.
        tokenize: the host's, texts -> token ids. `find_embedding`: the host's look-up of textual inversions.

    Returns:
        For every word, positions of the tokens that tell where it is seen: those of its punctuation only where it has no others, and all
        vectors of a textual inversion. Words that are not found among the tokens have none.
    """
    texts = [word.text for word in words if word.weight != BREAK]
    if not texts:  # which some tokenizers do not take
        return [[] for _ in words]
    edges = [EDGES.match(text) for text in texts]
    tokens = tokenize(texts)
    marks = tokenize([f"{edge.group(1)} {edge.group(3)}" if edge else "" for edge in edges])
    stream = [(token, index) for index, ids in zip((i for i, word in enumerate(words) if word.weight != BREAK), tokens, strict=True) for token in ids]
    ids = [token for token, _ in stream]
    plain = {index: set(mark) for index, mark in zip((i for i, word in enumerate(words) if word.weight != BREAK), marks, strict=True)}
    found: list[list[int]] = [[] for _ in words]
    punctuation: list[list[int]] = [[] for _ in words]
    at, start = 0, 0
    for chunk in chunks:
        fixes = {fix.offset: fix.embedding for fix in chunk.fixes}
        position = 0
        inner = chunk.tokens[1:-1]  # between the marks of start and end
        while position < len(inner) and at < len(stream):
            if position in fixes:
                _, length = find_embedding(ids, at)
                vectors = int(fixes[position].vectors)
                for index in {stream[k][1] for k in range(at, min(len(stream), at + (length or 1)))}:
                    found[index] += range(start + 1 + position, start + 1 + position + vectors)
                at, position = at + (length or 1), position + vectors
                continue
            if inner[position] == ids[at]:
                index = stream[at][1]
                (punctuation if ids[at] in plain[index] else found)[index].append(start + 1 + position)
                at += 1
            position += 1  # otherwise it is the padding at a chunk's end
        start += len(chunk.tokens)
    return [one or other for one, other in zip(found, punctuation, strict=True)]
