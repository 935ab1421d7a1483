"""Each threshold of each window of each account's budget is announced once, whoever finds out."""

import asyncio
from dataclasses import replace

import asyncpg
import pytest
import structlog

from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import FOREVER_MS, window_at
from gateway.policy.rules import Plan
from gateway.usage_events import WindowUsage
from tests.ledger.link import Link
from tests.ledger.making import event
from tests.soft_limits.conftest import CENT, MONTHLY, RULES, MakeWriter, Writer, announced, now_ms

Connection = asyncpg.Connection

COUNTER = """
    INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start, used_microcents)
    VALUES ($1, now() + $2::text::interval, 'monthly', 'UTC', 1, now() + $2::text::interval - interval '30 days', $3)
"""


def lines(logs: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(line["account"], line["threshold"]) for line in logs if line["event"] == "soft_limit_reached"]


async def budget(
    sql: Connection, account_id: str, hard: int, soft: int | None = None, period: str = "monthly", zone: str = "UTC"
) -> None:
    await sql.execute(
        """
        INSERT INTO budgets (account_id, period, hard_limit_microcents, soft_limit_microcents, time_zone)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (account_id, period) DO UPDATE
            SET hard_limit_microcents = excluded.hard_limit_microcents,
                soft_limit_microcents = excluded.soft_limit_microcents
        """,
        account_id,
        period,
        hard * CENT,
        None if soft is None else soft * CENT,
        zone,
    )


async def test_each_threshold_is_announced_when_it_is_reached_and_not_again(writer: Writer, sql: Connection) -> None:
    with structlog.testing.capture_logs() as logs:
        await writer.spend("a", 49.999999)
        assert await announced(sql, "a") == []
        await writer.spend("a", 0.000001, 29, 1, 5, 15, 1)
    assert await announced(sql, "a") == ["50", "80", "100"]
    assert lines(logs) == [("a", "50"), ("a", "80"), ("a", "100")]
    assert [writer.count(name) for name in ("50", "80", "100")] == [1, 1, 1]
    [first] = [line for line in logs if line.get("threshold") == "50"]
    assert (first["plan"], first["period"]) == ("free", "monthly")
    assert (first["used_cents"], first["limit_cents"]) == ("50", "100")
    assert str(first["announcement"]).startswith("msg_")
    assert str(first["resets_at"]).endswith("-01T00:00:00Z")


async def test_a_call_that_jumps_over_several_announces_each_lowest_first(writer: Writer, sql: Connection) -> None:
    with structlog.testing.capture_logs() as logs:
        await writer.spend("a", 130)
    assert lines(logs) == [("a", "50"), ("a", "80"), ("a", "100")]


async def test_many_writers_that_reach_it_together_announce_it_once(make_writer: MakeWriter, sql: Connection) -> None:
    writers = [make_writer() for _ in range(4)]
    accounts = [f"account-{number}" for number in range(20)]
    for writer in writers:
        await writer.meet(*accounts)
    with structlog.testing.capture_logs() as logs:
        for cents in range(26):
            for writer in writers:
                for account_id in accounts:
                    writer.ledger.append(event(account_id, CENT, now_ms()))
            if cents % 5 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*(writer.tasks.drain(30) for writer in writers))
    assert sorted(lines(logs)) == sorted((name, one) for name in accounts for one in ("50", "80", "100"))
    assert sum(writer.count("80") for writer in writers) == len(accounts)
    assert len({line["announcement"] for line in logs if line["event"] == "soft_limit_reached"}) == 3 * len(accounts)
    # And whoever starts now, or replays what is there already, announces nothing.
    late = make_writer()
    await late.meet(*accounts)
    with structlog.testing.capture_logs() as logs:
        for account_id in accounts:
            late.ledger.append(event(account_id, CENT, now_ms()))
        await late.tasks.drain(30)
    assert lines(logs) == []


