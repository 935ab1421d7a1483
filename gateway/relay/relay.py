"""What all connections of one worker share: limits, pools, services, counters, and the tick that enforces deadlines."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.policy.routes import RouteTable
from gateway.policy.rules import Policy, Rules
from gateway.policy.thresholds import BudgetUse
from gateway.relay.client import ClientConnection
from gateway.relay.counters import Counters
from gateway.relay.endings import Endings
from gateway.relay.exchange import Exchange
from gateway.relay.forwarding import Forwarding
from gateway.relay.heads import Fields
from gateway.relay.rate_keys import rate_key
from gateway.relay.request import Request
from gateway.relay.services import Admits, Charges, Identifies
from gateway.relay.shadow import Shadow

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.config import Settings
    from gateway.metrics import Metrics
    from gateway.policy.verdicts import Denial
    from gateway.relay.balancer import Balancer
    from gateway.relay.pool import Pool
    from gateway.tasks import Tasks

# Deadlines are looked at this often, and counted from the next look: a time-out is never early, and late by at most two
# ticks; no request pays for a timer.
TICK_S = 0.25
# A client that is between two requests when the worker begins to drain gets this long to send the next one and be
# told, with the answer, that the connection ends.
DRAIN_GRACE_S = 1.0
UNKNOWN_ADDRESS = b"unknown"  # of a client at the other end of a Unix socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on every client and upstream connection; ``config.yaml`` says why each is what it is."""

    head_bytes_max: int
    headers_max: int
    target_bytes_max: int
    header_timeout_s: float
    body_stall_timeout_s: float
    keepalive_timeout_s: float
    connections_max: int
    connections_per_address_max: int  # 0: no limit
    in_flight_max: int
    body_bytes_max: int
    body_bytes_per_s_min: int
    buffered_bytes_max: int
    captured_bytes_max: int
    connect_timeout_s: float
    first_byte_timeout_s: float
    idle_timeout_s: float
    tunnel_idle_timeout_s: float

    @classmethod
    def from_settings(cls, settings: "Settings") -> "Limits":
        """As ``config.yaml`` has them."""
        limits, upstream = settings.limits, settings.upstream
        return cls(
            head_bytes_max=limits.head_bytes_max,
            headers_max=limits.headers_max,
            target_bytes_max=limits.target_bytes_max,
            header_timeout_s=limits.header_timeout_s,
            body_stall_timeout_s=limits.body_stall_timeout_s,
            keepalive_timeout_s=limits.keepalive_timeout_s,
            connections_max=limits.connections_max,
            connections_per_address_max=limits.connections_per_address_max,
            in_flight_max=limits.in_flight_max,
            body_bytes_max=limits.body_bytes_max,
            body_bytes_per_s_min=limits.body_bytes_per_s_min,
            buffered_bytes_max=limits.buffered_bytes_max,
            captured_bytes_max=limits.captured_bytes_max,
            connect_timeout_s=upstream.connect_timeout_s,
            first_byte_timeout_s=upstream.first_byte_timeout_s,
            idle_timeout_s=upstream.idle_timeout_s,
            tunnel_idle_timeout_s=limits.tunnel_idle_timeout_s,
        )


def _nothing_known(_: "Account") -> BudgetUse | None:
    return None


