"""Plans that a connection made for a small table are as good when it is large: judged by the rows they read."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import asyncpg
import pytest

from gateway.database import QUERIES
from gateway.policy.periods import window_at
from gateway.usage_columns import columns_of, full_columns_of, term_columns, terms_in
from gateway.usage_events import Terms, UsageEvent, event_id
from tests.ledger.conftest import CheckCounters
from tests.ledger.making import NOON_MS, event, until
from tests.ledger.test_races import record, waiting

Connection = asyncpg.Connection
Values = Callable[[Sequence[str]], tuple[object, ...]]
ROWS = 64
LARGE = 2000
CALLS = 7  # as Postgres tries five plans with the values before it settles for one without
MONTH = window_at("monthly", "UTC", 1, NOON_MS)
KEYED = Terms(None, None, None, None, None, "key", 1000)
FREE = Terms("free/cast/monthly/UTC/1", MONTH.start_ms, MONTH.end_ms, 1, 10**6, None, None)
# Each account has these, a month that is over among them.
COUNTERS = """
    INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start)
    SELECT account_id, ends, period, 'UTC', 1, starts
    FROM unnest($1::text[]) AS account_id,
         (VALUES ('total', timestamptz 'epoch', timestamptz '9999-12-31 00:00:00+00'),
                 ('monthly', timestamptz '2026-11-01 00:00:00+00', timestamptz '2026-12-01 00:00:00+00'),
                 ('monthly', timestamptz '2026-10-01 00:00:00+00', timestamptz '2026-11-01 00:00:00+00')
         ) AS span(period, starts, ends)
"""
UNITS = """
    INSERT INTO usage_units (account_id, kind, window_end, window_start, policy, used_units)
    SELECT account_id, 'free/cast/monthly/UTC/1', timestamptz '2026-12-01 00:00:00+00',
           timestamptz '2026-11-01 00:00:00+00', 'cast', 0
    FROM unnest($1::text[]) AS account_id
"""
READ = """
    SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables
    WHERE relname IN ('usage_counters', 'usage_units')
"""


def names(begin: int, count: int) -> list[str]:
    return [f"account-{number:06d}" for number in range(begin, begin + count)]


def usual(accounts: Sequence[str]) -> tuple[object, ...]:
    return (*columns_of([event(name) for name in accounts]), None, [], [], None)


def with_a_new_account(accounts: Sequence[str]) -> tuple[object, ...]:
    """Which is left to castgate_record_usage."""
    return (*columns_of([event(name) for name in (*accounts, f"new-{event_id()}")]), None, [], [], None)


def on_terms(accounts: Sequence[str], terms: Terms) -> tuple[object, ...]:
    events: list[UsageEvent] = [event(name, terms=terms._replace(key=terms.key and event_id())) for name in accounts]
    columns = term_columns()
    columns.add(terms_in(events))
    return (*full_columns_of(events), None, [], [], *columns.full())


def seeded(accounts: Sequence[str]) -> tuple[object, ...]:
    many = len(accounts)
    return (accounts, ["monthly"] * many, ["UTC"] * many, [1] * many, [MONTH.start_ms] * many, [MONTH.end_ms] * many)


PATHS: dict[str, tuple[str, Values]] = {
    "usual": ("record_usage", usual),
    "a new account": ("record_usage", with_a_new_account),
    "with keys": ("record_usage_on_terms", lambda accounts: on_terms(accounts, KEYED)),
    "in free tiers": ("record_usage_on_terms", lambda accounts: on_terms(accounts, FREE)),
    "seeding": ("seed_usage", seeded),
}


@pytest.fixture
async def connections(migrated_url: str, sql: Connection) -> AsyncIterator[dict[str, Connection]]:
    """One for each path; and nobody looks at the tables behind the tests' back, which would make plans anew."""
    # The embedded server commits without waiting; VACUUM would find rows whose commit it does not yet trust.
    await sql.execute("SET synchronous_commit = on")
    for table in ("usage_counters", "usage_units"):
        await sql.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    made = {path: await asyncpg.connect(migrated_url) for path in PATHS}
    yield made
    for connection in made.values():
        await connection.close()


