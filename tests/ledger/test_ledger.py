"""Events become rows once, counters are their sums, and no fault of one row or of Postgres loses another."""

import asyncio
import uuid

import asyncpg
import pytest

from gateway.accounts import Accounts
from gateway.metrics import Metrics
from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import window_at
from gateway.usage_events import UsageEvent
from tests.ledger.conftest import CheckCounters, MakeLedger
from tests.ledger.making import MIGRATIONS, NOON_MS, event, until

Connection = asyncpg.Connection
DAY_MS = 86_400_000


async def test_every_event_is_a_row_and_the_total_is_their_sum(
    make_ledger: MakeLedger, sql: Connection, counters_equal_ledger: CheckCounters
) -> None:
    ledger, committed = make_ledger()
    events = [event(f"account-{number % 3}", cost_microcents=number) for number in range(100)]
    for one in events:
        ledger.append(one)
    await ledger.close()
    assert committed.events == events
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 100
    assert committed.usages["account-0", "total/UTC/1", 0] == sum(range(0, 100, 3))
    await counters_equal_ledger()


async def test_an_event_is_stored_as_it_was_given(make_ledger: MakeLedger, sql: Connection) -> None:
    ledger, _ = make_ledger()
    one = event(
        "a", upstream_status=0, outcome="expired", cast_id="not a uuid", request_id="r-1", occurred_ms=NOON_MS + 1
    )
    ledger.append(one)
    await ledger.close()
    row = await sql.fetchrow("SELECT *, (extract(epoch FROM occurred_at) * 1000)::bigint AS ms FROM usage_events")
    assert row is not None
    assert row["id"].hex == one.event_id
    assert row["ms"] == NOON_MS + 1
    assert (row["upstream_status"], row["outcome"]) == (0, "expired")
    assert (row["cast_id"], row["request_id"]) == ("not a uuid", "r-1")


async def test_a_replayed_event_is_counted_once_and_its_usage_is_told_again(
    make_ledger: MakeLedger, sql: Connection, counters_equal_ledger: CheckCounters
) -> None:
    one = event("a", cost_microcents=7)
    for _ in range(2):
        ledger, committed = make_ledger()
        ledger.append(one)
        await ledger.close()
        assert committed.events == [one]
        assert committed.usages == {("a", "total/UTC/1", 0): 7}
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 1
    await counters_equal_ledger()


async def test_the_same_event_twice_in_one_batch_is_counted_once(
    make_ledger: MakeLedger, counters_equal_ledger: CheckCounters
) -> None:
    ledger, committed = make_ledger()
    one = event("a", cost_microcents=7)
    ledger.append(one)
    ledger.append(one)
    await ledger.close()
    assert committed.usages == {("a", "total/UTC/1", 0): 7}
    await counters_equal_ledger()


async def test_an_event_counts_in_each_window_that_holds_its_time(
    make_ledger: MakeLedger, accounts: Accounts, counters_equal_ledger: CheckCounters
) -> None:
    limits = [
        BudgetLimit(period=period, hard_limit_microcents=1, time_zone=zone)
        for period in ("daily", "weekly", "monthly", "total")
        for zone in ("UTC", "Asia/Tokyo", "America/Los_Angeles")
    ]
    windows = {one.kind: window_at(one.period, one.time_zone, one.week_start, NOON_MS) for one in limits}
    account = accounts.get("a")
    assert set((await accounts.seed([(account, windows)]))["a"].values()) == {0}
    ledger, committed = make_ledger()
    # From noon in London on, one event each 3 hours: Tokyo's day ends after 1, Los Angeles' after 6.
    for step in range(16):
        ledger.append(event("a", cost_microcents=10**step, occurred_ms=NOON_MS + step * 3 * 3_600_000))
    await ledger.close()
    used = {kind: committed.usages["a", kind, window.start_ms] for kind, window in windows.items()}
    assert used["daily/Asia/Tokyo/1"] == 1
    assert used["daily/UTC/1"] == 1111
    assert used["daily/America/Los_Angeles/1"] == 1111111
    assert used["weekly/UTC/1"] == 1111
    assert used["monthly/UTC/1"] == used["total/UTC/1"] == int("1" * 16)
    await counters_equal_ledger()


async def test_a_bad_row_is_dropped_alone(
    make_ledger: MakeLedger, sql: Connection, counters_equal_ledger: CheckCounters
) -> None:
    ledger, committed = make_ledger(batch_max=64)
    good = [event("a") for _ in range(60)]
    bad = [
        event("a", cost_microcents=-1),
        event("a", outcome="unheard of"),
        event("a\0b"),
        event("a", event_id="no id"),
    ]
    for position, one in zip((0, 17, 33, 60), bad, strict=True):
        good.insert(position, one)
    for one in good:
        ledger.append(one)
    await ledger.close()
    assert committed.dropped == bad
    assert len(committed.events) == 60
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 60
    await counters_equal_ledger()


