"""An upstream that speaks no HTTP, or splits its answers: 502, or an end, and nobody else gets any of it."""

import asyncio

import pytest

from tests.relay.conftest import Running, until

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
_LINE = b"HTTP/1.1 200 OK\r\n"

BAD = {
    "version 2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "version 2 behind an interim answer": b"HTTP/1.1 103 Early\r\n\r\nHTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "RTSP behind an interim answer": b"HTTP/1.1 103 Early\r\n\r\nRTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "version 0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "version 1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no version": b"200 OK\r\nContent-Length: 0\r\n\r\n",
    "an empty line first": b"\r\n" + OK,
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status that is none": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "status zero": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "a NUL in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "a control character in the reason": b"HTTP/1.1 200 O\x1bK\r\nContent-Length: 0\r\n\r\n",
    "a CR in the reason": b"HTTP/1.1 200 OK\rSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n",
    "lines that end in LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a value with a CR": _LINE + b"X: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "a value with an LF": _LINE + b"X: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "a value with a NUL": _LINE + b"X: a\x00\r\nContent-Length: 0\r\n\r\n",
    "a folded value": _LINE + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": _LINE + b"Content-Length : 0\r\n\r\n",
    "a name that is none": _LINE + b"X Y: 1\r\nContent-Length: 0\r\n\r\n",
    "two lengths": _LINE + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    "two lengths that agree": _LINE + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a length behind zeros": _LINE + b"Content-Length: " + b"0" * 40 + b"2\r\n\r\nhi",
    "a body of an interim answer": b"HTTP/1.1 109 Nobody\r\nContent-Length: 3\r\n\r\nabc",
    "a signed length": _LINE + b"Content-Length: +2\r\n\r\nhi",
    "a list of lengths": _LINE + b"Content-Length: 2, 2\r\n\r\nhi",
    "a negative length": _LINE + b"Content-Length: -1\r\n\r\n",
    "length and chunks": _LINE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": _LINE + b"Transfer-Encoding: x\r\n\r\n",
    "two codings": _LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two lines of codings": _LINE + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": _LINE + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding with a vertical tab": _LINE + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a bad chunk at once": _LINE + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a switch nobody asked for": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a switch without an Upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "interim answers without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 40,
    "a head without end": _LINE + b"X: a\r\n" * 12000,
    "a field without end": _LINE + b"X: " + b"a" * 70000,
    "nothing": b"",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_answer_is_a_502_and_the_end_of_both_connections(running: Running, name: str) -> None:
    ended = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if running.upstream.connections > 1:
            writer.write(OK)
            return
        data = BAD[name]
        for start in range(0, len(data), 8192):
            writer.write(data[start : start + 8192])
        if not data:
            writer.close()
        try:
            await reader.read(-1)
        finally:
            ended.set()

    running.upstream.answer = answer
    client, other = await running.connect(), await running.connect()
    await client.send(GET + GET)
    data = await client.read_all()
    heads = [head for head in data.split(b"HTTP/1.1 ") if head and not head.startswith(b"10")]
    assert [head[:3] for head in heads] == [b"502"]
    assert b"\r\nConnection: close\r\n" in heads[0]
    await asyncio.wait_for(ended.wait(), 5)
    await other.send(GET)
    assert await other.read_head() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    assert running.upstream.connections == 2


SPLIT = {
    "a second answer": (OK, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"),
    "more body than its length": (OK, b"bad"),
    "a body of a 204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"bad"),
    "an answer as the body of a 304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 19\r\n\r\n", OK),
    "a second last chunk": (_LINE + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"0\r\n\r\n"),
}


def client_is_busy(running: Running) -> bool:
    """Whether an answer is under way still."""
    return any(connection.exchange is not None for connection in running.relay._connections)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("name", SPLIT)
async def test_what_follows_an_answer_is_nobodys(running: Running, name: str, at_once: bool) -> None:
    """With the answer in one piece, or a moment later, when the connection idles."""
    later, seen = asyncio.Event(), asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if running.upstream.connections > 1:
            writer.write(OK)
            return
        proper, extra = SPLIT[name]
        writer.write(proper + extra if at_once else proper)
        await writer.drain()
        await later.wait()
        if not at_once:
            writer.write(extra)
        await reader.read(-1)  # until the relay closes it
        seen.set()

    running.upstream.answer = answer
    running.relay.upstream_pool._keepalive_idle_s = 1000  # it is not closed for its age
    client, other = await running.connect(), await running.connect()
    await client.send(GET)
    await client.read_head()
    await until(lambda: running.relay.connections_open == 2 and not client_is_busy(running))
    later.set()
    await asyncio.wait_for(seen.wait(), 5)
    await other.send(GET)
    assert await other.read_head() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    assert await other.read(2) == b"hi"
    client.writer.close()


async def test_the_late_body_of_an_answer_to_head_meets_no_other_request(running: Running) -> None:
    """It arrives after the next request was sent: on a connection of its own by then."""
    bad, send_body = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(bad))
            await send_body.wait()
            writer.write(bad)
            return
        send_body.set()
        await asyncio.sleep(0)
        writer.write(OK)

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n" + GET)
    assert b"200 OK" in await client.read_head()
    await client.read_head()
    assert await client.read(2) == b"hi"


async def test_a_chunk_that_turns_bad_midway_cuts_the_answer_short(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_LINE + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await reader.read(1)
        writer.write(b"zz\r\nHTTP/1.1 200 OK\r\n\r\n")

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n")
    await client.read_head()
    assert await client.read_until(b"abc\r\n") == b"3\r\nabc\r\n"
    await client.send(b"x")
    assert await client.read_all() == b""  # no last chunk: the client sees that something is missing


async def test_a_switch_to_another_protocol_than_was_asked_for_is_a_502(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert (await client.read_all()).startswith(b"HTTP/1.1 502 ")