@pytest.mark.parametrize("is_analyzed", [False, True])
@pytest.mark.parametrize("small", [1, 10, 100])
async def test_a_batch_reads_its_accounts_alone_after_the_table_has_grown(
    sql: Connection,
    connections: dict[str, Connection],
    counters_equal_ledger: CheckCounters,
    small: int,
    is_analyzed: bool,
) -> None:
    first = names(0, small)
    await sql.execute(COUNTERS, first)
    await sql.execute(UNITS, first)
    if is_analyzed:
        await sql.execute("VACUUM (ANALYZE) usage_counters")
        await sql.execute("VACUUM (ANALYZE) usage_units")
    for path, (query, values) in PATHS.items():
        for _ in range(CALLS):
            await connections[path].fetch(QUERIES[query], *values(first[:ROWS]))
    more = names(small, LARGE - small)
    await sql.execute(COUNTERS, more)
    await sql.execute(UNITS, more)
    read = {}
    for path, (query, values) in PATHS.items():
        async with connections[path].transaction():
            before = await connections[path].fetchval(READ)
            await connections[path].fetch(QUERIES[query], *values(names(LARGE // 2, ROWS)))
            read[path] = await connections[path].fetchval(READ) - before
    assert {path: rows for path, rows in read.items() if not 0 < rows < LARGE // 2} == {}
    await counters_equal_ledger()


@pytest.mark.parametrize("off", [(), ("indexscan",), ("hashjoin",), ("sort", "hashagg", "material", "memoize")])
async def test_totals_are_locked_in_order_of_account_however_they_lie(
    sql: Connection, migrated_url: str, counters_equal_ledger: CheckCounters, off: Sequence[str]
) -> None:
    """With the plan of a table so small that reading all of it would be the cheapest; other orders end in deadlocks.

    And whatever the operator has turned ``off`` for all that use the database.
    """
    name = await sql.fetchval("SELECT quote_ident(current_database())")
    for switch in off:
        await sql.execute(f"ALTER DATABASE {name} SET enable_{switch} = off")
    await sql.execute("SET synchronous_commit = on")
    accounts = names(0, ROWS)
    await sql.execute(COUNTERS, accounts[::-1])
    await sql.execute("VACUUM (ANALYZE) usage_counters")
    writer, third = await asyncpg.connect(migrated_url), await asyncpg.connect(migrated_url)
    totals = "SELECT account_id FROM usage_counters WHERE period = 'total' ORDER BY account_id FOR UPDATE"
    for place in (0, ROWS // 2):
        async with sql.transaction():
            await sql.execute("SELECT FROM usage_counters WHERE account_id = $1 FOR UPDATE", accounts[place])
            writing = asyncio.create_task(record(writer, [event(name) for name in accounts]))
            await until(lambda: waiting(third, 1))
            free = [row["account_id"] for row in await third.fetch(f"{totals} SKIP LOCKED")]
        await writing
        assert free == accounts[place + 1 :]
    await writer.close()
    await third.close()
    await counters_equal_ledger()


async def test_whoever_locks_totals_sorts_accounts_as_their_index_does(sql: Connection) -> None:
    """And not as the database sorts texts; this server knows no other order than that of their bytes."""
    rows = await sql.fetch("SELECT proname, prosrc FROM pg_proc WHERE prosrc LIKE '%INSERT INTO usage_counters%'")
    assert {row["proname"] for row in rows} == {
        *("castgate_admit", "castgate_record_usage", "castgate_repair_usage", "castgate_seed_usage")
    }
    for row in rows:
        begin = row["prosrc"].index("INSERT INTO usage_counters")
        statement = row["prosrc"][begin : row["prosrc"].index("ON CONFLICT", begin)]
        assert 'COLLATE "C", timestamptz \'9999-12-31' in statement, row["proname"]
        assert statement.endswith(("ORDER BY 1\n    ", "ORDER BY 1\n        ")), row["proname"]
    batch = await sql.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'castgate_write_batch'")
    assert 'event.account_id COLLATE "C" AS account_id' in batch
