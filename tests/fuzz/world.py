"""A relay between two ends of the fuzzer's: real sockets, one event loop, and a clock that only the fuzzer moves.

When nothing moves any more the clock jumps by an hour: every deadline passes, so whatever still waits then would wait
for ever. Each input must leave no connection behind.
"""

import asyncio
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import uvloop

from gateway.metrics import Metrics
from gateway.relay import heads
from gateway.relay.client import ClientConnection
from gateway.relay.pool import Pool
from gateway.relay.relay import Relay
from gateway.tasks import Tasks
from tests.differential.recording import Recorder, RecordingConnection
from tests.fuzz import grammar
from tests.fuzz.reading import answers_in, requests_in
from tests.relay.conftest import LIMITS, NO_RULES, NoServices

_HOUR_S = 3600.0
# Deadlines that may follow each other until a connection is gone: head, body, lingering, and some more.
_HOURS_MAX = 8
_POOLED_MAX = 8
# Turns of the loop without anything received, after which nothing moves.
_QUIET_TURNS = 6
_ID = re.compile(rb"[0-9a-f]{32}")


class FuzzError(Exception):
    """An input broke a promise; the text says which and holds the input."""


class World:
    """One relay, for any number of inputs."""

    pooled_max = _POOLED_MAX

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self._loop = loop
        self._moved = 0
        self._errors: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: self._errors.append(context))
        nothing: Any = NoServices()
        self._tasks = Tasks()
        self.relay = Relay(
            limits=LIMITS,
            rules=NO_RULES,
            identify=nothing,
            admission=nothing,
            ledger=nothing,
            metrics=Metrics(folder, "worker-0"),
            tasks=self._tasks,
            hosted_paths=frozenset(),
            request_fields=heads.request_fields("Authorization", "X-API-Key"),
            new_event_id=lambda: "0" * 32,
        )
        self._hours = 0
        self._early = False
        self.relay.now = lambda: loop.time() + self._hours * _HOUR_S
        self.recorder = Recorder()
        self._answer: Callable[[], asyncio.Protocol] = self._record
        self.relay.upstream_pool = self._pool("upstream")
        self.relay.hosted_pool = self._pool("hosted")
        self.relay.tick()

    def _pool(self, name: str) -> Pool:
        return Pool(
            self.relay,
            name,
            self._connect,
            host_line=b"Host: upstream\r\n",
            connections_max=_POOLED_MAX,
            waiting_max=100,
            keepalive_idle_s=1_000_000_000,  # an hour that passes must not hide a connection that is not clean
        )

    async def _connect(self, factory: Callable[[], asyncio.BaseProtocol]) -> object:
        ours, theirs = socket.socketpair()
        self._count()
        await self._loop.connect_accepted_socket(self._answer, theirs)
        self._count()
        made = await self._loop.create_connection(factory, sock=ours)
        self._count()
        return made

    def _record(self) -> asyncio.Protocol:
        return _Moving(RecordingConnection(self.recorder, answer_with_id=True, early=self._early), self._count)

    def _count(self) -> None:
        self._moved += 1

    # --- one input

    async def requests(self, pieces: Sequence[bytes], *, early: bool = False, one_by_one: bool = False) -> None:
        """A client that sends this: nothing breaks, and the upstream reads what Castgate read, no more and no less.

        ``early``: new connections' upstreams answer before they have the whole request. ``one_by_one``: a piece is sent
        when the one before it has had its effect.
        """
        self.recorder.seen.clear()
        self._early = early
        self._answer = self._record
        received = await self._client(pieces, one_by_one=one_by_one)
        data = b"".join(pieces)
        seen = [(each.method, each.target, each.body) for each in self.recorder.seen]
        if self.recorder.broken:
            raise FuzzError(f"the upstream could not read {self.recorder.broken}: {data!r}")
        ids = [each.values(b"x-request-id") for each in self.recorder.seen]
        if not all(len(each) == 1 and _ID.fullmatch(each[0]) for each in ids):
            raise FuzzError(f"the upstream read {seen}, of which some were none to the gateway: {data!r}")
        # An early answer is no answer to what the upstream did not get the rest of.
        told = [found for found in _ID.findall(received) if [found] in ids]
        if told != [each[0] for each, request in zip(ids, seen, strict=True) if request[0] != b"HEAD"][: len(told)]:
            raise FuzzError(f"answers {told} to {ids}: {data!r}")
        # Fragments of what h11 reads in another way than both would be a desync between two others.
        for ours, theirs in zip(seen, requests_in(data), strict=False):
            if ours != (theirs.method, theirs.target, theirs.body):
                raise FuzzError(f"read as {ours} here, and as {theirs} by h11: {data!r}")
        self._check(data)

    async def answer(self, pieces: Sequence[bytes], *, method: bytes, then_close: bool) -> None:
        """An upstream that answers this: its client gets one answer or an end, and nobody else gets any of it."""
        await self._new_upstream()
        upstream = _Scripted(pieces, then_close=then_close)
        self._answer = lambda: _Moving(upstream.connection(), self._count)
        probe = b"GET /probe HTTP/1.1\r\nHost: h\r\n\r\n"
        fuzzed = b"%b /fuzzed HTTP/1.1\r\nHost: h\r\n\r\n" % method
        received = await self._client([fuzzed, probe])
        for _ in range(2):  # the same answer again, whose head is known by then
            again = answers_in(await self._client([fuzzed]), [method], closed=True)
            if again.rest not in ("", "cut"):
                raise FuzzError(f"{again.rest}, when {pieces!r} came again")
        other = await self._client([probe])
        data = b"".join(pieces)
        answers = answers_in(received, [method, b"GET"], closed=True)
        if answers.rest not in ("", "cut"):
            raise FuzzError(f"{answers.rest}: {received!r} for {method!r} answered by {data!r}")
        # What comes later than in one piece with the answer may be taken for the next: nobody can tell them apart.
        if len(pieces) == 1 and len(answers.whole) > 1 and answers.whole[1].body != b"probe":
            raise FuzzError(f"the next answer is {answers.whole[1]} after {data!r}")
        if len(answers.whole) == 0 and received[:12] == b"HTTP/1.1 200" and b"\r\n\r\n" not in received:
            raise FuzzError(f"half a head came through: {received!r} for {data!r}")
        probed = answers_in(other, [b"GET"], closed=True)
        if [each.body for each in probed.whole] != [b"probe"]:
            raise FuzzError(f"somebody else got {other!r} after {data!r}")
        await self._new_upstream()
        self._check(data)

    async def _new_upstream(self) -> None:
        """What this upstream said must not be held against another one."""
        self.relay.upstream_pool.close()
        await self._quiet()

    async def _client(self, pieces: Sequence[bytes], *, one_by_one: bool = False) -> bytes:
        """Sends, waits until it is closed, and returns what came."""
        ours, theirs = socket.socketpair()
        client = _Client()
        transport, _ = await self._loop.connect_accepted_socket(lambda: _Moving(client, self._count), ours)
        await self._loop.connect_accepted_socket(lambda: ClientConnection(self.relay), theirs)
        for piece in pieces:
            if client.closed:
                break
            transport.write(piece)
            if one_by_one:
                await self._quiet()
            elif len(pieces) > 1:
                await asyncio.sleep(0)
        for _ in range(_HOURS_MAX):
            await self._quiet()
            if client.closed:
                break
            self._pass_an_hour()
        transport.abort()
        await self._quiet()
        for _ in range(2):
            self._pass_an_hour()
            await self._quiet()
        if not client.closed:
            raise FuzzError(f"the client waits for ever: {pieces!r}")
        return bytes(client.received)

    async def _quiet(self) -> None:
        """Returns when nothing moves any more."""
        turns = 0
        while turns < _QUIET_TURNS:
            before = self._moved
            await asyncio.sleep(0)
            turns = 0 if self._moved != before else turns + 1

    def _pass_an_hour(self) -> None:
        self._hours += 1
        self.relay.tick()

    def _check(self, data: bytes) -> None:
        if self._errors:
            raise FuzzError(f"an exception reached the loop's handler: {self._errors[0]}: {data!r}")
        if self.relay.connections_open:
            raise FuzzError(f"a connection is left: {data!r}")

    async def close(self) -> None:
        self.relay.upstream_pool.close()
        self.relay.hosted_pool.close()
        await self._quiet()
        await self._tasks.drain(0)