async def test_nothing_is_asked_below_the_next_threshold(writer: Writer) -> None:
    await writer.meet("a")
    window = window_at("monthly", "UTC", 1, now_ms())

    def tasks_after(cents: float) -> int:
        usage = WindowUsage("a", MONTHLY.kind, window.start_ms, window.end_ms, round(cents * CENT))
        writer.soft_limits.committed([usage, usage._replace(kind="total/UTC/1", end_ms=FOREVER_MS)])
        return len(writer.tasks)

    assert tasks_after(49.9) == 0
    assert tasks_after(50) == 1
    await writer.tasks.drain(20)
    assert tasks_after(79.9) == 0
    # The facts are read again and say the same: that is no news.
    await writer.meet("a")
    assert tasks_after(79.9) == 0
    assert tasks_after(80) == 1
    await writer.tasks.drain(20)
    assert tasks_after(1000) == 1
    await writer.tasks.drain(20)
    assert tasks_after(2000) == 0


async def test_the_lower_of_own_and_plans_budget_counts(writer: Writer, sql: Connection) -> None:
    await budget(sql, "lower", 10)
    await budget(sql, "higher", 1000)
    await writer.spend("lower", 5)
    await writer.spend("higher", 50)
    assert await announced(sql, "lower") == ["50"]
    assert await announced(sql, "higher") == ["50"]


async def test_windows_of_several_kinds_have_announcements_of_their_own(writer: Writer, sql: Connection) -> None:
    await budget(sql, "a", 100, zone="Asia/Tokyo")
    await budget(sql, "a", 60, period="total")
    await writer.spend("a", 50)
    rows = await sql.fetch("SELECT period, time_zone, threshold FROM soft_limit_announcements ORDER BY 1, 2, 3")
    assert [tuple(row) for row in rows] == [
        ("monthly", "Asia/Tokyo", "50"),
        ("monthly", "UTC", "50"),
        ("total", "UTC", "50"),
        ("total", "UTC", "80"),
    ]


async def test_a_budgets_own_soft_limit_is_a_threshold_of_its_own(writer: Writer, sql: Connection) -> None:
    await budget(sql, "a", 100, soft=60)
    await writer.spend("a", 59, 1, 20)
    assert await announced(sql, "a") == ["50", "soft", "80"]
    assert writer.count("soft") == 1


async def test_a_soft_limit_of_nothing_is_reached_by_the_first_cent(writer: Writer, sql: Connection) -> None:
    await budget(sql, "a", 100, soft=0)
    await writer.spend("a", 0)
    assert await announced(sql, "a") == []
    await writer.spend("a", 1)
    assert await announced(sql, "a") == ["soft"]


async def test_a_budget_of_nothing_has_no_shares(writer: Writer, sql: Connection) -> None:
    await budget(sql, "a", 0)
    await writer.spend("a", 1)
    assert await announced(sql, "a") == []


async def test_plans_say_which_thresholds_there_are(make_writer: MakeWriter, sql: Connection) -> None:
    plans = {
        "free": Plan(name="free", budgets=(MONTHLY,), soft_limit_percents=()),
        "paid": Plan(name="paid", budgets=(MONTHLY,), soft_limit_percents=(90,)),
    }
    writer = make_writer(rules=replace(RULES, plans=plans))
    await sql.execute("INSERT INTO billing_accounts (account_id, plan) VALUES ('p', 'paid'), ('gone', 'no such plan')")
    await sql.execute(
        "INSERT INTO billing_accounts (account_id, plan, plan_until) VALUES ('over', 'paid', now() - interval '1 s')"
    )
    for account_id in ("f", "p", "gone", "over"):
        await writer.spend(account_id, 95)
    rows = await sql.fetch("SELECT account_id, plan, threshold FROM soft_limit_announcements")
    assert [tuple(row) for row in rows] == [("p", "paid", "90")]
    # New rules count from the next event on.
    writer.rules[0] = RULES
    writer.accounts.rules_changed()
    await writer.spend("f", 1)
    assert await announced(sql, "f") == ["50", "80"]


