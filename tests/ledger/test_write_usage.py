"""castgate_write_batch, which takes the short way where it can, answers and leaves what castgate_record_usage does."""

import asyncio
import random
import time
from collections.abc import Sequence

import asyncpg
import pytest

from gateway.database import QUERIES
from gateway.policy.periods import window_at
from gateway.usage_columns import columns_of, full_columns_of
from gateway.usage_events import UsageEvent
from tests.ledger.conftest import CheckCounters
from tests.ledger.making import NOON_MS, event
from tests.ledger.months import id_at, month_start, record

Connection = asyncpg.Connection
DAY_MS = 86_400_000
RECORD = """
    SELECT * FROM castgate_record_usage(
        $1::text::uuid[], $2::text::text[], $3::text::text[], $4::text::bigint[], $5::text::bigint[],
        $6::text::smallint[], $7::text::text[], $8::text::text[], $9::text::text[], $10, $11, $12
    )
"""
CAST_SQL = (
    "UPDATE casts SET cost_cents = told.cents FROM unnest($1::text[], $2::numeric[]) AS told(id, cents) "
    "WHERE casts.id = told.id::uuid"
)
CAST = "018f0000-0000-7000-8000-{:012x}"
# What a function leaves: rows without the times at which they were written, by account names without their last letter.
LEFT = """
    SELECT 'event', left(account_id, -1), policy, occurred_at::text, cost_microcents, upstream_status::text, outcome,
           cast_id, request_id
    FROM usage_events WHERE right(account_id, 1) = $1
    UNION ALL
    SELECT 'counter', left(account_id, -1), period, window_end::text, used_microcents, calls::text, time_zone,
           week_start::text, window_start::text
    FROM usage_counters WHERE right(account_id, 1) = $1
    ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9
"""


def answer(row: asyncpg.Record | None) -> dict[str, object]:
    """What the row says, of accounts without their last letter, counters in an order of their own."""
    assert row is not None
    names = ("usage_accounts", "usage_kinds", "usage_start_ms", "usage_end_ms", "usage_microcents")
    counters = zip(*(row[name] or () for name in names), strict=True)
    rest = {name: value for name, value in row.items() if name not in names}
    return {**rest, "counters": sorted((name[:-1], *more) for name, *more in counters)}


async def seed(sql: Connection, account_id: str, *periods: str, at_ms: int = NOON_MS) -> None:
    windows = [window_at(period, "UTC", 1, at_ms) for period in periods]
    many = len(windows)
    await sql.execute(
        QUERIES["seed_usage"], [account_id] * many, periods, ["UTC"] * many, [1] * many,
        [one.start_ms for one in windows], [one.end_ms for one in windows],
    )  # fmt: skip


async def test_both_ways_answer_and_leave_the_same(sql: Connection, counters_equal_ledger: CheckCounters) -> None:
    """Batches with what is not usual: new accounts, new windows, windows that end amid them, repeats, late casts."""
    chance = random.Random(7)
    await sql.execute(
        "INSERT INTO casts (id) SELECT ($1 || to_hex(n))::uuid FROM generate_series(16, 95) AS n", CAST[:-8] + "0" * 10
    )
    written: list[tuple[UsageEvent, UsageEvent]] = []
    for number in range(80):
        if number % 9 == 0:
            account = f"account-{chance.randrange(4)}"
            periods = chance.sample(("daily", "weekly", "monthly"), 2)
            for letter in "ab":
                await seed(sql, account + letter, *periods, at_ms=NOON_MS + DAY_MS * (number % 2))
        batch = [pair_of_events(chance) for _ in range(chance.choice((1, 2, 8)))]
        batch += chance.sample(written, min(len(written), chance.choice((0, 0, 0, 2))))
        written += batch
        late = ([CAST.format(chance.randrange(16, 96))], [5]) if number % 5 == 0 else ([], [])
        mine, theirs = ([pair[side] for pair in batch] for side in (0, 1))
        cast_sql = chance.choice((CAST_SQL, None))
        ours = await sql.fetchrow(
            QUERIES["record_usage"], *columns_of(mine), cast_sql, *late, chance.choice((None, 1, 3))
        )
        other = await sql.fetchrow(RECORD, *full_columns_of(theirs), cast_sql, *late)
        assert answer(ours) == answer(other), number
    assert await sql.fetch(LEFT, "a") == await sql.fetch(LEFT, "b")
    await counters_equal_ledger()