async def test_a_full_queue_spills_the_newest(make_ledger: MakeLedger) -> None:
    spilled: list[object] = []

    def spill(events: list[object]) -> bool:
        spilled.extend(events)
        return True

    ledger, committed = make_ledger(queue_max=10, spill=spill)
    events = [event("a") for _ in range(15)]
    for one in events:
        ledger.append(one)
    assert spilled == events[10:]
    await ledger.close()
    assert committed.events == events[:10]
    assert committed.dropped == []


async def test_a_full_queue_without_a_spill_leaves_the_newest_to_their_holds(
    make_ledger: MakeLedger, metrics: Metrics
) -> None:
    ledger, committed = make_ledger(queue_max=10)
    events = [event("a") for _ in range(15)]
    for one in events:
        ledger.append(one)
    await ledger.close()
    assert committed.events == events[:10]
    assert committed.dropped == []
    assert metrics.counter("castgate_ledger_failures_total", reason="held").value == 5


async def test_a_full_queue_drops_the_newest_where_that_is_wanted(make_ledger: MakeLedger) -> None:
    ledger, committed = make_ledger(queue_max=10, spool={"at_bound": "drop"})
    events = [event("a") for _ in range(15)]
    for one in events:
        ledger.append(one)
    await ledger.close()
    assert committed.dropped == events[10:]
    assert committed.events == events[:10]


async def test_events_that_come_during_a_write_are_the_next_batch(make_ledger: MakeLedger) -> None:
    ledger, committed = make_ledger(flush_interval="1ms")
    again = asyncio.Event()

    def commit(events: object, usages: object) -> None:
        committed.commit(events, usages)  # type: ignore[arg-type]
        if len(committed.batches) == 1:
            for _ in range(5):
                ledger.append(event("a"))
        else:
            again.set()

    ledger.on_committed = commit  # type: ignore[assignment]
    ledger.append(event("a"))
    await again.wait()
    assert committed.batches == [1, 5]


@pytest.mark.parametrize(
    ("events", "intervals", "goes"),
    [
        (63, 0.9, False),
        (63, 1.1, True),
        (64, 2.9, False),
        (64, 3.1, True),
        (399, 2.9, False),
        (400, 0.9, False),
        (400, 1.1, True),
        (2000, 0, True),
    ],
)
async def test_many_events_wait_for_more(
    make_ledger: MakeLedger, metrics: Metrics, events: int, intervals: float, goes: bool
) -> None:
    """Few go when the interval since the last batch is over, and enough; what is between after three; all at once."""
    ledger, committed = make_ledger(flush_interval="10s", batch_max=2000)
    ledger._last_write = asyncio.get_running_loop().time() - 10.0 * intervals
    for _ in range(events):
        ledger.append(event("a"))
    await asyncio.sleep(0)
    assert (ledger._pieces != []) is goes
    await ledger.close()
    assert len(committed.events) == events
    assert metrics.counter("castgate_ledger_flushes_total", result="ok").value == 1


async def test_what_becomes_enough_amid_an_interval_goes_then(make_ledger: MakeLedger) -> None:
    ledger, _ = make_ledger(flush_interval="10s")
    ledger._last_write = asyncio.get_running_loop().time() - 15.0
    for _ in range(399):
        ledger.append(event("a"))
    await asyncio.sleep(0)
    assert ledger._pieces == []
    ledger.append(event("a"))
    for _ in range(10):  # turns; the interval that it is in ends in five seconds
        await asyncio.sleep(0)
    assert list(map(len, ledger._pieces)) == [400]


async def test_a_batch_that_is_full_amid_an_interval_goes_then(make_ledger: MakeLedger) -> None:
    """Else the queue has to have room for all that comes within a long interval, and events without it stay holds."""
    ledger, _ = make_ledger(flush_interval="10s", batch_max=500)
    ledger._last_write = asyncio.get_running_loop().time()
    for number in range(1, 501):
        assert ledger._pieces == []
        ledger.append(event("a"))
        if number in (1, 399, 400, 499, 500):
            for _ in range(10):  # turns
                await asyncio.sleep(0)
    assert list(map(len, ledger._pieces)) == [500]


async def test_a_listener_that_fails_stops_nothing(make_ledger: MakeLedger, sql: Connection) -> None:
    ledger, _ = make_ledger(batch_max=1)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    ledger.on_committed = fail
    for _ in range(3):
        ledger.append(event("a"))
    await ledger.close()
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 3


async def test_casts_get_their_cost_in_cents(make_ledger: MakeLedger, sql: Connection) -> None:
    ids = [uuid.uuid4() for _ in range(3)]
    await sql.executemany("INSERT INTO casts (id) VALUES ($1)", [(one,) for one in ids])
    ledger, _ = make_ledger()
    ledger.append(event("a", cost_microcents=1_000_000, cast_id=str(ids[0])))
    ledger.append(event("a", cost_microcents=1, cast_id=ids[1].hex))
    ledger.append(event("a", cost_microcents=9_007_199_254_740_991, cast_id=str(ids[2])))
    await ledger.close()
    costs = {row["id"]: str(row["cost_cents"]) for row in await sql.fetch("SELECT id, cost_cents FROM casts")}
    assert costs == {ids[0]: "1.000000", ids[1]: "0.000001", ids[2]: "9007199254.740991"}


