"""A migrated database of its own for each test, with a stand-in for Phase 1's casts."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import asyncpg
import pytest

from gateway.accounts import Accounts
from gateway.config.settings_stores import Ledger as LedgerSettings
from gateway.database import Database
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.policy.rules import Plan, Rules
from gateway.tasks import Tasks
from tests.ledger.making import CASTS, Committed, lenient_breaker, migrate


@pytest.fixture
async def migrated_url(database_url: str) -> str:
    await migrate(database_url, CASTS)
    return database_url


@pytest.fixture
async def sql(migrated_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(migrated_url)
    yield connection
    await connection.close()


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.close()


@pytest.fixture
async def database(migrated_url: str, metrics: Metrics) -> AsyncIterator[Database]:
    database = Database(migrated_url, breaker=lenient_breaker(), metrics=metrics)
    yield database
    await database.close()


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    tasks = Tasks()
    yield tasks
    await tasks.drain(1.0)


@pytest.fixture
def rules() -> Rules:
    return Rules(version="1", policies=(), plans={"free": Plan(name="free")}, default_plan="free")


@pytest.fixture
def accounts(database: Database, rules: Rules, tasks: Tasks) -> Accounts:
    return Accounts(database, lambda: rules, tasks)


MakeLedger = Callable[..., tuple[Ledger, Committed]]


@pytest.fixture
async def make_ledger(migrated_url: str, tasks: Tasks, metrics: Metrics) -> AsyncIterator[MakeLedger]:
    made: list[Ledger] = []
    own = Database(migrated_url, breaker=lenient_breaker(), metrics=metrics)

    def make(
        *, database: Database = own, spill: Callable[..., bool] | None = None, **settings: object
    ) -> tuple[Ledger, Committed]:
        read = LedgerSettings.model_validate({"flush_interval": "1ms", **settings})
        more = {} if spill is None else {"spill": spill}
        ledger = Ledger(database, read, tasks, metrics, **more)
        ledger._turns._clock = lambda: 0.0  # how batches are cut is to be no matter of this machine's speed
        committed = Committed()
        ledger.on_committed = committed.commit  # type: ignore[assignment]
        ledger.on_dropped = committed.dropped.extend
        made.append(ledger)
        return ledger, committed

    yield make
    for ledger in made:
        await ledger.close(2.0)
    await own.close()


CheckCounters = Callable[[], Awaitable[None]]


@pytest.fixture
def counters_equal_ledger(sql: "asyncpg.Connection[asyncpg.Record]") -> CheckCounters:
    """Every counter holds exactly the sum and the number of its window's events, and every account has its total."""

    async def check() -> None:
        wrong = await sql.fetch(
            """
            SELECT counter.account_id, counter.period, counter.window_end, counter.used_microcents, past.cost,
                   counter.calls, past.calls
            FROM usage_counters AS counter
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(cost_microcents), 0) AS cost, count(*) AS calls FROM usage_events AS event
                WHERE event.account_id = counter.account_id
                  AND event.occurred_at >= counter.window_start AND event.occurred_at < counter.window_end
            ) AS past
            WHERE counter.used_microcents <> past.cost OR counter.calls <> past.calls
            """
        )
        assert wrong == []
        without_total = await sql.fetch(
            """
            SELECT DISTINCT account_id FROM usage_events
            EXCEPT SELECT account_id FROM usage_counters WHERE period = 'total'
            """
        )
        assert without_total == []

    return check
