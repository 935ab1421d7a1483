"""Writers, seeders and replays at once: counters are always the sum of the events, and nobody deadlocks."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from gateway.accounts import Accounts
from gateway.database import QUERIES, Database
from gateway.ledger import UsageEvent, columns_of
from gateway.metrics import Metrics
from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import Window, window_at
from gateway.policy.rules import Rules
from gateway.tasks import Tasks
from tests.ledger.conftest import CheckCounters, MakeLedger
from tests.ledger.making import NOON_MS, event, lenient_breaker, until

Connection = asyncpg.Connection
DAY_MS = 86_400_000
KINDS = tuple(
    BudgetLimit(period=period, hard_limit_microcents=0, time_zone=zone, week_start=week_start)
    for period, week_start in (("daily", 1), ("weekly", 1), ("weekly", 7), ("monthly", 1), ("total", 1))
    for zone in ("UTC", "Asia/Tokyo", "Pacific/Apia")
)


def windows_at(at_ms: int, limits: Sequence[BudgetLimit]) -> dict[str, Window]:
    return {one.kind: window_at(one.period, one.time_zone, one.week_start, at_ms) for one in limits}


async def record(connection: Connection, events: Sequence[UsageEvent]) -> asyncpg.Record:
    row = await connection.fetchrow(QUERIES["record_usage"], *columns_of(events), None, [], [], None)
    assert row is not None
    return row


@pytest.fixture
async def replicas(
    migrated_url: str, metrics: Metrics, rules: Rules, tasks: Tasks
) -> AsyncIterator[list[tuple[Database, Accounts]]]:
    """Gateways that know nothing of each other."""
    made = []
    for _ in range(6):
        database = Database(migrated_url, breaker=lenient_breaker(), metrics=metrics, statement_timeout_s=20.0)
        made.append((database, Accounts(database, lambda: rules, tasks)))
    yield made
    for database, _ in made:
        await database.close()


@pytest.mark.parametrize("seed", range(6))
async def test_random_seeds_writes_and_replays_leave_exact_counters(
    replicas: list[tuple[Database, Accounts]], counters_equal_ledger: CheckCounters, sql: Connection, seed: int
) -> None:
    shared: list[UsageEvent] = []
    names = [f"account-{number}" for number in range(4)]
    last_used: dict[tuple[str, str, int], int] = {}

    async def write(chance: random.Random, database: Database) -> None:
        events = [
            event(chance.choice(names), chance.randrange(1000), NOON_MS + chance.randrange(-DAY_MS, DAY_MS))
            for _ in range(chance.choice((1, 1, 2, 20)))
        ]
        # Replays of what this or another replica wrote, or is writing just now; in any order.
        events += chance.sample(shared, min(len(shared), chance.choice((0, 0, 3))))
        chance.shuffle(events)
        shared.extend(events)
        async with database.connection() as connection:
            row = await record(connection, events)  # type: ignore[arg-type]
        columns = (row["usage_accounts"], row["usage_kinds"], row["usage_end_ms"], row["usage_microcents"])
        told = {(name, kind, end): used for name, kind, end, used in zip(*columns, strict=True)}
        assert {one.account_id for one in events} == {name for name, _, _ in told}
        for key, used in told.items():
            last_used[key] = max(used, last_used.get(key, 0))

    async def seed_some(chance: random.Random, accounts: Accounts) -> None:
        wanted = []
        for name in chance.sample(names, chance.randrange(1, len(names) + 1)):
            at_ms = NOON_MS + chance.choice((-DAY_MS, 0, DAY_MS))
            wanted.append((accounts.get(name), windows_at(at_ms, chance.sample(KINDS, 3))))
        used = await accounts.seed(wanted)
        assert {name: set(kinds) for name, kinds in used.items()} == {one.account_id: set(w) for one, w in wanted}

    async def replica(number: int, database: Database, accounts: Accounts) -> None:
        chance = random.Random(f"{seed}/{number}")
        for _ in range(25):
            if chance.random() < 0.4:
                await seed_some(chance, accounts)
            else:
                await write(chance, database)

    await asyncio.gather(*(replica(number, *one) for number, one in enumerate(replicas)))
    await counters_equal_ledger()
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == len({one.event_id for one in shared})
    for (name, kind, end_ms), used in last_used.items():
        period, _, rest = kind.partition("/")
        zone, _, week_start = rest.rpartition("/")
        stored = await sql.fetchval(
            """
            SELECT used_microcents FROM usage_counters WHERE account_id = $1 AND period = $2 AND time_zone = $3
            AND week_start = $4 AND window_end = timestamptz 'epoch' + $5::bigint * interval '1 millisecond'
            """,
            name, period, zone, int(week_start), end_ms,
        )  # fmt: skip
        assert used <= stored


@pytest.mark.parametrize("first", ["writer", "seeder"])
async def test_a_writer_and_a_seeder_that_wait_for_one_lock_count_the_event_once(
    replicas: list[tuple[Database, Accounts]],
    migrated_url: str,
    sql: Connection,
    counters_equal_ledger: CheckCounters,
    first: str,
) -> None:
    (writer, _), (_, seeder), *_ = replicas
    async with writer.connection() as connection:
        await record(connection, [event("a", 3)])  # type: ignore[arg-type]
    windows = windows_at(NOON_MS, KINDS[:1])

    async def write() -> None:
        async with writer.connection() as connection:
            await record(connection, [event("a", 4)])  # type: ignore[arg-type]

    async def seed() -> None:
        await seeder.seed([(seeder.get("a"), windows)])

    steps = [write, seed] if first == "writer" else [seed, write]
    holder = await asyncpg.connect(migrated_url)

    async def both_wait_in_turn() -> None:
        async with asyncio.TaskGroup() as running, holder.transaction():
            await holder.execute("SELECT FROM usage_counters WHERE account_id = 'a' FOR UPDATE")
            for count, step in enumerate(steps, start=1):
                running.create_task(step())
                await until(lambda count=count: waiting(sql, count))  # type: ignore[misc]

    await both_wait_in_turn()
    await holder.close()
    assert await sql.fetchval("SELECT used_microcents FROM usage_counters WHERE period = 'daily'") == 7
    await counters_equal_ledger()


@pytest.mark.parametrize("seed", range(3))
async def test_two_writers_of_the_same_events_in_opposite_order_do_not_deadlock(
    replicas: list[tuple[Database, Accounts]], counters_equal_ledger: CheckCounters, seed: int
) -> None:
    chance = random.Random(seed)

    async def write(database: Database, events: Sequence[UsageEvent]) -> int:
        async with database.connection() as connection:
            row = await record(connection, events)  # type: ignore[arg-type]
        return int(row["recorded"])

    for _ in range(10):
        events = [event(f"account-{chance.randrange(50)}") for _ in range(400)]
        written = await asyncio.gather(
            *(write(database, events[:: (-1) ** number]) for number, (database, _) in enumerate(replicas))
        )
        assert sum(written) == 400
    await counters_equal_ledger()


async def test_many_seeders_of_one_counter_agree(
    replicas: list[tuple[Database, Accounts]], sql: Connection, counters_equal_ledger: CheckCounters
) -> None:
    async with replicas[0][0].connection() as connection:
        await record(connection, [event("a", 5) for _ in range(10)])  # type: ignore[arg-type]
    windows = windows_at(NOON_MS, KINDS)
    answers = await asyncio.gather(*(one.seed([(one.get("a"), windows)]) for _, one in replicas for _ in range(4)))
    assert answers == [{"a": dict.fromkeys(windows, 50)}] * len(answers)
    await counters_equal_ledger()


async def test_a_new_budget_in_mid_month_starts_from_what_was_used_while_writing_goes_on(
    replicas: list[tuple[Database, Accounts]], counters_equal_ledger: CheckCounters, sql: Connection
) -> None:
    done = asyncio.Event()

    async def write(database: Database) -> int:
        written = 0
        while not done.is_set():
            async with database.connection() as connection:
                await record(connection, [event("a", 1), event("b", 1)])  # type: ignore[arg-type]
            written += 1
        return written

    async def add_budgets() -> int:
        seeder = replicas[5][1]
        for limit in KINDS:
            before = await sql.fetchval("SELECT count(*) FROM usage_events WHERE account_id = 'a'")
            used = await seeder.seed([(seeder.get(name), windows_at(NOON_MS, [limit])) for name in ("b", "a")])
            after = await sql.fetchval("SELECT count(*) FROM usage_events WHERE account_id = 'a'")
            assert before <= used["a"][limit.kind] <= after
        done.set()
        return 0

    written = sum(await asyncio.gather(add_budgets(), *(write(database) for database, _ in replicas[:4])))
    await counters_equal_ledger()
    totals = await sql.fetch("SELECT DISTINCT used_microcents FROM usage_counters WHERE account_id = 'a'")
    assert [row["used_microcents"] for row in totals] == [written]


async def test_the_lock_that_leaves_the_row_as_it_is_does_lock(sql: Connection, migrated_url: str) -> None:
    """The seeder's ON CONFLICT … WHERE false; all of the protocol hangs on it."""
    await record(sql, [event("a")])
    other = await asyncpg.connect(migrated_url)
    async with sql.transaction():
        day = window_at("daily", "UTC", 1, NOON_MS)
        await sql.fetchval(QUERIES["seed_usage"], ["a"], ["daily"], ["UTC"], [1], [day.start_ms], [day.end_ms])
        row = await other.fetchrow("SELECT FROM usage_counters WHERE period = 'total' FOR UPDATE SKIP LOCKED")
        assert row is None
    await other.close()


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_usage_is_not_written_under_another_isolation(sql: Connection, isolation: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match="READ COMMITTED"):
        async with sql.transaction(isolation=isolation):  # type: ignore[arg-type]
            await record(sql, [event("a")])
    with pytest.raises(asyncpg.PostgresError, match="READ COMMITTED"):
        async with sql.transaction(isolation=isolation):  # type: ignore[arg-type]
            await sql.fetchval(QUERIES["seed_usage"], [], [], [], [], [], [])


