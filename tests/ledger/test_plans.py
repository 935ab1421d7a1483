"""The hot statements touch rows by index only, however large the tables are."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from gateway.config.settings_stores import Ledger as LedgerSettings
from gateway.database import QUERIES
from gateway.ledger import columns_of, event_id
from gateway.policy.periods import window_at
from gateway.usage_columns import full_columns_of, term_columns, terms_in
from gateway.usage_events import Terms
from tests.ledger.making import CASTS, NOON_MS, event, migrate
from tests.ledger.months import id_at, month_start, partition_of

Connection = asyncpg.Connection
Values = Callable[[int], tuple[object, ...]]
ACCOUNTS = 5000
BATCH = 200
MONTHS = 12
# Before Postgres settles for a generic plan it tries five with the values.
CALLS = 7
SCANS = "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE relname = ANY($1) OR relname LIKE 'usage_events%'"
TABLES = [
    *("usage_archived", "usage_counters", "usage_holds", "budgets", "billing_accounts", "casts"),
    *("usage_units", "billed_keys"),
]
MONTH = window_at("monthly", "UTC", 1, NOON_MS)
TERMS = Terms("free/cast/monthly/UTC/1", MONTH.start_ms, MONTH.end_ms, 1, 10, "a-key", 1000)


@pytest.fixture(scope="module")
def large_url(postgres_url: str) -> Iterator[str]:
    """A database that all these tests share: what they add to it is little."""
    name = f"plans_{os.getpid()}"
    asyncio.run(_administrate(postgres_url, f"CREATE DATABASE {name}"))
    url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    asyncio.run(_fill(url))
    yield url
    asyncio.run(_administrate(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def large(large_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(large_url)
    yield connection
    await connection.close()


async def _administrate(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def _fill(url: str) -> None:
    """100,000 events of a year and 15,000 counters, closed ones among them."""
    await migrate(url, CASTS)
    sql = await asyncpg.connect(url)
    # The embedded server commits without waiting; VACUUM would find rows whose commit it does not yet trust.
    await sql.execute("SET synchronous_commit = on")
    for number in range(MONTHS):
        await sql.execute(
            "INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome) "
            "VALUES ($1, 'account-0', 'cast', $2, 0, 200, 'posted')",
            id_at(month_start(-number)),
            month_start(-number),
        )
    await sql.fetchrow(QUERIES["make_usage_months"], 3, 1000)
    await sql.execute(
        f"""
        INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome)
        SELECT (left(castgate_usage_id(event.at)::text, 14) || '7' || right(gen_random_uuid()::text, 21))::uuid,
               'account-' || n % {ACCOUNTS}, 'cast', event.at, 1, 200, 'posted'
        FROM generate_series(1, 20 * {ACCOUNTS}) AS n,
             (VALUES (timestamptz '{month_start(1 - MONTHS)}')) AS year(since),
             LATERAL (SELECT since + (now() - since) * (n / {20 * ACCOUNTS}.0) AS at) AS event;
        INSERT INTO usage_counters (account_id, window_end, period, time_zone, week_start, window_start,
                                    used_microcents, calls)
        SELECT 'account-' || n, ends, period, 'UTC', 1, starts, 20, 20
        FROM generate_series(0, {ACCOUNTS} - 1) AS n,
             (VALUES ('total', timestamptz 'epoch', timestamptz '9999-12-31 00:00:00+00'),
                     ('monthly', timestamptz '2026-11-01 00:00:00+00', timestamptz '2026-12-01 00:00:00+00'),
                     ('monthly', timestamptz '2026-10-01 00:00:00+00', timestamptz '2026-11-01 00:00:00+00')
             ) AS span(period, starts, ends);
        INSERT INTO usage_archived (account_id, cost_microcents, calls)
        SELECT 'account-' || n, 0, 0 FROM generate_series(0, {ACCOUNTS} - 1) AS n;
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
    # As autovacuum leaves them: it looks neither at partitioned tables nor at empty ones. The statistics hear of what
    # was written a second later, unless told to.
    await sql.execute("SELECT pg_stat_force_next_flush()")
    for row in await sql.fetch("SELECT relname FROM pg_stat_user_tables WHERE n_live_tup > 0"):
        await sql.execute(f"VACUUM ANALYZE {row['relname']}")
    await sql.close()


