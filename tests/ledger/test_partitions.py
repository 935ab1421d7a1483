"""usage_events by month: what the migration makes of events that are there, and where new ones go."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from tests.ledger.making import MIGRATIONS, event
from tests.ledger.months import by_partition, id_at, record
from tests.ledger.test_schema import catalog

Connection = asyncpg.Connection
FIRST = MIGRATIONS / "0010_usage_partitions.sql"
EVENTS = "SELECT * FROM usage_events ORDER BY id"


async def apply(connection: Connection, *, below: int) -> None:
    for path in sorted(MIGRATIONS.glob("*.sql")):
        if ".rollback." not in path.name and int(path.name[:4]) < below:
            await connection.execute(path.read_text())


def month_of(at: datetime) -> str:
    return f"usage_events_{at:%Y_%m}"


def months_from_now(count: int) -> datetime:
    now = datetime.now(UTC)
    months = now.year * 12 + now.month - 1 + count
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


@pytest.fixture
async def before(database_url: str) -> AsyncIterator[Connection]:
    """A database as the version before left it, with events of two years, of the future, and of no time at all."""
    connection = await asyncpg.connect(database_url)
    await apply(connection, below=10)
    for number in range(24):
        at = months_from_now(-number)
        await record(connection, [event(f"account-{number % 3}", 7, at_ms(at), event_id=id_at(at))])
    ahead = [event("account-1", 5, event_id=id_at(months_from_now(count))) for count in (1, 2, 30)]
    await record(connection, [*ahead, event("account-2", 3, event_id="f" * 12 + "4" + "f" * 19)])
    yield connection
    await connection.close()


def at_ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


async def test_events_that_were_there_stay_and_so_do_their_sums(before: Connection, database_url: str) -> None:
    events = [tuple(row) for row in await before.fetch(EVENTS)]
    plain = await catalog(database_url)
    await before.execute(FIRST.read_text())

    assert [tuple(row) for row in await before.fetch(EVENTS)] == events
    assert await before.fetchval("SELECT castgate_repair_usage(array_agg(account_id)) FROM usage_counters") == 0
    old = f"usage_events_before_{months_from_now(1):%Y_%m}"
    expected = {old: 24, month_of(months_from_now(1)): 1, month_of(months_from_now(2)): 1, "usage_events_default": 2}
    assert await by_partition(before) == expected

    await before.execute(FIRST.with_suffix(".rollback.sql").read_text())
    assert [tuple(row) for row in await before.fetch(EVENTS)] == events
    assert await catalog(database_url) == plain
    await before.execute(FIRST.read_text())
    assert [tuple(row) for row in await before.fetch(EVENTS)] == events
