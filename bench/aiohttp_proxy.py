"""The proxy most people write: an aiohttp server and an aiohttp client session, streaming both ways, with no policy.

It is the yardstick of the bench: written as aiohttp's documentation leads one to, on uvloop, without an access log.
"""

import asyncio
from collections.abc import AsyncIterator

import click
import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy

# RFC 9110 §7.6.1, and Host, which the client session sets for the upstream.
_HOP_BY_HOP = {
    *("connection", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
    *("transfer-encoding", "upgrade"),
}
_BLOCK_BYTES = 65536


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)


def make_app(upstream: str) -> web.Application:
    """The proxy in front of ``upstream``, a base URL without a trailing slash."""

    async def relay(request: web.Request) -> web.StreamResponse:
        body = request.content.iter_chunked(_BLOCK_BYTES) if request.can_read_body else None
        async with app[session_key].request(
            request.method, upstream + request.raw_path, headers=_end_to_end(request.headers), data=body
        ) as answer:
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            await response.prepare(request)
            async for block in answer.content.iter_chunked(_BLOCK_BYTES):
                await response.write(block)
            await response.write_eof()
            return response

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(
            connector=TCPConnector(limit=0), timeout=ClientTimeout(total=60), auto_decompress=False
        ) as opened:
            app[session_key] = opened
            yield

    app = web.Application(client_max_size=0)
    session_key = web.AppKey("session", ClientSession)
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", relay)
    return app


async def serve(port: int, upstream: str) -> None:
    """Serve on 127.0.0.1 until cancelled."""
    runner = web.AppRunner(make_app(upstream), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True)
@click.option("--upstream", required=True, help="Base URL of the service behind.")
def main(port: int, upstream: str) -> None:
    """Serve the proxy on 127.0.0.1."""
    uvloop.run(serve(port, upstream.rstrip("/")))


if __name__ == "__main__":
    main()
