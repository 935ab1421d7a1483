"""The fastest cast service plain Python gives: requests are answered with the same bytes, from memory.

It stands behind every proxy under test, so that a figure tells about the proxy. It parses requests in full (httptools),
because proxies differ in how they frame a body.
"""

import asyncio
from typing import cast

import click
import httptools
import uvloop

CAST_ANSWER = (
    b'{"id":"01890a5d-ac96-774b-bcce-b302099a8057","status":"done","result":"a spell of light","elapsed_ms":1}'
)
LARGE_BYTES = 64 * 1024
LARGE_ANSWER = CAST_ANSWER.replace(b"a spell of light", b"x" * (LARGE_BYTES - len(CAST_ANSWER) + 16))


def _head(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)


_SMALL, _LARGE = (_head(CAST_ANSWER), CAST_ANSWER), (_head(LARGE_ANSWER), LARGE_ANSWER)
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FastUpstream(asyncio.Protocol):
    """One connection; answers when a request is complete, in order, and keeps the connection."""

    __slots__ = ("_answer", "_parser", "_transport")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by inheritance
        self._parser = httptools.HttpRequestParser(self)
        self._answer = _SMALL

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(_BAD_REQUEST)
            self._transport.close()

    def on_url(self, target: bytes) -> None:
        """Called by the parser; the query ``answer=large`` asks for 64 KiB."""
        self._answer = _LARGE if target.endswith(b"?answer=large") else _SMALL

    def on_message_complete(self) -> None:
        """Called by the parser."""
        head, body = self._answer
        self._transport.write(head if self._parser.get_method() == b"HEAD" else head + body)
        if not self._parser.should_keep_alive():
            self._transport.close()


async def serve(port: int) -> None:
    """Serve on 127.0.0.1 until cancelled."""
    server = await asyncio.get_running_loop().create_server(FastUpstream, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True)
def main(port: int) -> None:
    """Serve the fixed cast answer on 127.0.0.1."""
    uvloop.run(serve(port))


if __name__ == "__main__":
    main()
