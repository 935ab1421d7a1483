"""Bad requests, bad upstreams, and peers that leave: a clear answer, and nothing left hanging."""

import asyncio
import json

import pytest

from tests.relay.conftest import Running, answering

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

REFUSED = {
    "no host": (b"GET /x HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "length and chunked": (
        b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "signed length": (b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc", 400),
    "unknown transfer coding": (b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n3", 501),
    "gzip transfer coding": (b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "bad chunk size": (b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "chunked in 1.0": (b"POST /x HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "folded line": (b"GET /x HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400),
    "space before colon": (b"GET /x HTTP/1.1\r\nHost: h\r\nX : a\r\n\r\n", 400),
    "bare line feed": (b"GET /x HTTP/1.1\nHost: h\n\n", 400),
    "nul": (b"GET /x HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", 400),
    "version": (b"GET /x HTTP/1.9\r\nHost: h\r\n\r\n", 400),
    "connect": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "expectation": (b"GET /x HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n", 417),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
    "large head": (b"GET /x HTTP/1.1\r\nHost: h\r\n" + b"X: " + b"a" * 40000 + b"\r\n\r\n", 431),
    "endless head": (b"GET /x HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 40000, 431),
    "many fields": (b"GET /x HTTP/1.1\r\nHost: h\r\n" + b"X: 1\r\n" * 200 + b"\r\n", 431),
    "long request id": (b"GET /x HTTP/1.1\r\nHost: h\r\nX-Request-Id: " + b"a" * 200 + b"\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_request_is_refused_and_never_forwarded(running: Running, name: str) -> None:
    data, status = REFUSED[name]
    client = await running.connect()
    await client.send(data)
    head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"Connection: close" in head
    error = json.loads(body)
    assert error["error"] == "invalid_request"
    assert error["message"].endswith(".")
    assert running.upstream.heads == []


async def test_a_chunk_that_turns_bad_after_forwarding_cuts_the_upstream_off(running: Running) -> None:
    ended = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            ended.set()
            raise

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await running.upstream.asked.wait()
    await client.send(b"-1\r\n")
    assert (await client.read_all()).startswith(b"HTTP/1.1 400 ")
    await asyncio.wait_for(ended.wait(), 5)


async def test_an_upstream_that_is_away_is_a_502(running: Running) -> None:
    running.upstream.port = 1
    client = await running.connect()
    await client.send(POST + POST)
    for _ in range(2):
        head = await client.read_head()
        assert head.startswith(b"HTTP/1.1 502 ")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        assert json.loads(await client.read(length))["error"] == "upstream_unreachable"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
async def test_a_broken_answer_is_a_502(running: Running, answer: bytes) -> None:
    async def broken(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(answer)
        writer.close()

    running.upstream.answer = broken
    client = await running.connect()
    await client.send(POST)
    assert (await client.read_all()).startswith(b"HTTP/1.1 502 ")


async def test_an_answer_cut_short_ends_its_connection_short(running: Running) -> None:
    async def cut(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    running.upstream.answer = cut
    client = await running.connect()
    await client.send(GET)
    assert b"200 OK" in await client.read_head()
    assert await client.read_all() == b"half"


async def test_an_unframed_answer_cut_short_is_a_reset(running: Running) -> None:
    async def cut(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await writer.drain()
        writer.close()

    running.upstream.answer = cut
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await client.read_all()


async def test_a_post_is_never_sent_twice_and_a_get_on_a_dead_connection_is(running: Running) -> None:
    async def once(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"POST"):
            await reader.readexactly(3)
        if head.startswith(b"GET /first") or (running.upstream.connections > 1 and head.startswith(b"GET")):
            writer.write(OK)
        else:
            raise ConnectionError

    running.upstream.answer = once
    client = await running.connect()
    await client.send(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n")
    await client.read_head()
    await client.read(2)
    await client.send(b"GET /second HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.read_head()).startswith(b"HTTP/1.1 200 ")
    await client.read(2)
    assert running.upstream.connections == 2
    await client.send(POST)
    assert (await client.read_head()).startswith(b"HTTP/1.1 502 ")
    assert sum(head.startswith(b"POST") for head in running.upstream.heads) == 1


@pytest.mark.parametrize("end", ["bytes that nobody asked for", "the end of the connection"])
async def test_a_connection_that_is_being_closed_gets_no_call(running: Running, end: str) -> None:
    """What idles is ended by the upstream, and a call arrives, in the same turn of the loop."""
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(POST)
    await client.read(len(OK))
    (idle,) = running.relay.upstream_pool._idle
    (connection,) = running.relay._connections
    if end == "the end of the connection":
        if not idle.eof_received():  # as the loop does it
            idle.transport.close()
    else:
        idle.data_received(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    connection.data_received(POST)
    assert await client.read(len(OK)) == OK


async def test_a_silent_upstream_is_a_504(running: Running) -> None:
    async def silent(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)

    running.upstream.answer = silent
    running.limit(first_byte_timeout_s=0.1)
    client = await running.connect()
    await client.send(GET)
    head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 504 ")
    assert json.loads(body)["error"] == "upstream_timeout"


async def test_a_client_that_leaves_ends_its_upstream_request(running: Running) -> None:
    ended = asyncio.Event()

    async def wait(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(1)
        finally:
            ended.set()

    running.upstream.answer = wait
    client = await running.connect()
    await client.send(GET)
    await running.upstream.asked.wait()
    client.writer.close()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_slow_head_is_a_408_and_a_silent_client_is_closed(running: Running) -> None:
    running.limit(header_timeout_s=0.1)
    slow, silent = await running.connect(), await running.connect()
    await slow.send(b"GET /x HT")
    assert (await slow.read_all()).startswith(b"HTTP/1.1 408 ")
    assert await silent.read_all() == b""


async def test_too_many_connections_are_told_so(running: Running) -> None:
    running.limit(connections_max=1)
    running.upstream.answer = answering(OK)
    first = await running.connect()
    await first.send(GET)
    await first.read_head()
    second = await running.connect()
    head, _, body = (await second.read_all()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert json.loads(body)["error"] == "overloaded"


async def test_an_early_answer_to_an_upload_reaches_the_client(running: Running) -> None:
    async def early(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")

    running.upstream.answer = early
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 1000)
    head = await client.read_head()
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in head
    assert await client.read(2) == b"no"


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", b"HTTP/1.1 20"])
async def test_only_a_call_that_got_no_byte_of_an_answer_is_sent_again(running: Running, begun: bytes) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(GET)
    await client.read_until(b"hi")

    async def break_off(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.upstream.answer = answering(OK)
        writer.write(begun)
        await writer.drain()
        raise ConnectionError

    running.upstream.answer = break_off
    await client.send(GET)
    if begun:
        await client.read_until(b"upstream_unreachable")
    else:
        await client.read_until(b"hi")
    assert len(running.upstream.heads) == (2 if begun else 3)
