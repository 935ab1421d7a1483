"""The hot statements touch rows by index only, however large the tables are."""

from collections.abc import Callable

import asyncpg
import pytest

from gateway.config.settings import Ledger as LedgerSettings
from gateway.database import QUERIES
from gateway.ledger import columns_of, event_id
from gateway.policy.periods import window_at
from gateway.usage_events import Terms, terms_of
from tests.ledger.making import NOON_MS, event

Connection = asyncpg.Connection
ACCOUNTS = 5000
BATCH = 200
# Before Postgres settles for a generic plan it tries five with the values.
CALLS = 7
SCANS = "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE relname = ANY($1)"
TABLES = [
    *("usage_events", "usage_counters", "usage_holds", "budgets", "billing_accounts", "casts"),
    *("usage_units", "billed_keys"),
]
MONTH = window_at("monthly", "UTC", 1, NOON_MS)
TERMS = Terms("free/cast/monthly/UTC/1", MONTH.start_ms, MONTH.end_ms, 1, 10, "a-key", 1000)


@pytest.fixture
async def large(sql: Connection) -> Connection:
    """100,000 events and 15,000 counters, closed ones among them."""
    # The embedded server commits without waiting; VACUUM would find rows whose commit it does not yet trust.
    await sql.execute("SET synchronous_commit = on")
    await sql.execute(
        f"""
        INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome)
        SELECT gen_random_uuid(), 'account-' || n % {ACCOUNTS}, 'cast', timestamptz '2026-11-01' + n * interval '10 s',
               1, 200, 'posted'
        FROM generate_series(1, 20 * {ACCOUNTS}) AS n;
        INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start,
                                    used_microcents, calls)
        SELECT 'account-' || n, ends, period, 'UTC', 1, starts, 20, 20
        FROM generate_series(0, {ACCOUNTS} - 1) AS n,
             (VALUES ('total', timestamptz 'epoch', timestamptz '9999-12-31 00:00:00+00'),
                     ('monthly', timestamptz '2026-11-01 00:00:00+00', timestamptz '2026-12-01 00:00:00+00'),
                     ('monthly', timestamptz '2026-10-01 00:00:00+00', timestamptz '2026-11-01 00:00:00+00')
             ) AS span(period, starts, ends);
        INSERT INTO billing_accounts (account_id) SELECT 'account-' || n FROM generate_series(0, {ACCOUNTS} - 1) AS n;
        INSERT INTO budgets (account_id, period, hard_limit_microcents)
        SELECT 'account-' || n, 'monthly', 1 FROM generate_series(0, {ACCOUNTS} - 1) AS n;
        INSERT INTO usage_holds (id, account_id, amount_microcents, admitted_at, policy, worker_id)
        SELECT gen_random_uuid(), 'account-' || n % {ACCOUNTS}, 1, now(), 'cast', 'worker-' || n % 100
        FROM generate_series(1, 4 * {ACCOUNTS}) AS n;
        INSERT INTO casts (id) SELECT gen_random_uuid() FROM generate_series(1, {ACCOUNTS});
        INSERT INTO usage_units (account_id, kind, window_end, window_start, policy, used_units)
        SELECT 'account-' || n, 'free/cast/monthly/UTC/1', timestamptz '2026-12-01 00:00:00+00',
               timestamptz '2026-11-01 00:00:00+00', 'cast', 1
        FROM generate_series(0, {ACCOUNTS} - 1) AS n;
        INSERT INTO billed_keys (account_id, policy, key, event_id, occurred_at, expires_at)
        SELECT 'account-' || n, 'cast', 'key-' || n, gen_random_uuid(), now(), now()
        FROM generate_series(1, {ACCOUNTS}) AS n;
        """
    )
    await sql.execute("VACUUM ANALYZE")
    return sql


async def scans_of(sql: Connection, query: str, values: Callable[[int], tuple[object, ...]]) -> dict[str, int]:
    """Sequential scans of our tables made by several runs in one session, the last ones with the plan that stays."""
    async with sql.transaction():
        before = {row["relname"]: row["seq_scan"] for row in await sql.fetch(SCANS, TABLES)}
        for number in range(CALLS):
            await sql.fetch(query, *values(number))
        after = {row["relname"]: row["seq_scan"] for row in await sql.fetch(SCANS, TABLES)}
    return {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}


async def test_writing_usage_scans_no_table(large: Connection) -> None:
    cast_ids = [str(row["id"]) for row in await large.fetch("SELECT id FROM casts LIMIT $1", BATCH)]

    def values(number: int) -> tuple[object, ...]:
        events = [event(f"account-{number * BATCH + one}", cast_id=cast_ids[one]) for one in range(BATCH)]
        return (*columns_of(events), LedgerSettings().cast_cost_sql, [], [])

    assert await scans_of(large, QUERIES["record_usage"], values) == {}