async def test_a_limit_that_was_lowered_counts_from_the_next_event_on(writer: Writer, sql: Connection) -> None:
    await writer.spend("a", 40)
    assert await announced(sql, "a") == []
    await budget(sql, "a", 50)
    await sql.execute("INSERT INTO billing_accounts (account_id, facts_version) VALUES ('a', 1)")
    await writer.spend("a", 1)
    assert await announced(sql, "a") == ["50", "80"]


async def test_what_was_announced_is_not_announced_again_for_a_higher_limit(writer: Writer, sql: Connection) -> None:
    await budget(sql, "a", 10)
    await writer.spend("a", 9)
    await budget(sql, "a", 100)
    await writer.spend("a", 80, 11)
    assert await announced(sql, "a") == ["50", "80", "100"]


async def test_a_budget_that_is_made_afterwards_counts_from_the_next_call_on(
    make_writer: MakeWriter, sql: Connection
) -> None:
    writer = make_writer()
    writer.accounts.on_seeded = writer.soft_limits.committed
    await writer.spend("a", 40)
    await budget(sql, "a", 45, period="daily")
    await sql.execute("INSERT INTO billing_accounts (account_id, facts_version) VALUES ('a', 1)")
    await writer.meet("a")  # as an ask does, which is then refused
    await writer.tasks.drain(20)
    assert await announced(sql, "a") == ["50", "80"]


async def test_how_far_a_budget_is_used_is_known_once_it_was_seeded_or_written(
    make_writer: MakeWriter, sql: Connection
) -> None:
    writer, other = make_writer(), make_writer()
    other.accounts.on_seeded = other.soft_limits.committed
    account = writer.accounts.get("a")
    assert writer.soft_limits.use_of(account) is None
    await budget(sql, "a", 1000, period="total")
    await writer.spend("a", 49.9)
    assert writer.soft_limits.use_of(account) is None
    await writer.spend("a", 35)
    assert writer.soft_limits.use_of(account) == (84, "80", "monthly")
    await other.meet("a")
    assert other.soft_limits.use_of(other.accounts.get("a")) == (84, "80", "monthly")
    # A change of the facts takes nothing of that away.
    await budget(sql, "a", 200, soft=10, period="total")
    await sql.execute("INSERT INTO billing_accounts (account_id, facts_version) VALUES ('a', 1)")
    await writer.accounts.load([account])
    assert writer.soft_limits.use_of(account) == (84, "80", "monthly")
    await sql.execute("UPDATE budgets SET hard_limit_microcents = $1", 50 * CENT)
    await sql.execute("UPDATE billing_accounts SET facts_version = 2")
    await writer.spend("a", 0.1)
    assert writer.soft_limits.use_of(account) == (170, "100", "total")


async def test_whoever_replays_events_of_an_account_it_never_met_announces(
    make_writer: MakeWriter, sql: Connection
) -> None:
    first, second = make_writer(listens=False), make_writer()
    await first.meet("a")
    await second.ledger.rewrite([event("a", 85 * CENT, now_ms())])
    await second.tasks.drain(20)
    assert await announced(sql, "a") == ["50", "80"]


async def test_events_that_were_there_already_announce_too(make_writer: MakeWriter, sql: Connection) -> None:
    first, second = make_writer(listens=False), make_writer()
    await first.meet("a")
    events = [event("a", 85 * CENT, now_ms())]
    await first.ledger.rewrite(events)  # and is killed before it can say so
    await second.meet("a")
    await second.ledger.rewrite(events)
    await second.tasks.drain(20)
    assert await announced(sql, "a") == ["50", "80"]


async def test_a_new_window_begins_anew(writer: Writer, sql: Connection) -> None:
    await sql.execute(COUNTER, "a", "-10 minutes", 85 * CENT)
    await writer.soft_limits.announce(["a"])
    await sql.execute(COUNTER, "a", "1 day", 55 * CENT)
    await writer.soft_limits.announce(["a"])
    assert await announced(sql, "a") == ["50", "80", "50"]


