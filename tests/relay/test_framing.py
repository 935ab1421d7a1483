"""Message framing through the relay (RFC 9112 §6): where a message ends is never in doubt."""

import asyncio

import pytest

from tests.relay.conftest import Running, answering

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


async def test_an_answer_with_a_length_passes_unchanged(running: Running) -> None:
    running.upstream.answer = answering(
        b"HTTP/1.1 200 Fine Indeed\r\nX-One: 1\r\nx-two:  2 \r\nContent-Length: 2\r\n\r\nhi"
    )
    client = await running.connect()
    await client.send(GET)
    assert await client.read_head() == b"HTTP/1.1 200 Fine Indeed\r\nX-One: 1\r\nx-two: 2 \r\nContent-Length: 2\r\n\r\n"
    assert await client.read(2) == b"hi"


async def test_a_connection_serves_requests_one_after_the_other(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    for _ in range(5):
        await client.send(GET)
        await client.read_head()
        assert await client.read(2) == b"hi"
    assert running.upstream.connections == 1


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = head.split(b" ")[1]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target))

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"".join(b"GET /%03d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(300)))
    for number in range(300):
        assert b"200 OK" in await client.read_head()
        assert await client.read(4) == b"/%03d" % number


async def test_a_flood_of_refused_pipelined_requests_is_answered_one_by_one(running: Running) -> None:
    client = await running.connect()
    bad = b"GET /x HTTP/1.1\r\nHost: h\r\nExpect: miracles\r\n\r\n"
    await client.send(bad * 3000)
    assert (await client.read_head()).startswith(b"HTTP/1.1 417 ")


async def test_a_chunked_answer_stays_chunked_with_its_trailers(running: Running) -> None:
    running.upstream.answer = answering(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
        b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 7\r\n\r\n"
    )
    client = await running.connect()
    await client.send(GET)
    assert await client.read_head() == b"HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await client.read_until(b"X-T: 7\r\n\r\n") == b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 7\r\n\r\n"


async def test_a_chunked_request_stays_chunked_with_its_trailers(running: Running) -> None:
    bodies: list[bytes] = []

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await reader.readuntil(b"X-T: 7\r\n\r\n"))
        writer.write(OK)

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await client.send(b"2\r\nde\r\n0\r\nX-T: 7\r\n\r\n")
    assert b"200 OK" in await client.read_head()
    assert bodies == [b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 7\r\n\r\n"]


async def test_an_answer_that_ends_with_its_connection_becomes_chunked(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        writer.close()

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(GET)
    assert b"Transfer-Encoding: chunked" in await client.read_head()
    assert await client.read_until(b"0\r\n\r\n") == b"d\r\nuntil the end\r\n0\r\n\r\n"


async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(running: Running) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.0\r\n\r\n")
    assert await client.read_all() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi"
    assert running.upstream.heads[0].startswith(b"GET /x HTTP/1.1\r\n")


async def test_http_1_0_with_keep_alive_keeps_the_connection(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    for _ in range(2):
        await client.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"Connection: keep-alive\r\n" in await client.read_head()
        assert await client.read(2) == b"hi"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_a_status_without_a_body_has_none(running: Running, status: bytes) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n")
    client = await running.connect()
    for _ in range(2):
        await client.send(GET)
        assert await client.read_head() == b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n"
    assert running.upstream.connections == 1


async def test_head_keeps_the_length_and_has_no_body(running: Running) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    client = await running.connect()
    for _ in range(3):
        await client.send(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await client.read_head() == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


async def test_a_body_after_an_answer_to_head_ends_that_upstream_connection(running: Running) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    client = await running.connect()
    for _ in range(2):
        await client.send(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await client.read_head() == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert running.upstream.connections == 2


async def test_interim_answers_pass_before_the_final_one(running: Running) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
    client = await running.connect()
    await client.send(GET)
    assert await client.read_head() == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert (await client.read_head()).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("cut", [-8, -4, -1])  # in the head, before the body, and in it
async def test_a_final_answer_that_comes_in_part_with_the_interim_one(running: Running, cut: int) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    received = asyncio.Event()

    async def answer(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(interim + OK[:cut])
        await received.wait()  # what came first was passed on before the rest is sent
        writer.write(OK[cut:])

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(GET)
    assert await client.read_head() == interim
    received.set()
    assert await client.read(len(OK)) == OK


async def test_expect_waits_for_the_upstreams_own_continue(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Expect: 100-continue\r\n" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(3)
        writer.write(OK)

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert await client.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"abc")
    assert (await client.read_head()).startswith(b"HTTP/1.1 200 OK")


async def test_connection_close_is_the_clients_alone(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert await client.read_all() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    other = await running.connect()
    await other.send(GET)
    await other.read_head()
    assert running.upstream.connections == 1
    assert b"Connection" not in running.upstream.heads[0]


async def test_hop_by_hop_fields_end_here(running: Running) -> None:
    running.upstream.answer = answering(
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nKeep-Alive: timeout=5\r\nX-Private: 1\r\n"
        b"X-Public: 2\r\nContent-Length: 0\r\n\r\n"
    )
    client = await running.connect()
    await client.send(
        b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Mine, Host\r\nX-Mine: 1\r\nTE: gzip\r\n"
        b"Proxy-Connection: x\r\nKeep-Alive: 3\r\nX-Yours: 2\r\n\r\n"
    )
    assert await client.read_head() == b"HTTP/1.1 200 OK\r\nX-Public: 2\r\nContent-Length: 0\r\n\r\n"
    head = running.upstream.heads[0]
    assert b"X-Yours: 2\r\n" in head
    assert b"Host: h\r\n" in head
    for gone in (b"X-Mine", b"TE:", b"Proxy-Connection", b"Keep-Alive", b"\r\nConnection"):
        assert gone not in head


async def test_forwarded_fields_tell_who_asked(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(
        b"GET /x HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 10.0.0.9\r\nX-Forwarded-Proto: https\r\n"
        b"X-Request-Id: abc\r\n\r\n"
    )
    await client.read_head()
    head = running.upstream.heads[0]
    assert b"X-Forwarded-For: 10.0.0.9, 127.0.0.1\r\n" in head
    assert head.count(b"X-Forwarded-Proto: http\r\n") == 1
    assert b"https" not in head
    assert b"X-Forwarded-Host: h\r\n" in head
    assert head.count(b"X-Request-Id: abc\r\n") == 1


async def test_a_request_without_an_id_gets_one(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    for _ in range(2):
        await client.send(GET)
        await client.read_head()
        await client.read(2)
    ids = [line for head in running.upstream.heads for line in head.split(b"\r\n") if line.startswith(b"X-Request-Id")]
    assert len(set(ids)) == 2
    assert all(len(line) == len(b"X-Request-Id: ") + 32 for line in ids)
