"""What nobody noticed is found by a sweep, which goes on where another worker left it."""

import asyncpg

from gateway.soft_limits_sweep import Sweep
from tests.ledger.making import event
from tests.soft_limits.conftest import CENT, MakeWriter, Writer, announced, now_ms

Connection = asyncpg.Connection
COUNTER = """
    INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start, used_microcents)
    VALUES ($1, now() + interval '1 day', 'monthly', 'UTC', 1, now() - interval '1 day', $2)
"""


def sweep_of(writer: Writer, page: int = 500, interval_s: float = 60.0) -> Sweep:
    return Sweep(writer.database, writer.soft_limits, interval_s=interval_s, page=page)


async def release(sql: Connection) -> None:
    """Time passes."""
    await sql.execute("UPDATE soft_limit_sweep SET leased_until = now() - interval '1 s'")


async def test_what_a_killed_writer_did_not_announce_is_announced(make_writer: MakeWriter, sql: Connection) -> None:
    killed, other = make_writer(listens=False), make_writer()
    await killed.meet("a")
    await killed.ledger.rewrite([event("a", 100 * CENT, now_ms())])
    assert await sweep_of(other).look()
    assert await announced(sql, "a") == ["50", "80", "100"]
    assert [other.count(name) for name in ("50", "80", "100")] == [1, 1, 1]
    await release(sql)
    assert await sweep_of(other).look()
    assert other.count("100") == 1


async def test_a_limit_that_was_lowered_is_found_without_another_call(writer: Writer, sql: Connection) -> None:
    await writer.spend("a", 40)
    await sql.execute("INSERT INTO budgets (account_id, period, hard_limit_microcents) VALUES ('a', 'monthly', $1)", 10)
    assert await sweep_of(writer).look()
    assert await announced(sql, "a") == ["50", "80", "100"]


async def test_all_pages_are_looked_at_and_then_no_more_for_the_interval(writer: Writer, sql: Connection) -> None:
    for number in range(5):
        await sql.execute(COUNTER, f"account-{number}", 55 * CENT)
    sweep = sweep_of(writer, page=2)
    assert await sweep.look()
    assert writer.count("50") == 5
    assert not await sweep.look()
    left_s = await sql.fetchval("SELECT extract(epoch FROM leased_until - now()) FROM soft_limit_sweep")
    assert 50 < left_s <= 60


async def test_one_looks_at_a_time_and_another_goes_on_where_one_died(writer: Writer, sql: Connection) -> None:
    for number in range(3):
        await sql.execute(COUNTER, f"account-{number}", 55 * CENT)
    await sql.execute("INSERT INTO soft_limit_sweep (after, leased_until) VALUES ('account-0', now() + interval '9 s')")
    assert not await sweep_of(writer).look()
    assert writer.count("50") == 0
    await release(sql)  # of somebody who died after the first account
    assert await sweep_of(writer).look()
    assert [await announced(sql, f"account-{number}") for number in range(3)] == [[], ["50"], ["50"]]
    await release(sql)
    assert await sweep_of(writer).look()
    assert await announced(sql, "account-0") == ["50"]


async def test_what_was_announced_long_ago_is_forgotten_with_its_message(
    make_writer: MakeWriter, sql: Connection
) -> None:
    writer = make_writer(queued=lambda: None)
    await writer.spend("a", 85)
    ended = "UPDATE soft_limit_announcements SET window_end = now() - $1::text::interval WHERE threshold = $2"
    await sql.execute(ended, "89 days", "50")
    await sql.execute(ended, "91 days", "80")
    assert await sweep_of(writer).look()
    rows = await sql.fetch("SELECT threshold FROM webhook_outbox JOIN soft_limit_announcements USING (id)")
    assert [row["threshold"] for row in rows] == ["50"]
    assert await sql.fetchval("SELECT count(*) FROM webhook_outbox") == 1
