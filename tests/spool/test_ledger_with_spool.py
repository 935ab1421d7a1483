"""The ledger gives the spool what Postgres cannot take, and gets it back: every event ends in exactly one row."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncpg
import pytest
import structlog

from gateway.breaker import Breaker
from gateway.database import Database
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.spool import Spool
from gateway.spool_file import look_into, paths_in
from gateway.spool_records import _packed
from gateway.spool_replay import Replay
from gateway.tasks import Tasks
from gateway.usage_events import UsageEvent
from tests.ledger.conftest import CheckCounters, MakeLedger
from tests.ledger.link import Link
from tests.ledger.making import Committed, event, until
from tests.spool.conftest import MakeSpool
from tests.spool.test_spool import on_disk, written

Connection = asyncpg.Connection


@pytest.fixture
async def link(migrated_url: str) -> AsyncIterator[Link]:
    link = Link(migrated_url)
    await link.open()
    yield link
    link.clear()
    await link.close()


class Pair:
    """A ledger that spills, and the way back."""

    def __init__(self, ledger: Ledger, committed: Committed, spool: Spool, worker_id: str = "w1") -> None:
        self.ledger, self.committed, self.spool = ledger, committed, spool
        spool.on_refused = ledger.take_back
        self.claimed: list[tuple[str, list[UsageEvent]]] = []
        self.replay = Replay(
            spool, ledger, worker_id=worker_id, claim=lambda worker, events: self.claimed.append((worker, list(events)))
        )


@pytest.fixture
async def pair(link: Link, make_ledger: MakeLedger, make_spool: MakeSpool, metrics: Metrics) -> AsyncIterator[Pair]:
    async for pair in _pair(link, make_ledger, make_spool, metrics):
        yield pair


async def _pair(
    link: Link, make_ledger: MakeLedger, make_spool: MakeSpool, metrics: Metrics, **settings: object
) -> AsyncIterator[Pair]:
    breaker = Breaker(clock=asyncio.get_running_loop().time, failures_max=3)
    database = Database(
        link.url,
        breaker=breaker,
        metrics=metrics,
        # Long enough for a busy machine.
        connect_timeout_s=2.0,
        acquire_timeout_s=2.0,
        statement_timeout_s=1.0,
    )
    spool = make_spool()
    ledger, committed = make_ledger(database=database, spill=spool.spill, **settings)
    yield Pair(ledger, committed, spool)
    link.clear()
    await ledger.close()
    await database.close()


async def rows(sql: Connection) -> int:
    count: int = await sql.fetchval("SELECT count(*) FROM usage_events")
    return count


async def test_after_the_first_failed_write_events_are_on_the_disk_and_come_back(
    pair: Pair, link: Link, sql: Connection, folder: Path, tasks: Tasks, counters_equal_ledger: CheckCounters
) -> None:
    await link.close()
    events = [event("a") for _ in range(50)]
    for one in events[:25]:
        pair.ledger.append(one)

    async def spilled(count: int) -> bool:
        return len(on_disk(folder)) == count

    await until(lambda: spilled(25))
    assert pair.ledger.is_failing
    for one in events[25:]:
        pair.ledger.append(one)  # at once: no further write is waited for
    assert len(pair.ledger) == 0
    await until(lambda: spilled(50))
    assert on_disk(folder) == events
    task = tasks.start("replay", pair.replay.run())
    await link.open()
    pair.ledger.append(event("a"))
    await pair.committed.wait_for(51)
    async with asyncio.timeout(10):
        while paths_in(folder):
            await asyncio.sleep(0.01)
    task.cancel()
    assert await rows(sql) == 51
    assert pair.claimed == [], "the holds are in our own book"
    await counters_equal_ledger()


async def test_a_postgres_that_hangs_is_as_lost_as_one_that_refuses(pair: Pair, link: Link, folder: Path) -> None:
    pair.ledger.append(event("a"))
    await pair.committed.wait_for(1)
    link.jam()
    for _ in range(10):
        pair.ledger.append(event("a"))

    async def spilled() -> bool:
        return len(on_disk(folder)) == 10

    await until(spilled)


async def test_closed_while_postgres_hangs_the_ledger_leaves_everything_on_the_disk_soon(
    pair: Pair, link: Link, folder: Path
) -> None:
    link.jam()
    for _ in range(10):
        pair.ledger.append(event("a"))
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(15):
            await pair.ledger.close(5.0)
            await pair.spool.close()
    assert len(on_disk(folder)) == 10
    assert pair.committed.dropped == []
    assert "ledger_closed_early" not in [entry["event"] for entry in logs]


async def test_what_the_disk_refuses_waits_in_memory_and_is_written_once(
    pair: Pair, link: Link, sql: Connection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.spool_file._write_all", full)
    await link.close()
    with structlog.testing.capture_logs() as logs:
        for _ in range(20):
            pair.ledger.append(event("a"))

        async def refused() -> bool:
            return len(pair.ledger) == 20 and not pair.ledger._spilling

        await until(refused)
        pair.ledger.append(event("a"))
        assert len(pair.ledger) == 21
        await link.open()
        await pair.committed.wait_for(21)
    assert await rows(sql) == 21
    assert paths_in(folder) == []
    assert [entry["event"] for entry in logs].count("spool_failing") == 1


async def test_a_file_with_a_bad_row_loses_that_row_and_no_other(
    pair: Pair, sql: Connection, counters_equal_ledger: CheckCounters
) -> None:
    events = [event("a") for _ in range(20)]
    events[7] = event("a", cost_microcents=-1)
    assert pair.spool.spill(events)
    await written(pair.spool)
    file = pair.spool.next_file()
    assert file is not None
    await pair.replay.replay(file)
    assert await rows(sql) == 19
    assert pair.committed.dropped == [events[7]]
    await counters_equal_ledger()


async def test_a_replay_that_is_interrupted_begins_again_and_counts_nothing_twice(
    pair: Pair, link: Link, sql: Connection, counters_equal_ledger: CheckCounters, folder: Path
) -> None:
    events = [event("a") for _ in range(1200)]
    assert pair.spool.spill(events)
    await written(pair.spool)
    file = pair.spool.next_file()
    assert file is not None
    real, calls = pair.ledger.rewrite, 0

    async def rewrite(batch: Sequence[UsageEvent]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            await link.close()
        await real(batch)

    pair.ledger.rewrite = rewrite  # type: ignore[method-assign]
    assert not await pair.replay._try(file)
    assert await rows(sql) == 500
    assert len(paths_in(folder)) == 1
    await link.open()
    async with asyncio.timeout(10):
        while not await pair.replay._try(file):
            await asyncio.sleep(0.05)
    assert await rows(sql) == 1200
    assert paths_in(folder) == []
    await counters_equal_ledger()


async def test_a_file_that_cannot_be_replayed_does_not_keep_the_others_waiting(
    pair: Pair, make_spool: MakeSpool, sql: Connection, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.spool_replay.LOOK_S", 0.01)
    await sql.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON usage_events FOR EACH ROW WHEN (NEW.account_id = 'bad')
            EXECUTE FUNCTION refuse();
        """
    )
    for worker_id, account_id in (("w8", "bad"), ("w9", "good")):
        other = make_spool(worker_id)
        other.spill([event(account_id)])
        await other.close()
    task = tasks.start("replay", pair.replay.run())
    await pair.committed.wait_for(1)
    assert [one.account_id for one in pair.committed.events] == ["good"]
    await sql.execute("DROP TRIGGER refuse ON usage_events")
    await pair.committed.wait_for(2)
    task.cancel()


