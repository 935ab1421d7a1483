"""usage_events by month: what the migration makes of events that are there, and where new ones go."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.usage_columns import full_columns_of
from gateway.usage_events import UsageEvent
from tests.ledger.making import MIGRATIONS, event
from tests.ledger.months import at_ms, by_partition, id_at, month_start, partition_of
from tests.ledger.test_schema import catalog

Connection = asyncpg.Connection
FIRST = MIGRATIONS / "0010_usage_partitions.sql"
EVENTS = "SELECT * FROM usage_events ORDER BY id"


async def apply(connection: Connection, *, below: int) -> None:
    for path in sorted(MIGRATIONS.glob("*.sql")):
        if ".rollback." not in path.name and int(path.name[:4]) < below:
            await connection.execute(path.read_text())


@pytest.fixture
async def before(database_url: str) -> AsyncIterator[Connection]:
    """A database as the version before left it, with events of two years, of the future, and of no time at all."""
    connection = await asyncpg.connect(database_url)
    await apply(connection, below=10)
    for number in range(24):
        at = month_start(-number)
        await record_as_before(connection, [event(f"account-{number % 3}", 7, at_ms(at), event_id=id_at(at))])
    ahead = [event("account-1", 5, event_id=id_at(month_start(count))) for count in (1, 2, 30)]
    await record_as_before(connection, [*ahead, event("account-2", 3, event_id="f" * 12 + "4" + "f" * 19)])
    yield connection
    await connection.close()


async def test_events_that_were_there_stay_and_so_do_their_sums(before: Connection, database_url: str) -> None:
    events = [tuple(row) for row in await before.fetch(EVENTS)]
    plain = await catalog(database_url)
    await before.execute(FIRST.read_text())

    assert [tuple(row) for row in await before.fetch(EVENTS)] == events
    assert await before.fetchval("SELECT castgate_repair_usage(array_agg(account_id)) FROM usage_counters") == 0
    old = f"usage_events_before_{month_start(1):%Y_%m}"
    expected = {old: 24, partition_of(1): 1, partition_of(2): 1, "usage_events_default": 2}
    assert await by_partition(before) == expected

    await before.execute(FIRST.with_suffix(".rollback.sql").read_text())
    assert [tuple(row) for row in await before.fetch(EVENTS)] == events
    assert await catalog(database_url) == plain
    await before.execute(FIRST.read_text())
    assert [tuple(row) for row in await before.fetch(EVENTS)] == events


async def test_who_was_allowed_to_read_the_ledger_still_is(before: Connection) -> None:
    role = f"reader_{await before.fetchval('SELECT current_database()')}"
    grants = """
        SELECT DISTINCT grantee, privilege_type FROM information_schema.role_table_grants
        WHERE table_name = 'usage_events' AND grantee <> current_user ORDER BY 1, 2
    """
    await before.execute(f'CREATE ROLE "{role}"; GRANT SELECT, INSERT ON usage_events TO "{role}"')
    try:
        allowed = await before.fetch(grants)
        assert len(allowed) == 2
        await before.execute(FIRST.read_text())
        assert await before.fetch(grants) == allowed
        await before.execute(f'SET ROLE "{role}"')
        assert await before.fetchval("SELECT count(*) FROM usage_events") == 28
        await record_plainly(before, id_at(month_start(0)))
        await record_plainly(before, id_at(month_start(-30)))
        await before.execute("RESET ROLE")
        await before.execute(FIRST.with_suffix(".rollback.sql").read_text())
        assert await before.fetch(grants) == allowed
    finally:
        await before.execute(f'RESET ROLE; DROP OWNED BY "{role}"; DROP ROLE "{role}"')


async def record_as_before(connection: Connection, events: list[UsageEvent]) -> None:
    """As workers of earlier versions do."""
    await connection.execute(
        "SELECT recorded FROM castgate_record_usage("
        "$1::text::uuid[], $2::text::text[], $3::text::text[], $4::text::bigint[], $5::text::bigint[], "
        "$6::text::smallint[], $7::text::text[], $8::text::text[], $9::text::text[], NULL, '{}', '{}')",
        *full_columns_of(events),
    )


async def record_plainly(connection: Connection, event_id: str) -> None:
    """As somebody does who has no function for it."""
    await connection.execute(
        "INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome) "
        "VALUES ($1, 'a', 'cast', now(), 1, 200, 'posted')",
        event_id,
    )
