"""How a host writes the prompt into a model call's other arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

__all__ = ["FLAT", "NESTED", "Arguments", "Flat", "Nested"]


class Arguments(Protocol):
    """A way of writing it."""

    def text_of(self, extra: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """The prompt's (N, T, C), and SDXL's vector (N, D); None for what is not there."""
        ...

    def with_text(self, extra: Mapping[str, Any], sequence: Tensor, vector: Tensor | None) -> Mapping[str, Any]:
        """The arguments with other ones in these places."""
        ...


class Nested:
    """1.10.1's: a mapping "cond", with names of their own for SDXL and a list around the others'."""

    def text_of(self, extra: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """See `Arguments`."""
        cond = extra.get("cond")
        if not isinstance(cond, Mapping):
            return None, None
        if "crossattn" in cond:
            return cond["crossattn"], cond.get("vector")
        return (cond["c_crossattn"][0] if "c_crossattn" in cond else None), None

    def with_text(self, extra: Mapping[str, Any], sequence: Tensor, vector: Tensor | None) -> Mapping[str, Any]:
        """See `Arguments`."""
        text = {"c_crossattn": [sequence]} if vector is None else {"crossattn": sequence, "vector": vector}
        return {**extra, "cond": {**extra["cond"], **text}}


class Flat:
    """The Forge family's."""

    def text_of(self, extra: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """See `Arguments`."""
        return extra.get("c_crossattn"), extra.get("y")

    def with_text(self, extra: Mapping[str, Any], sequence: Tensor, vector: Tensor | None) -> Mapping[str, Any]:
        """See `Arguments`."""
        return {**extra, "c_crossattn": sequence} | ({} if vector is None else {"y": vector})


NESTED, FLAT = Nested(), Flat()
