"""The upstream behind the bench frames every answer rightly, however a proxy frames its requests."""

import asyncio
import json
import uuid

import pytest

from bench.fast_upstream import CAST_ANSWER, FastUpstream


async def exchange(sent: bytes) -> bytes:
    """All that the server answers to these bytes until it closes."""
    server = await asyncio.get_running_loop().create_server(FastUpstream, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(sent)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer


def test_the_answer_is_a_cast() -> None:
    cast = json.loads(CAST_ANSWER)
    assert list(cast) == ["id", "status", "result", "elapsed_ms"]
    assert str(uuid.UUID(cast["id"])) == cast["id"]


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Content-Length: 0\r\n\r\n",
    ],
)
async def test_a_request_is_answered_when_it_is_complete_and_the_next_after_it(body: bytes) -> None:
    first = b"POST /v1/cast HTTP/1.1\r\nHost: h\r\n" + body
    last = b"POST /v1/cast HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + body
    answer = await exchange(first + last)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert answer.count(CAST_ANSWER) == 2


async def test_head_has_the_head_alone() -> None:
    answer = await exchange(b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")


async def test_what_is_no_request_is_400() -> None:
    assert (await exchange(b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
