"""One connection to Redis for scripts: commands go out as they come, replies come back to callbacks in order.

Admission sends one script call at a time and has nothing to gain from a pool, a task per call or a command object:
docs/decisions/0002-admission-batching.md has the figures. What a URL may say (TLS, password, database, Unix socket) is
read by redis-py; the bytes are read by hiredis.
"""

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

import hiredis
import structlog
from redis.asyncio.connection import parse_url

Reply = Any  # bytes, int, None, hiredis.ReplyError, or a list of these

_log = structlog.get_logger()


class RedisLostError(Exception):
    """Redis is away, or cannot do what was asked now; whether it did is not known. The text has no secret in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A Lua script by which Redis is called; ``sha`` is what Redis calls it."""

    source: bytes
    sha: str


def read_script(*names: str) -> Script:
    """The script made of ``gateway/lua/<name>.lua``, in the order given."""
    folder = files("gateway").joinpath("lua")
    source = b"\n".join(folder.joinpath(f"{name}.lua").read_bytes() for name in names)
    return Script(source=source, sha=hashlib.sha1(source, usedforsecurity=False).hexdigest())


ADMIT = read_script(
    "input",
    "accounts",
    "holds",
    "tiers",
    "limits",
    "limits_fixed_window",
    "limits_sliding_window",
    "limits_token_bucket",
    "limits_concurrency",
    "settle",
    "admit",
)
RESTORE = read_script("input", "accounts", "holds", "tiers", "limits", "limits_concurrency", "restore")
JOIN = read_script("join")
OPENS = read_script("opens")
FACTS = read_script("facts")
ORPHANS = read_script("orphans")
DRIFT = read_script("drift")


def encoded(*parts: str | int | bytes) -> bytes:
    """A command as RESP."""
    pieces = [b"*%d\r\n" % len(parts)]
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        pieces.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(pieces)


class RedisLink(asyncio.Protocol):
    """An open connection. ``lost`` is called once, with one line of reason, when it ends other than by ``close``."""

    def __init__(self, lost: Callable[[str], None]) -> None:
        self._lost = lost
        self._reader = hiredis.Reader()
        self._waiting: deque[Callable[[Reply], None]] = deque()
        self._calls: set[asyncio.Future[Reply]] = set()
        self._transport: asyncio.Transport | None = None
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while True:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError as error:
                self._end(f"not Redis' protocol: {error}")
                return
            if reply is False:  # not complete yet
                return
            if not self._waiting:
                self._end("a reply to nothing")
                return
            self._waiting.popleft()(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc) if exc else "connection closed by Redis")

    def send(self, command: bytes, done: Callable[[Reply], None]) -> None:
        """``done`` hears the reply; never, where the connection ends before. It must not raise."""
        self._waiting.append(done)
        if self._transport is not None:
            self._transport.write(command)

    async def call(self, *parts: str | int | bytes) -> Reply:
        """The reply of one command. Raises RedisLostError, also for a reply that is an error."""
        if self._closed:
            raise RedisLostError("connection closed")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def done(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        self._calls.add(future)
        self.send(encoded(*parts), done)
        try:
            reply = await future
        finally:
            self._calls.discard(future)
        if isinstance(reply, hiredis.ReplyError):
            raise RedisLostError(str(reply))
        return reply

    def close(self) -> None:
        """End the connection now; what was sent may or may not be done."""
        self._closed = True
        self._waiting.clear()
        for future in self._calls:
            if not future.done():
                future.set_exception(RedisLostError("connection closed"))
        if self._transport is not None:
            self._transport.abort()

    def _end(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._lost(reason)


async def connect(url: str, *, timeout_s: float, lost: Callable[[str], None]) -> RedisLink:
    """A connection that has logged in and selected its database. Raises RedisLostError, ValueError for a wrong URL."""
    options = cast("dict[str, Any]", parse_url(url))
    loop = asyncio.get_running_loop()
    host, port, path = options.get("host", "localhost"), options.get("port", 6379), options.get("path")
    where = path or f"{host}:{port}"
    link = RedisLink(lost)
    ready = False
    try:
        async with asyncio.timeout(timeout_s):
            if path:
                await loop.create_unix_connection(lambda: link, path)
            else:
                await loop.create_connection(lambda: link, host, port, ssl=_tls(url, options))
            if options.get("password"):
                names = (options["username"],) if options.get("username") else ()
                await link.call("AUTH", *names, options["password"])
            if options.get("db"):
                await link.call("SELECT", options["db"])
            ready = True
            return link
    except TimeoutError:
        raise RedisLostError(f"{where}: no answer within {timeout_s:g} s") from None
    except (OSError, RedisLostError) as error:
        raise RedisLostError(f"{where}: {error}") from None
    finally:
        if not ready:
            link.close()


def _tls(url: str, options: dict[str, Any]) -> ssl.SSLContext | None:
    """The same options as redis-py takes in a ``rediss://`` URL."""
    if not url.startswith("rediss://"):
        return None
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
    required = options.get("ssl_cert_reqs", "required")
    context.check_hostname = required == "required" and str(options.get("ssl_check_hostname", True)).lower() != "false"
    if required == "none":
        context.verify_mode = ssl.CERT_NONE
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
    return context
