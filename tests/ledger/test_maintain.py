"""``castgate maintain``: months are made in advance and dropped when they are old, and no sum changes."""

import asyncio
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from gateway.accounts import Accounts
from gateway.cli import main
from gateway.database import QUERIES, Database
from gateway.maintain import MonthsAhead
from gateway.metrics import Metrics
from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import window_at
from gateway.reconcile import Reconciler
from gateway.usage_events import UsageEvent
from tests.gateways import ROOT
from tests.ledger.conftest import CheckCounters, MakeLedger
from tests.ledger.making import event, lenient_breaker, until
from tests.ledger.months import at_ms, by_partition, id_at, month_start, partition_of, record

Connection = asyncpg.Connection
CENT = 1_000_000


@pytest.fixture
def castgate(migrated_url: str, tmp_path: Path) -> Callable[..., "asyncio.Future[Result]"]:
    config = tmp_path / "config.yaml"
    config.write_text((ROOT / "config.yaml").read_text().replace("policies: policies", f"policies: {ROOT}/policies"))
    environ = {
        "DATABASE_URL": migrated_url,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "UPSTREAM_URL": "http://127.0.0.1:1",
        "COST_PER_CAST_CENTS": "1",
    }

    def run(*arguments: str, url: str = migrated_url) -> "asyncio.Future[Result]":
        """In a thread, as the command has an event loop of its own."""
        runner = CliRunner(env={**environ, "DATABASE_URL": url})
        command = ["maintain", "--config", str(config), *arguments]
        return asyncio.ensure_future(asyncio.to_thread(runner.invoke, main, command, catch_exceptions=False))

    return run


Castgate = Callable[..., "asyncio.Future[Result]"]


def event_at(account_id: str, at: datetime, cost_microcents: int = CENT, **more: object) -> UsageEvent:
    return event(account_id, cost_microcents, at_ms(at), **{"event_id": id_at(at), **more})


async def months(sql: Connection) -> list[str]:
    rows = await sql.fetch(QUERIES["usage_months"], None)
    return [row["name"] for row in rows]


async def used(sql: Connection, account_id: str, period: str = "total") -> tuple[int, int]:
    row = await sql.fetchrow(
        "SELECT used_microcents, calls FROM usage_counters WHERE account_id = $1 AND period = $2", account_id, period
    )
    return (0, 0) if row is None else (row["used_microcents"], row["calls"])


@pytest.fixture
async def past(sql: Connection, castgate: Castgate) -> list[UsageEvent]:
    """A year of one account, a call a month, each in its partition."""
    events = [event_at("a", month_start(-number) + timedelta(days=1)) for number in range(13)]
    await record(sql, events)
    await castgate()
    assert await by_partition(sql) == {partition_of(-number): 1 for number in range(13)}
    return events


async def drift(database: Database) -> dict[str, bool]:
    reconciler = Reconciler(database, None)
    return {
        line.account_id: line.has_drift async for page in reconciler.pages() for line in await reconciler.compare(page)
    }


# --- making


async def test_months_ahead_are_made_once(sql: Connection, castgate: Castgate) -> None:
    assert await months(sql) == [*(partition_of(number) for number in range(4)), "usage_events_default"]
    first = await castgate("--ahead", "5")
    assert first.exit_code == 0
    assert re.search(rf"^{partition_of(5)} .* made$", first.stdout, re.MULTILINE)
    assert first.stdout.endswith("2 made, 0 events moved into them; 0 dropped (all are kept)\n")
    second = await castgate("--ahead", "5")
    assert second.stdout.endswith("0 made, 0 events moved into them; 0 dropped (all are kept)\n")
    assert await months(sql) == [*(partition_of(number) for number in range(6)), "usage_events_default"]


async def test_what_waited_in_the_default_partition_moves_into_its_month(
    sql: Connection, castgate: Castgate, counters_equal_ledger: CheckCounters
) -> None:
    strange = event_at("a", month_start(0), event_id="f" * 12 + "4" + "f" * 19)
    await record(
        sql, [event_at("a", month_start(-2)), event_at("b", month_start(-2)), event_at("a", month_start(5)), strange]
    )
    assert await by_partition(sql) == {"usage_events_default": 4}
    assert "1 made, 2 events moved" in (await castgate()).stdout
    assert await by_partition(sql) == {partition_of(-2): 2, "usage_events_default": 2}
    assert "2 made, 1 events moved" in (await castgate("--ahead", "5")).stdout
    assert await by_partition(sql) == {partition_of(-2): 2, partition_of(5): 1, "usage_events_default": 1}
    await counters_equal_ledger()


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    sql: Connection, castgate: Castgate, past: list[UsageEvent]
) -> None:
    before = await months(sql)
    shown = await castgate("--dry-run", "--ahead", "4", "--retention", "11")
    assert shown.exit_code == 0
    assert re.search(rf"^{partition_of(-12)} .* would be dropped$", shown.stdout, re.MULTILINE)
    assert re.search(rf"^{partition_of(4)} .* would be made$", shown.stdout, re.MULTILINE)
    assert shown.stdout.endswith(
        "1 made, 0 events moved into them; 1 dropped (the 11 before this one are kept); dry run: nothing was changed\n"
    )
    assert await months(sql) == before
    assert len(await by_partition(sql)) == len(past)


