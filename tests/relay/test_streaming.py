"""Bodies pass as they come, in bounded memory, both ways; and tunnels."""

import asyncio
import hashlib
import resource

from gateway.relay.client import BUSY, CLOSED, LINGERING
from gateway.tasks import Tasks
from tests.relay.conftest import Running, answering, until

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
_MIB = 1024 * 1024


async def test_a_chunk_reaches_the_client_before_the_next_one_exists(running: Running) -> None:
    go_on = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        )
        await go_on.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(GET)
    await client.read_head()
    assert await client.read_until(b"first\r\n") == b"5\r\nfirst\r\n"
    go_on.set()
    assert await client.read_until(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"


async def test_a_large_download_passes_unchanged(running: Running) -> None:
    block = bytes(range(256)) * 4096

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(block) * 32))
        for _ in range(32):
            writer.write(block)
            await writer.drain()

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(GET)
    await client.read_head()
    digest = hashlib.sha256()
    for _ in range(32):
        digest.update(await client.read(len(block)))
    assert digest.hexdigest() == hashlib.sha256(block * 32).hexdigest()


async def test_a_large_upload_passes_unchanged(running: Running) -> None:
    received = hashlib.sha256()
    block = bytes(range(256)) * 4096

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(32):
            received.update(await reader.readexactly(len(block)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (len(block) * 32))
    for _ in range(32):
        await client.send(block)
    assert b"200 OK" in await client.read_head()
    assert received.hexdigest() == hashlib.sha256(block * 32).hexdigest()


async def test_a_slow_reader_makes_the_upstream_wait(running: Running) -> None:
    sent_bytes = 0

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (512 * _MIB))
        for _ in range(512):
            writer.write(bytes(_MIB))
            await writer.drain()
            sent_bytes += _MIB

    running.upstream.answer = answer
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client = await running.connect()
    await client.send(GET)
    await client.read_head()
    still = -1
    while still != sent_bytes:  # until nothing moves any more
        still = sent_bytes
        await asyncio.sleep(0.3)
    # What the kernel's socket buffers on the way hold, and not much more.
    assert sent_bytes < 48 * _MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 1024


async def test_who_takes_none_of_many_answers_has_the_time_of_one_that_is_under_way(running: Running) -> None:
    running.limit(idle_timeout_s=100)
    # Each answer comes in one piece; all are more than the kernel's socket buffers take.
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 120000\r\n\r\n" + bytes(120_000))
    client = await running.connect()
    await client.send(GET * 64)
    connection = next(iter(running.relay._connections))
    await until(lambda: connection.exchange is None and not connection.writable)
    assert connection.requests
    running.pass_time(50)
    assert connection.phase == BUSY
    running.pass_time(60)
    assert (connection.phase, running.relay.in_flight) == (LINGERING, 0)
    running.pass_time(110)
    await until(lambda: connection.phase == CLOSED)


async def test_a_slow_upstream_makes_the_client_wait(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    running.upstream.answer = answer
    client = await running.connect()
    sent_bytes = 0

    async def upload() -> None:
        nonlocal sent_bytes
        await client.send(b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (512 * _MIB))
        while True:
            await client.send(bytes(_MIB))
            sent_bytes += _MIB

    tasks = Tasks()
    tasks.start("upload", upload())
    still = -1
    while still != sent_bytes:
        still = sent_bytes
        await asyncio.sleep(0.3)
    await tasks.drain(0)
    assert 0 < sent_bytes < 48 * _MIB


async def test_an_accepted_upgrade_becomes_a_tunnel(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        while True:
            writer.write((await reader.readexactly(4)).upper())
            await writer.drain()

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(UPGRADE + b"earl")
    assert b"101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in await client.read_head()
    assert await client.read(9) == b"helloEARL"
    await client.send(b"late")
    assert await client.read(4) == b"LATE"
    client.writer.close()


async def test_a_refused_upgrade_leaves_an_ordinary_connection(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(UPGRADE + GET)
    for _ in range(2):
        assert (await client.read_head()).startswith(b"HTTP/1.1 400 ")
    assert running.upstream.heads[1].startswith(b"GET /x ")


async def test_an_upgrade_to_something_else_is_an_ordinary_request(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Upgrade" not in head
        body = await reader.readexactly(3) if b"Content-Length: 3" in head else b""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(
        b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
        b"Content-Length: 3\r\n\r\nabc" + GET
    )
    await client.read_head()
    assert await client.read(3) == b"abc"
    assert (await client.read_head()).startswith(b"HTTP/1.1 200 ")
    assert b"HTTP2-Settings" not in running.upstream.heads[0]


async def test_a_half_closed_tunnel_still_carries_the_other_way(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert await reader.read(-1) == b"all there is"
        writer.write(b"understood")
        raise ConnectionError

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(UPGRADE)
    await client.read_head()
    await client.send(b"all there is")
    client.writer.write_eof()
    assert await client.read_all() == b"understood"


async def test_a_whole_request_behind_an_answer_that_is_not_taken_yet_has_no_late_head(running: Running) -> None:
    running.limit(header_timeout_s=20, idle_timeout_s=100)
    body = bytes(120_000)
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 120000\r\n\r\n" + body)
    client = await running.connect()
    connection = None
    while connection is None or connection.writable:  # until the kernel's socket buffers take no more
        await client.send(GET)
        await asyncio.sleep(0.005)
        connection = next(iter(running.relay._connections))
    await until(lambda: connection.exchange is None)
    await client.send(GET)
    await until(lambda: bool(connection.requests))
    running.pass_time(50)
    await asyncio.sleep(0.01)
    assert connection.phase < LINGERING
    running.pass_time(60)
    assert (connection.phase, running.relay.in_flight) == (LINGERING, 0)
    assert b" 408 " not in await client.read_all()
