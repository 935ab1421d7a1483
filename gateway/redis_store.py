"""One connection to Redis for scripts: commands go out as they come, replies come back to callbacks in order.

Admission sends one script call at a time and has nothing to gain from a pool, a task per call or a command object:
docs/decisions/0002-admission-batching.md has the figures. Which server to connect to is ``redis_topology``'s to find;
the bytes are read by hiredis.
"""

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import hiredis

from gateway.policy.rules import ALGORITHMS

if TYPE_CHECKING:
    import ssl

Reply = Any  # bytes, int, None, hiredis.ReplyError, or a list of these


class RedisLostError(Exception):
    """Redis is away, or cannot do what was asked now; whether it did is not known. The text has no secret in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A Lua script by which Redis is called; ``sha`` is what Redis calls it."""

    source: bytes
    sha: str


def read_script(*names: str, parts: Sequence[str] = ()) -> Script:
    """The script made of ``gateway/lua/<name>.lua``, in the order given; ``parts`` run when they are asked for.

    They stand before the last file: see ``lua/parts.lua``.
    """
    constants: dict[bytes, bytes] = {}
    *before, last = (_without_constants(name, constants) for name in names)
    if parts:
        branches = [
            b"if name == '%b' then\n%b" % (name.encode(), _without_constants(name, dict(constants))) for name in parts
        ]
        before.append(b"run = function(name, given)\n%bend\nend\n" % b"else".join(branches))
    source = b"\n".join((*before, last))
    return Script(source=source, sha=hashlib.sha1(source, usedforsecurity=False).hexdigest())


# local NAME = 1, and several: what stands in capitals is a constant, of this file and those after it.
_CONSTANTS = re.compile(rb"(?m)^local ([A-Z][A-Z_]+(?:, [A-Z][A-Z_]+)*) = ((?:[0-9]|'[^']*').*?)(?: +--.*)?\n")


def _without_constants(name: str, constants: dict[bytes, bytes]) -> bytes:
    """A file with what its constants are in place of their names; its own join ``constants``."""
    source = files("gateway").joinpath("lua", f"{name}.lua").read_bytes()
    for found in _CONSTANTS.finditer(source):
        values = [b"(%b)" % value if b" " in value else value for value in found[2].split(b", ")]
        constants.update(zip(found[1].split(b", "), values, strict=True))
    source = _CONSTANTS.sub(b"", source)
    if not constants:
        return source
    return re.sub(rb"(?<![\w.])(?:%b)\b(?! = )" % b"|".join(constants), lambda found: constants[found[0]], source)


LIMIT_PARTS = tuple(f"limits_{algorithm}" for algorithm in ALGORITHMS)
ADMIT = read_script(
    *("input", "fence", "parts", "reads", "accounts", "holds", "books", "limits", "admit"),
    parts=("settle", "decide", "groups", "members", "tiers", "rolled", *LIMIT_PARTS),
)
RESTORE = read_script(
    *("parts", "input", "reads", "accounts", "holds", "books", "restore"),
    parts=("groups", "members", "tiers", "limits_concurrency"),
)
JOIN = read_script("join")
OPENS = read_script("opens")
FACTS = read_script("parts", "partition", "reads", "accounts", "facts", parts=("tiers",))
ORPHANS = read_script("parts", "partition", "holds", "orphans", parts=("groups", "members"))
DRIFT = read_script("parts", "partition", "reads", "accounts", "holds", "drift", parts=("groups", "tiers"))


def encoded(*parts: str | int | bytes) -> bytes:
    """A command as RESP."""
    pieces = [b"*%d\r\n" % len(parts)]
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        pieces.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(pieces)


class RedisLink:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One Redis: a host and a port, or a Unix socket (``path``). ``login`` is a password, or a user and a password."""

    host: str = ""
    port: int = 0
    path: str = ""
    login: tuple[str, ...] = field(default=(), repr=False)
    db: int = 0
    tls: "ssl.SSLContext | None" = None

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


async def connect(server: Server, *, timeout_s: float, lost: Callable[[str], None]) -> RedisLink:
    """A connection that has logged in and selected its database. Raises RedisLostError."""
    loop = asyncio.get_running_loop()
    link = RedisLink(lost)
    protocol = cast("asyncio.Protocol", link)
    ready = False
    try:
        async with asyncio.timeout(timeout_s):
            if server.path:
                await loop.create_unix_connection(lambda: protocol, server.path)
            else:
                await loop.create_connection(lambda: protocol, server.host, server.port, ssl=server.tls)
            if server.login:
                await link.call("AUTH", *server.login)
            if server.db:
                await link.call("SELECT", server.db)
            ready = True
            return link
    except TimeoutError:
        raise RedisLostError(f"{server}: no answer within {timeout_s:g} s") from None
    except (OSError, RedisLostError) as error:
        raise RedisLostError(f"{server}: {error}") from None
    finally:
        if not ready:
            link.close()
