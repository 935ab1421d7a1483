"""Repeats of billed calls at admission, on either rung: no budget stops them, and nothing is held for them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from gateway.ledger import UsageEvent, event_id
from gateway.policy.rules import Idempotency
from gateway.policy.verdicts import PASS, BudgetExceeded, Hold, Verdict
from gateway.usage_events import terms_at
from tests.admission.killable import KillableRedis, killable_redis
from tests.admission.script import PREFIX, Script
from tests.admission.test_free_tiers import TEN_CALLS
from tests.admission.whole import DENY, Books, WholeWorker
from tests.admission.world import CENT
from tests.ledger.link import Link
from tests.ledger.making import migrate

KEYED = replace(DENY, idempotency=Idempotency(header="idempotency-key", life_ms=3_600_000))
FREE_AND_KEYED = replace(TEN_CALLS, idempotency=KEYED.idempotency)
StartWhole = Callable[..., Coroutine[Any, Any, WholeWorker]]


@pytest.fixture
def server() -> Iterator[KillableRedis]:
    with killable_redis() as server:
        yield server


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def start(
    database_url: str, sql: "asyncpg.Connection[asyncpg.Record]", server: KillableRedis
) -> AsyncIterator[StartWhole]:
    workers: list[WholeWorker] = []

    async def start(**options: Any) -> WholeWorker:
        worker = WholeWorker(f"w{len(workers) + 1}", database_url=database_url, redis_url=server.url, **options)
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.stop()


def end(worker: WholeWorker, verdict: Verdict, key: str) -> None:
    """The call is over, and charged as far as the ledger wants."""
    held = isinstance(verdict, Hold)
    hold_id, at_ms = (verdict.hold_id, verdict.admitted_ms) if held else (event_id(), worker.admission._lanes[0].now_ms)  # type: ignore[union-attr]
    if isinstance(verdict, Hold):
        worker.admission.finished(verdict, CENT)
    worker.ledger.append(
        UsageEvent(hold_id, "a", "cast", at_ms, CENT, 200, "posted", terms=terms_at(KEYED, at_ms, 0, key))
    )


@pytest.mark.parametrize("rung", ["redis", "postgres"])
async def test_a_repeat_passes_where_the_budget_is_spent_and_costs_nothing(
    start: StartWhole, server: KillableRedis, sql: "asyncpg.Connection[asyncpg.Record]", rung: str
) -> None:
    books = Books(sql)
    await books.budget("a", 1)
    one, two = await start(), await start()
    first = await one.asked("a", KEYED, key="k")
    if rung == "postgres":
        server.kill()
    # Under way, it is held for as any call is, and its key is not billed.
    assert isinstance(await asyncio.wait_for(two.asked("a", KEYED, key="k"), 20), BudgetExceeded)
    end(one, first, "k")
    await one.settled()
    verdicts = await asyncio.wait_for(
        asyncio.gather(*(two.asked("a", KEYED, key=key) for key in ("k", "l", "k", ""))), 20
    )
    assert verdicts[0] is PASS
    assert verdicts[2] is PASS
    assert [type(verdict) for verdict in verdicts[1::2]] == [BudgetExceeded] * 2
    end(two, verdicts[0], "k")
    end(two, verdicts[2], "k")
    await two.settled()
    assert await books.used_cents("a") == 1
    assert await sql.fetchval("SELECT count(*) FROM usage_events WHERE cost_microcents = 0") == 2


async def test_a_repeat_asks_nothing_of_a_free_tier(
    start: StartWhole, sql: "asyncpg.Connection[asyncpg.Record]", server: KillableRedis
) -> None:
    await Books(sql).budget("a", 0)
    worker = await start()
    verdicts = await worker.ask_many("a", 10, TEN_CALLS)
    end(worker, verdicts[0], "k")
    await worker.settled()
    await worker.ask("a", TEN_CALLS)  # the event had no tier, so one is free again
    assert isinstance(await worker.ask("a", TEN_CALLS), BudgetExceeded)
    assert await asyncio.wait_for(worker.asked("a", FREE_AND_KEYED, key="k"), 20) is PASS


@pytest.mark.parametrize("rung", ["redis", "postgres"])
async def test_the_call_of_a_dead_gateway_is_not_billed_beside_its_repeat(
    start: StartWhole, server: KillableRedis, sql: "asyncpg.Connection[asyncpg.Record]", rung: str
) -> None:
    books = Books(sql)
    await books.budget("a", 10)
    one, two = await start(), await start()
    await two.ask("a")
    if rung == "postgres":
        server.kill()
    await one.asked("a", KEYED, key="k")
    end(two, await two.asked("a", KEYED, key="k"), "k")
    await two.settled()
    if rung == "postgres":
        await books.silence("w1")
        assert await two.admission.orphans.sweep_postgres(two.database) == 1
    else:
        script = Script(server.url)
        script.redis.zadd(f"{PREFIX}workers", {"w1": 1})
        script.close()
        assert await two.admission.orphans._sweep_worker(two.admission._lanes[0], 60_000, "w1") == 1
    await two.settled()
    rows = await sql.fetch("SELECT outcome, cost_microcents FROM usage_events ORDER BY outcome")
    assert [tuple(row) for row in rows] == [("expired", 0), ("posted", CENT)]


async def test_a_refusal_waits_no_longer_for_postgres_than_a_call_may(
    database_url: str, sql: "asyncpg.Connection[asyncpg.Record]", server: KillableRedis
) -> None:
    await Books(sql).budget("a", 0)
    link = Link(database_url)
    await link.open()
    # A statement may take 10 s.
    worker = WholeWorker("w1", database_url=link.url, redis_url=server.url, admission_timeout="50ms")
    await worker.start()
    assert isinstance(await asyncio.wait_for(worker.asked("a", KEYED), 10), BudgetExceeded)
    link.jam()
    async with asyncio.timeout(5):
        verdicts = await asyncio.gather(*(worker.asked("a", KEYED, key=f"k{number}") for number in range(3)))
        assert {type(verdict) for verdict in verdicts} == {BudgetExceeded}
        assert isinstance(await worker.asked("a", KEYED, key="later"), BudgetExceeded)
    link.clear()
    await worker.stop()
    await link.close()
