"""Free tiers in the ledger: who gets the free units, against a plain reference, and whatever races."""

import asyncio
import random
from collections.abc import Sequence

import asyncpg
import pytest

from gateway.database import QUERIES
from gateway.ledger import UsageEvent
from gateway.policy.periods import window_at
from gateway.usage_columns import full_columns_of, have_terms, term_columns, terms_in
from gateway.usage_events import Terms
from tests.ledger.making import NOON_MS, event

Connection = asyncpg.Connection
DAY_MS = 86_400_000
CAST_SQL = (
    "UPDATE casts SET cost_cents = told.cents FROM unnest($1::text[], $2::numeric[]) AS told(id, cents)"
    " WHERE casts.id = told.id::uuid"
)
TODAY = window_at("daily", "UTC", 1, NOON_MS)


def tier_event(
    account_id: str, price: int, units: int, free: int, at_ms: int = NOON_MS, period: str = "daily", **more: object
) -> UsageEvent:
    window = window_at(period, "UTC", 1, at_ms)
    terms = Terms(f"free/cast/{period}/UTC/1", window.start_ms, window.end_ms, units, free)
    return event(account_id, price, at_ms, terms=terms, **more)


async def write(sql: Connection, events: Sequence[UsageEvent], cast_sql: str | None = None) -> asyncpg.Record:
    terms = term_columns()
    if have_terms(events):
        terms.add(terms_in(events))
    row = await sql.fetchrow(
        QUERIES["record_usage_on_terms"],
        *full_columns_of(events),
        cast_sql,
        [],
        [],
        *terms.full(),
    )
    assert row is not None
    return row