async def test_a_window_that_is_long_over_is_not_announced(writer: Writer, sql: Connection) -> None:
    await sql.execute(COUNTER, "a", "-61 minutes", 85 * CENT)
    await writer.soft_limits.announce(["a"])
    assert await announced(sql, "a") == []


@pytest.mark.parametrize("late_ms", [0, 50 * 60_000])
async def test_an_event_of_the_window_before_is_announced_while_that_is_not_long_over(
    writer: Writer, sql: Connection, late_ms: int
) -> None:
    await writer.meet("a")
    limit = writer.accounts.get("a").limits[0]
    now = now_ms()
    newer = WindowUsage("a", limit.kind, now, now + 1000_000, CENT)
    older = WindowUsage("a", limit.kind, now - 1000_000, now - late_ms, 85 * CENT)
    await sql.execute(COUNTER, "a", f"-{late_ms} milliseconds", 85 * CENT)
    writer.soft_limits.committed([newer, older])
    await writer.tasks.drain(20)
    assert await announced(sql, "a") == ["50", "80"]


async def test_what_is_reached_while_postgres_is_away_is_announced_when_it_is_back(
    make_writer: MakeWriter, migrated_url: str, sql: Connection
) -> None:
    link = Link(migrated_url)
    await link.open()
    writer = make_writer(url=link.url)
    await writer.meet("a")
    await writer.ledger.rewrite([event("a", 10 * CENT, now_ms())])
    await sql.execute("UPDATE usage_counters SET used_microcents = $1 WHERE account_id = 'a'", 85 * CENT)
    window = window_at("monthly", "UTC", 1, now_ms())
    await link.close()
    with structlog.testing.capture_logs() as logs:
        writer.soft_limits.committed([WindowUsage("a", MONTHLY.kind, window.start_ms, window.end_ms, 85 * CENT)])
        async with asyncio.timeout(20):
            while not any(line["event"] == "soft_limits_failing" for line in logs):
                await asyncio.sleep(0.01)
        await link.open()
        await writer.tasks.drain(20)
    assert await announced(sql, "a") == ["50", "80"]
    assert [line["event"] for line in logs].count("soft_limits_failing") == 1
    assert [line["event"] for line in logs].count("soft_limits_recovered") == 1
    await link.close()


async def test_a_database_from_a_backup_announces_under_the_same_ids(writer: Writer, sql: Connection) -> None:
    ids = "SELECT id FROM soft_limit_announcements ORDER BY id"
    await writer.spend("a", 85)
    before = await sql.fetch(ids)
    await sql.execute("DELETE FROM soft_limit_announcements")
    await writer.soft_limits.announce(["a"])
    assert await sql.fetch(ids) == before
    assert len(before) == 2


async def test_a_message_is_queued_in_the_same_transaction_where_there_is_a_webhook(
    make_writer: MakeWriter, sql: Connection
) -> None:
    woken: list[None] = []
    with_webhook = make_writer(queued=lambda: woken.append(None))
    without = make_writer()
    await without.spend("b", 85)
    assert await sql.fetch("SELECT id FROM webhook_outbox") == []
    await with_webhook.spend("a", 85, 1)
    assert len(await sql.fetch("SELECT id FROM webhook_outbox JOIN soft_limit_announcements USING (id)")) == 2
    assert len(woken) == 1


async def test_limits_near_the_most_there_is_are_counted_exactly(make_writer: MakeWriter, sql: Connection) -> None:
    most = BudgetLimit(period="monthly", hard_limit_microcents=2**53 - 1)
    writer = make_writer(rules=replace(RULES, plans={"free": Plan(name="free", budgets=(most,))}))
    half = (2**53 - 1 + 1) // 2
    await sql.execute(COUNTER, "below", "1 day", half - 1)
    await sql.execute(COUNTER, "at", "1 day", half)
    await writer.soft_limits.announce(["below", "at"])
    assert await announced(sql, "below") == []
    assert await announced(sql, "at") == ["50"]
