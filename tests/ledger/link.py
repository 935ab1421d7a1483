"""A way to Postgres that tests can close, jam and open again, at one address for ever."""

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit


class Link:
    """Forwards a port of 127.0.0.1 to the server in ``url``; ``url`` may change with the server."""

    def __init__(self, url: str) -> None:
        self.upstream_url = url
        self.accepted = 0
        self._port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def url(self) -> str:
        parts = urlsplit(self.upstream_url)
        return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self._port}"))

    async def open(self) -> None:
        """Accept connections; at the port of last time."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse connections, cut those there are."""
        assert self._server is not None
        self._server.close()
        self._flowing.set()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    def jam(self) -> None:
        """Let nothing through any more, close nothing: a server that hangs."""
        self._flowing.clear()

    def clear(self) -> None:
        """Let through what was held up."""
        self._flowing.set()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open.add(writer)
        with suppress(OSError):
            await self._flowing.wait()
            parts = urlsplit(self.upstream_url)
            there, back = await asyncio.open_connection(parts.hostname, parts.port)
            self._open.add(back)
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
        self._open.discard(writer)
