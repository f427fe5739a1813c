"""How a job is refused: one sentence, for the page as an error, for the API as an HTTP error."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["APTError", "refuse"]


class APTError(ValueError):
    """A job that cannot be done as asked; the message names the value and the remedy."""


def refuse(p: Any, error: Exception) -> NoReturn:
    """Fail the job of a processing object with the sentence of an error: HTTP 422 for the API, a message under the picture for the page.

    Raises:
        APTError, or fastapi's HTTPException where the job came through the API.
    """
    if getattr(p, "is_api", False):
        from fastapi import HTTPException

        raise HTTPException(status_code=422, detail=f"APT: {error}") from None
    raise APTError(str(error)) from None
