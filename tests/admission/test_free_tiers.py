"""Free tiers while calls are admitted: never more than is free, never money over the limit, on either rung."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import asyncpg
import pytest

from gateway.ledger import UsageEvent
from gateway.policy.costs import HeaderCost
from gateway.policy.free_tier import UNIT_SCALE_TOLD, free_tier
from gateway.policy.money import MICROCENTS_MAX
from gateway.policy.rules import Cost, Policy
from gateway.policy.verdicts import BudgetExceeded, Hold, Verdict
from gateway.reconcile import Reconciler
from gateway.reconcile_repair import repair
from gateway.redis_tell import teller_to
from gateway.usage_events import terms_at
from tests.admission.killable import KillableRedis, killable_redis
from tests.admission.script import PREFIX, Script
from tests.admission.whole import DENY, Books, WholeWorker
from tests.admission.world import CENT, policy
from tests.ledger.making import migrate
from tests.redis_accounts import held_at, spoil

StartWhole = Callable[..., Coroutine[Any, Any, WholeWorker]]
UNIT = UNIT_SCALE_TOLD


def tier(units: int, *, hold_cents: int = 1, **more: Any) -> Any:
    return free_tier(
        units,
        "monthly",
        time_zone="UTC",
        week_start=1,
        hold_microcents=hold_cents * CENT,
        maximum_microcents=MICROCENTS_MAX,
        **more,
    )


TEN_CALLS = replace(DENY, cost=Cost(fixed_microcents=CENT, free=tier(10)))
# A unit costs a cent, a call has at most 5.
TWENTY_UNITS = replace(
    DENY,
    cost=Cost(
        parts=(HeaderCost(field="x-units", microcents_per_unit=Fraction(CENT)),),
        hold_microcents=5 * CENT,
        free=tier(20, hold_cents=5, scale=UNIT_SCALE_TOLD, microcents_per_unit=Fraction(CENT)),
    ),
)
PLAIN = policy(name="plain", cents=1, on_store_failure="deny")


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
def books(sql: "asyncpg.Connection[asyncpg.Record]") -> Books:
    return Books(sql)


@pytest.fixture
async def start(database_url: str, books: Books, server: KillableRedis) -> AsyncIterator[StartWhole]:
    workers: list[WholeWorker] = []

    async def start(**options: Any) -> WholeWorker:
        given = {"database_url": database_url, "redis_url": server.url, **options}
        worker = WholeWorker(f"w{len(workers) + 1}", **given)
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.stop()


def post(worker: WholeWorker, policy: Policy, *holds: Verdict, units: int = 1) -> None:
    """The calls are over; each has had so many units."""
    tier = policy.cost.free
    assert tier is not None
    counted, charge = units * tier.scale, policy.cost.fixed_microcents or units * CENT
    for hold in holds:
        assert isinstance(hold, Hold)
        worker.admission.finished(hold, charge, counted)
        terms = terms_at(policy, hold.admitted_ms, counted, "")
        worker.ledger.append(
            UsageEvent(hold.hold_id, hold.account_id, "cast", hold.admitted_ms, charge, 200, "posted", terms=terms)
        )


def holds_of(verdicts: list[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if isinstance(verdict, Hold)]


def held(script: Script) -> int:
    return held_at(script.redis, f"{PREFIX}a:a")


async def away(server: KillableRedis, rung: str) -> None:
    if rung == "postgres":
        server.kill()


@pytest.mark.parametrize("rung", ["redis", "postgres"])
async def test_an_account_that_may_spend_nothing_has_its_free_calls_and_no_more(
    start: StartWhole, server: KillableRedis, books: Books, rung: str
) -> None:
    await books.budget("a", 0)
    one, two = await start(), await start()
    assert isinstance(await one.ask("a"), BudgetExceeded)
    await away(server, rung)
    rounds = await asyncio.gather(*(worker.ask_many("a", 20, TEN_CALLS) for worker in (one, two)))
    taken = [holds_of(verdicts) for verdicts in rounds]
    assert len(taken[0]) + len(taken[1]) == 10
    assert one.admission.ladder.rung == rung
    owner, mine = (one, taken[0]) if taken[0] else (two, taken[1])
    given_back = mine.pop()
    assert isinstance(given_back, Hold)
    owner.admission.void(given_back)  # not charged, so one is free again
    post(one, TEN_CALLS, *taken[0])
    post(two, TEN_CALLS, *taken[1])
    await asyncio.gather(one.settled(), two.settled())
    await books.no_hold_left()  # whose worker tells it in its own time
    last = await two.ask_many("a", 3, TEN_CALLS)
    assert [type(verdict) for verdict in last] == [Hold, BudgetExceeded, BudgetExceeded]
    post(two, TEN_CALLS, last[0])
    await two.settled()
    assert await books.used_cents("a") == 0


@pytest.mark.parametrize("rung", ["redis", "postgres"])
async def test_what_is_beyond_the_free_units_is_held_at_its_price(
    start: StartWhole, server: KillableRedis, books: Books, rung: str
) -> None:
    await books.budget("a", 7)
    worker = await start()
    await worker.ask("a")  # known, and seeded
    await away(server, rung)
    # 20 units are free; beside the cent that the first call holds, 6 more can be paid for.
    verdicts = await worker.ask_many("a", 8, TWENTY_UNITS)
    assert [type(verdict) for verdict in verdicts] == [Hold] * 5 + [BudgetExceeded] * 3
    denied = verdicts[-1]
    assert isinstance(denied, BudgetExceeded)
    assert (denied.used_microcents, denied.cost_microcents) == (6 * CENT, 5 * CENT)
    post(worker, TWENTY_UNITS, *verdicts[:4], units=2)  # 8 used, 5 held: 7 are free
    await worker.settled()
    verdicts = verdicts[4:5] + await worker.ask_many("a", 8, TWENTY_UNITS)
    assert len(holds_of(verdicts)) == 1 + 2  # of whose 15 units 12 are free
    post(worker, TWENTY_UNITS, *holds_of(verdicts), units=5)
    await worker.settled()
    assert await books.used_cents("a") == 3


@pytest.mark.parametrize("rung", ["redis", "postgres"])
@pytest.mark.parametrize("seed", range(3))
async def test_no_order_of_ends_spends_more_than_the_limit_or_leaves_free_units_unused(
    start: StartWhole,
    server: KillableRedis,
    books: Books,
    sql: "asyncpg.Connection[asyncpg.Record]",
    rung: str,
    seed: int,
) -> None:
    """Among them: calls that were admitted later end first and get what is free, and those before them have to pay."""
    chance = random.Random(seed)
    limit = chance.randrange(0, 12)
    await books.budget("a", limit)
    workers = [await start(), await start()]
    for worker in workers:
        await worker.ask_many("a", 1, TWENTY_UNITS)  # under way to the end
    await away(server, rung)
    open_holds: list[tuple[WholeWorker, Policy, Verdict]] = []
    for _ in range(40):
        worker = chance.choice(workers)
        asked = chance.choice([TWENTY_UNITS, TWENTY_UNITS, PLAIN])
        open_holds += [
            (worker, asked, hold) for hold in holds_of(await worker.ask_many("a", chance.randrange(4), asked))
        ]
        chance.shuffle(open_holds)
        for _ in range(chance.randrange(4)):
            if not open_holds:
                break
            worker, asked, hold = open_holds.pop()
            assert isinstance(hold, Hold)
            if chance.random() < 0.3:
                worker.admission.void(hold)
            elif asked is PLAIN:
                worker.post(hold)
            else:
                post(worker, asked, hold, units=chance.randrange(6))
        if chance.random() < 0.5:
            await asyncio.gather(*(worker.settled() for worker in workers))
            assert await books.used_cents("a") <= limit
    for worker, asked, hold in open_holds:
        worker.post(hold) if asked is PLAIN else post(worker, asked, hold, units=5)
    await asyncio.gather(*(worker.settled() for worker in workers))
    used = await books.used_cents("a")
    assert used <= limit
    row = await sql.fetchrow("SELECT sum(units)::bigint AS units, sum(free_units)::bigint AS free FROM usage_events")
    assert row is not None
    assert row["free"] == min(20 * UNIT, row["units"])
    assert await sql.fetchval("SELECT used_units FROM usage_units") == row["units"]
    if rung == "postgres":
        async with asyncio.timeout(10):
            while await books.held() != len(workers):  # calls given back are told by their workers in their own time
                await asyncio.sleep(0.02)
    # What is left of the limit can be spent to the cent.
    left = await workers[0].ask_many("a", 20, PLAIN)
    reserved = max(0, min(10 * UNIT, row["units"] + 10 * UNIT - 20 * UNIT)) // UNIT  # for the two under way
    assert len(holds_of(left)) == limit - used - reserved


async def test_holds_of_free_calls_are_in_place_again_after_redis_was_lost(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    await books.budget("a", 3)
    one, two = await start(redis_timeout="300ms"), await start(redis_timeout="300ms")
    first = await one.ask_many("a", 4, TEN_CALLS) + await two.ask_many("a", 4, TEN_CALLS)
    script = Script(server.url)
    assert held(script) == 0
    post(one, TEN_CALLS, *first[:2])
    await one.settled()
    script.redis.flushall()
    async with asyncio.timeout(20):
        while not script.redis.exists(f"{PREFIX}life"):
            await asyncio.sleep(0.002)
    for worker in (one, two):
        await worker.on("redis")
    more = await one.ask_many("a", 9, TEN_CALLS)
    assert [type(verdict) for verdict in more] == [Hold] * 5 + [BudgetExceeded] * 4  # two are free, three are paid for
    assert held(script) == 3 * CENT
    post(one, TEN_CALLS, *first[2:4], *holds_of(more))
    post(two, TEN_CALLS, *first[4:])
    await asyncio.gather(one.settled(), two.settled())
    assert held(script) == 0
    assert await books.used_cents("a") == 3
    script.close()


@pytest.mark.parametrize("rung", ["redis", "postgres"])
async def test_what_a_dead_worker_held_counts_in_the_tier_and_costs_what_is_not_free(
    start: StartWhole, server: KillableRedis, books: Books, sql: "asyncpg.Connection[asyncpg.Record]", rung: str
) -> None:
    await books.budget("a", 100)
    one, two = await start(hold_ttl="1s"), await start(hold_ttl="1s")
    await two.ask("a", TEN_CALLS)
    await away(server, rung)
    assert len(holds_of(await one.ask_many("a", 5, TWENTY_UNITS))) == 5
    if rung == "postgres":
        await books.silence("w1")
        assert await two.admission.orphans.sweep_postgres(two.database) == 5
    else:
        lane = two.admission._lanes[0]
        assert await two.admission.orphans._sweep_worker(lane, -1000, "w1") == 5
    await two.settled()
    rows = await sql.fetch("SELECT units, free_units, cost_microcents FROM usage_events ORDER BY free_units")
    assert [tuple(row) for row in rows] == [(5 * UNIT, 0, 5 * CENT), *[(5 * UNIT, 5 * UNIT, 0)] * 4]


@pytest.mark.parametrize("rung", ["redis", "postgres"])
async def test_what_a_dead_worker_held_is_charged_however_big_the_numbers_of_its_terms_are(
    start: StartWhole, server: KillableRedis, books: Books, sql: "asyncpg.Connection[asyncpg.Record]", rung: str
) -> None:
    await books.budget("a", 100)
    # A period that never ends, and numbers of more digits than 14, to which a JSON of Lua would round them.
    much = free_tier(
        9_007_199_253,
        "total",
        time_zone="UTC",
        week_start=1,
        hold_microcents=CENT,
        maximum_microcents=MICROCENTS_MAX,
        scale=UNIT_SCALE_TOLD,
        microcents_per_unit=Fraction(CENT, 9_000_000_123),
    )
    parts = (HeaderCost(field="x-units", microcents_per_unit=Fraction(CENT, 9_000_000_123)),)
    dear = replace(DENY, cost=Cost(parts=parts, hold_microcents=CENT, free=much))
    one, two = await start(hold_ttl="1s"), await start(hold_ttl="1s")
    await two.ask("a", dear)
    await away(server, rung)
    assert len(holds_of(await one.ask_many("a", 2, dear))) == 2
    if rung == "postgres":
        await books.silence("w1")
        assert await two.admission.orphans.sweep_postgres(two.database) == 2
    else:
        assert await two.admission.orphans._sweep_worker(two.admission._lanes[0], -1000, "w1") == 2
    await two.settled()
    rows = await sql.fetch("SELECT units, free_units FROM usage_events ORDER BY free_units DESC")
    units = 9_000_000_123 * UNIT
    assert [tuple(row) for row in rows] == [(units, units), (units, 9_007_199_253 * UNIT - units)]


async def test_reconcile_compares_and_mends_what_a_tier_has_used_and_holds(
    start: StartWhole, server: KillableRedis, books: Books, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await books.budget("a", 100)
    worker = await start()
    verdicts = await worker.ask_many("a", 5, TWENTY_UNITS) + await worker.ask_many("a", 2, PLAIN)
    post(worker, TWENTY_UNITS, *verdicts[:2], units=5)  # 10 used and 15 held: 5 are to be paid for, and two calls
    await worker.settled()
    settings = worker.admission_settings.redis
    async with teller_to(settings) as teller:
        reconciler = Reconciler(worker.database, teller)
        [line] = await reconciler.compare(["a"])
        assert not line.has_drift
        assert (line.held, line.holds) == (7 * CENT, 7 * CENT)
        [shown] = [window for window in line.windows if window.is_tier]
        assert (shown.ledger, shown.counter, shown.redis) == (10 * UNIT, 10 * UNIT, 10 * UNIT)
        await sql.execute("UPDATE usage_units SET used_units = used_units + 5000000")
        script = Script(server.url)
        spoil(script.redis, f"{PREFIX}a:a", "h", 1)
        script.close()
        [line] = await reconciler.compare(["a"])
        assert (line.held_drift, [window.counter_drift for window in line.windows if window.is_tier]) == (
            1 - 7 * CENT,
            [5 * UNIT],
        )
        await repair([line], database=worker.database, redis=teller, reconciler=reconciler, cast_cost_sql=None)
        [line] = await reconciler.compare(["a"])
        assert not line.has_drift
        assert line.held == 7 * CENT
