"""Redis and Postgres are both away: who is known to have spent his budget stays refused, the rest is the policy's."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import asyncpg
import pytest

from gateway.policy.verdicts import BudgetExceeded, Hold, RateLimited, StoreUnavailable
from tests.admission.conftest import StartWorker
from tests.admission.killable import KillableRedis, killable_redis
from tests.admission.whole import DENY, Books, WholeWorker
from tests.admission.world import CENT, Tables, monthly, per_minute, policy
from tests.ledger.link import Link
from tests.ledger.making import migrate

ALLOW = policy(on_store_failure="allow")


@pytest.fixture
def server() -> Iterator[KillableRedis]:
    with killable_redis() as server:
        yield server


async def test_an_exhausted_account_stays_refused_and_the_rest_is_decided_by_the_policy(
    start_worker: StartWorker, server: KillableRedis, tables: Tables
) -> None:
    tables.put("spent", monthly(2))
    worker = await start_worker(url=server.url)
    await worker.ask_many("spent", 2)
    refused = await worker.ask("spent")
    assert isinstance(refused, BudgetExceeded)
    assert isinstance(await worker.ask("a", DENY), Hold)
    server.kill()
    for rule in (ALLOW, DENY):
        again = await worker.ask("spent", rule)
        assert isinstance(again, BudgetExceeded)
        assert (again.period, again.resets_ms, again.limit_microcents) == ("monthly", refused.resets_ms, 2 * CENT)
    assert isinstance(await worker.ask("a", ALLOW), Hold)
    assert isinstance(await worker.ask("a", DENY), StoreUnavailable)
    assert worker.admission.ladder.rung == "memory"


async def test_a_budget_that_was_renewed_or_freed_is_not_exhausted_any_more(
    start_worker: StartWorker, server: KillableRedis, tables: Tables
) -> None:
    clock = [1_795_348_800_000]
    tables.put("spent", monthly(1))
    tables.put("freed", monthly(1))
    worker = await start_worker(url=server.url, test_clock_ms=lambda: clock[0])
    await worker.ask("spent")
    assert isinstance(await worker.ask("spent"), BudgetExceeded)
    hold = await worker.ask("freed")
    assert isinstance(hold, Hold)
    assert isinstance(await worker.ask("freed"), BudgetExceeded)
    worker.admission.void(hold)
    assert isinstance(await worker.ask("freed"), Hold)
    server.kill()
    assert isinstance(await worker.ask("freed"), Hold)
    assert isinstance(await worker.ask("spent"), BudgetExceeded)
    clock[0] += 32 * 86_400_000
    assert isinstance(await worker.ask("spent"), Hold)


async def test_rates_are_limited_by_each_worker_alone(
    start_worker: StartWorker, server: KillableRedis, tables: Tables
) -> None:
    noon_ms = 1_795_348_800_000
    worker = await start_worker(url=server.url, test_clock_ms=lambda: noon_ms)
    server.kill()
    limited = policy(per_minute(3))
    verdicts = await worker.ask_many("a", 5, limited)
    assert [type(verdict) for verdict in verdicts] == [Hold, Hold, Hold, RateLimited, RateLimited]


async def test_calls_weigh_without_redis_what_they_weigh_with_it(
    start_worker: StartWorker, server: KillableRedis, tables: Tables
) -> None:
    worker = await start_worker(url=server.url, test_clock_ms=lambda: 1_795_348_800_000)
    limits = per_minute(10, weight=4), per_minute(10, "fixed_window")
    for name in ("with", "without"):
        limited = replace(policy(*limits, name=name), rate_limit_headers="ietf")
        verdicts = [
            await worker.ask("a", limited),
            await worker.ask("a", limited, weights=(5, 1)),
            await worker.ask("a", limited, weights=(2, 1)),
            await worker.ask("a", limited, weights=(1, 9)),
            await worker.ask("a", limited, weights=(1, 8)),
        ]
        assert [type(verdict) for verdict in verdicts] == [Hold, Hold, RateLimited, RateLimited, Hold]
        assert [(v.limit_name, v.weight) for v in verdicts if isinstance(v, RateLimited)] == [
            ("sliding_window", 2),
            ("fixed_window", 9),
        ]
        # What a worker counts alone is nothing to tell of the fleet's limit.
        told = [[left.left for left in v.limits_left] for v in verdicts if isinstance(v, Hold)]
        assert told == ([[6, 9], [1, 8], [0, 0]] if name == "with" else [[], [], []])
        server.kill()


async def test_slots_of_calls_under_way_count_on_and_fall_free(
    start_worker: StartWorker, server: KillableRedis, tables: Tables
) -> None:
    worker = await start_worker(url=server.url)
    slots = policy(per_minute(2, "concurrency", window_ms=0))
    before = await worker.ask("a", slots)
    server.kill()
    during = await worker.ask("a", slots)
    assert isinstance(await worker.ask("a", slots), RateLimited)
    worker.post(before)
    assert isinstance(await worker.ask("a", slots), Hold)
    assert isinstance(during, Hold)
    worker.admission.void(during)
    assert isinstance(await worker.ask("a", slots), Hold)
    assert isinstance(await worker.ask("a", slots), RateLimited)


# --- with both stores real


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Link]:
    link = Link(database_url)
    await link.open()
    yield link
    link.clear()
    await link.close()


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    books = Books(connection)
    await books.budget("a", 100)
    yield books
    await connection.close()


async def test_with_both_stores_hung_no_call_waits_for_long_and_later_ones_not_at_all(
    server: KillableRedis, link: Link, books: Books
) -> None:
    worker = WholeWorker(
        "one", database_url=link.url, redis_url=server.url, redis_timeout="100ms", admission_timeout="200ms"
    )
    await worker.start()
    first = await worker.ask("a", ALLOW)
    link.jam()
    server.hang()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    passed = await worker.ask_many("a", 10, ALLOW)
    assert loop.time() - began_s < 0.3 + 0.5  # the two time-outs, and a busy machine
    assert {type(verdict) for verdict in passed} == {Hold}
    await worker.on("memory")
    began_s = loop.time()
    asked = [worker.asked("a", ALLOW) for _ in range(100)]
    assert all(verdict.done() for verdict in asked)
    assert loop.time() - began_s < 0.2
    # Both come back, and everything is where it belongs: once.
    link.clear()
    server.wake()
    await worker.on("redis")
    assert isinstance(await worker.ask("a", DENY), BudgetExceeded)  # 111 are held
    worker.post(first, *passed, *(verdict.result() for verdict in asked))
    await worker.settled()
    assert await books.used_cents("a") == 111
    state = await worker.admission.budget_state(worker.account("a"))
    assert (state.used_microcents["monthly/UTC/1"], state.held_microcents) == (111 * CENT, 0)
    await worker.stop()


async def test_postgres_lost_and_found_while_redis_stays_away(server: KillableRedis, link: Link, books: Books) -> None:
    worker = WholeWorker("one", database_url=link.url, redis_url=server.url)
    await worker.start()
    server.kill()
    begun = await worker.ask_many("a", 30)
    assert worker.admission.ladder.rung == "postgres"
    await link.close()
    await worker.ask_many("a", 10, ALLOW)
    await worker.on("memory")
    passed = await worker.ask_many("a", 20, ALLOW)
    assert {type(verdict) for verdict in passed} == {Hold}
    await link.open()
    await worker.on("postgres")
    # What passed in memory counts as well.
    rest = await worker.ask_many("a", 60)
    assert [type(verdict) for verdict in rest].count(Hold) <= 50
    assert BudgetExceeded in {type(verdict) for verdict in rest}
    assert {type(verdict) for verdict in begun} == {Hold}
    await worker.stop()


async def test_a_worker_starts_and_serves_with_both_stores_missing_and_recovers(
    server: KillableRedis, link: Link, books: Books
) -> None:
    server.kill()
    await link.close()
    worker = WholeWorker("one", database_url=link.url, redis_url=server.url)
    await worker.start()
    passed = await worker.ask("a", ALLOW)
    assert not isinstance(passed, StoreUnavailable)
    assert isinstance(await worker.ask("a", DENY), StoreUnavailable)
    await link.open()
    await worker.on("postgres")
    assert isinstance(await worker.ask("a"), Hold)
    server.start()
    await worker.on("redis")
    assert isinstance(await worker.ask("a"), Hold)
    await worker.stop()
