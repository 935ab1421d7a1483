"""JSON bodies as Phase 1 takes them: an object of texts that Postgres can hold."""

import json
from typing import Any

from aiohttp import web

from upstream_stub.refusals import RefusalError, bad_request


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body counts as ``{}``. The size is bounded by the application's limit."""
    raw = await request.read()
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise bad_request("The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise bad_request("The body is not a JSON object.")
    return body


def storable(text: str, what: str) -> str:
    """`text` if a Postgres text can hold it: no NUL, no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusalError(422, "unprocessable", f"{what} is not valid Unicode.") from None
    if "\0" in text:
        raise RefusalError(422, "unprocessable", f"{what} contains a NUL character.")
    return text
