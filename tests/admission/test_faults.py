"""Redis refuses, hangs, dies, comes back: every ask is answered in time, no hold leaks, and nobody has to restart."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import structlog

from gateway.policy.verdicts import BudgetExceeded, Hold, StoreUnavailable
from tests.admission.conftest import StartWorker
from tests.admission.killable import KillableRedis, killable_redis
from tests.admission.script import PREFIX, Script
from tests.admission.world import CENT, Tables, Worker, monthly, per_minute, policy
from tests.redis_accounts import spoil

DENY = policy(on_store_failure="deny")
ALLOW = policy(on_store_failure="allow")
# With a machine that is busy with other tests in mind; the product's own default is 50 ms.
TIMEOUT_S = 0.3
ANSWERED_S = TIMEOUT_S + 0.5


@pytest.fixture
def server() -> Iterator[KillableRedis]:
    with killable_redis() as server:
        yield server


@pytest.fixture
async def worker(start_worker: StartWorker, server: KillableRedis) -> Worker:
    return await start_worker("w1", url=server.url, timeout=f"{int(TIMEOUT_S * 1000)}ms")


async def back(worker: Worker) -> None:
    """Until Redis serves this worker again."""
    async with asyncio.timeout(10):
        while not all(lane.is_up for lane in worker.admission._lanes):
            await asyncio.sleep(0.005)


async def lost(worker: Worker) -> None:
    """Until this worker has noticed that Redis is gone."""
    async with asyncio.timeout(10):
        while any(lane.is_up for lane in worker.admission._lanes):
            await asyncio.sleep(0.005)


async def test_with_redis_away_from_the_start_calls_are_decided_by_the_policy(
    start_worker: StartWorker, server: KillableRedis
) -> None:
    server.kill()
    started = time.monotonic()
    worker = await start_worker(url=server.url)
    passed = await worker.ask("a", ALLOW)
    assert isinstance(passed, Hold)
    assert await worker.ask("a", DENY) == StoreUnavailable(retry_after_ms=1000)
    assert time.monotonic() - started < 1.0
    server.start()
    await back(worker)
    assert isinstance(await worker.ask("a", DENY), Hold)
    state = await worker.admission.budget_state(worker.account("a"))
    assert state.held_microcents == 2 * CENT
    worker.post(passed)


async def test_a_killed_redis_answers_what_was_under_way_and_serves_again_when_it_is_back(
    worker: Worker, server: KillableRedis, tables: Tables
) -> None:
    tables.put("a", monthly(3))
    worker.post(await worker.ask("a"))
    await worker.settled()
    server.hang()
    asked = [worker.asked("a", DENY) for _ in range(5)]
    server.kill()
    verdicts = await asyncio.wait_for(asyncio.gather(*asked), ANSWERED_S)
    assert {type(verdict) for verdict in verdicts} == {StoreUnavailable}
    server.start()
    await back(worker)
    # It came back empty: what was used is read from the ledger.
    assert [type(verdict) for verdict in await worker.ask_many("a", 3)] == [Hold, Hold, BudgetExceeded]


@pytest.mark.parametrize("rule", [ALLOW, DENY])
async def test_a_hung_redis_costs_each_call_at_most_the_time_out_and_later_calls_nothing(
    worker: Worker, server: KillableRedis, rule: object
) -> None:
    await worker.ask("a")
    server.hang()
    started = time.monotonic()
    first = [worker.asked("a", rule) for _ in range(50)]  # type: ignore[arg-type]
    await asyncio.gather(*first)
    assert time.monotonic() - started < ANSWERED_S
    started = time.monotonic()
    for _ in range(100):
        verdict = worker.asked("a", rule)  # type: ignore[arg-type]
        assert verdict.done()
    assert time.monotonic() - started < 0.1


async def test_what_redis_did_after_it_was_given_up_is_undone(
    worker: Worker, server: KillableRedis, tables: Tables
) -> None:
    tables.put("a", monthly(10))
    slots = per_minute(5, "concurrency", window_ms=0)
    await worker.ask("a", policy(slots))
    server.hang()
    # The first is in Redis' socket already, perhaps to be done when it wakes; the others never left.
    denied = await asyncio.gather(*(worker.asked("a", policy(slots, on_store_failure="deny")) for _ in range(3)))
    assert {type(verdict) for verdict in denied} == {StoreUnavailable}
    server.wake()
    await back(worker)
    await worker.settled()
    with_script = Script(server.url)
    assert len(with_script.holds()) == 1
    assert with_script.account("a")["h"] == str(CENT)
    with_script.close()


async def test_calls_let_pass_without_redis_are_held_there_when_it_is_back_and_what_it_had_taken_is_undone(
    worker: Worker, server: KillableRedis, tables: Tables
) -> None:
    tables.put("a", monthly(10))
    await worker.ask("a", ALLOW)
    server.hang()
    verdicts = await asyncio.gather(*(worker.asked("a", ALLOW) for _ in range(3)))
    assert Counter(type(verdict) for verdict in verdicts) == {Hold: 3}
    server.wake()
    await back(worker)
    state = await worker.admission.budget_state(worker.account("a"))
    assert state.held_microcents == 4 * CENT
    worker.post(*verdicts)
    await worker.settled()
    state = await worker.admission.budget_state(worker.account("a"))
    assert state.held_microcents == CENT  # the first call's own


async def test_what_was_settled_while_redis_was_away_is_told_before_anybody_asks(
    worker: Worker, server: KillableRedis, tables: Tables
) -> None:
    tables.put("a", monthly(4))
    holds = await worker.ask_many("a", 4)
    server.hang()
    await worker.ask("a", ALLOW)
    worker.post(*holds[:3])
    assert isinstance(holds[3], Hold)
    worker.admission.void(holds[3])
    server.wake()
    await back(worker)
    # Three are posted, one is voided, and one passed meanwhile.
    assert [type(verdict) for verdict in await worker.ask_many("a", 2)] == [BudgetExceeded, BudgetExceeded]


async def test_a_change_of_facts_while_redis_is_away_is_told_when_it_is_back(
    start_worker: StartWorker, worker: Worker, server: KillableRedis, tables: Tables
) -> None:
    other = await start_worker("w2", url=server.url, timeout="300ms")
    tables.put("a", monthly(10))
    for one in (worker, other):
        assert isinstance(await one.ask("a"), Hold)
    server.hang()
    tables.put("a", monthly(0), version=2)
    await worker.admission.facts_changed("a", 2)
    await worker.ask("a")  # notices
    server.wake()
    await back(worker)
    await back(other)
    assert isinstance(await other.ask("a"), BudgetExceeded)


async def test_many_settles_are_told_in_bounded_calls(worker: Worker, server: KillableRedis, tables: Tables) -> None:
    tables.put("a", monthly(5000))
    holds = await worker.ask_many("a", 3000)
    server.hang()
    await worker.ask("a", ALLOW)
    worker.post(*holds)
    server.wake()
    await back(worker)
    await worker.settled()
    state = await worker.admission.budget_state(worker.account("a"))
    assert state.used_microcents == {"monthly/UTC/1": 3000 * CENT}


async def test_another_redis_than_before_is_believed_only_after_seeding(
    worker: Worker, server: KillableRedis, tables: Tables
) -> None:
    tables.put("a", monthly(3))
    holds = await worker.ask_many("a", 2)
    with_script = Script(server.url)
    old = with_script.redis.dump(f"{PREFIX}a:a")
    with_script.close()
    worker.post(*holds)
    await worker.settled()
    server.kill()
    await lost(worker)
    server.start()
    again = Script(server.url)
    # Restored from a snapshot of before the calls.
    again.redis.restore(f"{PREFIX}a:a", 0, old)
    spoil(again.redis, f"{PREFIX}a:a", "h", 0)
    again.close()
    await back(worker)
    assert [type(verdict) for verdict in await worker.ask_many("a", 2)] == [Hold, BudgetExceeded]


async def test_losing_and_finding_redis_is_one_line_each_and_a_metric(worker: Worker, server: KillableRedis) -> None:
    up = worker.metrics.gauge("castgate_store_up", store="redis")
    with structlog.testing.capture_logs() as logs:
        server.kill()
        async with asyncio.timeout(5):
            while up.value:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.25)  # several probes fail meanwhile
        server.start()
        await back(worker)
    assert up.value == 1
    told = [log["event"] for log in logs if log["log_level"] in ("warning", "error")]
    rungs = ["admission_rung", "admission_rung"]
    assert sorted(told) == [*rungs, "redis_lost_data", "store_back", "store_lost"]
    assert worker.metrics.counter("redis_errors_total").value >= 1


async def test_a_redis_that_cannot_write_is_as_lost_as_one_that_is_gone(worker: Worker, server: KillableRedis) -> None:
    await worker.ask("a", DENY)
    with_script = Script(server.url)
    with_script.redis.config_set("maxmemory", 1)
    assert isinstance(await worker.ask("a", DENY), StoreUnavailable)
    with_script.redis.config_set("maxmemory", 0)
    with_script.close()
    await back(worker)
    assert isinstance(await worker.ask("a", DENY), Hold)


async def test_a_busy_process_is_not_taken_for_a_hung_redis(worker: Worker) -> None:
    await worker.ask("a")
    verdict = worker.asked("a", DENY)
    time.sleep(TIMEOUT_S * 1.5)  # noqa: ASYNC251 - the process that has no time is the point
    assert isinstance(await verdict, Hold)
