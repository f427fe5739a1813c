"""The route /apt/plan, behind the host's own log-in."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from modules import errors, shared

from apt_ext.webui.page.access import refusal
from apt_ext.webui.page.panel import plan

__all__ = ["add_route"]

MOST_BYTES = 65536
TOO_LONG = f"the question is longer than {MOST_BYTES} bytes; a plan needs the page's fields alone"
NO_JSON = "the question is no JSON"
UNEXPECTED = "the plan could not be made; the server's console says why"


def _answer(body: bytes) -> dict[str, Any]:
    """A plan, or under "error" one sentence; nothing else, whatever was sent."""
    try:
        return plan(json.loads(body))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return {"error": NO_JSON}
    except ValueError as error:
        return {"error": str(error)}
    except Exception:
        errors.report("APT: the plan could not be made", exc_info=True)
        return {"error": UNEXPECTED}


async def _body(request: Any) -> bytes | None:
    """What was sent; None for too much of it, which is not kept."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            return None
    return body


def add_route(_: Any, app: Any) -> None:
    """Serve the panel at /apt/plan, one plan at a time."""
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse

    alone = asyncio.Lock()

    async def answer(request: Any) -> Any:
        refused = refusal(request.headers, shared.cmd_opts.api_auth, getattr(app, "auth", None))
        if refused is not None:
            status, sentence = refused
            # Without the key the asker is a program; a browser would open its own log-in window for this.
            return JSONResponse({"error": sentence}, status, {"WWW-Authenticate": "Basic"} if status == 401 else None)
        body = await _body(request)
        if body is None:
            return JSONResponse({"error": TOO_LONG}, 413)
        async with alone:
            return JSONResponse(await run_in_threadpool(_answer, body))

    app.add_route("/apt/plan", answer, methods=["POST"])