class _Moving(asyncio.Protocol):
    """Tells the world that something was received."""

    def __init__(self, inner: asyncio.Protocol, count: Callable[[], None]) -> None:
        self._inner = inner
        self._count = count
        self.connection_made = inner.connection_made  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        self._count()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        self._count()
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._count()
        self._inner.connection_lost(exc)


class _Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.closed = False

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.closed = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True


class _Scripted:
    """An upstream that answers ``/fuzzed`` with the given pieces, and ``/probe`` as it should."""

    def __init__(self, pieces: Sequence[bytes], *, then_close: bool) -> None:
        self._pieces = pieces
        self._then_close = then_close

    def connection(self) -> asyncio.Protocol:
        return _ScriptedConnection(self._pieces, then_close=self._then_close)


class _ScriptedConnection(asyncio.Protocol):
    def __init__(self, pieces: Sequence[bytes], *, then_close: bool) -> None:
        self._pieces = pieces
        self._then_close = then_close
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            if b" /probe " in head:
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nprobe")
            else:
                self._say(0)

    def _say(self, place: int) -> None:
        """One piece in each turn of the loop, as if they came one after the other."""
        if self._transport.is_closing():
            return
        if place < len(self._pieces):
            self._transport.write(self._pieces[place])
            asyncio.get_running_loop().call_soon(self._say, place + 1)
        elif self._then_close:
            self._transport.close()


@contextmanager
def running_world(folder: Path) -> Iterator[tuple[World, asyncio.AbstractEventLoop]]:
    """A world, and the loop that it runs in."""
    loop = uvloop.new_event_loop()

    async def make() -> World:
        return World(asyncio.get_running_loop(), folder)

    world = loop.run_until_complete(make())
    try:
        yield world, loop
        loop.run_until_complete(world.close())
    finally:
        loop.close()


async def run(world: World, seed: int, count: int) -> None:
    """Inputs ``seed`` to ``seed + count - 1``, each from a random generator of its own; FuzzError names the one."""
    for number in range(seed, seed + count):
        random = Random(number)
        try:
            kind = random.random()
            if kind < 0.05:  # heads that are nearly known
                await world.requests(grammar.nearly_the_same(random), one_by_one=True)
            elif kind < 0.6:
                data = grammar.requests(random)
                pieces = grammar.pieces(random, data)
                one_by_one = random.random() < 0.2
                if one_by_one:  # a head that was met before is not parsed again: with the same body, and another
                    pieces = [data, data, data[:-1] + b"z", *pieces]
                await world.requests(pieces, early=random.random() < 0.3, one_by_one=one_by_one)
            else:
                pieces = grammar.pieces(random, grammar.answer(random))
                method = random.choice((b"GET", b"GET", b"HEAD", b"OPTIONS"))
                await world.answer(pieces, method=method, then_close=random.random() < 0.5)
        except FuzzError as error:
            raise FuzzError(f"seed {number}: {error}") from None
