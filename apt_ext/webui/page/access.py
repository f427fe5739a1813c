"""Who may ask for a plan: whoever may see the page, and whoever may use the host's API."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from typing import Any

__all__ = ["HEADER", "KEY", "refusal"]

HEADER = "X-APT-Key"
KEY = secrets.token_urlsafe(24)
"""Written into the page, which the host shows to those who have logged in; new with every start of the server."""

LOGIN = "the plan is only for those who may use this server; give the user name and the password of --api-auth or --gradio-auth (HTTP Basic)"
STALE = "this page is older than the server; reload it to see the plan"


def refusal(headers: Mapping[str, str], api_auth: str | None, page_auth: Any) -> tuple[int, str] | None:
    """None for a request that may be answered, otherwise (HTTP status, sentence).

    Args:
        headers: of the request, without regard to case. `api_auth`: the host's `--api-auth`, "name:password,name:password".
        page_auth: the page's own users, name -> password or a function of both, as gradio keeps them; None for a page that is open to everybody.
    """
    if not api_auth and not page_auth:
        return None
    key = headers.get(HEADER)
    if key is not None:
        return None if secrets.compare_digest(key.encode(), KEY.encode()) else (403, STALE)
    pair = _credentials(headers.get("Authorization", ""))
    return None if pair is not None and (_listed(*pair, api_auth) or _of_page(*pair, page_auth)) else (401, LOGIN)


def _credentials(authorization: str) -> tuple[str, str] | None:
    scheme, _, coded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(coded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (name, password) if colon else None


def _same(given: str, known: str) -> bool:
    return secrets.compare_digest(given.encode(), known.encode())


def _listed(name: str, password: str, api_auth: str | None) -> bool:
    return any(_same(f"{name}:{password}", known) for known in (api_auth or "").split(",") if known)


def _of_page(name: str, password: str, page_auth: Any) -> bool:
    if callable(page_auth):
        return bool(page_auth(name, password))
    return isinstance(page_auth, Mapping) and name in page_auth and _same(password, str(page_auth[name]))
