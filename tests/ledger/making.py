"""What the ledger's tests are made of: migrated databases, events, and somebody who listens."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import asyncpg

from gateway.breaker import Breaker
from gateway.ledger import UsageEvent, WindowUsage, event_id

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
CASTS = "CREATE TABLE casts (id uuid PRIMARY KEY, note text)"
# 2026-11-22T12:00:00Z, a Sunday.
NOON_MS = 1_795_348_800_000


def lenient_breaker() -> Breaker:
    """Lets everything through: these tests are not about it."""
    return Breaker(clock=time.monotonic, failures_max=10**9)


async def migrate(url: str, *before: str) -> None:
    """Every migration in order, as ``psql -f`` would; ``before`` is what Phase 1 had made."""
    connection = await asyncpg.connect(url)
    try:
        for statement in before:
            await connection.execute(statement)
        for path in sorted(MIGRATIONS.glob("*.sql")):
            if not path.name.endswith(".rollback.sql"):
                await connection.execute(path.read_text())
    finally:
        await connection.close()


def event(account_id: str, cost_microcents: int = 1_000_000, occurred_ms: int = NOON_MS, **more: object) -> UsageEvent:
    fields: dict[str, object] = {
        "event_id": event_id(),
        "account_id": account_id,
        "policy": "cast",
        "occurred_ms": occurred_ms,
        "cost_microcents": cost_microcents,
        "upstream_status": 200,
        "outcome": "posted",
        **more,
    }
    return UsageEvent(**fields)  # type: ignore[arg-type]


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Returns once ``holds`` does: for what only another program's tables can tell."""
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.01)


class Committed:
    """What a ledger told its listeners."""

    def __init__(self) -> None:
        self._more = asyncio.Event()
        self.events: list[UsageEvent] = []
        self.dropped: list[UsageEvent] = []
        self.usages: dict[tuple[str, str, int], int] = {}
        self.batches: list[int] = []

    def commit(self, events: Sequence[UsageEvent], usages: Sequence[WindowUsage]) -> None:
        self.events += events
        self.batches.append(len(events))
        self._more.set()
        for usage in usages:
            key = (usage.account_id, usage.kind, usage.start_ms)
            assert usage.used_microcents >= self.usages.get(key, 0), "use never falls"
            self.usages[key] = usage.used_microcents

    async def wait_for(self, count: int, timeout_s: float = 20.0) -> None:
        """Returns once ``count`` events are committed."""
        async with asyncio.timeout(timeout_s):
            while len(self.events) < count:
                self._more.clear()
                await self._more.wait()
