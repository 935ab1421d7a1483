"""Endpoints of the stub alone, which show what reaches it and give answers worth relaying."""

import hashlib
import json
from collections.abc import AsyncGenerator

from aiohttp import web

from upstream_stub.faults import Sent, Streaming
from upstream_stub.raw_answers import RAW_ANSWERS
from upstream_stub.refusals import RefusalError, bad_request

BLOB_BYTES_MAX = 1 << 30
PART_BYTES = 65_521  # a prime, so that a part lost or repeated is not hidden by a period of some buffer's size
_BLOB_PART = hashlib.shake_256(b"castgate upstream_stub blob").digest(PART_BYTES)


async def blob(request: web.Request) -> web.StreamResponse:
    text = request.query.get("bytes", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= BLOB_BYTES_MAX):
        raise bad_request(f"bytes is a whole number up to {BLOB_BYTES_MAX}.")
    response = Streaming(_blob_parts(int(text)), headers={"Content-Type": "application/octet-stream"})
    if request.query.get("chunked", "0") == "0":
        response.content_length = int(text)
    return response


async def digest(request: web.Request) -> web.Response:
    body_bytes, body_sha256 = await _digest(request)
    return web.Response(
        body=json.dumps({"bytes": body_bytes, "sha256": body_sha256}).encode(), content_type="application/json"
    )


async def mirror(request: web.Request) -> web.StreamResponse:
    response = Streaming(
        _body_parts(request), headers={"Content-Type": request.headers.get("Content-Type", "application/octet-stream")}
    )
    if request.content_length is not None:
        response.content_length = request.content_length
    return response


async def echo(request: web.Request) -> web.Response:
    """The request as it arrived here; bytes above ASCII are shown as Latin-1, so that none is lost."""
    body_bytes, body_sha256 = await _digest(request)
    seen = {
        "method": request.method,
        "target": request.raw_path,
        "version": f"{request.version.major}.{request.version.minor}",
        "fields": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.raw_headers],
        "body_bytes": body_bytes,
        "body_sha256": body_sha256,
    }
    return web.Response(body=json.dumps(seen).encode(), content_type="application/json")


async def raw(request: web.Request) -> web.StreamResponse:
    answer = RAW_ANSWERS.get(request.match_info["name"])
    if answer is None:
        raise RefusalError(404, "not_found", f"One of {', '.join(RAW_ANSWERS)}.")
    await request.read()
    transport = request.transport
    sent = Sent()
    if transport is not None:
        head, blank, _ = answer.wire.partition(b"\r\n\r\n")
        transport.write(head + blank if request.method == "HEAD" else answer.wire)
        if answer.close:
            transport.close()
            sent.force_close()
    return sent


async def _digest(request: web.Request) -> tuple[int, str]:
    digest, body_bytes = hashlib.sha256(), 0
    async for part in request.content.iter_any():
        digest.update(part)
        body_bytes += len(part)
    return body_bytes, digest.hexdigest()


async def _blob_parts(left: int) -> AsyncGenerator[bytes, None]:
    while left > 0:
        yield _BLOB_PART[:left]
        left -= PART_BYTES


async def _body_parts(request: web.Request) -> AsyncGenerator[bytes, None]:
    async for part in request.content.iter_any():
        yield part