class Relay:
    """One worker's data plane."""

    def __init__(
        self,
        *,
        limits: Limits,
        rules: Rules,
        identify: Identifies,
        admission: Admits,
        ledger: Charges,
        metrics: "Metrics",
        tasks: "Tasks",
        hosted_paths: frozenset[bytes],
        request_fields: Fields,
        new_event_id: Callable[[], str],
        forwarding: Forwarding | None = None,
    ) -> None:
        self.limits = limits
        self.forwarding = forwarding or Forwarding()
        self.identify = identify
        self.admission = admission
        self.ledger = ledger
        self.tasks = tasks
        self.hosted_paths = hosted_paths
        self.request_fields = request_fields
        self.new_event_id = new_event_id
        self.upstream_pool: Pool | Balancer
        self.hosted_pool: Pool
        # What a request becomes; an Observer takes this place where some are to be watched.
        self.new_exchange: Callable[[Relay, ClientConnection, Request], Exchange] = Exchange
        # Hears of a call, its status, its end and its denial, where the policy's log wants a line of it.
        self.noteworthy: Callable[[Exchange, int, str, Denial | None], None] = _nobody
        # How far an account's budget is used, where it is past a soft limit.
        self.budget_use: Callable[[Account], BudgetUse | None] = _nothing_known
        self.draining = False
        self.abandoned: set[Exchange] = set()
        self.in_flight = 0  # exchanges under way, of clients that wait and of those that have left
        self._connections: set[ClientConnection] = set()
        self._connections_by_address: dict[bytes, int] = {}  # empty where there is no limit on them
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        # Loop time when the next tick is due: what deadlines are counted from, since reading it is free.
        self.clock_s = self.now() + TICK_S
        self._request_prefix = os.urandom(8).hex().encode()
        self._requests_begun = 0
        self.counters = Counters(metrics)
        self.endings = Endings(self.counters)
        self.shadow = Shadow(metrics, self.now)
        self.use(rules)

    def use(self, rules: Rules, routes: RouteTable | None = None) -> None:
        """Takes new rules, and their ``routes`` where they are made; requests under way keep the policy they have."""
        self.rules = rules
        self.routes = routes or RouteTable(rules.policies)
        self.shadow.forget()
        for connection in self._connections:
            if connection.exchange is not None:
                connection.exchange.rules_changed()

    # --- connections

    def opened(self, connection: ClientConnection) -> bool:
        """Registers a client connection; False where there are too many."""
        self._connections.add(connection)
        self.counters.connections_open.set(len(self._connections))
        limits = self.limits
        is_one_client = connection.address != UNKNOWN_ADDRESS and not connection.is_trusted_proxy
        if limits.connections_per_address_max and is_one_client:
            count = self._connections_by_address.get(connection.address, 0) + 1
            self._connections_by_address[connection.address] = count
            if count > limits.connections_per_address_max:
                return False
        return len(self._connections) <= limits.connections_max

    def closed(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        self.counters.connections_open.set(len(self._connections))
        if connection.address in self._connections_by_address:
            self._connections_by_address[connection.address] -= 1
            if not self._connections_by_address[connection.address]:
                del self._connections_by_address[connection.address]

    @property
    def connections_open(self) -> int:
        """Client connections, tunnels included."""
        return len(self._connections)

    async def tick_forever(self) -> None:
        """Holds every connection to its deadline."""
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        now = self.now()
        self.clock_s = now + TICK_S
        # First what may come free, then who has waited too long for it.
        self.upstream_pool.tick()
        self.hosted_pool.tick()
        for connection in [late for late in self._connections if late.deadline < now]:
            connection.timed_out()
        for exchange in [late for late in self.abandoned if late.deadline < now]:
            exchange.timed_out()
        self.counters.upstream_connections.set(len(self.upstream_pool))

    async def drain(self, timeout_s: float) -> None:
        """Lets every exchange finish; each answer tells its client that the connection ends."""
        self.draining = True
        start = self.now()
        while (self._connections or self.abandoned) and self.now() - start < timeout_s:
            if self.now() - start > min(DRAIN_GRACE_S, timeout_s / 2):
                for connection in list(self._connections):
                    connection.drain()
            await asyncio.sleep(0.02)
        for connection in list(self._connections):
            connection.cut_off(reset=False)

    # --- what a call is

    def rate_keys(
        self,
        policy: Policy,
        account: "Account | None",
        request: Request,
        client: ClientConnection,
    ) -> tuple[str, ...]:
        """The value of each rate limit's key for this call, in the policy's order."""
        limits = policy.rate_limits
        account_id = "" if account is None else account.account_id
        address = client.address
        if client.is_trusted_proxy:
            address = self.forwarding.client_address(address, request)
        return tuple(
            rate_key(limit.key, policy, account_id, request.lines, request.credentials, address) for limit in limits
        )

    def new_request_id(self) -> bytes:
        """32 hex digits, unique among all workers."""
        self._requests_begun += 1
        return b"%b%016x" % (self._request_prefix, self._requests_begun)


def _nobody(_: Exchange, __: int, ___: str, ____: "Denial | None") -> None:
    """Nobody keeps a log."""