async def test_another_workers_file_is_claimed_before_its_events_are_committed(
    pair: Pair, make_spool: MakeSpool
) -> None:
    other = make_spool("w0")
    events = [event("a"), event("b")]
    other.spill(events)
    await other.close()
    assert await pair.spool.adopt() == 1
    file = pair.spool.next_file()
    assert file is not None
    pair.ledger.on_committed = lambda *_: pair.claimed.append(("committed", []))  # type: ignore[assignment]
    await pair.replay.replay(file)
    assert pair.claimed == [("w0", events), ("committed", [])]


async def test_a_record_of_another_version_is_kept_aside(pair: Pair, sql: Connection, folder: Path) -> None:
    pair.spool.spill([event("a")])
    await written(pair.spool)
    file = pair.spool.next_file()
    assert file is not None
    with file.path.open("ab") as end:
        end.write(_packed(b'["what is", "this"]'))
    await pair.replay.replay(file)
    assert await rows(sql) == 1
    (kept,) = folder.iterdir()
    assert kept.suffix == ".damaged"
    assert len(look_into(kept).payloads) == 2


async def test_orphans_are_put_off_and_not_spilled(pair: Pair, link: Link, folder: Path) -> None:
    put_off: list[UsageEvent] = []
    pair.ledger.on_put_off = put_off.extend
    await link.close()
    orphans, posted = [event("a", outcome="expired") for _ in range(3)], event("a")
    for one in (*orphans, posted):
        pair.ledger.append(one)

    async def spilled() -> bool:
        return on_disk(folder) == [posted]

    await until(spilled)
    assert put_off == orphans
    late = event("a", outcome="expired")
    pair.ledger.append(late)
    pair.ledger._overflow(late)
    assert put_off == [*orphans, late, late]
    assert pair.committed.dropped == []


