"""Textual inversions by name: as many vectors as a test says."""

from types import SimpleNamespace

from modules import shared
from torch import nn

EMBEDDINGS = {}  # name -> number of vectors


class EmbeddingDatabase:
    def find_embedding_at_position(self, tokens, offset):
        from tests.host.double.text import token_ids

        for name, vectors in EMBEDDINGS.items():
            ids = token_ids(name)
            if list(tokens[offset : offset + len(ids)]) == ids:
                return SimpleNamespace(name=name, vectors=vectors), len(ids)
        return None, None


class StableDiffusionModelHijack:
    def __init__(self):
        self.embedding_db = EmbeddingDatabase()
        self.circular_enabled = False

    def apply_circular(self, enable):
        """The host's "Tiling", on the loaded checkpoint alone."""
        if self.circular_enabled == enable:
            return
        self.circular_enabled = enable
        for layer in shared.sd_model.modules():
            if type(layer) is nn.Conv2d:
                layer.padding_mode = "circular" if enable else "zeros"


model_hijack = StableDiffusionModelHijack()
