"""An upstream of several addresses: calls go round, addresses that fail are left out for a while, names are kept fresh.

One address (a member) is in one of these states:

    state    gets                             leaves it
    SERVING  calls in its turn                after ``eject_after`` failures in a row, unless it is the last: EJECTED
    EJECTED  one call whenever a pause of     with the first call that is answered: SERVING. Each failure doubles the
             ``eject_for`` is over            pause, up to eight times ``eject_for``
    RETIRED  what waits for it already        its name no longer leads to it; gone with its last connection

A call for which no connection could be made goes to the next address, each of them once: nothing of it was sent, so it
cannot be done twice. A call that was sent is never sent again by this module (``Exchange`` knows what may be).

Names are looked up beside the calls, every ``dns_ttl``, because libc does not tell how long an answer holds. A lookup
that fails changes nothing. Calls that come before the first lookup has ended wait for it.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gateway.relay.pool import Pool

if TYPE_CHECKING:
    from gateway.relay.exchange import Exchange
    from gateway.relay.relay import Relay

# Doubled no further: an address that is back must not wait for hours.
_EJECT_FACTOR_MAX = 8
# resolv.conf's own time-out is 5 s for each server; whoever has no answer by then has no resolver.
_LOOKUP_TIMEOUT_S = 5.0
# While a name has led nowhere yet, calls fail: it is looked up this often.
_LOOKUP_AGAIN_S = 0.5
# More addresses than this behind one name are taken from the front of the list.
_ADDRESSES_OF_A_NAME_MAX = 64

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a connection goes to: the configured address ``origin``, at ``host`` (a number) or ``path``."""

    origin: int  # its place in the configuration
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A host name to be looked up, and the place of its address in the configuration."""

    origin: int
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """When an address is left out, and how names are kept fresh; ``config.yaml`` says why."""

    eject_after: int
    eject_for_s: float
    dns_ttl_s: float


LookUp = Callable[[str, int], Awaitable[list[str]]]


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, in the order that the system prefers. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Member:
    """A target, its pool, and how it has done lately."""

    __slots__ = ("failures", "is_ejected", "is_tried", "pause_s", "pool", "target", "try_at_s")

    def __init__(self, target: Target, pool: Pool) -> None:
        self.target = target
        self.pool = pool
        self.failures = 0  # in a row
        self.is_ejected = False
        self.is_tried = False  # the one call that it gets while it is ejected is under way
        self.pause_s = 0.0
        self.try_at_s = 0.0


class Balancer:
    """What the relay acquires connections from, like a Pool, where an upstream is more than one fixed address."""

    def __init__(
        self,
        relay: "Relay",
        *,
        targets: Iterable[Target],
        names: Iterable[Name],
        health: Health,
        new_pool: Callable[["Balancer", Target], Pool],
        host_line: bytes,
        waiting_max: int,
        look_up: LookUp = look_up,
    ) -> None:
        self.host_line = host_line
        # With one address there is nothing to choose, and nothing to pay for.
        self.acquire: Callable[[Exchange], None] = self._wait_for_lookup
        self._relay = relay
        self._health = health
        self._new_pool = new_pool
        self._waiting_max = waiting_max
        self._look_up = look_up
        self._fixed = tuple(targets)
        self._names = tuple(names)
        self._found: dict[Name, list[Target]] = {}
        self._members: dict[Pool, _Member] = {}
        self._retired: list[Pool] = []
        self._serving: list[Pool] = []
        self._to_try: list[Pool] = []  # ejected ones whose pause is over
        self._turn = 0
        self._waiting: deque[Exchange] = deque()  # for the first lookup
        self._tried: dict[Exchange, set[Pool]] = {}  # those whose connecting has failed at least once
        if self._fixed:
            self._use_targets(self._fixed)

    # --- calls

    def _acquire_next(self, exchange: "Exchange") -> None:
        if self._to_try:
            pool = self._to_try.pop()
            member = self._members[pool]
            member.is_tried = True
            member.try_at_s = self._relay.clock_s + member.pause_s  # unless it is known before
        else:
            self._turn += 1
            pool = self._serving[self._turn % len(self._serving)]
        pool.acquire(exchange)

    def _wait_for_lookup(self, exchange: "Exchange") -> None:
        if len(self._waiting) >= self._waiting_max:
            exchange.overloaded()
        else:
            self._waiting.append(exchange)

    def give_up(self, exchange: "Exchange") -> None:
        """The exchange no longer waits."""
        self._tried.pop(exchange, None)
        if exchange in self._waiting:
            self._waiting.remove(exchange)
        for pool in (*self._members, *self._retired):
            pool.give_up(exchange)

    def connect_failed(self, pool: Pool, exchange: "Exchange", error: BaseException) -> None:
        """Nothing was sent yet: the call goes to an address that it has not tried, those that serve first."""
        self.failed(pool)
        tried = self._tried.setdefault(exchange, set())
        tried.add(pool)
        untried = [other for other in self._members if other not in tried]
        if untried and not exchange.finished:
            serving = [other for other in untried if not self._members[other].is_ejected] or untried
            self._turn += 1
            exchange.connecting_again()
            serving[self._turn % len(serving)].acquire(exchange)
            return
        del self._tried[exchange]
        exchange.connect_failed(error)

    # --- health

    def failed(self, pool: Pool) -> None:
        """One failure more; that may be one too many."""
        member = self._members.get(pool)
        if member is None:  # retired meanwhile
            return
        member.failures += 1
        pool.is_doubtful = True
        if member.is_tried:
            member.is_tried = False
            member.pause_s = min(member.pause_s * 2, self._health.eject_for_s * _EJECT_FACTOR_MAX)
            member.try_at_s = self._relay.clock_s + member.pause_s
        elif member.failures >= self._health.eject_after and len(self._serving) > 1 and not member.is_ejected:
            member.is_ejected = True
            member.pause_s = self._health.eject_for_s
            member.try_at_s = self._relay.clock_s + member.pause_s
            self._serving.remove(pool)
            self._relay.counters.upstream_ejections.add()
            _log.warning("upstream_ejected", address=pool.name, failures=member.failures, for_s=member.pause_s)
            self._count()

    def succeeded(self, pool: Pool) -> None:
        """It answered: whatever was wrong is over."""
        pool.is_doubtful = False
        member = self._members.get(pool)
        if member is None:
            return
        member.failures = 0
        if member.is_ejected:
            member.is_ejected = member.is_tried = False
            self._serving.append(pool)
            if pool in self._to_try:
                self._to_try.remove(pool)
            _log.info("upstream_returned", address=pool.name)
            self._count()

    def tick(self) -> None:
        """Called by ``Relay.tick``."""
        for pool in (*self._members, *self._retired):
            pool.tick()
        self._retired = [pool for pool in self._retired if not pool.is_unused]
        self._tried = {exchange: pools for exchange, pools in self._tried.items() if not exchange.finished}
        for pool, member in self._members.items():
            if member.is_ejected and member.try_at_s <= self._relay.clock_s and pool not in self._to_try:
                self._to_try.append(pool)

    def _count(self) -> None:
        self._relay.counters.upstream_addresses.set(len(self._serving))

    # --- names

    async def look_up_forever(self) -> None:
        """Keeps the addresses of every name fresh."""
        while self._names:
            await self._look_up_all()
            await asyncio.sleep(self._health.dns_ttl_s if len(self._found) == len(self._names) else _LOOKUP_AGAIN_S)

    async def _look_up_all(self) -> None:
        faults = await asyncio.gather(*(self._look_up_one(name) for name in self._names))
        targets = [*self._fixed, *(target for found in self._found.values() for target in found)]
        if targets:
            self._use_targets(targets)
        waiting, self._waiting = self._waiting, deque()
        for exchange in waiting:
            if exchange.finished:
                continue
            if targets:
                self.acquire(exchange)
            else:
                exchange.connect_failed(next(filter(None, faults), OSError("the name has no address")))

    async def _look_up_one(self, name: Name) -> Exception | None:
        """Notes what a name leads to; what went wrong, where nothing is known anew."""
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT_S):
                hosts = await self._look_up(name.host, name.port)
        except (OSError, TimeoutError, UnicodeError) as error:  # UnicodeError: what no name can be (a..b)
            _log.warning("upstream_lookup_failed", name=name.host, error=str(error) or "no answer in time")
            return error
        if hosts:
            self._found[name] = [
                Target(origin=name.origin, host=host, port=name.port) for host in hosts[:_ADDRESSES_OF_A_NAME_MAX]
            ]
        return None

    def _use_targets(self, targets: Iterable[Target]) -> None:
        """Takes these in place of the last ones; connections to those that stay, stay."""
        wanted = dict.fromkeys(targets)
        known = {member.target for member in self._members.values()}
        if known == wanted.keys():
            return
        for member in list(self._members.values()):
            if member.target not in wanted:
                self._leave(member.pool)
        for target in wanted:
            if target not in known:
                pool = self._new_pool(self, target)
                self._members[pool] = _Member(target, pool)
                self._serving.append(pool)
        if not self._serving:  # all that is left was ejected, and may no longer be
            for pool in list(self._members):
                self.succeeded(pool)
        self.acquire = self._serving[0].acquire if len(self._members) == 1 else self._acquire_next
        if known:
            _log.info("upstream_addresses", addresses=[pool.name for pool in self._members])
        self._count()

    def _leave(self, pool: Pool) -> None:
        del self._members[pool]
        for pools in (self._serving, self._to_try):
            if pool in pools:
                pools.remove(pool)
        pool.retire()
        self._retired.append(pool)

    def close(self) -> None:
        """Closes every connection; exchanges still under way see it lost."""
        for pool in (*self._members, *self._retired):
            pool.close()

    def __len__(self) -> int:
        return sum(len(pool) for pool in (*self._members, *self._retired))

    @property
    def busy(self) -> int:
        """Connections that carry a call."""
        return sum(pool.busy for pool in (*self._members, *self._retired))

    @property
    def waiting(self) -> int:
        """Exchanges that wait for a connection, or for the first lookup."""
        return len(self._waiting) + sum(pool.waiting for pool in (*self._members, *self._retired))