async def waiting(sql: Connection, count: int) -> bool:
    """Whether ``count`` backends of this database wait for a lock."""
    found = await sql.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(found == count)


class WatchedDatabase(Database):
    """Remembers why statements failed, as SQLSTATEs."""

    errors: list[str | None]

    async def fetchrow(self, sql: str, *values: object, timeout_s: float | None = None) -> asyncpg.Record | None:
        try:
            return await super().fetchrow(sql, *values, timeout_s=timeout_s)
        except asyncpg.PostgresError as error:
            self.errors.append(error.sqlstate)
            raise


@pytest.fixture
async def watched(migrated_url: str, metrics: Metrics) -> AsyncIterator[WatchedDatabase]:
    database = WatchedDatabase(migrated_url, breaker=lenient_breaker(), metrics=metrics)
    database.errors = []
    yield database
    await database.close()


async def test_a_write_that_loses_a_deadlock_is_written_after_it(
    sql: Connection,
    migrated_url: str,
    watched: "WatchedDatabase",
    make_ledger: MakeLedger,
    counters_equal_ledger: CheckCounters,
) -> None:
    """Somebody who does not keep to our order: each has what the other one waits for, and Postgres ends ours."""
    database = await sql.fetchval("SELECT current_database()")
    await record(sql, [event("a"), event("b")])
    # Ours stops at a gate between its two locks; and it is the last one to wait, so it is the one who finds out.
    await sql.execute(
        f"""
        ALTER DATABASE {database} SET deadlock_timeout = '50ms';
        CREATE FUNCTION pass_gate() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock(1);
            RETURN NEW;
        END $$;
        CREATE TRIGGER gate BEFORE INSERT ON usage_counters
            FOR EACH ROW WHEN (NEW.account_id = 'b') EXECUTE FUNCTION pass_gate();
        SELECT pg_advisory_lock(1);
        """
    )
    ledger, committed = make_ledger(database=watched)
    other = await asyncpg.connect(migrated_url)
    lock = "SELECT FROM usage_counters WHERE account_id = $1 AND period = 'total' FOR UPDATE"
    async with other.transaction():
        await other.execute("SET LOCAL deadlock_timeout = '1min'")
        await other.fetch(lock, "b")
        ledger.append(event("a", 5))
        ledger.append(event("b", 5))
        await until(lambda: waiting(sql, 1))
        asked = asyncio.create_task(other.fetch(lock, "a"))
        await until(lambda: waiting(sql, 2))
        await sql.execute("SELECT pg_advisory_unlock(1)")
        await asked
    await other.close()
    await committed.wait_for(2)
    assert watched.errors == ["40P01"]
    assert committed.dropped == []
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 4
    await counters_equal_ledger()


async def test_a_write_that_cannot_be_serialized_is_tried_until_it_can(
    sql: Connection, watched: "WatchedDatabase", make_ledger: MakeLedger, counters_equal_ledger: CheckCounters
) -> None:
    """40001, as a Postgres that is spread over machines may say at any time; here twice."""
    await sql.execute(
        """
        CREATE SEQUENCE attempts;
        CREATE FUNCTION fail_twice() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('attempts') <= 2 THEN
                RAISE EXCEPTION 'could not serialize access' USING ERRCODE = 'serialization_failure';
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER fail_twice AFTER INSERT ON usage_counters FOR EACH STATEMENT EXECUTE FUNCTION fail_twice();
        """
    )
    ledger, committed = make_ledger(database=watched)
    for number in range(10):
        ledger.append(event(f"account-{number}"))
    await committed.wait_for(10)
    assert watched.errors == ["40001", "40001"]
    assert committed.dropped == []
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 10
    await counters_equal_ledger()