def pair_of_events(chance: random.Random) -> tuple[UsageEvent, UsageEvent]:
    """The same call of two accounts."""
    fields = {
        "cost_microcents": chance.choice((1, 10, 10, 10)),
        "occurred_ms": NOON_MS + chance.choice((0, 0, 0, 1, 12 * 3_600_000, -DAY_MS)),
        "upstream_status": chance.choice((200, 200, 200, 0)),
        "outcome": chance.choice(("posted", "posted", "posted", "expired")),
        "policy": chance.choice(("cast", "cast", 'an "odd" one')),
        "cast_id": chance.choice((None, None, CAST.format(chance.randrange(16, 100)))),
        "request_id": chance.choice((None, "r", "{r}")),
    }
    number = chance.randrange(4)
    return event(f"account-{number}a", **fields), event(f"account-{number}b", **fields)


async def test_an_event_of_a_month_that_was_dropped_is_kept_and_not_counted(sql: Connection) -> None:
    await record(sql, [event("account")])
    await sql.execute(
        "INSERT INTO usage_months_dropped (until, name, events, cost_microcents) VALUES ($1, 'old', 0, 0)",
        month_start(-3),
    )
    late = event("account", occurred_ms=int(month_start(-5).timestamp() * 1000), event_id=id_at(month_start(-5)))
    row = await record(sql, [late, event("account")])
    assert row["recorded"] == 1
    assert await sql.fetchval("SELECT count(*) FROM usage_events_late") == 1
    assert await sql.fetchval("SELECT calls FROM usage_counters WHERE period = 'total'") == 2


async def test_columns_say_once_what_all_events_share() -> None:
    events: Sequence[UsageEvent] = [event("a", request_id="r"), event("a", request_id="r")]
    ids, *rest = columns_of(events[::-1])
    assert ids == f"{{{events[0].event_id},{events[1].event_id}}}"
    assert rest == ['{"a"}', '{"cast"}', f"{{{NOON_MS}}}", "{1000000}", "{200}", '{"posted"}', "{}", '{"r","r"}']
    assert columns_of([event("a"), event("b"), event("a")])[1] == '{"a","b","a"}'


async def test_a_column_that_is_too_short_is_refused(sql: Connection) -> None:
    columns = columns_of([event("a"), event("b"), event("a")])
    columns[1] = '{"a","b"}'
    with pytest.raises(asyncpg.NotNullViolationError, match="account_id"):
        await sql.fetchrow(QUERIES["record_usage"], *columns, None, [], [], None)


async def test_a_batch_in_pieces_lets_go_of_the_processor_and_of_no_account_it_has_not_locked(
    sql: Connection, database_url: str
) -> None:
    """Two events and a pause: 500 ms at least, in which others write the same account's counters."""
    await record(sql, [event("account")])
    columns = columns_of([event("account") for _ in range(1000)])
    other = await asyncpg.connect(database_url)
    began_s = time.monotonic()
    writing = asyncio.create_task(sql.fetchrow(QUERIES["record_usage"], *columns, None, [], [], 2))
    try:
        while not await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
            assert not writing.done()
        await record(other, [event("account")])
        assert not writing.done()
    finally:
        row = await writing
        await other.close()
    assert time.monotonic() - began_s >= 0.5
    assert row is not None
    assert row["recorded"] == 1000
    assert dict(zip(row["usage_kinds"], row["usage_microcents"], strict=True))["total/UTC/1"] == 1002 * 1_000_000


@pytest.mark.parametrize("end", ["by Postgres", "by the worker's death"])
async def test_a_batch_that_is_cut_off_amid_its_pauses_is_written_whole_or_not_at_all(
    sql: Connection, database_url: str, end: str
) -> None:
    """Then written again under the same ids, it counts once."""
    await record(sql, [event("account")])
    columns = columns_of([event("account") for _ in range(300)])
    other = await asyncpg.connect(database_url)
    writing = asyncio.create_task(other.fetchrow(QUERIES["record_usage"], *columns, None, [], [], 2))
    while not await sql.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
        assert not writing.done()
    pid = other.get_server_pid()
    if end == "by Postgres":
        await sql.execute("SELECT pg_terminate_backend($1)", pid)
    else:
        other.terminate()
    with pytest.raises((asyncpg.PostgresError, ConnectionError, asyncpg.InterfaceError)):
        await writing
    while await sql.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
        pass
    # Postgres does not look whether anybody waits for its answer.
    written = 0 if end == "by Postgres" else 300
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 1 + written
    row = await sql.fetchrow(QUERIES["record_usage"], *columns, None, [], [], None)
    assert row is not None
    assert row["recorded"] == 300 - written
    assert await sql.fetchval("SELECT used_microcents FROM usage_counters WHERE period = 'total'") == 301 * 1_000_000
