"""What one client, and all of them together, may take: connections, calls, bodies, and upstream connections."""

import asyncio
import json
import socket

import pytest

from gateway.relay.pool import Pool
from tests.relay.backends import ask, backends, put_behind
from tests.relay.conftest import Running, answering

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


async def test_calls_beyond_those_under_way_are_told_to_come_back(running: Running) -> None:
    async with backends("a") as (a,):
        put_behind(running, a.url)
        running.limit(in_flight_max=2)
        a.behaviour = "hold"
        first, second, third = [await running.connect() for _ in range(3)]
        under_way = [asyncio.ensure_future(ask(client)) for client in (first, second)]
        while len(a.asked) < 2:
            await asyncio.sleep(0.01)
        for _ in range(2):
            await third.send(GET)
            head = await third.read_head()
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1\r\n" in head
            body = json.loads(await third.read(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])))
            assert body["error"] == "overloaded"
        assert len(a.asked) == 2
        a.go_on.set()
        assert await asyncio.gather(*under_way) == [(200, "a"), (200, "a")]
        assert await ask(third) == (200, "a"), "the connection was kept, and there is room again"


async def test_however_calls_end_they_are_no_longer_under_way(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/cut-midway" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
            await writer.drain()
        if b"/cut" in head:
            raise ConnectionError
        if b"/upgrade" in head:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            return
        if b"/hang" not in head:
            writer.write(OK)

    running.upstream.answer = answer
    running.limit(first_byte_timeout_s=0.1)
    endings = (
        b"GET /ok HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"GET /cut HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /cut-midway HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /no-host HTTP/1.1\r\n\r\n",
        b"POST /broken HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    )
    for ending in endings:
        client = await running.connect()
        await client.send(ending)
        await client.read_all()
        assert running.relay.in_flight == 0, ending
    kept, gone, tunnel = [await running.connect() for _ in range(3)]
    await kept.send(GET * 3)
    for _ in range(3):
        await kept.read_until(b"hi")
    running.limit(first_byte_timeout_s=10)
    await gone.send(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
    while running.relay.in_flight == 0:
        await asyncio.sleep(0.01)
    gone.writer.close()
    await tunnel.send(b"GET /upgrade HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await tunnel.read_head()
    async with asyncio.timeout(5):
        while running.relay.in_flight != 0:
            await asyncio.sleep(0.01)


async def test_one_address_may_have_so_many_connections_and_no_more(running: Running) -> None:
    running.limit(connections_per_address_max=2)
    running.upstream.answer = answering(OK)
    clients = [await running.connect() for _ in range(2)]
    for client in clients:
        await client.send(GET)
        await client.read_head()
    refused = await running.connect()
    assert (await refused.read_all()).startswith(b"HTTP/1.1 503 ")
    clients[0].writer.close()
    refused.writer.close()
    async with asyncio.timeout(5):
        while running.relay.connections_open > 1:
            await asyncio.sleep(0.01)
    again = await running.connect()
    await again.send(GET)
    assert (await again.read_head()).startswith(b"HTTP/1.1 200 ")
    for client in (again, clients[1]):
        client.writer.close()
    async with asyncio.timeout(5):
        while running.relay._connections_by_address:  # addresses that have left are forgotten
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("length", [b"9" * 19, b"9" * 21, b"9" * 5000, b"0" * 5000 + b"1001", b"-1", b"1e9"])
async def test_no_spelling_of_a_length_passes_the_limit(running: Running, length: bytes) -> None:
    running.limit(body_bytes_max=1000)
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %b\r\n\r\n" % length)
    assert (await client.read_all()).split()[1] in (b"400", b"413")
    assert running.upstream.heads == []


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
async def test_a_body_whose_length_is_too_much_is_refused_before_it_is_sent(running: Running, expects: bytes) -> None:
    running.limit(body_bytes_max=1000)
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\n%bContent-Length: 1001\r\n\r\n" % expects)
    head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 Content Too Large\r\n")
    assert b"Connection: close" in head
    assert json.loads(body) == {
        "error": "invalid_request",
        "message": "The request's body is too large.",
        "details": "found 1001 bytes, expected at most 1000",
    }
    assert running.upstream.heads == []


async def test_a_body_as_long_as_may_be_passes(running: Running) -> None:
    running.limit(body_bytes_max=1000)
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n" + bytes(1000))
    assert (await client.read_head()).startswith(b"HTTP/1.1 200 ")


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_much(running: Running) -> None:
    cut = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        finally:
            cut.set()

    running.limit(body_bytes_max=1000)
    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n%b\r\n" % bytes(500))
    await asyncio.wait_for(running.upstream.asked.wait(), 5)
    await client.send(b"1f4\r\n%b\r\n" % bytes(500))
    assert not cut.is_set()
    await client.send(b"1\r\nx\r\n")
    head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body)["details"] == "found 1001 bytes and more to come, expected at most 1000"
    await asyncio.wait_for(cut.wait(), 5)


async def test_a_chunked_body_that_is_too_much_at_once_is_never_sent(running: Running) -> None:
    running.limit(body_bytes_max=10)
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n")
    assert (await client.read_all()).startswith(b"HTTP/1.1 413 ")
    assert running.upstream.heads == []


async def test_a_body_that_stalls_is_a_408(running: Running) -> None:
    running.limit(body_stall_timeout_s=0.1)

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    running.upstream.answer = answer
    never, midway = await running.connect(), await running.connect()
    await never.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n")
    await midway.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na")
    for client in (never, midway):
        assert (await client.read_all()).startswith(b"HTTP/1.1 408 ")


async def test_a_kept_connection_is_closed_after_its_time(running: Running) -> None:
    running.limit(keepalive_timeout_s=0.1)
    running.upstream.answer = answering(OK)
    client = await running.connect()
    assert await ask(client) == (200, "hi")
    assert await client.read_all() == b""


async def test_an_answer_that_stalls_is_cut_short(running: Running) -> None:
    hung_up = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read(-1)
        hung_up.set()

    running.limit(idle_timeout_s=0.1)
    running.upstream.answer = answer
    client = await running.connect()
    await client.send(GET)
    assert (await client.read_all()).endswith(b"\r\n\r\nhalf")
    await asyncio.wait_for(hung_up.wait(), 5)


async def test_an_upstream_that_cannot_be_reached_in_time_is_a_502(running: Running) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for full in (first, second):  # its queue has no more room: who connects now waits for a SYN-ACK
            full.setblocking(False)
            full.connect_ex(deaf.getsockname())
        running.limit(connect_timeout_s=0.1)
        put_behind(running, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        status, body = await ask(await running.connect(), "POST")
    assert (status, json.loads(body)["error"]) == (502, "upstream_unreachable")


def _narrow(running: Running, connections_max: int = 2) -> None:
    """So few upstream connections are all there is."""
    relay = running.relay
    relay.upstream_pool.close()
    loop = asyncio.get_running_loop()
    relay.upstream_pool = Pool(
        relay,
        "upstream",
        lambda factory: loop.create_connection(factory, "127.0.0.1", running.upstream.port),
        host_line=b"Host: upstream\r\n",
        connections_max=connections_max,
        waiting_max=1000,
        keepalive_idle_s=4,
    )
    running.limit(connect_timeout_s=30)


async def test_uploads_that_hardly_come_give_way_to_calls_that_wait(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"POST"):
            await reader.readexactly(100_000)
        writer.write(OK)

    running.upstream.answer = answer
    _narrow(running)
    slow, steady, other = [await running.connect() for _ in range(3)]
    for client, size in ((slow, 10), (steady, 99_999)):
        await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n" + bytes(size))
    async with asyncio.timeout(5):
        while len(running.upstream.heads) < 2:
            await asyncio.sleep(0.01)
    assert await ask(other) == (200, "hi")
    assert (await slow.read_all()).startswith(b"HTTP/1.1 408 ")
    await steady.send(b"x")
    assert (await steady.read_head()).startswith(b"HTTP/1.1 200 ")


async def test_uploads_may_be_slow_while_nobody_waits(running: Running) -> None:
    running.upstream.answer = answering(OK)
    _narrow(running, connections_max=1)
    slow = await running.connect()
    await slow.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na")
    await asyncio.wait_for(running.upstream.asked.wait(), 5)
    exchange = next(iter(running.relay._connections)).exchange
    assert exchange is not None
    exchange.started_s -= 10.0  # as if it had taken that long
    assert exchange.is_dawdling()
    running.relay.tick()
    await slow.send(b"bc")
    assert (await slow.read_head()).startswith(b"HTTP/1.1 200 ")


async def test_answers_that_nobody_reads_give_way_to_calls_that_wait(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.relay.call._DAWDLING_READER_S", 0.3)

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/large" not in head:
            writer.write(OK)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(bytes(1024 * 1024))
            await writer.drain()

    running.upstream.answer = answer
    _narrow(running)
    for _ in range(2):
        client = await running.connect()
        await client.send(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.read_head()
    assert await ask(await running.connect()) == (200, "hi")
