"""The double's text encoder: a token is a piece of a word of up to four letters or one mark, a prompt is chunks of 77 tokens."""

import re
import zlib
from types import SimpleNamespace

import torch

START, END, ROOM = 1, 2, 75


def token_ids(text):
    return [10 + zlib.crc32(piece.encode()) % 9999 for piece in re.findall(r"\w{1,4}|[^\w\s]", text.lower())]


class TextModel:
    """Stands where the host keeps a checkpoint's text model; `width`: numbers of a token."""

    def __init__(self, width=2):
        self.encoded, self.width = [], width

    def tokenize(self, texts):
        if not texts:
            raise ValueError("a tokenizer of the host's wants at least one text")
        return [token_ids(text) for text in texts]

    def process_texts(self, texts):
        return [self._chunks(text) for text in texts], 0

    def _chunks(self, text):
        from modules import prompt_parser, sd_hijack

        chunks, tokens, fixes = [], [], []

        def close():
            filled = [START, *tokens, *[END] * (ROOM - len(tokens)), END]
            chunks.append(SimpleNamespace(tokens=filled, multipliers=[1.0] * len(filled), fixes=list(fixes)))
            tokens.clear()
            fixes.clear()

        for segment, weight in prompt_parser.parse_prompt_attention(text):
            if segment == "BREAK" and weight == -1:
                close()
                continue
            ids, position = token_ids(segment), 0
            while position < len(ids):
                if len(tokens) == ROOM:
                    close()
                embedding, length = sd_hijack.model_hijack.embedding_db.find_embedding_at_position(ids, position)
                if embedding is not None:
                    fixes.append(SimpleNamespace(offset=len(tokens), embedding=embedding))
                    tokens += [0] * embedding.vectors
                    position += length
                else:
                    tokens.append(ids[position])
                    position += 1
        if tokens or not chunks:
            close()
        return chunks

    def encode(self, texts):
        """(B, 77 n, width): every token's own two numbers, a little bent by all tokens before it."""
        self.encoded += list(texts)
        rows = [[token for chunk in self._chunks(text) for token in chunk.tokens] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [END] * (longest - len(row)) for row in rows], dtype=torch.float64)
        own = torch.stack([torch.sin(ids * 12.9898), torch.cos(ids * 78.233)], dim=-1)
        own = own + 0.1 * len(set(texts))  # the host's emphasis, too, takes its mean over all that is encoded together
        made = (own + 0.3 * own.cumsum(1) / torch.arange(1, longest + 1)[:, None]).float()
        return made.repeat(1, 1, -(-self.width // 2))[..., : self.width]