async def test_a_worker_makes_months_by_itself(sql: Connection, database: Database) -> None:
    await sql.execute(f"DROP TABLE {partition_of(3)}")
    await record(sql, [event_at("a", month_start(3)), event_at("a", month_start(-1))])
    watch = MonthsAhead(database, 3)
    with capture_logs() as logs:
        assert await watch.look()
        assert await watch.look()
    assert await by_partition(sql) == {partition_of(3): 1, partition_of(-1): 1}
    assert [line["event"] for line in logs] == ["months_made"]


async def test_a_worker_leaves_a_large_move_to_the_command(
    sql: Connection, database: Database, castgate: Castgate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.maintain._MOVE_MAX", 1)
    await record(sql, [event_at("a", month_start(-1)) for _ in range(3)])
    with capture_logs() as logs:
        assert await MonthsAhead(database, 3).look()
    assert [line["event"] for line in logs] == ["months_not_made"]
    assert await by_partition(sql) == {"usage_events_default": 3}
    assert "1 made, 3 events moved" in (await castgate()).stdout


async def test_a_month_that_cannot_be_made_now_is_made_later_and_calls_are_written_meanwhile(
    sql: Connection, migrated_url: str, database: Database, make_ledger: MakeLedger
) -> None:
    await sql.execute(f"DROP TABLE {partition_of(3)}")
    reader = await asyncpg.connect(migrated_url)
    trial = reader.transaction()
    await trial.start()
    await reader.fetchval("SELECT count(*) FROM usage_events")
    watch = MonthsAhead(database, 3)
    ledger, committed = make_ledger()
    with capture_logs() as logs:
        looking = asyncio.ensure_future(watch.look())
        ledger.append(event("a"))
        await committed.wait_for(1, timeout_s=5.0)
        assert not await looking
    assert [(line["event"], line["error"]) for line in logs] == [
        ("months_not_made", "canceling statement due to lock timeout")
    ]
    await trial.rollback()
    await reader.close()
    assert await watch.look()
    assert partition_of(3) in await months(sql)


async def test_a_role_without_the_right_is_warned_about_and_goes_on(
    sql: Connection, migrated_url: str, castgate: Castgate, metrics: Metrics, make_ledger: MakeLedger
) -> None:
    await sql.execute(f"DROP TABLE {partition_of(0)}, {partition_of(1)}, {partition_of(2)}, {partition_of(3)}")
    role = f"writer_{await sql.fetchval('SELECT current_database()')}"
    await sql.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
    )
    try:
        url = re.sub(r"//[^@]*@", f"//{role}:secret@", migrated_url)
        theirs = Database(url, breaker=lenient_breaker(), metrics=metrics)
        watch = MonthsAhead(theirs, 3)
        with capture_logs() as logs:
            assert await watch.look()
            assert await watch.look()
        assert [line["event"] for line in logs] == ["months_not_made"]
        assert "must be owner" in logs[0]["error"] or "permission denied" in logs[0]["error"]
        ledger, committed = make_ledger(database=theirs)
        ledger.append(event("a"))
        await committed.wait_for(1)
        assert await by_partition(sql) == {"usage_events_default": 1}
        refused = await castgate(url=url)
        assert refused.exit_code == 1
        assert refused.stderr.startswith("castgate: ")
        assert refused.stdout == ""
        await ledger.close()
        await theirs.close()
    finally:
        await sql.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# --- dropping


async def test_nothing_is_dropped_unless_it_is_asked_for(
    sql: Connection, castgate: Castgate, past: list[UsageEvent]
) -> None:
    assert (await castgate()).exit_code == 0
    assert len(await by_partition(sql)) == len(past)


async def test_a_retention_from_before_there_were_ids_drops_nothing(
    sql: Connection, castgate: Castgate, past: list[UsageEvent]
) -> None:
    for dry_run in (["--dry-run"], []):
        done = await castgate("--retention", "1200", *dry_run)
        assert (done.exit_code, "; 0 dropped (the 1200 before this one are kept)" in done.stdout) == (0, True), (
            done.stdout
        )
    assert len(await by_partition(sql)) == len(past)


