"""Idempotency keys in the ledger: what was billed is not billed again, whatever the way and the order."""

import asyncio
import random
from collections.abc import Sequence

import asyncpg

from gateway.admission_repeats import forget_keys
from gateway.config.settings_stores import Ledger as LedgerSettings
from gateway.database import QUERIES, Database
from gateway.ledger import UsageEvent
from gateway.usage_events import Terms, event_id
from tests.ledger.making import NOON_MS, event
from tests.ledger.test_free_tiers import CAST_SQL, Connection, assert_consistent, tier_event, write

LIFE_MS = 3_600_000


def keyed(account_id: str, key: str, at_ms: int = NOON_MS, cost: int = 100, **more: object) -> UsageEvent:
    return event(account_id, cost, at_ms, terms=Terms(key=key, key_life_ms=LIFE_MS), **more)


async def costs(sql: Connection, events: Sequence[UsageEvent]) -> list[int]:
    rows = await sql.fetch("SELECT replace(id::text, '-', '') AS id, cost_microcents FROM usage_events")
    found = {row["id"]: row["cost_microcents"] for row in rows}
    return [found[one.event_id] for one in events]


async def test_a_key_is_billed_once_for_an_account_and_a_policy(sql: Connection) -> None:
    first, again = keyed("a", "k"), keyed("a", "k", cost=250)
    others = [keyed("b", "k"), keyed("a", "l"), keyed("a", "k", policy="other"), event("a", 100)]
    await write(sql, [again, first, *others])
    third = keyed("a", "k")
    await write(sql, [third, first])
    assert await costs(sql, [first, again, third, *others]) == [100, 0, 0, 100, 100, 100, 100]
    rows = await sql.fetch("SELECT repeat_of FROM usage_events WHERE repeat_of IS NOT NULL")
    assert {row["repeat_of"].hex for row in rows} == {first.event_id}
    await assert_consistent(sql)


async def test_a_key_counts_for_its_life_before_and_after(sql: Connection) -> None:
    first = keyed("a", "k")
    late = [keyed("a", "k", NOON_MS + LIFE_MS - 1), keyed("a", "k", NOON_MS + LIFE_MS)]
    # Written last, as from a spool: one that the key's first call was within the life of, and one from long before.
    early = [keyed("a", "k", NOON_MS + 1 - LIFE_MS), keyed("a", "k", NOON_MS - 2 * LIFE_MS)]
    for one in (first, late[0]):
        await write(sql, [one])
    await write(sql, early)
    await write(sql, [late[1]])
    assert await costs(sql, [first, *late, *early]) == [100, 0, 100, 0, 100]
    assert await sql.fetchval("SELECT count(*) FROM billed_keys") == 1


async def test_a_call_that_was_charged_as_an_expired_hold_has_used_its_key(sql: Connection) -> None:
    orphan, again = keyed("a", "k", outcome="expired"), keyed("a", "k")
    await write(sql, [again])
    await write(sql, [orphan])
    assert await costs(sql, [orphan, again]) == [0, 100]


async def test_a_repeat_counts_nothing_in_a_free_tier(sql: Connection) -> None:
    first, again, last = (tier_event("a", 1000, 6, 10) for _ in range(3))
    first, again = (
        one._replace(terms=one.terms._replace(key="k", key_life_ms=LIFE_MS))  # type: ignore[union-attr]
        for one in (first, again)
    )
    await write(sql, [first, again])
    await write(sql, [last])
    assert await costs(sql, [first, again, last]) == [0, 0, 334]  # 4 of 6 units are free
    await assert_consistent(sql)


async def test_a_cast_that_a_repeat_names_keeps_what_it_cost(sql: Connection) -> None:
    cast_id = str(await sql.fetchval("INSERT INTO casts (id) VALUES (gen_random_uuid()) RETURNING id"))
    first, again = keyed("a", "k", cast_id=cast_id), keyed("a", "k", cast_id=cast_id)
    await write(sql, [first], CAST_SQL)
    row = await write(sql, [again], CAST_SQL)
    assert (row["casts_charged"], row["casts_late"]) == (0, None)
    # Neither when the gateway of an orphan that was a repeat wakes and completes it.
    told = await sql.fetch(QUERIES["complete_events"], f"{{{again.event_id}}}", "{200}", f"{{{cast_id}}}", "{r}")
    assert told == []
    assert float(await sql.fetchval("SELECT cost_cents FROM casts")) == 0.0001


async def test_racing_writers_bill_each_key_once(sql: Connection, migrated_url: str) -> None:
    chance = random.Random(3)
    events = [keyed(chance.choice("ab"), f"k{chance.randrange(30)}") for _ in range(300)]
    writers = [await asyncpg.connect(migrated_url) for _ in range(4)]
    try:

        async def run(writer: Connection, mine: list[UsageEvent]) -> None:
            while mine:
                batch, mine = mine[:9], mine[6:]
                await write(writer, batch)

        await asyncio.gather(*(run(writer, chance.sample(events, len(events))) for writer in writers))
    finally:
        for writer in writers:
            await writer.close()
    keys = {(one.account_id, one.terms.key) for one in events if one.terms is not None}
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == len(events)
    assert await sql.fetchval("SELECT count(*) FROM usage_events WHERE cost_microcents > 0") == len(keys)
    assert await sql.fetchval("SELECT sum(cost_microcents) FROM usage_events") == 100 * len(keys)
    await assert_consistent(sql)


async def test_keys_are_forgotten_when_no_spool_can_bring_their_time_back(database: Database, sql: Connection) -> None:
    assert LedgerSettings().spool.age_max_s == 7 * 86400
    for number, days in enumerate((6, 8, 9)):
        await sql.execute(
            "INSERT INTO billed_keys VALUES"
            " ('a', 'cast', $1, $2::text::uuid, now(), now() - make_interval(days => $3))",
            f"k{number}",
            event_id(),
            days,
        )
    assert await forget_keys(database, 7 * 86400) == 2
    assert [row["key"] for row in await sql.fetch("SELECT key FROM billed_keys")] == ["k0"]
