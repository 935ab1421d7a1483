"""A Redis that was flushed, restarted empty or restored from an old snapshot is noticed, and brought to the truth."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.admission_lane import HANDOVER, RESTORING
from gateway.admission_restore import RESTORE_S
from gateway.policy.budgets import BudgetLimit
from gateway.policy.rules import Cost, Policy
from gateway.policy.verdicts import BudgetExceeded, Hold, RateLimited, Verdict
from tests.admission.conftest import StartWorker
from tests.admission.killable import killable_redis
from tests.admission.script import PREFIX, Script
from tests.admission.world import CENT, Tables, Worker, monthly, per_minute, policy
from tests.redis_accounts import holds_in

DENY = policy(on_store_failure="deny")
# May cost something else than what it holds, so each is an entry of its own.
UNEQUAL = replace(DENY, cost=Cost(fixed_microcents=2 * CENT, hold_microcents=CENT))
AT_ONCE = policy(per_minute(3, "concurrency", window_ms=0), on_store_failure="deny")


def kinds(verdicts: list[Verdict]) -> Counter[type]:
    return Counter(type(verdict) for verdict in verdicts)


async def all_serve(*workers: Worker) -> None:
    """Until every worker has noticed what happened to Redis, and asks it again."""
    await asyncio.gather(*(worker.serving() for worker in workers))


async def test_a_flush_with_a_full_budget_in_flight_admits_none_more(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(100))
    one, two = await start_worker("one"), await start_worker("two")
    holds = await one.ask_many("a", 60, DENY) + await two.ask_many("a", 40, DENY)
    assert kinds(holds) == {Hold: 100}
    script.redis.flushall()
    rounds = await asyncio.gather(*(worker.ask_many("a", 50, DENY) for worker in (one, two) for _ in range(4)))
    await all_serve(one, two)
    rounds += await asyncio.gather(one.ask_many("a", 50, DENY), two.ask_many("a", 50, DENY))
    assert Hold not in kinds([verdict for verdicts in rounds for verdict in verdicts])
    assert kinds(rounds[-1]) == kinds(rounds[-2]) == {BudgetExceeded: 50}
    one.post(*holds[:60])
    two.post(*holds[60:])
    await asyncio.gather(one.settled(), two.settled())
    assert tables.used("a") == 100 * CENT
    assert script.account("a")["h"] == "0"
    assert script.account("a")["u:monthly/UTC/1"] == str(100 * CENT)


async def test_an_old_snapshot_is_brought_to_the_truth(
    start_worker: StartWorker, tables: Tables, tmp_path: Path
) -> None:
    tables.put("a", monthly(100))
    with killable_redis("--dir", str(tmp_path)) as server:
        one, two = await start_worker("one", url=server.url), await start_worker("two", url=server.url)
        first = await one.ask_many("a", 30, DENY) + await two.ask_many("a", 5, DENY)
        script = Script(server.url)
        script.redis.save()
        for hold in first[:10]:
            assert isinstance(hold, Hold)
            one.admission.void(hold)
        one.post(*first[10:20])
        later = await one.ask_many("a", 20, DENY)
        await one.settled()
        server.kill()
        server.start()
        await all_serve(one, two)
        # Open are: 10 of the first and 20 later ones, and two's 5. Used are 10.
        assert script.account("a")["h"] == str(35 * CENT)
        assert kinds(await two.ask_many("a", 60, DENY)) == {Hold: 55, BudgetExceeded: 5}
        one.post(*first[20:30], *later)
        await one.settled()
        assert script.account("a")["u:monthly/UTC/1"] == str(40 * CENT)
        assert script.account("a")["h"] == str(60 * CENT)
        script.close()


async def test_an_old_snapshot_is_not_believed_of_a_budget_that_comes_back_later(
    start_worker: StartWorker, tables: Tables, tmp_path: Path
) -> None:
    total = BudgetLimit(period="total", hard_limit_microcents=50 * CENT)
    tables.put("a", total)
    with killable_redis("--dir", str(tmp_path)) as server:
        one = await start_worker("one", url=server.url)
        one.post(*await one.ask_many("a", 5, DENY))
        await one.settled()
        script = Script(server.url)
        script.redis.save()
        one.post(*await one.ask_many("a", 20, DENY))
        await one.settled()
        tables.put("a", monthly(100), version=2)
        await one.admission.facts_changed("a", 2)
        one.post(await one.ask("a", DENY))
        await one.settled()
        server.kill()
        server.start()
        await all_serve(one)
        assert kinds(await one.ask_many("a", 1, DENY)) == {Hold: 1}
        tables.put("a", total, version=3)
        await one.admission.facts_changed("a", 3)
        assert kinds(await one.ask_many("a", 60, DENY)) == {Hold: 23, BudgetExceeded: 37}
        script.close()


async def test_data_that_went_back_under_an_open_connection_are_noticed(
    start_worker: StartWorker, tables: Tables, tmp_path: Path
) -> None:
    tables.put("a", monthly(10))
    with killable_redis("--dir", str(tmp_path)) as server:
        one = await start_worker("one", url=server.url)
        await one.ask_many("a", 4, DENY)
        script = Script(server.url)
        script.redis.save()
        await one.ask_many("a", 4, DENY)
        script.redis.execute_command("DEBUG", "RELOAD", "NOSAVE")
        assert script.account("a")["h"] == str(4 * CENT)
        await one.serving()
        assert kinds(await one.ask_many("a", 4, DENY)) == {Hold: 2, BudgetExceeded: 2}
        script.close()


async def test_accounts_are_brought_back_before_they_call(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    for account_id in ("a", "b"):
        tables.put(account_id, monthly(10))
    one = await start_worker("one")
    for account_id in ("a", "b"):
        one.post(*await one.ask_many(account_id, 7, DENY))
    await one.settled()
    script.redis.flushall()
    await one.ask("a", DENY)
    await all_serve(one)
    async with asyncio.timeout(10):
        while script.account("b").get("u:monthly/UTC/1") != str(7 * CENT):
            await asyncio.sleep(0.005)
    # So it does not matter if Postgres is away when it calls.
    tables.is_away = True
    assert kinds(await one.ask_many("b", 5)) == {Hold: 3, BudgetExceeded: 2}


async def test_slots_of_calls_under_way_are_put_back(start_worker: StartWorker, tables: Tables, script: Script) -> None:
    one, two = await start_worker("one"), await start_worker("two")
    holds = await one.ask_many("a", 2, AT_ONCE)
    script.redis.flushall()
    await all_serve(one, two)
    assert kinds(await two.ask_many("a", 3, AT_ONCE)) == {Hold: 1, RateLimited: 2}
    one.post(*holds)
    await one.settled()
    assert kinds(await two.ask_many("a", 3, AT_ONCE)) == {Hold: 2, RateLimited: 1}


@pytest.mark.parametrize("policy_of", [DENY, UNEQUAL], ids=["in groups", "one by one"])
async def test_thousands_of_holds_are_put_back_in_pages(
    start_worker: StartWorker, tables: Tables, script: Script, policy_of: Policy
) -> None:
    tables.put("a", monthly(3000))
    one = await start_worker("one")
    await one.ask_many("a", 2500, policy_of)
    script.redis.flushall()
    await one.serving()
    assert script.account("a")["h"] == str(2500 * CENT)
    assert len(holds_in(script.redis, f"{PREFIX}h:one")) == 2500


async def test_many_workers_begin_one_generation(start_worker: StartWorker, tables: Tables, script: Script) -> None:
    tables.put("a", monthly(60))
    workers = [await start_worker() for _ in range(5)]
    await asyncio.gather(*(worker.ask_many("a", 10, DENY) for worker in workers))
    for _ in range(3):
        before = script.redis.hget(f"{PREFIX}life", "g")
        script.redis.flushall()
        await all_serve(*workers)
        generations = {worker.admission._lanes[0]._membership.generation for worker in workers}
        assert generations == {script.redis.hget(f"{PREFIX}life", "g")}
        assert generations != {before}
        assert script.account("a")["h"] == str(50 * CENT)


async def test_a_worker_that_does_not_answer_is_waited_for_only_so_long(
    start_worker: StartWorker, tables: Tables, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admission_restore.RESTORE_S", 0.4)
    tables.put("a", monthly(10))
    tables.workers.add("stopped")
    started = asyncio.get_running_loop().time()
    one = await start_worker("one")
    await one.serving()
    assert asyncio.get_running_loop().time() - started >= 0.3
    assert isinstance(await one.ask("a", DENY), Hold)


async def test_a_worker_swept_while_it_was_stopped_puts_its_holds_back_and_disturbs_nobody(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(10))
    one, two = await start_worker("one"), await start_worker("two")
    await one.ask_many("a", 3, DENY)
    generation = script.redis.hget(f"{PREFIX}life", "g")
    script.redis.zadd(f"{PREFIX}workers", {"one": 1})
    lane = two.admission._lanes[0]
    assert await two.admission.orphans.sweep(lane) == 3
    two.flush()
    await two.settled()
    script.redis.zadd(f"{PREFIX}workers", {"one": 1})
    assert await two.admission.orphans.sweep(lane) == 0
    await one.serving()
    assert script.redis.hget(f"{PREFIX}life", "g") == generation
    assert tables.used("a") == 3 * CENT


async def test_a_new_generation_is_heard_of_before_the_next_call_is_admitted(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(10))
    one = await start_worker("one")
    # Another worker, which has nothing to say just now.
    script.redis.zadd(f"{PREFIX}workers", {"other": 1})
    script.redis.hset(f"{PREFIX}h:other", mapping={"epoch": 1, "seq": 7})
    lane = one.admission._lanes[0]
    lane.was_elsewhere = True
    lane._lose("lost", "as if calls had been admitted elsewhere since")
    await one.serving()
    assert script.redis.hgetall(f"{PREFIX}h:other") == {"seq": "7"}


async def test_a_worker_that_holds_nothing_notices_too_before_its_call_is_admitted(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(5))
    one, two = await start_worker("one"), await start_worker("two")
    await one.ask_many("a", 5, DENY)
    script.redis.flushall()
    assert Hold not in kinds(await two.ask_many("a", 3, DENY))
    await all_serve(one, two)
    assert kinds(await two.ask_many("a", 3, DENY)) == {BudgetExceeded: 3}


async def test_a_server_that_was_left_behind_and_is_asked_again_begins_anew(
    start_worker: StartWorker, tables: Tables, script: Script, redis_url: str
) -> None:
    """A former primary that is one again, as the same process: it lacks what was held meanwhile."""
    tables.put("a", monthly(10))
    one, two = await start_worker("one"), await start_worker("two")
    await one.ask_many("a", 4, DENY)
    numbers = [_number(script)]
    with redis.Redis.from_url(redis_url) as raw:
        old = {key: raw.dump(key) for key in raw.scan_iter()}
        script.redis.flushdb()
        await all_serve(one, two)
        numbers.append(_number(script))
        await two.ask_many("a", 6, DENY)
        for worker in (one, two):
            worker.admission._lanes[0]._lose("lost", "a failover")
        script.redis.flushdb()
        for key, value in old.items():
            raw.restore(key, 0, value)
    await all_serve(one, two)
    numbers.append(_number(script))
    assert numbers[0] < numbers[1] < numbers[2]
    assert kinds(await one.ask_many("a", 2, DENY) + await two.ask_many("a", 2, DENY)) == {BudgetExceeded: 4}


def _number(script: Script) -> int:
    """Of the generation that now is."""
    return int(str(script.redis.hget(f"{PREFIX}life", "g")).partition(".")[0])


async def test_data_of_an_earlier_layout_are_taken_for_lost(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(10))
    tables.put("b", monthly(10))
    script.redis.hset(f"{PREFIX}life", mapping={"g": "4.abc", "run": script.redis.info("server")["run_id"], "opens": 1})
    script.redis.hset(f"{PREFIX}a:a", mapping={"v": 1, "h": 9 * CENT, "s:monthly/UTC/1": 0, "u:monthly/UTC/1": CENT})
    script.redis.hset(f"{PREFIX}r:s:cast:minute:60000:a", mapping={"l": 1, "t": 1000, "0": 1000})
    script.redis.hset(f"{PREFIX}h:gone", mapping={"epoch": 1, "seq": 7, "0" * 32: b"packed in some other way"})
    script.redis.zadd(f"{PREFIX}workers", {"gone": 1})
    one = await start_worker("one")
    assert script.redis.hget(f"{PREFIX}life", "g").startswith("5.")  # type: ignore[union-attr]
    assert not script.redis.exists(f"{PREFIX}h:gone")
    await one.admission.facts_changed("a", 1)
    limited = policy(per_minute(100), on_store_failure="deny")
    for account in "ab":
        assert kinds(await one.ask_many(account, 12, limited)) == {Hold: 10, BudgetExceeded: 2}
    assert await one.admission.orphans.sweep(one.admission._lanes[0]) == 0


async def test_calls_do_not_wait_for_a_worker_that_stops_between_the_stages(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    """It put its holds in place and is heard of no more: until its time is over, others are decided elsewhere."""
    tables.put("a", monthly(100))
    one = await start_worker("one")
    assert isinstance(await one.ask("a"), Hold)
    tables.workers.add("slow")
    script.redis.flushall()
    lane = one.admission._lanes[0]
    async with asyncio.timeout(5):
        while lane.state != RESTORING:
            await one.ask("a")
            await asyncio.sleep(0)  # one that is decided in memory has not given the loop a turn
        while not script.redis.hset(f"{PREFIX}life", "m:slow", 1):
            await asyncio.sleep(0)
        while lane.state != HANDOVER:
            await asyncio.sleep(0.001)
    begun_s = asyncio.get_running_loop().time()
    verdicts = await one.ask_many("a", 5)
    assert kinds(verdicts) == {Hold: 5}
    assert asyncio.get_running_loop().time() - begun_s < RESTORE_S / 3
    assert lane.state == RESTORING
    await one.serving()
    assert script.account("a")["h"] == str(len(one.admission._open) * CENT)


async def test_a_connection_that_breaks_before_holds_are_in_place_is_no_reason_to_believe_redis(
    start_worker: StartWorker, tables: Tables, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.put("a", monthly(3))
    one = await start_worker("one")
    assert kinds(await one.ask_many("a", 3, DENY)) == {Hold: 3}
    member = one.admission._lanes[0]._membership
    restore, broken = member.restore, 0

    async def breaks(*arguments: Any) -> None:
        nonlocal broken
        broken += 1
        if broken == 1:
            script.redis.client_kill_filter(_type="normal", skipme=True)
        await restore(*arguments)

    monkeypatch.setattr(member, "restore", breaks)
    script.redis.flushall()
    await one.serving()
    assert broken == 2
    assert script.account("a")["h"] == str(3 * CENT)
    assert isinstance(await one.ask("a", DENY), BudgetExceeded)
