"""Upstreams that a test starts, stops and starts again at the same address, and that count what they were asked."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from gateway.config.settings_connections import Upstream
from gateway.embedded import free_port
from gateway.relay.balancer import Balancer, LookUp, look_up
from gateway.upstream_addresses import new_upstream
from tests.relay.conftest import Client, Running


class Backend:
    """Answers with its name. ``behaviour``: answer | cut (closes when it was asked) | hold (until ``go_on``)."""

    def __init__(self, name: str, *, path: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.port = free_port()
        self.path = path
        self.behaviour = "answer"
        self.asked: list[bytes] = []  # the request lines
        self.connections = 0
        self.go_on = asyncio.Event()
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> Self:
        if self.path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self.path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head.partition(b"\r\n")[0])
                if b"Content-Length: 3" in head:
                    await reader.readexactly(3)
                if self.behaviour == "cut":
                    return
                if self.behaviour == "hold":
                    await self.go_on.wait()
                body = self.name.encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


@asynccontextmanager
async def backends(*names: str) -> AsyncIterator[list[Backend]]:
    """Running ones."""
    made = [await Backend(name).start() for name in names]
    try:
        yield made
    finally:
        for backend in made:
            await backend.stop()


def put_behind(
    running: Running, *addresses: str, folder: Path = Path(), look_up: LookUp = look_up, **settings: Any
) -> Balancer:
    """The relay's upstream is at these addresses from here on."""
    upstream = Upstream.model_validate({"url": list(addresses), **settings})
    running.relay.upstream_pool.close()
    balancer = new_upstream(running.relay, upstream, folder, look_up=look_up)
    running.relay.upstream_pool = balancer
    running.relay.tasks.start("look up", balancer.look_up_forever())
    return balancer


async def ask(client: Client, method: str = "GET") -> tuple[int, str]:
    """One request on the client's connection; its answer."""
    body = b"Content-Length: 3\r\n\r\nabc" if method == "POST" else b"\r\n"
    await client.send(f"{method} /x HTTP/1.1\r\nHost: h\r\n".encode() + body)
    head = await client.read_head()
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), (await client.read(length)).decode()
