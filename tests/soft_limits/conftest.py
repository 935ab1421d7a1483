"""Writers of one ledger, each as a worker of its own gateway would be; and a receiver of webhooks."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from aiohttp import web

from gateway.accounts import Accounts
from gateway.admission_batch import windows_at
from gateway.config.settings_accounts import BudgetWebhook
from gateway.config.settings_stores import Ledger as LedgerSettings
from gateway.database import Database
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.outbox import Outbox
from gateway.policy.budgets import BudgetLimit
from gateway.policy.rules import Plan, Rules
from gateway.soft_limits import SoftLimits
from gateway.tasks import Tasks
from tests.ledger.conftest import database, metrics, sql, tasks
from tests.ledger.making import event, lenient_breaker, migrate

__all__ = ["database", "metrics", "sql", "tasks"]

CENT = 1_000_000
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"
MONTHLY = BudgetLimit(period="monthly", hard_limit_microcents=100 * CENT)
RULES = Rules(version="1", policies=(), plans={"free": Plan(name="free", budgets=(MONTHLY,))}, default_plan="free")


TABLES = (
    "soft_limit_announcements",
    "soft_limit_sweep",
    "usage_counters",
    "usage_events",
    "budgets",
    "billing_accounts",
)


@pytest.fixture(scope="package")
def package_url(postgres_url: str) -> Iterator[str]:
    """One migrated database for all tests here."""
    name = f"soft_limits_{os.getpid()}"
    url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    asyncio.run(_execute(postgres_url, f"CREATE DATABASE {name}"))
    asyncio.run(migrate(url))
    yield url
    asyncio.run(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def migrated_url(package_url: str) -> str:
    """The same database, with nothing in it."""
    await _execute(package_url, "".join(f"DELETE FROM {table};" for table in TABLES))
    return package_url


async def _execute(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(kw_only=True)
class Writer:
    """Accounts, ledger and soft limits of one worker."""

    accounts: Accounts
    ledger: Ledger
    soft_limits: SoftLimits
    database: Database
    tasks: Tasks
    metrics: Metrics
    rules: list[Rules]

    async def meet(self, *account_ids: str) -> None:
        """As admission does with accounts that call: their facts are read, their windows seeded."""
        accounts = [self.accounts.get(account_id) for account_id in account_ids]
        await self.accounts.load(accounts)
        await self.accounts.seed(
            [
                (one, dict(zip((limit.kind for limit in one.limits), windows_at(one.limits, now_ms()), strict=True)))
                for one in accounts
            ]
        )

    async def spend(self, account_id: str, *cents: float) -> None:
        """Calls that cost so much, in the ledger, with all that follows from that."""
        await self.meet(account_id)
        for cost in cents:
            self.ledger.append(event(account_id, round(cost * CENT), now_ms()))
            await self.tasks.drain(20)

    def count(self, threshold: str) -> int:
        return self.metrics.counter("castgate_soft_limit_total", threshold=threshold).value


MakeWriter = Callable[..., Writer]


@pytest.fixture
async def make_writer(migrated_url: str) -> AsyncIterator[MakeWriter]:
    made: list[Writer] = []

    def make(
        *, rules: Rules = RULES, queued: Callable[[], None] | None = None, url: str = migrated_url, listens: bool = True
    ) -> Writer:
        tasks, metrics = Tasks(), Metrics()
        current = [rules]
        database = Database(url, breaker=lenient_breaker(), metrics=metrics)
        accounts = Accounts(database, lambda: current[0], tasks)
        settings = LedgerSettings.model_validate({"flush_interval": "1ms", "cast_cost_sql": ""})
        ledger = Ledger(database, settings, tasks, metrics)
        soft_limits = SoftLimits(
            database=database,
            accounts=accounts,
            rules=lambda: current[0],
            tasks=tasks,
            metrics=metrics,
            queued=queued,
        )
        if listens:
            ledger.on_committed = lambda _events, usages: soft_limits.committed(usages)
        writer = Writer(
            accounts=accounts,
            ledger=ledger,
            soft_limits=soft_limits,
            database=database,
            tasks=tasks,
            metrics=metrics,
            rules=current,
        )
        made.append(writer)
        return writer

    yield make
    for writer in made:
        await writer.ledger.close(2.0)
        await writer.soft_limits.close()
        await writer.tasks.drain(1.0)
        await writer.database.close()
        writer.metrics.close()


@pytest.fixture
def writer(make_writer: MakeWriter) -> Writer:
    return make_writer()


async def announced(sql: "asyncpg.Connection[asyncpg.Record]", account_id: str) -> list[str]:
    """The thresholds announced of an account, in their order."""
    rows = await sql.fetch(
        """
        SELECT threshold FROM soft_limit_announcements WHERE account_id = $1
        ORDER BY window_end, period, time_zone, threshold_microcents, threshold
        """,
        account_id,
    )
    return [row["threshold"] for row in rows]


@dataclass(kw_only=True)
class Received:
    headers: dict[str, str]
    body: bytes


Play = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Receiver:
    """Somebody's endpoint; ``plays`` says how it answers the next requests, and 204 after those."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    plays: list[int | Play] = field(default_factory=list)
    elsewhere: int = 0
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(headers=headers, body=body))
        self._more.set()
        play = self.plays.pop(0) if self.plays else 204
        if isinstance(play, int):
            return web.Response(status=play)
        return await play(request)

    async def handle_elsewhere(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.received) < count:
                self._more.clear()
                await self._more.wait()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hooks/t0ken", receiver.handle)
    app.router.add_route("*", "/elsewhere", receiver.handle_elsewhere)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/t0ken"
    yield receiver
    await runner.cleanup()


MakeOutbox = Callable[..., Outbox]


@pytest.fixture
async def make_outbox(
    migrated_url: str, metrics: Metrics, tasks: Tasks, receiver: Receiver
) -> AsyncIterator[MakeOutbox]:
    made: list[tuple[Outbox, Database]] = []

    def make(poll_s: float = 0.02, **settings: object) -> Outbox:
        own = Database(migrated_url, breaker=lenient_breaker(), metrics=metrics)
        read = BudgetWebhook.model_validate({"url": receiver.url, "secret": SECRET, "timeout": "10s", **settings})
        outbox = Outbox(own, read, tasks, metrics, poll_s=poll_s)
        made.append((outbox, own))
        return outbox

    yield make
    for outbox, own in made:
        await outbox.close()
        await own.close()
