"""An HTTP/1.1 intermediary as RFC 9110 and RFC 9112 want it, beyond framing (test_framing.py)."""

import asyncio

import pytest

from tests.relay.conftest import Running, answering

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

FORWARDED = {
    "a trailer wanted": (
        b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: TE\r\nTE: trailers\r\n\r\n",
        b"\r\nTE: trailers\r\n",
    ),
    "a trailer among codings": (b"GET /x HTTP/1.1\r\nHost: h\r\nTE: gzip, Trailers\r\n\r\n", b"Connection: TE\r\n"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n"),
    "absolute form": (b"GET http://h/x HTTP/1.1\r\nHost: h\r\n\r\n", b"GET http://h/x HTTP/1.1\r\nHost: h\r\n"),
    "absolute form in other case": (b"GET HTTP://H:80/x HTTP/1.1\r\nHost: h:80\r\n\r\n", b"GET HTTP://H:80/x "),
    "absolute form in 1.0": (b"GET http://h:81/x HTTP/1.0\r\n\r\n", b"\r\nHost: h:81\r\n"),
    "no host in 1.0": (b"GET /x HTTP/1.0\r\n\r\n", b"\r\nHost: upstream\r\n"),
    "an empty host": (b"GET /x HTTP/1.1\r\nHost:\r\n\r\n", b"\r\nHost: \r\n"),
    "an IPv6 host": (b"GET /x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"\r\nHost: [::1]:80\r\n"),
    "OPTIONS that may go on": (
        b"OPTIONS /x HTTP/1.1\r\nHost: h\r\nMax-Forwards: 2\r\n\r\n",
        b"\r\nMax-Forwards: 1\r\n",
    ),
    "Max-Forwards on a GET": (b"GET /x HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n", b"\r\nMax-Forwards: 0\r\n"),
    "empty lines before": (b"\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /x HTTP/1.1\r\n"),
    "RTSP elsewhere": (
        b"GET / HTTP/1.1\r\nHost: h\r\nX: PUT / RTSP/1.0\r\nY: / RTSP/1.0\r\n\r\n",
        b"\r\nX: PUT / RTSP/1.0\r\nY: / RTSP/1.0\r\n",
    ),
}


@pytest.mark.parametrize("name", FORWARDED)
async def test_is_forwarded(running: Running, name: str) -> None:
    request, expected = FORWARDED[name]
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(request)
    assert b" 200 OK" in await client.read_head()
    assert expected in running.upstream.heads[0]


async def test_an_expectation_of_http_1_0_is_ignored(running: Running) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")
    assert (await client.read_all()).startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"xpect" not in running.upstream.heads[0]


async def test_an_upgrade_of_http_1_0_is_ignored(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert (await client.read_all()).startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"pgrade" not in running.upstream.heads[0]


@pytest.mark.parametrize("pieces", ["one", "many", "one byte each"])
async def test_rtsp_is_told_from_http_however_it_arrives(running: Running, pieces: str) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    request = b"OPTIONS /movie RTSP/1.0\r\nHost: h\r\nX: y\r\n\r\n"
    size = {"one": len(request), "many": 18, "one byte each": 1}[pieces]
    for start in range(0, len(request), size):
        await client.send(request[start : start + size])
        await asyncio.sleep(0)
    assert (await client.read_all()).startswith(b"HTTP/1.1 505 ")
    assert running.upstream.heads == []


async def test_rtsp_behind_a_request_of_the_same_words_is_told_from_http(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(
        b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\na RTSP/1GET /x RTSP/1.1\r\nHost: h\r\n\r\n"
    )
    data = await client.read_all()
    assert data.count(b"HTTP/1.1 200 ") == 1
    assert data.count(b"HTTP/1.1 505 ") == 1


async def test_a_204_and_an_interim_answer_have_no_length(running: Running) -> None:
    running.upstream.answer = answering(
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n".replace(
            b"Transfer-Encoding: chunked\r\n", b""
        )
    )
    client = await running.connect()
    await client.send(GET)
    assert await client.read_head() == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert await client.read_head() == b"HTTP/1.1 204 No Content\r\n\r\n"


async def test_a_304_keeps_its_length_and_has_no_body(running: Running) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n")
    client = await running.connect()
    for _ in range(2):
        await client.send(GET)
        assert await client.read_head() == b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"


async def test_an_http_1_0_upstream_is_spoken_to_once_a_connection(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    running.upstream.answer = answer
    client = await running.connect()
    for _ in range(2):
        await client.send(GET)
        assert (await client.read_head()).startswith(b"HTTP/1.1 200 OK\r\n")
        assert await client.read(2) == b"hi"
    assert running.upstream.connections == 2


async def test_chunks_of_an_http_1_0_upstream_end_its_connection(running: Running) -> None:
    running.upstream.answer = answering(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    )
    client = await running.connect()
    for _ in range(2):
        await client.send(GET)
        await client.read_head()
        assert await client.read_until(b"0\r\n\r\n") == b"2\r\nhi\r\n0\r\n\r\n"
    assert running.upstream.connections == 2


async def test_trailers_that_would_count_in_a_head_do_not_come_through(running: Running) -> None:
    running.upstream.answer = answering(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nConnection: close\r\nX-T: 1\r\n\r\n"
    )
    client = await running.connect()
    for _ in range(2):  # the parser takes Connection: close of a trailer to heart
        await client.send(GET)
        assert b" 200 OK" in await client.read_head()
        assert await client.read_until(b"\r\n\r\n") == b"0\r\nX-T: 1\r\n\r\n"


async def test_connection_close_of_the_upstream_is_its_own(running: Running) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
    client = await running.connect()
    for _ in range(2):
        await client.send(GET)
        assert await client.read_head() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        assert await client.read(2) == b"hi"
    assert running.upstream.connections == 2


async def test_a_refused_connect_ends_the_connection_unread(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n" + GET)
    data = await client.read_all()
    assert data.startswith(b"HTTP/1.1 501 ")
    assert data.count(b"HTTP/1.1 ") == 1
    assert running.upstream.heads == []


async def test_requests_behind_connection_close_are_not_read(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET)
    assert (await client.read_all()).count(b"HTTP/1.1 ") == 1
    assert len(running.upstream.heads) == 1


async def test_a_client_that_shuts_down_its_sending_side_has_left(running: Running) -> None:
    """As nginx and Envoy have it: docs/decisions/0010."""
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
    client.writer.write_eof()
    assert await client.read_all() == b""
    await asyncio.wait_for(ended.wait(), 5)
