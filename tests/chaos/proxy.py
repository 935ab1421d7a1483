"""A TCP proxy that makes the network bad, as a process: the gateways reach each store through a link of their own.

``python -m tests.chaos.proxy`` reads one command a line and answers each with a line of its own:

    link NAME PORT HOST PORT    a link from a port of this machine
    to NAME HOST PORT           where it leads from now on
    open NAME                   all is well: what was kept back goes on its way
    refuse NAME                 nobody listens, and no connection is left
    reset NAME                  every connection is reset, once
    flaky NAME MS               every connection is reset after some MS of life
    slow NAME MS                each piece takes so long, in either direction
    stall NAME                  connections are taken, and nothing passes
"""

import asyncio
import contextlib
import random
import socket
import struct
import sys
from collections import deque

import uvloop

# Reset, and not an orderly end.
_LINGER = struct.pack("ii", 1, 0)


class _Side(asyncio.Protocol):
    """One of the two ends of a connection."""

    def __init__(self, pair: "_Pair") -> None:
        self.pair = pair
        self.transport: asyncio.Transport | None = None
        self.kept: deque[bytes] = deque()  # to be written here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.pair.made(self)

    def data_received(self, data: bytes) -> None:
        self.pair.passed(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pair.end()

    def flush(self) -> None:
        while self.kept and self.transport is not None:
            self.transport.write(self.kept.popleft())


class _Pair:
    def __init__(self, link: "Link") -> None:
        self.link = link
        self.client = _Side(self)
        self.server = _Side(self)
        self.ended = False
        link.pairs.add(self)

    def made(self, side: _Side) -> None:
        if self.ended:
            assert side.transport is not None
            side.transport.abort()
        elif side is self.client:
            self.link.tasks.add(task := asyncio.ensure_future(self._connect()))
            task.add_done_callback(self.link.tasks.discard)
            if self.link.mode == "flaky":
                life_s = random.uniform(0.2, 1.8) * self.link.delay_s
                asyncio.get_running_loop().call_later(life_s, self.reset)
        else:
            self.link.released(side)

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self.link.target)
        except OSError:
            self.end()

    def passed(self, side: _Side, data: bytes) -> None:
        other = self.server if side is self.client else self.client
        other.kept.append(data)
        if self.link.mode == "slow":
            asyncio.get_running_loop().call_later(self.link.delay_s, self.link.released, other)
        else:
            self.link.released(other)

    def reset(self) -> None:
        for side in (self.client, self.server):
            if side.transport is not None:
                with contextlib.suppress(OSError):
                    side.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
                side.transport.abort()
        self.end()

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.link.pairs.discard(self)
            for side in (self.client, self.server):
                if side.transport is not None:
                    side.flush()
                    side.transport.close()


class Link:
    def __init__(self, port: int, target: tuple[str, int]) -> None:
        self.port = port
        self.target = target
        self.mode = "open"
        self.delay_s = 0.0
        self.pairs: set[_Pair] = set()
        self.tasks: set[asyncio.Future[None]] = set()
        self.server: asyncio.Server | None = None

    async def listen(self) -> None:
        if self.server is None:
            loop = asyncio.get_running_loop()
            self.server = await loop.create_server(lambda: _Pair(self).client, "127.0.0.1", self.port, backlog=512)

    def released(self, side: _Side) -> None:
        if self.mode != "stall":
            side.flush()

    async def become(self, mode: str, delay_s: float) -> None:
        if mode == "reset":
            self._reset_all()
            return
        self.mode, self.delay_s = mode, delay_s
        if mode == "refuse":
            if self.server is not None:
                self.server.close()
                self.server = None
            self._reset_all()
        else:
            if mode == "flaky":
                self._reset_all()
            await self.listen()
            for pair in list(self.pairs):
                for side in (pair.client, pair.server):
                    self.released(side)

    def _reset_all(self) -> None:
        for pair in list(self.pairs):
            pair.reset()


async def obey() -> None:
    links: dict[str, Link] = {}
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        verb, name, *words = line.decode().split()
        if verb == "link":
            links[name] = Link(int(words[0]), (words[1], int(words[2])))
            await links[name].listen()
        elif verb == "to":
            links[name].target = words[0], int(words[1])
        else:
            await links[name].become(verb, float(words[0]) / 1000 if words else 0.0)
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(obey())
