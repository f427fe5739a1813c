"""Textual inversions by name: as many vectors as a test says."""

from types import SimpleNamespace

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


model_hijack = StableDiffusionModelHijack()