async def test_writing_usage_of_holds_scans_no_table(large: Connection) -> None:
    def values(number: int) -> tuple[object, ...]:
        events = [event(f"account-{number * BATCH + one}") for one in range(BATCH)]
        return (*columns_of(events), None, [], [])

    assert await scans_of(large, QUERIES["record_usage_of_holds"], values) == {}


async def test_writing_usage_on_terms_scans_no_table(large: Connection) -> None:
    def values(number: int) -> tuple[object, ...]:
        events = [event(f"account-{number * BATCH + one}", terms=TERMS) for one in range(BATCH)]
        return (*columns_of(events), None, [], [], *(terms_of(events) or ()))

    assert await scans_of(large, QUERIES["record_usage_on_terms"], values) == {}


async def test_admitting_scans_no_table(large: Connection) -> None:
    month = window_at("monthly", "UTC", 1, NOON_MS)
    places = list(range(1, BATCH + 1))

    def values(number: int) -> tuple[object, ...]:
        names = [f"account-{number * BATCH + one}" for one in range(BATCH)]
        starts, ends = [month.start_ms] * BATCH, [month.end_ms] * BATCH
        windows = (places, ["monthly"] * BATCH, ["UTC"] * BATCH, [1] * BATCH, starts, ends, [10**9] * BATCH)
        calls = (places, [event_id() for _ in names], [1] * BATCH, ["cast"] * BATCH, [False] * BATCH)
        return ("worker-1", [event_id()], names, [0] * BATCH, *windows, *calls)

    assert await scans_of(large, QUERIES["admit"], values) == {}


async def test_admitting_on_terms_scans_no_table(large: Connection) -> None:
    month = window_at("monthly", "UTC", 1, NOON_MS)
    places = list(range(1, BATCH + 1))

    def values(number: int) -> tuple[object, ...]:
        names = [f"account-{number * BATCH + one}" for one in range(BATCH)]
        starts, ends = [month.start_ms] * BATCH, [month.end_ms] * BATCH
        windows = (places, ["monthly"] * BATCH, ["UTC"] * BATCH, [1] * BATCH, starts, ends, [10**9] * BATCH)
        calls = (places, [event_id() for _ in names], [1] * BATCH, ["cast"] * BATCH, [False] * BATCH)
        terms = ([value] * BATCH for value in TERMS)
        return ("worker-1", [event_id()], names, [0] * BATCH, *windows, *calls, *terms)

    assert await scans_of(large, QUERIES["admit_on_terms"], values) == {}


async def test_telling_what_a_worker_holds_scans_no_table(large: Connection) -> None:
    def values(number: int) -> tuple[object, ...]:
        ids = [event_id() for _ in range(BATCH)]
        names = [f"account-{number * BATCH + one}" for one in range(BATCH)]
        holds = (f"worker-{number}", ids, names, [1] * BATCH, [NOON_MS] * BATCH, ["cast"] * BATCH, True)
        return (*holds, *([value] * BATCH for value in TERMS))

    assert await scans_of(large, QUERIES["tell_holds"], values) == {}


async def test_seeding_scans_no_table(large: Connection) -> None:
    day = window_at("daily", "UTC", 1, NOON_MS)

    def values(number: int) -> tuple[object, ...]:
        names = [f"account-{number * BATCH + one}" for one in range(BATCH)]
        many = range(BATCH)
        return (
            names,
            ["daily"] * BATCH,
            ["UTC"] * BATCH,
            [1] * BATCH,
            [day.start_ms for _ in many],
            [day.end_ms for _ in many],
        )

    assert await scans_of(large, QUERIES["seed_usage"], values) == {}


async def test_reading_facts_scans_no_table(large: Connection) -> None:
    def values(number: int) -> tuple[object, ...]:
        return ([f"account-{number * BATCH + one}" for one in range(BATCH)],)

    assert await scans_of(large, QUERIES["load_facts"], values) == {}


async def test_a_sum_over_a_window_reads_the_index_alone(large: Connection) -> None:
    plan = await large.fetch(
        """
        EXPLAIN SELECT sum(cost_microcents), count(*) FROM usage_events
        WHERE account_id = 'account-7' AND occurred_at >= '2026-11-01' AND occurred_at < '2026-12-01'
        """
    )
    text = "\n".join(row[0] for row in plan)
    assert "Index Only Scan using usage_events_account_time" in text