@pytest.mark.parametrize("at_bound", ["hold", "drop", "refuse"])
async def test_where_nothing_has_room_the_operators_choice_decides(
    link: Link, make_ledger: MakeLedger, make_spool: MakeSpool, metrics: Metrics, at_bound: str
) -> None:
    pairs = _pair(link, make_ledger, make_spool, metrics, queue_max=5, spool={"at_bound": at_bound})
    pair = await anext(pairs)
    pair.spool._closing = True  # it takes nothing
    await link.close()
    for _ in range(20):
        pair.ledger.append(event("a"))
    assert len(pair.ledger) == 5
    assert len(pair.committed.dropped) == (15 if at_bound == "drop" else 0)
    assert metrics.counter("castgate_ledger_failures_total", reason="held").value == (0 if at_bound == "drop" else 15)
    assert pair.ledger.refuses == (at_bound == "refuse")
    await link.open()
    await pair.committed.wait_for(5)
    assert not pair.ledger.refuses
    await pairs.aclose()


async def test_a_replay_waits_while_live_events_do(
    link: Link, make_ledger: MakeLedger, make_spool: MakeSpool, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.spool_replay.YIELD_MAX_S", 60.0)
    pairs = _pair(link, make_ledger, make_spool, metrics, batch_max=20, flush_interval="10s")
    pair = await anext(pairs)
    pair.ledger.append(event("first"))  # what comes within 10 s of it waits for company
    await pair.committed.wait_for(1)
    assert pair.spool.spill([event("old")] * 3)
    await written(pair.spool)
    file = pair.spool.next_file()
    assert file is not None
    for _ in range(15):
        pair.ledger.append(event("live"))
    replaying = asyncio.ensure_future(pair.replay.replay(file))
    await asyncio.sleep(0.3)
    assert len(pair.committed.events) == 1
    for _ in range(5):
        pair.ledger.append(event("live"))
    await replaying
    assert [one.account_id for one in pair.committed.events] == ["first", *["live"] * 20, *["old"] * 3]
    await pairs.aclose()


async def test_live_events_pass_a_replay(pair: Pair, sql: Connection) -> None:
    assert pair.spool.spill([event("old") for _ in range(3000)])
    await written(pair.spool)
    file = pair.spool.next_file()
    assert file is not None
    replaying = asyncio.ensure_future(pair.replay.replay(file))
    while not pair.committed.events:
        await asyncio.sleep(0.001)
    for _ in range(5):
        one = event("live")
        pair.ledger.append(one)
        async with asyncio.timeout(5):
            while one not in pair.committed.events:
                await asyncio.sleep(0.001)
    live_were_first = not replaying.done()
    await replaying
    assert live_were_first
    assert await rows(sql) == 3005


async def test_a_row_charged_as_expired_learns_what_it_was_and_keeps_its_cost(
    make_ledger: MakeLedger, sql: Connection, counters_equal_ledger: CheckCounters
) -> None:
    cast_id = "5f0b7a52-5d3c-4c0a-9f5e-1f4d7c1f9b11"
    await sql.execute("INSERT INTO casts (id) VALUES ($1::uuid)", cast_id)
    ledger, _ = make_ledger()
    ours = event("a", cost_microcents=2_000_000, cast_id=cast_id, request_id="r", upstream_status=201)
    swept = ours._replace(
        outcome="expired", cost_microcents=3_000_000, cast_id=None, request_id=None, upstream_status=0
    )
    await ledger.rewrite([swept])
    await ledger.rewrite([ours])
    row = await sql.fetchrow("SELECT outcome, cost_microcents, cast_id, request_id, upstream_status FROM usage_events")
    assert row is not None
    assert tuple(row) == ("posted", 3_000_000, cast_id, "r", 201)
    assert await sql.fetchval("SELECT cost_cents FROM casts") == 3
    # And the other way round: an orphan that comes late changes nothing.
    await ledger.rewrite([swept])
    assert await sql.fetchval("SELECT outcome FROM usage_events") == "posted"
    await counters_equal_ledger()