async def test_a_bad_cast_id_spoils_neither_the_ledger_nor_other_casts(
    make_ledger: MakeLedger, sql: Connection, counters_equal_ledger: CheckCounters
) -> None:
    good = uuid.uuid4()
    await sql.execute("INSERT INTO casts (id) VALUES ($1)", good)
    ledger, committed = make_ledger()
    for cast_id in ("no uuid", str(good), str(uuid.uuid4()), None):
        ledger.append(event("a", cast_id=cast_id))
    await ledger.close()
    assert len(committed.events) == 4
    assert committed.dropped == []
    assert await sql.fetchval("SELECT cost_cents FROM casts WHERE id = $1", good) == 1
    await counters_equal_ledger()


@pytest.mark.parametrize("statement", ["DROP TABLE casts", "ALTER TABLE casts DROP COLUMN cost_cents"])
async def test_without_casts_the_ledger_is_written_all_the_same(
    make_ledger: MakeLedger, sql: Connection, statement: str
) -> None:
    await sql.execute(statement)
    ledger, committed = make_ledger()
    ledger.append(event("a", cast_id=str(uuid.uuid4())))
    await ledger.close()
    assert len(committed.events) == 1
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 1


async def test_casts_that_are_locked_are_charged_later_and_hold_nobody_up(
    make_ledger: MakeLedger, sql: Connection, migrated_url: str
) -> None:
    cast_id = uuid.uuid4()
    await sql.execute("INSERT INTO casts (id) VALUES ($1)", cast_id)
    phase1 = await asyncpg.connect(migrated_url)
    ledger, committed = make_ledger()
    async with phase1.transaction():
        await phase1.execute("UPDATE casts SET note = 'busy' WHERE id = $1", cast_id)
        ledger.append(event("a", cast_id=str(cast_id)))
        await committed.wait_for(1)
        assert await sql.fetchval("SELECT count(*) FROM usage_events") == 1
    await phase1.close()
    ledger.append(event("a"))
    await committed.wait_for(2)
    assert await sql.fetchval("SELECT cost_cents FROM casts") == 1


async def test_casts_that_were_locked_are_charged_even_if_no_other_call_comes(
    make_ledger: MakeLedger, sql: Connection, migrated_url: str
) -> None:
    cast_id = uuid.uuid4()
    await sql.execute("INSERT INTO casts (id) VALUES ($1)", cast_id)
    phase1 = await asyncpg.connect(migrated_url)
    ledger, committed = make_ledger()
    async with phase1.transaction():
        await phase1.execute("UPDATE casts SET note = 'busy' WHERE id = $1", cast_id)
        ledger.append(event("a", cast_id=str(cast_id)))
        await committed.wait_for(1)
    await phase1.close()

    async def charged() -> bool:
        return await sql.fetchval("SELECT cost_cents FROM casts") == 1

    await until(charged)


async def test_closing_gives_up_in_time_and_spills_what_is_left(
    make_ledger: MakeLedger, sql: Connection, migrated_url: str
) -> None:
    spilled: list[object] = []

    def spill(events: list[object]) -> bool:
        spilled.extend(events)
        return True

    ledger, committed = make_ledger(spill=spill)
    one = event("a")
    async with sql.transaction():
        await sql.execute("LOCK TABLE usage_events")
        ledger.append(one)
        await ledger.close(0.1)
    assert spilled == [one]
    assert committed.events == committed.dropped == []


async def test_a_table_that_is_missing_is_waited_for(
    make_ledger: MakeLedger, sql: Connection, metrics: Metrics
) -> None:
    await sql.execute("ALTER TABLE usage_events RENAME TO away")
    ledger, committed = make_ledger()
    ledger.append(event("a"))

    async def refused() -> bool:
        return metrics.counter("castgate_ledger_failures_total", reason="error").value > 0

    await until(refused)
    assert len(ledger) == 1
    await sql.execute("ALTER TABLE away RENAME TO usage_events")
    await committed.wait_for(1)
    assert committed.dropped == []


async def test_workers_newer_than_the_tables_spill_until_the_migration_comes(
    make_ledger: MakeLedger, sql: Connection, counters_equal_ledger: CheckCounters
) -> None:
    spilled: list[UsageEvent] = []
    ledger, _ = make_ledger(spill=lambda events: spilled.extend(events) or True)

    async def is_spilled() -> bool:
        return bool(spilled)

    async def is_back() -> bool:
        return not ledger.is_failing

    for name in ("0015_write_batch.rollback.sql", "0015_write_batch.sql"):
        await sql.execute((MIGRATIONS / name).read_text())
        ledger.append(event("a"))
        await until(is_spilled if "rollback" in name else is_back)
    await ledger.rewrite(spilled)
    await ledger.close()
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 2
    await counters_equal_ledger()
