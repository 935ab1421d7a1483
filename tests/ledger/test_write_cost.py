"""What a batch of 64 events costs Postgres, counted and not timed. A tenth more or less than was recorded fails."""

import json
from collections import Counter
from collections.abc import Callable

import asyncpg
import pytest

from gateway.database import QUERIES
from gateway.policy.periods import window_at
from gateway.usage_columns import columns_of
from tests.ledger.making import NOON_MS, event

Connection = asyncpg.Connection
ROWS = 64
WARM_UP = 3  # batches
BATCHES = 10
BOUND = 0.1
# Found for as many accounts: bytes of write-ahead log, and pages that were looked at.
RECORDED = {1: {"log": 26171, "pages": 324}, ROWS: {"log": 37567, "pages": 583}}
SEARCHES = """
    SELECT relname, seq_scan + coalesce(idx_scan, 0) AS searches, n_tup_ins + n_tup_upd AS written
    FROM pg_stat_xact_user_tables WHERE relname = 'usage_counters' OR relname LIKE 'usage_events%'
"""
PLANS = """
    SELECT regexp_substr(ident, '(INSERT INTO|UPDATE) \\w+') FROM pg_backend_memory_contexts
    WHERE name = 'CachedPlan' AND ident ~ 'usage_(events|counters)'
"""


@pytest.fixture
async def batch_of(sql: Connection) -> Callable[[int], tuple[object, ...]]:
    """Batches of the accounts that there are to be, in turn, each with a counter of the month beside its total."""
    month = window_at("monthly", "UTC", 1, NOON_MS)
    accounts = [f"account-{number:028d}" for number in range(1000)]
    many = len(accounts)
    await sql.execute(
        QUERIES["seed_usage"], accounts, ["monthly"] * many, ["UTC"] * many, [1] * many, [month.start_ms] * many,
        [month.end_ms] * many,
    )  # fmt: skip
    place = 0

    def batch(count: int) -> tuple[object, ...]:
        nonlocal place
        names = [accounts[(place + number % count) % many] for number in range(ROWS)]
        place += count if count > 1 else 0
        # The moments of calls that were admitted in batches of 16, and a request id of its own for each.
        calls = [event(name, occurred_ms=NOON_MS + at // 16, request_id="r" * 32) for at, name in enumerate(names)]
        return (*columns_of(calls), None, [], [], None)

    return batch


@pytest.mark.parametrize("accounts", [1, ROWS])
async def test_a_batch_costs_the_log_and_the_pages_that_were_recorded(
    sql: Connection, batch_of: Callable[[int], tuple[object, ...]], accounts: int
) -> None:
    """On average over some batches: now and then one splits a page of an index."""
    for _ in range(WARM_UP):
        await sql.fetchrow(QUERIES["record_usage"], *batch_of(accounts))
    totals = Counter[str]()
    for _ in range(BATCHES):
        explained = QUERIES["record_usage"]
        for place, value in reversed(list(enumerate(batch_of(accounts), start=1))):
            literal = "NULL" if value is None else f"'{value}'" if isinstance(value, str) else "'{}'"
            explained = explained.replace(f"${place}", literal)
        found = await sql.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, WAL, FORMAT JSON) {explained}")
        plan = json.loads(found)[0]["Plan"]
        assert plan["WAL FPI"] == 0
        totals.update(log=plan["WAL Bytes"], pages=plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    for name, recorded in RECORDED[accounts].items():
        figure = totals[name] / BATCHES
        assert abs(figure - recorded) <= BOUND * recorded, f"{name}: {figure:.0f}, recorded {recorded}"


@pytest.mark.parametrize("accounts", [1, ROWS])
async def test_a_batch_searches_at_most_twice_for_each_account_and_not_for_events(
    sql: Connection, batch_of: Callable[[int], tuple[object, ...]], accounts: int
) -> None:
    async with sql.transaction():
        await sql.fetchrow(QUERIES["record_usage"], *batch_of(accounts))
        before = {row["relname"]: (row["searches"], row["written"]) for row in await sql.fetch(SEARCHES)}
        await sql.fetchrow(QUERIES["record_usage"], *batch_of(accounts))
        after = {row["relname"]: (row["searches"], row["written"]) for row in await sql.fetch(SEARCHES)}
    changes = {name: (found[0] - before[name][0], found[1] - before[name][1]) for name, found in after.items()}
    searches, written = changes.pop("usage_counters")
    assert 2 <= searches <= 2 * accounts  # less where accounts are side by side in the index
    assert written == 2 * accounts
    assert sorted(change for change in changes.values() if change != (0, 0)) == [(0, ROWS)]


async def test_a_batch_is_three_statements_planned_once_for_all_values(
    sql: Connection, batch_of: Callable[[int], tuple[object, ...]]
) -> None:
    """At the first call: left to itself Postgres plans for the values five times, and for one account for ever."""
    await sql.fetchrow(QUERIES["record_usage"], *batch_of(1))
    plans = sorted(row[0] for row in await sql.fetch(PLANS))
    assert plans == ["INSERT INTO usage_events", "UPDATE usage_counters", "UPDATE usage_counters"]


async def test_counters_stay_in_their_pages_when_all_of_a_page_are_written_at_once(
    sql: Connection, batch_of: Callable[[int], tuple[object, ...]]
) -> None:
    for _ in range(3 * 1000 // ROWS):
        await sql.fetchrow(QUERIES["record_usage"], *batch_of(ROWS))
    await sql.execute("SELECT pg_stat_force_next_flush()")
    row = await sql.fetchrow(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'usage_counters'"
    )
    assert row is not None
    assert row["n_tup_upd"] >= 3 * 2 * 900
    assert row["n_tup_hot_upd"] >= 0.98 * row["n_tup_upd"]
