"""Behind pgbouncer in transaction mode everything works as it does without, and nobody has to say that it is there."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.accounts import Accounts
from gateway.config.settings_stores import Database as DatabaseSettings
from gateway.database import QUERIES, Database, StoreError
from gateway.metrics import Metrics
from gateway.policy.rules import Rules
from gateway.tasks import Tasks
from tests.ledger.conftest import CheckCounters, MakeLedger
from tests.ledger.making import NOON_MS, event, lenient_breaker
from tests.ledger.pgbouncer import PROGRAM, WHY_NOT, pgbouncer
from tests.ledger.test_races import KINDS, windows_at

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)

Connection = asyncpg.Connection
IGNORED = {"ignore_startup_parameters": "statement_timeout,idle_in_transaction_session_timeout"}


@pytest.fixture(params=[{}, IGNORED], ids=["refuses settings", "ignores settings"])
def pooled_url(migrated_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    with pgbouncer(migrated_url, **request.param) as url:
        yield url


@pytest.fixture
async def pooled(pooled_url: str, metrics: Metrics) -> AsyncIterator[Database]:
    # The machine may be busy with other tests.
    patient = {"acquire_timeout_s": 20.0, "connect_timeout_s": 20.0, "statement_timeout_s": 20.0}
    database = Database(pooled_url, breaker=lenient_breaker(), metrics=metrics, **patient)
    yield database
    await database.close()


async def test_it_is_found_out_and_a_gateway_says_so_once(pooled_url: str, metrics: Metrics) -> None:
    patient = {"acquire_timeout": "20s", "connect_timeout": "20s", "statement_timeout": "20s"}
    database = Database.from_settings(DatabaseSettings.model_validate({"url": pooled_url, **patient}), metrics)
    with capture_logs() as logs:
        await asyncio.gather(*(database.fetch(QUERIES["load_facts"], ["a"]) for _ in range(6)))
    assert [line["event"] for line in logs] == ["postgres_behind_pooler"]
    assert logs[0]["address"] == pooled_url.partition("@")[2]
    await database.close()


async def test_postgres_itself_is_not_taken_for_one(database: Database) -> None:
    with capture_logs() as logs:
        await database.fetch("SELECT 1")
        row = await database.fetchrow("SELECT count(*) AS kept FROM pg_prepared_statements")
    assert logs == []
    assert row is not None
    assert row["kept"] > 0


async def test_writers_and_seeders_work_as_without_it(
    pooled: Database,
    sql: Connection,
    rules: Rules,
    tasks: Tasks,
    make_ledger: MakeLedger,
    counters_equal_ledger: CheckCounters,
) -> None:
    accounts = Accounts(pooled, lambda: rules, tasks)
    ledger, committed = make_ledger(database=pooled, batch_max=20)

    async def write() -> None:
        for number in range(400):
            ledger.append(event(f"account-{number % 10}"))
            if number % 20 == 0:
                await asyncio.sleep(0.001)

    async def seed() -> None:
        for limit in KINDS:
            await accounts.seed([(accounts.get(f"account-{n}"), windows_at(NOON_MS, [limit])) for n in range(10)])

    await asyncio.gather(write(), seed(), seed())
    await committed.wait_for(400)
    assert committed.dropped == []
    await counters_equal_ledger()
    assert await sql.fetchval("SELECT sum(calls) FROM usage_counters WHERE period = 'total'") == 400


async def test_nothing_of_ours_stays_on_the_servers_connections(pooled: Database) -> None:
    async def look() -> asyncpg.Record | None:
        return await pooled.fetchrow(
            "SELECT pg_backend_pid() AS pid, current_setting('jit') AS jit, current_setting('lock_timeout') AS lock, "
            "current_setting('statement_timeout') AS statement, pg_sleep(0.01), "
            "(SELECT count(*) FROM pg_prepared_statements WHERE name <> '') AS kept"
        )

    async with pooled.transaction() as connection:
        assert await connection.fetchval("SELECT current_setting('statement_timeout')") == "20500ms"
    for _ in range(3):
        await asyncio.gather(*(pooled.fetch(QUERIES["recorded_events"], []) for _ in range(8)))
    seen = [row for row in await asyncio.gather(*(look() for _ in range(16))) if row is not None]
    assert len({row["pid"] for row in seen}) > 1, "they take turns"
    assert {(row["jit"], row["lock"], row["statement"], row["kept"]) for row in seen} == {("on", "0", "0", 0)}


async def test_a_url_may_say_that_there_is_none(
    pooled_url: str, metrics: Metrics, request: pytest.FixtureRequest
) -> None:
    """For a pooler that keeps prepared statements itself, or one in session mode."""
    database = Database(f"{pooled_url}?pgbouncer=false", breaker=lenient_breaker(), metrics=metrics)
    if "refuses" in request.node.name:
        with pytest.raises((asyncpg.PostgresError, StoreError), match="unsupported startup parameter"):
            await database.fetch("SELECT 1")
    else:
        with capture_logs() as logs:
            assert len(await database.fetch("SELECT 1")) == 1
        assert logs == []
    await database.close()
