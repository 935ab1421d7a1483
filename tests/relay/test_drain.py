"""A worker that stops: what is under way ends, each client is told, and idle connections are closed without a reset."""

import asyncio

from tests.relay.conftest import Running, answering

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


async def test_a_call_under_way_ends_and_its_client_is_told(running: Running) -> None:
    go_on = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(OK)

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(GET)
    await asyncio.wait_for(running.upstream.asked.wait(), 5)
    draining = asyncio.ensure_future(running.relay.drain(10))
    await asyncio.sleep(0)
    assert running.relay.draining
    go_on.set()
    answer_bytes = await client.read_all()
    assert answer_bytes.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close\r\n" in answer_bytes
    assert answer_bytes.endswith(b"\r\n\r\nhi")
    await asyncio.wait_for(draining, 5)
    assert running.relay.connections_open == 0


async def test_an_idle_client_is_served_once_more_and_told_or_closed(running: Running) -> None:
    running.upstream.answer = answering(OK)
    asks_again, stays_idle = await running.connect(), await running.connect()
    for client in (asks_again, stays_idle):
        await client.send(GET)
        await client.read_until(b"hi")
    draining = asyncio.ensure_future(running.relay.drain(10))
    await asyncio.sleep(0)
    await asks_again.send(GET)
    assert b"Connection: close\r\n" in await asks_again.read_all()
    assert await stays_idle.read_all() == b""  # its end, not a reset
    await asyncio.wait_for(draining, 5)


async def test_what_is_not_over_in_time_is_cut_off(running: Running) -> None:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        await reader.read(-1)

    running.upstream.answer = answer
    client = await running.connect()
    await client.send(GET)
    await client.read_until(b"begun")
    await asyncio.wait_for(running.relay.drain(0.1), 5)
    assert await client.read_all() == b"", "cut short, which its length tells"