async def scans_of(sql: Connection, query: str, values: Values) -> dict[str, int]:
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
        return (*columns_of(events), LedgerSettings().cast_cost_sql, [], [], None)

    assert await scans_of(large, QUERIES["record_usage"], values) == {}


async def test_writing_usage_of_holds_scans_no_table(large: Connection) -> None:
    def values(number: int) -> tuple[object, ...]:
        events = [event(f"account-{number * BATCH + one}") for one in range(BATCH)]
        return (*columns_of(events), None, [], [], None)

    assert await scans_of(large, QUERIES["record_usage_of_holds"], values) == {}


async def test_writing_usage_on_terms_scans_no_table(large: Connection) -> None:
    def values(number: int) -> tuple[object, ...]:
        events = [event(f"account-{number * BATCH + one}", terms=TERMS) for one in range(BATCH)]
        terms = term_columns()
        terms.add(terms_in(events))
        return (*full_columns_of(events), None, [], [], *terms.full())

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


def names(number: int, count: int = BATCH) -> list[str]:
    return [f"account-{number * count + one}" for one in range(count)]


def spans(count: int) -> tuple[object, ...]:
    """Days, the newest first: labels, starts and ends."""
    today = month_start(0)
    starts = [today - timedelta(days=one) for one in range(count)]
    return [at.date() for at in starts], starts, [at + timedelta(days=1) for at in starts]


def told(number: int) -> tuple[object, ...]:
    """Of events: ids, statuses, cast ids and request ids."""
    columns = full_columns_of([event(name, cast_id="c") for name in names(number)])
    return columns[0], columns[5], columns[7], columns[8]


# What is asked for each call, batch of calls, account or request of a client; each with values as they are in use.
HOT: dict[str, Values] = {
    "complete_events": told,
    "recorded_events": lambda _: ([event_id() for _ in range(BATCH)],),
    "forget_holds": lambda _: ([event_id() for _ in range(BATCH)],),
    "held_by_account": lambda number: (f"account-{number}",),
    "budgets_of_account": lambda number: (f"account-{number}",),
    "budget_insert": lambda number: (f"account-{number}", "daily", 1, None, "UTC", 1),
    "budget_update": lambda number: (f"account-{number}", "monthly", 1, None, "UTC", 1),
    "budget_delete": lambda number: (f"account-{number}", "monthly"),
    "used_in_windows": lambda number: (
        f"account-{number}",
        ["daily"],
        ["UTC"],
        [1],
        [month_start(-1)],
        [month_start(0)],
    ),
    "usage_by_day": lambda number: (f"account-{number}", *spans(30), None, None, 100),
    "console_days": lambda number: (f"account-{number}",),
    "console_casts": lambda number: (f"account-{number}", 50),
    "reconcile_accounts": lambda number: (f"account-{number}", 100),
    "reconcile_counters": lambda number: (names(number, 100), False),
    "billed_keys": lambda number: (names(number), ["cast"] * BATCH, ["key"] * BATCH, 1.0),
    "repair_usage": lambda number: ([f"account-{number}"],),
    "repair_units": lambda number: ([f"account-{number}"],),
    "forget_keys": lambda _: (7 * 86400, 100),
    "free_units_used": lambda number: (
        names(number),
        ["cast"] * BATCH,
        [TERMS.free_kind] * BATCH,
        [MONTH.start_ms] * BATCH,
        [MONTH.end_ms] * BATCH,
    ),
}
# Tested by themselves, above.
BATCHES = {
    *("record_usage", "record_usage_of_holds", "admit", "tell_holds", "seed_usage", "load_facts"),
    *("record_usage_on_terms", "admit_on_terms", "soft_limits_announce", "soft_limits_accounts"),
}
# Not hot: what people ask for, or an hour's work; tables with a row for each worker; and what reads no table.
COLD = {
    *("workers_living", "all_told", "worker_leaves", "orphaned_holds"),
    *("console_near_limits", "console_search", "console_account", "console_webhooks", "console_holds"),
    *("audit_budget", "audit_billing", "audit_write", "audit_outcome", "audit_entries"),
    *("soft_limits_sweep_lease", "soft_limits_sweep_done", "soft_limits_forget"),
    *("outbox_claim", "outbox_delivered", "outbox_failed", "outbox_dead", "outbox_list", "outbox_retry"),
    *("reconcile_casts", "repair_lock_timeout", "billing_lock_timeout"),
    *("maintain_begin", "usage_months", "make_usage_months", "drop_usage_month", "late_usage"),
}