def share(price: int, units: int, free: int) -> int:
    """What a call costs of whose units so many are free."""
    return price if not free else -(-price * (units - free) // units)


async def assert_consistent(sql: Connection) -> None:
    """Counters of money and of units are the sums of the events."""
    wrong = await sql.fetch(
        "SELECT account_id, used_microcents, calls, s, c FROM usage_counters CROSS JOIN LATERAL ("
        " SELECT coalesce(sum(cost_microcents), 0) AS s, count(*) AS c FROM usage_events AS e"
        " WHERE e.account_id = usage_counters.account_id AND occurred_at >= window_start AND occurred_at < window_end"
        ") AS past WHERE used_microcents <> s OR calls <> c"
    )
    assert wrong == []
    wrong = await sql.fetch(
        "SELECT * FROM usage_units CROSS JOIN LATERAL ("
        " SELECT coalesce(sum(units), 0) AS s FROM usage_events AS e WHERE e.account_id = usage_units.account_id"
        " AND e.policy = usage_units.policy AND occurred_at >= window_start AND occurred_at < window_end"
        ") AS past WHERE used_units <> s"
    )
    assert wrong == []


@pytest.mark.parametrize("seed", range(6))
async def test_the_first_units_of_a_window_are_free_in_the_order_of_writing(sql: Connection, seed: int) -> None:
    chance = random.Random(seed)
    events = [
        tier_event(
            chance.choice("ab"),
            price=chance.randrange(1, 4000),
            units=chance.choice([1, 1, 7, 100, 3_000_000]),
            free=500 if chance.random() < 0.9 else 800,  # the rules changed meanwhile
            at_ms=NOON_MS + chance.choice([0, 0, DAY_MS]),
            period=chance.choice(["daily"] * 5 + ["monthly"]),
        )
        if chance.random() < 0.8
        else event(chance.choice("ab"), chance.randrange(5))
        for _ in range(60)
    ]
    seen: list[UsageEvent] = []
    expected: dict[str, int] = {}
    for _ in range(25):
        batch = chance.sample(events, chance.randrange(1, 8))
        await write(sql, batch)
        for one in sorted(batch):
            if one.event_id in expected:
                continue
            terms = one.terms
            if terms is None:
                expected[one.event_id] = one.cost_microcents
                continue
            assert terms.units is not None
            assert terms.free_limit is not None
            in_window = [
                past.terms.units or 0
                for past in seen
                if past.terms is not None
                and past.account_id == one.account_id
                and (terms.free_start_ms or 0) <= past.occurred_ms < (terms.free_end_ms or 0)
            ]
            free = max(0, min(terms.units, terms.free_limit - sum(in_window)))
            expected[one.event_id] = share(one.cost_microcents, terms.units, free)
            seen.append(one)
    rows = await sql.fetch("SELECT replace(id::text, '-', '') AS id, cost_microcents FROM usage_events")
    assert {row["id"]: row["cost_microcents"] for row in rows} == expected
    await assert_consistent(sql)


async def test_racing_writers_give_exactly_the_free_units_away(sql: Connection, migrated_url: str) -> None:
    chance = random.Random(7)
    events = [tier_event("a", 1000, chance.randrange(1, 9), 1000) for _ in range(400)]
    writers = [await asyncpg.connect(migrated_url) for _ in range(4)]
    try:

        async def run(writer: Connection, mine: list[UsageEvent]) -> None:
            while mine:
                batch, mine = mine[:7], mine[5:]  # some are written twice
                await write(writer, batch)

        shares = [chance.sample(events, len(events)) for _ in writers]  # all of them, each in its own order
        await asyncio.gather(*(run(writer, mine) for writer, mine in zip(writers, shares, strict=True)))
    finally:
        for writer in writers:
            await writer.close()
    rows = await sql.fetch("SELECT cost_microcents, units, free_units FROM usage_events")
    assert len(rows) == len(events)
    units = sum(row["units"] for row in rows)
    assert units > 1000
    assert sum(row["free_units"] for row in rows) == 1000
    assert all(row["cost_microcents"] == share(1000, row["units"], row["free_units"]) for row in rows)
    await assert_consistent(sql)


async def test_a_cast_is_told_what_the_call_cost_and_not_its_price(sql: Connection) -> None:
    ids = [str(await sql.fetchval("INSERT INTO casts (id) VALUES (gen_random_uuid()) RETURNING id")) for _ in range(3)]
    row = await write(sql, [tier_event("a", 3_000_000, 10, 15, cast_id=one) for one in ids], CAST_SQL)
    assert (row["casts_charged"], row["casts_late"], row["casts_error"]) == (3, None, None)
    found = {str(row["id"]): row["cost_cents"] for row in await sql.fetch("SELECT id, cost_cents FROM casts")}
    assert [float(found[one]) for one in ids] == [0, 1.5, 3]


async def test_a_cast_that_is_locked_is_charged_later_and_nobody_waits_for_it(
    sql: Connection, migrated_url: str
) -> None:
    cast_id = str(await sql.fetchval("INSERT INTO casts (id) VALUES (gen_random_uuid()) RETURNING id"))
    other = await asyncpg.connect(migrated_url)
    try:
        async with other.transaction():
            await other.execute("SELECT FROM casts FOR UPDATE")
            row = await write(sql, [tier_event("a", 500, 10, 5, cast_id=cast_id)], CAST_SQL)
        assert (row["casts_charged"], row["casts_late"], row["casts_late_microcents"]) == (0, [cast_id], [250])
    finally:
        await other.close()


@pytest.mark.parametrize("key", [None, "key"])
async def test_an_event_that_comes_twice_in_a_batch_is_charged_once(sql: Connection, key: str | None) -> None:
    one = tier_event("a", 1000, units=3, free=1)
    assert one.terms is not None
    one = one._replace(terms=one.terms._replace(key=key, key_life_ms=None if key is None else 60_000))
    await write(sql, [one, tier_event("b", 10, 1, 0), one])
    assert await sql.fetchval("SELECT cost_microcents FROM usage_events WHERE account_id = 'a'") == 667
    assert await sql.fetchval("SELECT used_microcents FROM usage_counters WHERE account_id = 'a'") == 667
    assert await sql.fetchval("SELECT used_units FROM usage_units WHERE account_id = 'a'") == 3


async def test_what_is_used_of_a_tier_comes_back_with_the_counters(sql: Connection) -> None:
    row = await write(sql, [tier_event("a", 10, 3, 100), tier_event("a", 10, 4, 100), event("b", 10)])
    shown = zip(row["usage_accounts"], row["usage_kinds"], row["usage_start_ms"], row["usage_microcents"], strict=True)
    assert ("a", "free/cast/daily/UTC/1", TODAY.start_ms, 7) in set(shown)


async def test_a_tier_that_begins_in_mid_month_counts_from_its_beginning_and_another_period_from_the_ledger(
    sql: Connection,
) -> None:
    await write(sql, [event("a", 10) for _ in range(3)])  # before there was a tier: nothing is counted
    await write(sql, [tier_event("a", 10, 4, 100)])
    await write(sql, [tier_event("a", 10, 5, 8, period="monthly")])  # 4 of 8 are used already
    rows = await sql.fetch("SELECT kind, used_units FROM usage_units ORDER BY kind")
    assert [tuple(row) for row in rows] == [("free/cast/daily/UTC/1", 9), ("free/cast/monthly/UTC/1", 9)]
    assert await sql.fetchval("SELECT sum(free_units) FROM usage_events") == 4 + 4
    await assert_consistent(sql)


async def test_counts_end_where_numbers_do(sql: Connection) -> None:
    most = 2**53 - 1
    await write(sql, [tier_event("a", most, most, most), tier_event("a", most, most, most)])
    assert await sql.fetchval("SELECT used_units FROM usage_units") == most
    assert await sql.fetchval("SELECT sum(cost_microcents) FROM usage_events") == most


async def test_repairs_make_a_count_the_sum_of_its_events(sql: Connection) -> None:
    await write(sql, [tier_event("a", 10, 4, 100), tier_event("b", 10, 4, 100)])
    await sql.execute("UPDATE usage_units SET used_units = 9 WHERE account_id = 'a'")
    assert await sql.fetchval(QUERIES["repair_units"], ["a", "b"]) == 1
    await assert_consistent(sql)
