"""Workers that die leave holds; whoever lives settles them, once."""

import asyncio
import contextlib

import pytest

from gateway.admission_orphans import VOID
from gateway.console.holds import _ACCOUNT_HOLDS
from gateway.policy.verdicts import BudgetExceeded, Hold, RateLimited
from gateway.redis_store import DRIFT
from tests.admission.conftest import StartWorker
from tests.admission.script import PREFIX, WORKERS, Script
from tests.admission.world import CENT, Tables, Worker, monthly, per_minute, policy

NOON_MS = 1_795_348_800_000
LATER_MS = NOON_MS + 60_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOON_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def dead(start_worker: StartWorker, tables: Tables, clock: Clock) -> Worker:
    """A worker that took three holds and a slot, and was never heard of again."""
    tables.put("a", monthly(3))
    worker = await start_worker("dead", test_clock_ms=clock)
    holds = await worker.ask_many("a", 3, policy(per_minute(3, "concurrency", window_ms=0)))
    assert all(isinstance(hold, Hold) for hold in holds)
    link = worker.admission._lanes[0]._link
    assert link is not None
    for lane in worker.admission._lanes:
        assert lane._beat is not None
        lane._beat.cancel()
    clock.now_ms = LATER_MS
    return worker


async def sweep(worker: Worker) -> int:
    return await worker.admission.orphans.sweep(worker.admission._lanes[0])


async def test_holds_of_a_dead_worker_are_charged_once_whoever_sweeps(
    start_worker: StartWorker, dead: Worker, tables: Tables, clock: Clock, script: Script
) -> None:
    one, two = await start_worker("one", test_clock_ms=clock), await start_worker("two", test_clock_ms=clock)
    assert sorted(await asyncio.gather(sweep(one), sweep(two), sweep(one))) == [0, 3, 3]
    assert len(one.events) == len(two.events) == 3
    assert {(event.outcome, event.cost_microcents, event.upstream_status) for event in one.events} == {
        ("expired", CENT, 0)
    }
    one.flush()
    two.flush()
    await one.settled()
    await two.settled()
    assert tables.used("a") == 3 * CENT
    assert script.account("a")["h"] == "0"
    assert isinstance(await one.ask("a"), BudgetExceeded)
    assert one.metrics.counter("castgate_holds_settled_total", how="expired").value == 3


async def test_calls_of_a_dead_workers_groups_are_charged_once_each_but_not_those_that_ended(
    start_worker: StartWorker, tables: Tables, clock: Clock, script: Script
) -> None:
    tables.put("a", monthly(64))
    dead = await start_worker("dead", test_clock_ms=clock)
    await dead.ask("a", policy(cents=0))  # seeded
    holds = [hold for hold in await dead.ask_many("a", 64) if isinstance(hold, Hold)]
    assert len(holds) == 64
    for hold in holds[::3]:
        dead.admission.void(hold)
    await dead.settled()
    for lane in dead.admission._lanes:
        assert lane._beat is not None
        lane._beat.cancel()
    clock.now_ms = LATER_MS
    one, two = await start_worker("one", test_clock_ms=clock), await start_worker("two", test_clock_ms=clock)
    assert sorted(await asyncio.gather(sweep(one), sweep(two), sweep(one))) == [0, 42, 42]
    one.events, late = one.events[:20], one.events[20:]
    one.flush()
    await one.settled()
    two.flush()
    await two.settled()
    one.events = late
    one.flush()
    await one.settled()
    assert set(tables.events) == {hold.hold_id for place, hold in enumerate(holds) if place % 3}
    assert tables.used("a") == 42 * CENT
    assert script.account("a")["h"] == "0"
    assert [type(verdict) for verdict in await one.ask_many("a", 23)] == [Hold] * 22 + [BudgetExceeded]


async def test_its_money_stays_held_until_the_ledger_has_it_but_its_slots_are_free_at_once(
    start_worker: StartWorker, dead: Worker, tables: Tables, clock: Clock
) -> None:
    tables.put("a", monthly(4))
    one = await start_worker("one", test_clock_ms=clock)
    limited = policy(per_minute(3, "concurrency", window_ms=0))
    assert isinstance(await one.ask("a", limited), RateLimited)
    await sweep(one)
    assert isinstance(await one.ask("a", limited), Hold)
    assert isinstance(await one.ask("a", limited), BudgetExceeded)


