"""Upgraded connections: bytes pass both ways in bounded memory, and each way ends by itself."""

import asyncio
import contextlib
import resource

import pytest

from tests.relay.conftest import Client, Running, until

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
_MIB = 1024 * 1024
# What the kernel's socket buffers on the way hold, and not much more.
_ON_THE_WAY_MIB_MAX = 48
_MEMORY_KIB_MAX = 32 * 1024


async def tunnel(running: Running) -> Client:
    client = await running.connect()
    await client.send(UPGRADE)
    assert b" 101 " in await client.read_head()
    return client


async def sent_until_it_stops(writer: asyncio.StreamWriter) -> int:
    """Writes for as long as somebody takes it; how many MiB that were."""
    sent_mib = 0
    try:
        while sent_mib < 4 * _ON_THE_WAY_MIB_MAX:
            writer.write(bytes(_MIB))
            async with asyncio.timeout(0.5):
                await writer.drain()
            sent_mib += 1
    except TimeoutError:
        pass
    return sent_mib


@pytest.mark.parametrize("slow", ["client", "upstream"])
async def test_who_does_not_read_makes_the_other_side_wait(running: Running, slow: str) -> None:
    sent: list[int] = []
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH)
        if slow == "client":
            sent.append(await sent_until_it_stops(writer))
        await asyncio.Event().wait()

    running.upstream.answer = answer
    client = await tunnel(running)
    if slow == "client":
        await until(lambda: bool(sent), timeout_s=30)
    else:
        sent.append(await sent_until_it_stops(client.writer))
    assert 0 < sent[0] < _ON_THE_WAY_MIB_MAX
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < _MEMORY_KIB_MAX
    client.writer.transport.abort()


async def test_a_tunnel_on_which_nobody_says_anything_ends(running: Running) -> None:
    ended = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH)
        try:
            while data := await reader.read(4):
                writer.write(data)
        finally:
            ended.set()

    running.upstream.answer = answer
    running.limit(tunnel_idle_timeout_s=600)
    client = await tunnel(running)
    for _ in range(3):  # each word keeps it for as long again
        running.pass_time(400)
        await client.send(b"ping")
        assert await client.read(4) == b"ping"
    running.pass_time(700)
    with contextlib.suppress(ConnectionResetError):
        assert await client.read_all() == b""
    await asyncio.wait_for(ended.wait(), 5)
    assert running.relay.connections_open == 0


async def test_what_a_client_says_last_reaches_the_upstream(running: Running) -> None:
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH)
        writer.transport.pause_reading()
        await asyncio.sleep(0.1)  # until then all waits
        writer.transport.resume_reading()
        received.set_result(await reader.read(-1))
        raise ConnectionError

    running.upstream.answer = answer
    client = await tunnel(running)
    client.writer.write(bytes(24 * _MIB) + b"farewell")  # more than the sockets on the way hold
    client.writer.close()
    data = await asyncio.wait_for(received, 10)
    assert len(data) == 24 * _MIB + 8
    assert data.endswith(b"farewell")


async def test_what_an_upstream_says_last_reaches_the_client(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH + bytes(4 * _MIB) + b"farewell")
        await writer.drain()
        raise ConnectionError

    running.upstream.answer = answer
    client = await tunnel(running)
    await asyncio.sleep(0.1)
    data = await client.read_all()
    assert len(data) == 4 * _MIB + 8
    assert data.endswith(b"farewell")


async def test_an_upstream_that_does_not_read_is_left_with_its_tunnels_client(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.relay.upstream._FINISH_TIMEOUT_S", 0.05)
    go_on = asyncio.Event()
    ended = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH)
        writer.transport.pause_reading()
        await go_on.wait()
        writer.transport.resume_reading()
        try:
            await reader.read(-1)
        finally:
            ended.set()

    running.upstream.answer = answer
    client = await tunnel(running)
    upstream = next(each.peer for each in running.relay._connections)
    assert upstream is not None
    while upstream.writable:
        client.writer.write(bytes(_MIB))
        await asyncio.sleep(0.01)
    client.writer.transport.abort()
    running.pass_time(1000)  # reading from the client was paused, so its end shows by its silence
    await until(lambda: not upstream.open)
    go_on.set()
    await asyncio.wait_for(ended.wait(), 5)