@pytest.mark.parametrize("retention", ["1", "-1", "x"])
async def test_a_retention_that_is_too_short_is_refused(castgate: Castgate, retention: str) -> None:
    refused = await castgate("--retention", retention)
    assert refused.exit_code == 2
    assert "--retention" in refused.stderr


async def test_the_function_refuses_it_as_well(sql: Connection) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="the two months before this one are kept"):
        await sql.fetchrow(QUERIES["drop_usage_month"], 1, False)


async def test_old_months_go_and_every_sum_stays(
    sql: Connection, castgate: Castgate, past: list[UsageEvent], database: Database
) -> None:
    await record(sql, [event_at("b", month_start(-12) + timedelta(days=2), 5), event_at("c", month_start(-1), 7)])
    before = {account_id: await used(sql, account_id) for account_id in "abc"}
    assert before == {"a": (13 * CENT, 13), "b": (5, 1), "c": (7, 1)}

    done = await castgate("--retention", "2")
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.search(rf"^{partition_of(-12)} .* dropped: 2 calls, 1.000005 cents$", done.stdout, re.MULTILINE)
    assert "10 dropped (the 2 before this one are kept)" in done.stdout
    assert await by_partition(sql) == {partition_of(0): 1, partition_of(-1): 2, partition_of(-2): 1}
    assert {account_id: await used(sql, account_id) for account_id in "abc"} == before
    assert await drift(database) == {"a": False, "b": False, "c": False}

    again = await castgate("--retention", "2")
    assert "0 dropped" in again.stdout
    assert await drift(database) == {"a": False, "b": False, "c": False}
    # What goes on is added to what there was.
    await record(sql, [event("a", 3), event("b", 4)])
    assert await drift(database) == {"a": False, "b": False, "c": False}
    assert await used(sql, "b") == (9, 2)


async def test_a_total_that_is_wrong_is_mended_with_what_was_dropped(
    sql: Connection, castgate: Castgate, past: list[UsageEvent], database: Database
) -> None:
    await castgate("--retention", "2")
    await sql.execute("UPDATE usage_counters SET used_microcents = 1, calls = 1 WHERE period = 'total'")
    assert await drift(database) == {"a": True}
    assert await sql.fetchval(QUERIES["repair_usage"], ["a"]) == 1
    assert await used(sql, "a") == (13 * CENT, 13)
    await sql.execute("DELETE FROM usage_counters")
    assert await drift(database) == {"a": True}
    await sql.fetchval(QUERIES["repair_usage"], ["a"])
    assert await used(sql, "a") == (13 * CENT, 13)


async def test_closed_windows_before_what_is_left_stay_as_they_were(
    sql: Connection, castgate: Castgate, past: list[UsageEvent], database: Database, accounts: Accounts
) -> None:
    limits = [BudgetLimit(period="monthly", hard_limit_microcents=0, time_zone=zone) for zone in ("UTC", "Asia/Tokyo")]
    for number in (-12, -2, 0):
        at = at_ms(month_start(number) + timedelta(days=1))
        windows = {limit.kind: window_at("monthly", limit.time_zone, 1, at) for limit in limits}
        assert (await accounts.seed([(accounts.get("a"), windows)]))["a"] == dict.fromkeys(windows, CENT)
    counters = "SELECT period, window_end, used_microcents FROM usage_counters ORDER BY 1, 2, 3"
    before = await sql.fetch(counters)
    await castgate("--retention", "2")
    assert await drift(database) == {"a": False}
    assert await sql.fetchval(QUERIES["repair_usage"], ["a"]) == 0
    assert await sql.fetch(counters) == before


async def test_an_event_that_comes_after_its_month_was_dropped_is_kept_aside_and_not_counted(
    sql: Connection, castgate: Castgate, past: list[UsageEvent], database: Database, make_ledger: MakeLedger
) -> None:
    """From a spool that nobody looked after: whether it was counted then is not known any more."""
    await castgate("--retention", "2")
    before = await used(sql, "a")
    never_seen = event_at("a", month_start(-7), 9)
    ledger, committed = make_ledger()
    for _ in range(2):
        await ledger.rewrite([past[-1], past[0], never_seen, event_at("a", month_start(0), 2)])
    assert len(committed.events) == 8, "their holds are over"
    assert committed.dropped == []
    assert await used(sql, "a") == (before[0] + 4, before[1] + 2)
    rows = await sql.fetch("SELECT id, event ->> 'account_id' AS account_id FROM usage_events_late ORDER BY id")
    assert [(row["id"].hex, row["account_id"]) for row in rows] == [
        (past[-1].event_id, "a"),
        (never_seen.event_id, "a"),
    ]
    assert await drift(database) == {"a": False}
    warned = await castgate()
    assert warned.exit_code == 0
    assert "2 calls of 1.000009 cents came after their month was dropped and are not counted" in warned.stderr
    with capture_logs() as logs:
        watch = MonthsAhead(database, 3)
        await watch.look()
        await watch.look()
    assert [(line["event"], line["calls"]) for line in logs] == [("usage_came_late", 2)]