async def test_a_sweeper_that_dies_before_the_ledger_has_it_is_followed_by_another(
    start_worker: StartWorker, dead: Worker, tables: Tables, clock: Clock, script: Script
) -> None:
    first = await start_worker("first", test_clock_ms=clock)
    assert await sweep(first) == 3
    assert await sweep(first) == 0  # under way
    second = await start_worker("second", test_clock_ms=clock)
    assert await sweep(second) == 3
    second.flush()
    await second.settled()
    assert tables.used("a") == 3 * CENT
    assert await sweep(second) == 0
    assert not script.redis.exists(f"{PREFIX}h:dead")
    assert script.redis.zscore(WORKERS, "dead") is None


async def test_where_the_policy_says_so_orphans_are_voided(
    start_worker: StartWorker, dead: Worker, tables: Tables, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start_worker("one", test_clock_ms=clock)
    monkeypatch.setattr(one.admission.orphans, "_on_orphan", lambda policy: VOID if policy == "cast" else "charge")
    assert await sweep(one) == 3
    await one.settled()
    assert one.events == []
    assert isinstance(await one.ask("a"), Hold)


async def test_a_worker_that_was_only_stopped_goes_on_and_nothing_is_charged_twice(
    start_worker: StartWorker, dead: Worker, tables: Tables, clock: Clock, script: Script
) -> None:
    one = await start_worker("one", test_clock_ms=clock)
    await sweep(one)
    one.flush()
    await one.settled()
    # It wakes and posts its calls as if nothing had been.
    holds = list(dead.admission._open)
    for hold_id in holds:
        hold = Hold(hold_id=hold_id, account_id="a", amount_microcents=CENT, admitted_ms=NOON_MS)
        dead.post(hold)
    await dead.settled()
    assert tables.used("a") == 3 * CENT
    assert script.account("a") | {"v": ""} == {
        "v": "", "h": "0", "s:monthly/UTC/1": "1793491200000", "u:monthly/UTC/1": str(3 * CENT),
    }  # fmt: skip


async def test_thousands_of_orphans_are_taken_up_in_pages(
    start_worker: StartWorker, tables: Tables, clock: Clock
) -> None:
    tables.put("a", monthly(5000))
    dead = await start_worker("dead", test_clock_ms=clock)
    await dead.ask_many("a", 2500)
    for lane in dead.admission._lanes:
        assert lane._beat is not None
        lane._beat.cancel()
    clock.now_ms = LATER_MS
    one = await start_worker("one", test_clock_ms=clock)
    assert await sweep(one) == 2500
    assert len({event.event_id for event in one.events}) == 2500


async def test_a_living_worker_is_never_swept_and_sweeps_by_itself(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(3))
    dead = await start_worker("dead", hold_ttl="1s")
    alive = await start_worker("alive", hold_ttl="1s")
    await dead.ask("a")
    held = await alive.ask("a")
    await dead.stop()
    async with asyncio.timeout(10):
        while not alive.events:
            await asyncio.sleep(0.01)
    alive.flush()
    await alive.settled()
    assert script.redis.hkeys(f"{PREFIX}h:alive") != ["epoch"]
    assert isinstance(held, Hold)
    assert script.redis.hexists(f"{PREFIX}h:alive", held.hold_id)


async def test_after_an_outage_of_redis_nobody_is_swept_before_all_could_speak_again(
    start_worker: StartWorker, dead: Worker, clock: Clock
) -> None:
    one = await start_worker("one", hold_ttl="1s", test_clock_ms=clock)
    # As if the connection had just come up, over and over.
    one.admission._lanes[0].up_since_s = asyncio.get_running_loop().time() + 100
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.8):
            await one.admission.orphans.run()
    assert one.events == []


async def test_holds_of_an_earlier_layout_keep_no_sweeper_from_the_others(
    start_worker: StartWorker, dead: Worker, tables: Tables, clock: Clock, script: Script
) -> None:
    """A worker of the version before ran beside later ones, and was killed."""
    old = b"\x95\xa1a\xce\x00\x0fB@\xcb\x42\x79\xc0\x00\x00\x00\x00\x00\xa4cast\xc0"
    script.redis.hset(f"{PREFIX}h:old", mapping={"epoch": 1, "seq": 7, "0" * 32: old})
    script.redis.zadd(WORKERS, {"old": 1})
    one = await start_worker("one", test_clock_ms=clock)
    _, (account,), _ = script.redis.eval(DRIFT.source, 1, WORKERS, 1000, 1, '["a"]', "[]")
    assert account[:2] == [3 * CENT, 3 * CENT]
    assert script.redis.eval(_ACCOUNT_HOLDS.source, 1, WORKERS, "a", 1000, 50)[1:3] == [3, 3 * CENT]
    assert await sweep(one) == 3
    assert not script.redis.hexists(f"{PREFIX}h:old", "0" * 32)
    await sweep(one)
    assert script.redis.zscore(WORKERS, "old") is None
