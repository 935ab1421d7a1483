"""Postgres that refuses, hangs, or is not the one we wanted: one line about it, no secret, no wait, no restart."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from gateway.breaker import Breaker
from gateway.database import QUERIES, Database, StoreError, read_queries
from gateway.embedded import embedded_postgres
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from tests.ledger.conftest import MakeLedger
from tests.ledger.link import Link
from tests.ledger.making import CASTS, Committed, event, lenient_breaker, migrate

WRONG_URLS = {
    "postgresql://someone:hunter2@127.0.0.1:1/there": "Postgres at 127.0.0.1:1/there is away: ",
    "postgresql://someone:hunter2@/there?host=/nowhere": "Postgres at /nowhere:5432/there is away: ",
}


@pytest.fixture
async def link(migrated_url: str) -> AsyncIterator[Link]:
    link = Link(migrated_url)
    await link.open()
    yield link
    await link.close()


@pytest.fixture
async def linked(link: Link, metrics: Metrics) -> AsyncIterator[Database]:
    database = Database(
        link.url, breaker=lenient_breaker(), metrics=metrics, statement_timeout_s=0.3, connect_timeout_s=0.3
    )
    yield database
    await database.close()


@pytest.mark.parametrize("url", WRONG_URLS)
async def test_what_cannot_be_reached_is_told_in_one_line_without_secrets(url: str, metrics: Metrics) -> None:
    database = Database(url, breaker=lenient_breaker(), metrics=metrics)
    with pytest.raises(StoreError) as raised:
        await database.fetch("SELECT 1")
    assert str(raised.value).startswith(WRONG_URLS[url])
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)
    await database.close()


@pytest.mark.parametrize("part", ["password", "database"])
async def test_a_wrong_password_or_database_is_a_store_that_is_away(
    postgres_url: str, metrics: Metrics, part: str
) -> None:
    parts = urlsplit(postgres_url)
    wrong = {
        "password": parts._replace(netloc=f"postgres:hunter2@127.0.0.1:{parts.port}"),
        "database": parts._replace(path="/none"),
    }
    database = Database(wrong[part].geturl(), breaker=lenient_breaker(), metrics=metrics)
    with pytest.raises(StoreError, match=r"authentication failed|does not exist") as raised:
        await database.fetch("SELECT 1")
    assert "hunter2" not in str(raised.value)
    await database.close()


async def test_an_error_of_the_statement_is_not_an_absence(database: Database) -> None:
    for statement, error in (
        ("SELECT 1/0", asyncpg.DivisionByZeroError),
        ("SELECT * FROM nothing", asyncpg.UndefinedTableError),
        ("selec", asyncpg.PostgresSyntaxError),
    ):
        with pytest.raises(error):
            await database.fetch(statement)
    assert await database.execute("SELECT 1") == "SELECT 1"


async def test_a_refusing_postgres_is_found_again_without_a_restart(link: Link, linked: Database) -> None:
    assert await linked.execute("SELECT 1") == "SELECT 1"
    await link.close()
    with pytest.raises(StoreError):
        await linked.execute("SELECT 1")
    await link.open()
    assert await linked.execute("SELECT 1") == "SELECT 1"


async def test_a_hanging_postgres_costs_the_time_out_and_no_more(link: Link, linked: Database) -> None:
    await linked.execute("SELECT 1")
    link.jam()
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"no answer within 0\.3 s"):
        await linked.execute("SELECT 1")
    with pytest.raises(StoreError):
        async with linked.transaction() as connection:
            await connection.execute("SELECT 1")
    assert time.monotonic() - started < 2.0
    link.clear()
    assert await linked.execute("SELECT 1") == "SELECT 1"


async def test_a_transaction_that_hangs_in_the_middle_is_cut(link: Link, linked: Database) -> None:
    started = time.monotonic()

    async def hang() -> None:
        async with linked.transaction() as connection:
            await connection.execute("SELECT 1")
            link.jam()
            await connection.execute("SELECT 2")

    with pytest.raises(StoreError, match=r"no answer within 0\.3 s"):
        await hang()
    assert time.monotonic() - started < 1.0
    link.clear()


async def test_while_the_breaker_is_open_nothing_is_tried(link: Link, metrics: Metrics) -> None:
    now = 0.0
    database = Database(link.url, breaker=Breaker(clock=lambda: now, failures_max=1), metrics=metrics)
    await link.close()
    with pytest.raises(StoreError):
        await database.fetch("SELECT 1")
    await link.open()
    with pytest.raises(StoreError, match="not tried again yet"):
        await database.fetch("SELECT 1")
    assert link.accepted == 0
    now = 10.0
    assert len(await database.fetch("SELECT 1")) == 1
    await database.close()


async def test_the_pool_is_bounded_and_the_gauge_tells_its_use(migrated_url: str, metrics: Metrics) -> None:
    database = Database(
        migrated_url, breaker=lenient_breaker(), metrics=metrics, connections_max=2, acquire_timeout_s=1.0
    )
    gauge = metrics.gauge("db_pool_in_use")
    async with database.connection(), database.connection():
        assert gauge.value == 2
        with pytest.raises(StoreError, match="no connection in time"):
            await database.fetch("SELECT 1")
    assert gauge.value == 0
    await database.close()


async def test_a_failed_transaction_is_rolled_back_and_its_connection_used_again(database: Database) -> None:
    pids = []

    async def fail() -> None:
        async with database.transaction() as connection:
            pids.append(await connection.fetchval("SELECT pg_backend_pid()"))
            await connection.execute("INSERT INTO billing_accounts (account_id) VALUES ('a')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    rows = await database.fetch("SELECT pg_backend_pid() AS pid, (SELECT count(*) FROM billing_accounts) AS count")
    assert (rows[0]["pid"], rows[0]["count"]) == (pids[0], 0)


async def test_for_pgbouncer_nothing_is_kept_on_the_server(migrated_url: str, metrics: Metrics) -> None:
    database = Database(f"{migrated_url}?pgbouncer=true", breaker=lenient_breaker(), metrics=metrics)
    for _ in range(3):
        await database.fetch(QUERIES["load_facts"], ["a"])
    row = await database.fetchrow(
        "SELECT (SELECT count(*) FROM pg_prepared_statements WHERE name <> '') AS kept, "
        "current_setting('application_name') AS name"
    )
    assert row is not None
    assert (row["kept"], row["name"]) == (0, "")
    await database.close()


async def test_nothing_is_lost_while_postgres_refuses_or_hangs(
    link: Link, linked: Database, make_ledger: MakeLedger
) -> None:
    ledger, committed = make_ledger(database=linked)
    link.jam()
    for _ in range(10):
        ledger.append(event("a"))
    await asyncio.sleep(0.4)
    await link.close()
    for _ in range(10):
        ledger.append(event("a"))
    await link.open()
    await committed.wait_for(20)
    assert committed.usages["a", "total/UTC/1", 0] == 20_000_000
    assert committed.dropped == []


async def test_nothing_is_lost_when_postgres_is_killed_and_started_again(
    tmp_path: Path, metrics: Metrics, make_ledger: MakeLedger
) -> None:
    with embedded_postgres(tmp_path) as server:
        await migrate(server.url, CASTS)
        link = Link(server.url)
        await link.open()
        database = Database(link.url, breaker=lenient_breaker(), metrics=metrics)
        ledger, committed = make_ledger(database=database, batch_max=7)
        await fill(ledger, committed, 50)
    with embedded_postgres(tmp_path) as server:
        link.upstream_url = server.url
        await committed.wait_for(100)
        assert committed.usages["a", "total/UTC/1", 0] == 100_000_000
        assert committed.dropped == []
        await ledger.close()
        await database.close()
        await link.close()


async def fill(ledger: Ledger, committed: Committed, count: int) -> None:
    """``count`` events that are written and as many that may or may not be when Postgres goes."""
    for _ in range(count):
        ledger.append(event("a"))
    await committed.wait_for(count)
    for _ in range(count):
        ledger.append(event("a"))
    await committed.wait_for(count + 1)


def test_every_statement_has_a_name_and_a_comment() -> None:
    two = "-- name: one\n-- what for\nSELECT 1;\n\n-- name: two\n-- and why\nSELECT\n 2;\n"
    assert read_queries(two) == {"one": "SELECT 1", "two": "SELECT\n 2"}


@pytest.mark.parametrize(
    "text",
    ["-- name: one\nSELECT 1", "-- name: one\n-- c\n", "-- name: a\n-- c\nSELECT 1\n-- name: a\n-- c\nSELECT 1"],
    ids=["no comment", "no SQL", "a name twice"],
)
def test_a_statement_without_its_parts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="statement"):
        read_queries(text)
