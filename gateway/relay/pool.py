"""Connections to one address of an upstream: the idle ones are kept, and calls wait here for one to come free."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, cast

from gateway.relay.known import KnownAnswers
from gateway.relay.upstream import UpstreamConnection

if TYPE_CHECKING:
    from gateway.relay.exchange import Exchange
    from gateway.relay.relay import Relay

# Connects the protocol that it is given.
Connector = Callable[[Callable[[], asyncio.Protocol]], Awaitable[object]]


class Owner(Protocol):
    """Whoever has several pools, and knows what to do when one of them fails."""

    def connect_failed(self, pool: "Pool", exchange: "Exchange", error: BaseException) -> None:
        """No connection could be made for this exchange, of which nothing was sent."""

    def failed(self, pool: "Pool") -> None:
        """The address failed a call."""

    def succeeded(self, pool: "Pool") -> None:
        """The address answered a call in full; told only while the pool is doubtful."""


class Pool:
    """Connections to one address. Idle ones are reused newest first, so that surplus ones grow old and are closed."""

    def __init__(
        self,
        relay: "Relay",
        name: str,
        connector: Connector,
        *,
        host_line: bytes,
        connections_max: int,
        waiting_max: int,
        keepalive_idle_s: float,
        owner: Owner | None = None,
    ) -> None:
        self.name = name
        self.known_answers = KnownAnswers()
        self.host_line = host_line  # for HTTP/1.0 requests that name no host
        self.is_doubtful = False  # it failed lately: the owner wants to hear of the next success
        self._relay = relay
        self._connector = connector
        self._connections_max = connections_max
        self._waiting_max = waiting_max
        self._keepalive_idle_s = keepalive_idle_s
        self._oldest_s = relay.clock_s - keepalive_idle_s  # idle since before then is too long
        self._owner = owner
        self._retired = False
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._connecting = 0
        self._waiting: deque[Exchange] = deque()

    def acquire(self, exchange: "Exchange") -> None:
        """Calls ``exchange.connected`` at once with an idle connection, or later with a new or released one.

        ``exchange.connect_failed`` says that none could be made; ``exchange.overloaded`` that too many wait already.
        """
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.open and connection.idle_since >= self._oldest_s:
                exchange.connected(connection)
                return
            connection.close()
        if len(self._waiting) >= self._waiting_max:
            exchange.overloaded()
            return
        self._waiting.append(exchange)
        self._connect_more()

    def _connect_more(self) -> None:
        if self._connecting < len(self._waiting) and len(self._all) + self._connecting < self._connections_max:
            self._connecting += 1
            self._relay.tasks.start(f"connect to {self.name}", self._connect())

    async def _connect(self) -> None:
        connection = UpstreamConnection(self._relay, self)
        protocol = cast("asyncio.Protocol", connection)
        error: OSError | TimeoutError | None = None
        try:
            async with asyncio.timeout(self._relay.limits.connect_timeout_s):
                await self._connector(lambda: protocol)
            if not connection.open:  # accepted and closed in one breath
                error = ConnectionResetError("closed as soon as it was opened")
        except (OSError, TimeoutError) as failure:
            error = failure
        self._connecting -= 1
        if error is None:
            self._all.add(connection)
            self.release(connection)
            return
        if self._waiting:
            exchange = self._waiting.popleft()
            if self._owner is None:
                exchange.connect_failed(error)
            else:
                self._owner.connect_failed(self, exchange, error)
        self._connect_more()

    def release(self, connection: UpstreamConnection) -> None:
        """A connection that is free: the next exchange waiting gets it, else it idles."""
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.finished:
                exchange.connected(connection)
                return
        if self._retired:
            connection.close()
            return
        connection.idle_since = self._relay.clock_s
        self._idle.append(connection)

    def give_up(self, exchange: "Exchange") -> None:
        """The exchange no longer waits."""
        if exchange in self._waiting:
            self._waiting.remove(exchange)

    def leave(self, connection: UpstreamConnection) -> None:
        """A connection that has become a tunnel: calls must not wait because others talk for hours."""
        self._all.discard(connection)
        self._connect_more()

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection has ended."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._connect_more()

    def failed(self) -> None:
        """A call failed by the address' fault, be it by none of an answer, an invalid one, or none in time."""
        if self._owner is not None:
            self._owner.failed(self)

    def succeeded(self) -> None:
        """A call was answered in full."""
        if self._owner is not None:
            self._owner.succeeded(self)

    def tick(self) -> None:
        """Closes what has idled too long, and takes connections from clients that hardly use them while others wait."""
        self._oldest_s = self._relay.clock_s - self._keepalive_idle_s
        for connection in [idle for idle in self._idle if idle.idle_since < self._oldest_s]:
            self._idle.remove(connection)
            connection.close()
        if self._waiting and len(self._all) + self._connecting >= self._connections_max:
            exchanges = [connection.exchange for connection in self._all if connection.exchange is not None]
            dawdling = [exchange for exchange in exchanges if exchange.is_dawdling()]
            for exchange in dawdling[: len(self._waiting)]:
                exchange.timed_out()

    def retire(self) -> None:
        """Serves what it has begun and what waits, and then ends: the address is no longer the upstream's."""
        self._retired = True
        for connection in list(self._idle):
            connection.close()

    def close(self) -> None:
        """Closes every connection; exchanges still under way see it lost."""
        for connection in list(self._all):
            connection.close()

    @property
    def is_unused(self) -> bool:
        """Whether it has no connection and nobody waits for one."""
        return not (self._all or self._connecting or self._waiting)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def busy(self) -> int:
        """Connections that carry a call."""
        return len(self._all) - len(self._idle)

    @property
    def waiting(self) -> int:
        """Exchanges that wait for a connection."""
        return len(self._waiting)
