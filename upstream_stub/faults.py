"""Faults on request, told by the header ``X-Stub-Fault``; several are separated by commas.

delay=250ms    wait before the request is handled; it is handled even if the client leaves meanwhile
status=503     answer this status and do not handle the request
cut=before     handle the request, then close the connection without a byte of the answer
cut=head       close it after the answer's head
cut=body       close it in mid-body (a stream: after its first part)
trickle=10ms   send the body in up to 16 parts (a stream: in its own parts), that long apart
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler

from upstream_stub.refusals import RefusalError, bad_request

HEADER = "X-Stub-Fault"
PARTS_MAX = 16
WAIT_MAX_S = 600.0

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    delay_s: float = 0.0
    status: int | None = None
    cut: Literal["before", "head", "body"] | None = None
    trickle_s: float | None = None


NO_FAULT = Fault()


class Streaming(web.StreamResponse):
    """An answer whose body is made while it is sent. Not yet prepared when a handler returns it."""

    def __init__(
        self, parts: AsyncGenerator[bytes, None], *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status=status, headers=headers)
        self.parts = parts


class Sent(web.StreamResponse):
    """Tells aiohttp that all there was to write on this connection has been written."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def parse_fault(text: str) -> Fault:
    """Raises a 400 that names the part it does not understand."""
    delay_s = NO_FAULT.delay_s
    status: int | None = None
    cut: Literal["before", "head", "body"] | None = None
    trickle_s: float | None = None
    for part in filter(None, (part.strip() for part in text.split(","))):
        match part.split("=", 1):
            case ["delay", value] if (wait_s := _seconds(value)) is not None:
                delay_s = wait_s
            case ["trickle", value] if (wait_s := _seconds(value)) is not None:
                trickle_s = wait_s
            case ["status", value] if re.fullmatch(r"[2-5]\d\d", value):
                status = int(value)
            case ["cut", ("before" | "head" | "body") as value]:
                cut = value
            case _:
                raise bad_request(f"{HEADER} does not know {part!r}.")
    return Fault(delay_s=delay_s, status=status, cut=cut, trickle_s=trickle_s)


@web.middleware
async def misbehave(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Handle the request with the faults it asks for; the outermost middleware, so that errors are faulty too."""
    values = request.headers.getall(HEADER, [])
    try:
        fault = parse_fault(",".join(values)) if values else NO_FAULT
    except RefusalError as refusal:
        return refusal.response()
    if fault.delay_s:
        await asyncio.sleep(fault.delay_s)
    if fault.status is None:
        response = await handler(request)
    else:
        response = RefusalError(fault.status, "stub_fault", "A fault that was asked for.").response()
    if response.prepared or isinstance(response, Sent):
        return response
    if isinstance(response, Streaming) or fault.cut or fault.trickle_s is not None:
        return await _send(request, response, fault)
    return response


async def _send(request: web.Request, response: web.StreamResponse, fault: Fault) -> web.StreamResponse:
    streaming = response if isinstance(response, Streaming) else _in_parts(response)
    async with aclosing(streaming.parts):
        if fault.cut == "before":
            return _cut(request)
        try:
            await streaming.prepare(request)
            if fault.cut == "head":
                return _cut(request)
            if request.method != "HEAD":
                first = True
                async for part in streaming.parts:
                    if not first and fault.trickle_s:
                        await asyncio.sleep(fault.trickle_s)
                    await streaming.write(part)
                    first = False
                    if fault.cut == "body":
                        return _cut(request)
            await streaming.write_eof()
        except ConnectionError:
            return _cut(request)  # the client left first
    return streaming


def _in_parts(response: web.StreamResponse) -> Streaming:
    """The same answer, to be sent by `_send`. Its length stays promised in the head, whatever is cut off."""
    assert isinstance(response, web.Response)
    body = response.body
    whole = bytes(body) if isinstance(body, (bytes, bytearray)) else b""
    streaming = Streaming(_split(whole), status=response.status)
    streaming.headers.extend(response.headers)
    for cookie in response.cookies.values():
        streaming.headers.add("Set-Cookie", cookie.OutputString())
    streaming.content_length = len(whole)
    return streaming


async def _split(body: bytes) -> AsyncGenerator[bytes, None]:
    size = max(1, -(-len(body) // PARTS_MAX))
    for start in range(0, len(body), size):
        yield body[start : start + size]


def _cut(request: web.Request) -> Sent:
    if request.transport is not None:
        request.transport.close()  # what was written before is still sent
    sent = Sent()
    sent.force_close()
    return sent


def _seconds(text: str) -> float | None:
    found = re.fullmatch(r"(\d{1,9})(ms|s|m)", text)
    return min(int(found[1]) * _UNIT_S[found[2]], WAIT_MAX_S) if found else None
