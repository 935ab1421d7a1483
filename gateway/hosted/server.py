"""Serves the hosted application on one end of socket pairs; the relay holds the other ends as upstream connections."""

import asyncio
import socket

import structlog
from aiohttp import http_parser, web

from gateway.hosted.answers import RefusedError, failure, refusal
from gateway.hosted.app import create_app
from gateway.hosted.services import Services
from gateway.tasks import Tasks

# The relay ends idle connections; this only bounds what it forgot, and lies above any idle time-out that it has, so
# that a connection is never closed under a request that is on its way.
KEEPALIVE_TIMEOUT_S = 900.0
# Heads have passed the relay's own limits before; these must not be the tighter ones.
HEAD_LINE_BYTES_MAX = 256 * 1024
HEAD_FIELDS_MAX = 1000
_log = structlog.get_logger()


class HostedServer:
    """The application, and as many connections to it as the relay's pool asks for."""

    def __init__(self, services: Services, tasks: Tasks, *, shutdown_timeout_s: float = 5.0) -> None:
        # The parser in Python is ten times slower and laxer; a wheel without the one in C must not go unnoticed.
        if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
            raise RuntimeError("aiohttp is installed without its C parser")
        self._tasks = tasks
        self._closing = False
        # handler_cancellation off: a client that hangs up must not stop a budget's change between its commit and the
        # word to admission.
        self._runner = web.AppRunner(
            create_app(services), handler_cancellation=False, access_log=None, shutdown_timeout=shutdown_timeout_s
        )

    async def start(self) -> None:
        """Make the application ready; connections may come from now on."""
        await self._runner.setup()

    def connect(self) -> socket.socket:
        """A new connection to the application: a non-blocking stream socket, the caller's to close."""
        if self._runner.server is None or self._closing:
            raise RuntimeError("the hosted application is not running")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        # What the relay sends before the other end is being served waits in the socket.
        self._tasks.start("hosted connection", self._serve(ours))
        return theirs

    async def close(self) -> None:
        """Answer what is being answered, bounded by ``shutdown_timeout_s``, and close every connection."""
        self._closing = True
        await self._runner.cleanup()

    async def _serve(self, ours: socket.socket) -> None:
        server = self._runner.server
        if server is None:
            ours.close()
            return
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: _Connection(server, loop), ours)
        if self._closing:  # which may have ended all connections but this one
            transport.abort()


class _Connection(web.RequestHandler):
    """aiohttp's own connection, whose errors outside any handler (a head that does not parse) are JSON too."""

    __slots__ = ()

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp is told not to log
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            tcp_keepalive=False,
            max_line_size=HEAD_LINE_BYTES_MAX,
            max_field_size=HEAD_LINE_BYTES_MAX,
            max_headers=HEAD_FIELDS_MAX,
            auto_decompress=False,
        )

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status >= 500:
            _log.error("hosted request failed", exc_info=exc)
            response = failure()
        else:
            response = refusal(RefusedError(400, "invalid_request", "The request is not well-formed HTTP."))
        response.force_close()
        return response
