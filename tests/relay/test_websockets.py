"""Somebody else's WebSocket library at both ends of a tunnel: websockets, client and server."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.relay.conftest import Running

_MIB = 1024 * 1024
CAST = Subprotocol("cast")


async def _echo(connection: ServerConnection) -> None:
    """Sends everything back; ``close 4001 why`` closes with that code."""
    async for message in connection:
        if isinstance(message, str) and message.startswith("close "):
            code, _, reason = message.removeprefix("close ").partition(" ")
            await connection.close(int(code), reason)
            return
        await connection.send(message)


def _choose(_connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return CAST if CAST in offered else None


@pytest.fixture
async def through(running: Running) -> AsyncIterator[str]:
    """The URL of an echo behind the relay."""
    async with serve(_echo, "127.0.0.1", 0, max_size=None, select_subprotocol=_choose) as server:
        running.upstream.port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{running.port}/ws"


async def test_texts_and_bytes_come_back(through: str) -> None:
    async with connect(through) as connection:
        for message in ("", "hello", "naïve ☃", "x" * 70_000, b"", b"\x00\xff", bytes(70_000)):
            await connection.send(message)
            assert await connection.recv() == message


@pytest.mark.parametrize(("compression", "mib"), [(None, 16), ("deflate", 1)])
async def test_large_frames_come_back(through: str, compression: str | None, mib: int) -> None:
    message = hashlib.shake_256(b"cast").digest(_MIB) * mib
    async with connect(through, max_size=None, compression=compression) as connection:
        await connection.send(message)
        assert await connection.recv() == message


async def test_fragments_come_back_as_one_message(through: str) -> None:
    async with connect(through) as connection:
        await connection.send(["one ", "two ", "three"])
        assert await connection.recv() == "one two three"


async def test_pings_are_answered_by_the_other_end(through: str) -> None:
    async with connect(through) as connection:
        for payload in (b"", b"are you there", b"x" * 125):
            latency_s = await asyncio.wait_for(await connection.ping(payload), 5)
            assert latency_s >= 0


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4999])
async def test_close_codes_pass_both_ways(through: str, code: int) -> None:
    async with connect(through) as connection:
        await connection.close(code, "of the client")
        assert (connection.close_code, connection.close_reason) == (code, "of the client")
    async with connect(through) as connection:
        await connection.send(f"close {code} of the server")
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, "of the server")


async def test_a_subprotocol_is_agreed_on(through: str) -> None:
    async with connect(through, subprotocols=[Subprotocol("other"), CAST]) as connection:
        assert connection.subprotocol == CAST


async def test_many_at_once_do_not_mix(through: str) -> None:
    async def talk(number: int) -> None:
        async with connect(through) as connection:
            for turn in range(20):
                await connection.send(f"{number} {turn}")
                assert await connection.recv() == f"{number} {turn}"

    await asyncio.gather(*[talk(number) for number in range(40)])


async def test_a_refused_handshake_is_the_servers_own(running: Running, through: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await _connect_badly(through)
    assert refused.value.response.status_code == 400


async def _connect_badly(url: str) -> ClientConnection:
    return await connect(url, additional_headers={"Sec-WebSocket-Version": "7"})