async def test_events_of_a_worker_whose_clock_was_wrong_are_counted_once_and_stay(
    sql: Connection, castgate: Castgate, past: list[UsageEvent], database: Database
) -> None:
    """Its ids are months old, its calls are of today, by Redis' clock."""
    early = event("a", 5, at_ms(month_start(0)), event_id=id_at(month_start(-7)))
    await record(sql, [early])
    done = await castgate("--retention", "2")
    assert "1 moved to the default partition" in done.stdout
    assert await drift(database) == {"a": False}
    late = event("a", 7, at_ms(month_start(0)), event_id=id_at(month_start(-6)))
    for _ in range(2):
        await record(sql, [early, late])
    assert await used(sql, "a") == (13 * CENT + 12, 15)
    assert await by_partition(sql) == {**{partition_of(-number): 1 for number in range(3)}, "usage_events_default": 2}
    assert await drift(database) == {"a": False}
    assert await sql.fetchval("SELECT count(*) FROM usage_events_late") == 0


async def test_a_month_can_be_left_as_a_table(sql: Connection, castgate: Castgate, past: list[UsageEvent]) -> None:
    done = await castgate("--retention", "11", "--detach")
    assert "left as a table: 1 calls, 1 cents" in done.stdout
    assert await sql.fetchval(f"SELECT count(*) FROM {partition_of(-12)}") == 1
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 12
    assert await used(sql, "a") == (13 * CENT, 13)


async def test_months_are_dropped_while_calls_are_written(
    sql: Connection, castgate: Castgate, past: list[UsageEvent], database: Database, make_ledger: MakeLedger
) -> None:
    ledger, committed = make_ledger()
    old = [event_at("a", month_start(-12) + timedelta(days=3)) for _ in range(200)]
    written = 0
    dropping = castgate("--retention", "2")
    while not dropping.done():
        ledger.append(event(f"account-{written % 7}"))
        ledger.append(old[written % len(old)]._replace(account_id="a"))
        written += 2
        await asyncio.sleep(0.002)
    assert (await dropping).exit_code == 0
    await committed.wait_for(written)
    assert set((await drift(database)).values()) == {False}
    counted = await sql.fetchval("SELECT sum(calls) FROM usage_counters WHERE period = 'total'")
    left = await sql.fetchval(
        "SELECT (SELECT count(*) FROM usage_events) + (SELECT coalesce(sum(calls), 0) FROM usage_archived)"
    )
    assert counted == left


async def test_whoever_reads_for_long_is_not_cut_off_and_nobody_waits_behind_the_drop(
    sql: Connection, migrated_url: str, castgate: Castgate, past: list[UsageEvent], make_ledger: MakeLedger
) -> None:
    reader = await asyncpg.connect(migrated_url)
    trial = reader.transaction()
    await trial.start()
    await reader.fetchval("SELECT count(*) FROM usage_events")
    dropping = castgate("--retention", "11")

    async def drop_waits() -> bool:
        return bool(
            await sql.fetchval(
                "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted "
                "AND relation = 'usage_events'::regclass"
            )
        )

    await until(drop_waits)
    ledger, committed = make_ledger()
    ledger.append(event("a"))
    await committed.wait_for(1, timeout_s=5.0)
    assert not dropping.done()
    await trial.rollback()
    assert (await dropping).exit_code == 0
    await reader.close()
    assert partition_of(-12) not in await by_partition(sql)


# --- no partition at all


async def test_an_event_without_any_partition_waits_and_is_never_dropped(
    sql: Connection, make_ledger: MakeLedger, counters_equal_ledger: CheckCounters
) -> None:
    await sql.execute("ALTER TABLE usage_events DETACH PARTITION usage_events_default")
    ledger, committed = make_ledger()
    ahead = event_at("a", month_start(9))
    ledger.append(ahead)

    async def failing() -> bool:
        return ledger.is_failing

    await until(failing)
    assert committed.dropped == []
    await sql.execute("ALTER TABLE usage_events ATTACH PARTITION usage_events_default DEFAULT")
    await committed.wait_for(1)
    assert committed.dropped == []
    await counters_equal_ledger()


async def test_an_event_that_breaks_a_constraint_is_still_dropped(make_ledger: MakeLedger) -> None:
    ledger, committed = make_ledger()
    bad = event("a", -1)
    ledger.append(bad)
    ledger.append(event("a"))
    await committed.wait_for(1)
    assert committed.dropped == [bad]
