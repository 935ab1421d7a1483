"""What a hostile client tried once, and must not succeed with again."""

import asyncio
import resource

import pytest

from tests.relay.conftest import Running, answering, until

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
_MIB = 1024 * 1024


async def test_an_upstream_that_was_not_given_the_whole_request_is_not_used_again(running: Running) -> None:
    """It answers early, while the end of the body is here and cannot be passed on yet."""
    answer_now = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"PUT"):
            await answer_now.wait()
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await reader.read(-1)  # to the upstream all that follows is the body, whoever sends it
            raise ConnectionError
        writer.write(OK)

    running.upstream.answer = answer
    first, second = await running.connect(), await running.connect()
    await first.send(b"PUT /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    await running.upstream.asked.wait()
    exchange = next(each.exchange for each in running.relay._connections if each.exchange is not None)
    assert exchange.upstream is not None
    exchange.upstream.pause_writing()  # as its transport does when it is full, here at a moment of our choosing
    await first.send(b"3\r\nabc\r\n0\r\n\r\n")
    await until(lambda: exchange.request.complete)
    answer_now.set()
    assert b"404 Not Found" in await first.read_head()
    await second.send(GET)
    assert b"200 OK" in await second.read_head()
    assert running.upstream.connections == 2


async def test_an_upgrade_that_connection_does_not_name_is_not_passed_on(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    for protocol in (b"h2c", b"websocket"):
        await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nUpgrade: %b\r\n\r\n" % protocol)
        assert b"200 OK" in await client.read_head()
        await client.read(2)
    assert not any(b"pgrade" in head for head in running.upstream.heads)


async def test_of_thousands_of_upgrades_at_once_few_are_taken(running: Running) -> None:
    """Each costs a parser, and a copy of what follows it."""
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" * 4000)
    data = await client.read_all()
    assert data.count(b"HTTP/1.1 400 ") == 1
    assert 0 < data.count(b"HTTP/1.1 200 ") < 100


@pytest.mark.parametrize("ends_first", ["client", "upstream"])
async def test_a_tunnel_ends_when_both_sides_have_ended(running: Running, ends_first: str) -> None:
    """Each says that it sends no more, and neither closes: the relay does."""
    upstream_gone = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH)
        if ends_first == "client":
            assert await reader.read(-1) == b""
            writer.write_eof()
        else:
            writer.write_eof()
            assert await reader.read(-1) == b""
        upstream_gone.set()
        await asyncio.Event().wait()

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(UPGRADE)
    await client.read_head()
    if ends_first == "client":
        client.writer.write_eof()
        assert await client.read_all() == b""
    else:
        assert await client.read_all() == b""
        client.writer.write_eof()
    await asyncio.wait_for(upstream_gone.wait(), 5)
    await until(lambda: running.relay.connections_open == 0)


async def test_open_tunnels_do_not_keep_calls_from_the_upstream(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"Upgrade" in head:
            writer.write(SWITCH)
            await asyncio.Event().wait()
        writer.write(OK)

    running.upstream.answer = answer
    for _ in range(70):  # more than the pool's 64
        tunnel = await running.connect()
        await tunnel.send(UPGRADE)
        assert b" 101 " in await tunnel.read_head()
    client = await running.connect()
    await client.send(GET)
    assert b"200 OK" in await client.read_head()


async def test_bodies_of_waiting_requests_take_bounded_memory(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    running.upstream.answer = answer
    client = await running.connect()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client.writer.write(GET + b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (512 * _MIB))
    sent_mib = 0
    try:
        async with asyncio.timeout(1):
            while sent_mib < 100:
                await client.send(bytes(_MIB))
                sent_mib += 1
    except TimeoutError:
        pass
    assert sent_mib < 48
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 1024


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("trailers", [b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 4000, b"X: " + b"a" * 100_000])
async def test_trailers_are_bounded_like_heads(running: Running, trailers: bytes, at_once: bool) -> None:
    """Many, or one without end, once the head is judged and on its way."""

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
    await running.upstream.asked.wait()
    connection = next(iter(running.relay._connections))
    if at_once:
        connection.data_received(trailers + b"\r\n\r\n")
    for start in range(0, 0 if at_once else len(trailers), 5000):
        client.writer.write(trailers[start : start + 5000])
        await asyncio.sleep(0)
    assert (await client.read_all()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "name", [b"Content-Length", b"Host", b"Authorization", b"X-API-Key", b"cookie", b"X-Forwarded-For"]
)
async def test_a_trailer_cannot_say_what_the_caller_is_judged_by(running: Running, name: bytes) -> None:
    ended = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"0\r\n")
        finally:
            ended.set()

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await running.upstream.asked.wait()
    await client.send(b"0\r\n%b: 1\r\n\r\n" % name)
    assert (await client.read_all()).startswith(b"HTTP/1.1 400 ")
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_body_that_stops_with_its_head_stalls_like_any_other(running: Running) -> None:
    """It came in one packet with the head, and nothing after it."""

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    running.upstream.answer = answer
    running.limit(first_byte_timeout_s=1000, body_stall_timeout_s=5)
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc")
    await running.upstream.asked.wait()
    running.pass_time(10)
    assert (await client.read_all()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("size", [70_000, 1000])
async def test_a_target_without_end_is_a_414_in_whatever_pieces(running: Running, size: int) -> None:
    client = await running.connect()
    target = b"GET /" + b"a" * 70_000
    for start in range(0, len(target), size):
        client.writer.write(target[start : start + size])
        await asyncio.sleep(0)
    assert (await client.read_all()).startswith(b"HTTP/1.1 414 ")


async def test_connection_cannot_take_away_what_the_caller_was_judged_by(running: Running) -> None:
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(
        b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: authorization, cookie, x-api-key, x-mine\r\n"
        b"Authorization: Bearer a\r\nX-API-Key: b\r\nCookie: session=c\r\nX-Mine: d\r\n\r\n"
    )
    await client.read_head()
    head = running.upstream.heads[0]
    assert b"Authorization: Bearer a\r\nX-API-Key: b\r\nCookie: session=c\r\n" in head
    assert b"X-Mine" not in head


async def test_a_slow_reader_gets_the_whole_of_a_last_answer(running: Running) -> None:
    running.limit(buffered_bytes_max=8 * _MIB)
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (6 * _MIB) + bytes(6 * _MIB))
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    await client.read_head()
    await asyncio.sleep(3)  # longer than a lingering connection is kept that has nothing left to say
    assert len(await client.read_all()) == 6 * _MIB


async def test_an_empty_line_after_an_answer_is_not_the_begin_of_a_request(running: Running) -> None:
    running.upstream.answer = answering(OK)
    running.limit(header_timeout_s=1, keepalive_timeout_s=1000)
    client = await running.connect()
    await client.send(GET)
    await client.read_head()
    await client.read(2)
    connection = next(iter(running.relay._connections))
    before = connection.deadline
    running.pass_time(1)
    await client.send(b"\r\n")
    await until(lambda: connection.deadline != before)
    running.pass_time(100)  # longer than a head may take
    await client.send(GET)
    assert b"200 OK" in await client.read_head()