def test_every_statement_is_guarded_or_known_to_be_cold() -> None:
    rest = {name for name in QUERIES if not name.startswith(("stripe_", "billing_"))} - set(HOT) - BATCHES - COLD
    assert rest == set()


async def test_hot_statements_scan_no_table(large: Connection) -> None:
    scans = {name: await scans_of(large, QUERIES[name], values) for name, values in HOT.items()}
    assert {name: found for name, found in scans.items() if found} == {}


async def test_announcing_soft_limits_scans_no_table(large: Connection) -> None:
    def values(number: int) -> tuple[object, ...]:
        names = [f"account-{number * BATCH + one}" for one in range(BATCH)]
        plans = (["free"], ["monthly"], ["UTC"], [1], [10], ["free"] * 3, [50, 80, 100], ["free"])
        return (names, *plans, True)

    open_window = "UPDATE usage_counters SET window_end = 'infinity' WHERE window_end = '2026-12-01 00:00:00+00'"
    trial = large.transaction()  # taken back: the other tests have the same rows
    await trial.start()
    await large.execute(open_window)
    assert await scans_of(large, QUERIES["soft_limits_announce"], values) == {}
    assert await scans_of(large, QUERIES["soft_limits_accounts"], lambda number: (f"account-{number}", BATCH)) == {}
    await trial.rollback()


async def test_a_sum_over_a_window_reads_indexes_alone(large: Connection) -> None:
    """For plans without values, as functions have them."""
    await large.execute(
        """
        SET plan_cache_mode = force_generic_plan;
        PREPARE asked (text, timestamptz, timestamptz) AS SELECT sum(cost_microcents), count(*) FROM usage_events
        WHERE account_id = $1 AND occurred_at >= $2 AND occurred_at < $3
        """
    )
    span = f"'{month_start(-2)}', '{month_start(0)}'"
    plan = await large.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked ('account-7', {span})")
    kinds = Counter(node["Node Type"] for node in nodes(json.loads(plan)[0]["Plan"]) if "Relation Name" in node)
    assert set(kinds) == {"Index Only Scan"}
    assert kinds.total() == MONTHS + 4


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


LOOKED_UP = {
    "recorded_events": "PREPARE asked AS {sql}",
    # What the function runs, as it runs it.
    "complete_events": "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; "
    "PREPARE asked (uuid[], smallint[], text[], text[]) AS {sql}",
}


@pytest.mark.parametrize("name", ["complete_events", "recorded_events"])
async def test_looking_events_up_by_id_looks_into_their_month_alone(large: Connection, name: str) -> None:
    """By a plan without values."""
    sql = QUERIES[name]
    if name == "complete_events":
        body: str = await large.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'castgate_complete_events'")
        sql = body[body.index("WITH") : body.rindex(";\nEND")]
        for place, parameter in enumerate(("event_ids", "upstream_statuses", "cast_ids", "request_ids"), start=1):
            sql = sql.replace(parameter, f"${place}")
    await large.execute("SET plan_cache_mode = force_generic_plan")
    await large.execute(LOOKED_UP[name].format(sql=sql))
    ids = "{" + ",".join(event_id() for _ in range(BATCH)) + "}"
    more = ["{" + ",".join([value] * BATCH) + "}" for value in ("200", "c", "r")] if name == "complete_events" else []
    values = ", ".join(f"'{value}'" for value in (ids, *more))
    plan = await large.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked ({values})")
    read = [node for node in nodes(json.loads(plan)[0]["Plan"]) if "usage_events_" in node.get("Relation Name", "")]
    assert {node["Relation Name"] for node in read if node["Actual Loops"]} == {partition_of(0)}


async def test_writing_usage_opens_its_month_alone(large: Connection) -> None:
    """Also where events are there already, so that the conflict is found."""
    events = [event(name) for name in names(0)]
    for _ in range(CALLS):
        async with large.transaction():
            await large.fetch(QUERIES["record_usage"], *columns_of(events), None, [], [], None)
            locked = await large.fetch(
                "SELECT relation::regclass::text AS name FROM pg_locks JOIN pg_class ON pg_class.oid = relation "
                "WHERE pid = pg_backend_pid() AND relkind IN ('r', 'p') AND relname LIKE 'usage_events%'"
            )
    assert {row["name"] for row in locked} == {"usage_events", partition_of(0)}
