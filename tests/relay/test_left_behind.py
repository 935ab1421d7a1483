"""What a connection leaves behind when it ends: nothing, and that at once. A worker hardly ever collects garbage."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from gateway.relay.client import ClientConnection
from gateway.relay.exchange import Exchange
from gateway.relay.upstream import UpstreamConnection
from tests.relay.conftest import Running, answering, until

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CLIENTS = 8


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """Other tests' cycles go before, and only reference counting frees from then on."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def there_is(kind: type) -> bool:
    return any(type(one) is kind for one in gc.get_objects())


async def left_by_clients(running: Running, sent: bytes, *, answered: bool) -> None:
    """Clients come, send, and leave; returns once none of their connections is an object any more."""
    clients = [await running.connect() for _ in range(CLIENTS)]
    for client in clients:
        await client.send(sent)
    for client in clients:
        if answered:
            await client.read_head()
        else:
            await running.upstream.asked.wait()
    assert there_is(ClientConnection)
    for client in clients:
        client.writer.transport.abort()
    await until(lambda: running.relay.connections_open == 0)
    await until(lambda: not there_is(ClientConnection))
    assert not there_is(Exchange)


async def test_connections_that_were_answered(running: Running) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    await left_by_clients(running, GET, answered=True)
    running.relay.upstream_pool.close()
    await until(lambda: not there_is(UpstreamConnection))


async def test_connections_that_did_not_wait_for_their_answer(running: Running) -> None:
    async def never(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    running.upstream.answer = never
    await left_by_clients(running, GET, answered=False)
    await until(lambda: not there_is(UpstreamConnection))


async def test_connections_that_sent_what_is_no_request(running: Running) -> None:
    await left_by_clients(running, b"nonsense\r\n\r\n", answered=True)


async def test_tunnels(running: Running) -> None:
    async def switch(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH)
        await reader.read()

    running.upstream.answer = switch
    await left_by_clients(running, UPGRADE, answered=True)
    await until(lambda: not there_is(UpstreamConnection))
