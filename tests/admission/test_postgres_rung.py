"""Redis is away: Postgres admits, exactly, and what it admitted is in Redis once when that is back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.policy.verdicts import BudgetExceeded, Hold, RateLimited, StoreUnavailable, Verdict
from tests.admission.killable import KillableRedis, killable_redis
from tests.admission.script import Script
from tests.admission.whole import DENY, Books, WholeWorker
from tests.admission.world import CENT, per_minute, policy, rules_of
from tests.ledger.making import migrate

StartWhole = Callable[..., Coroutine[Any, Any, WholeWorker]]


@pytest.fixture
def server() -> Iterator[KillableRedis]:
    with killable_redis() as server:
        yield server


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    books = Books(connection)
    await books.budget("a", 100)
    yield books
    await connection.close()


@pytest.fixture
async def start(database_url: str, books: Books, server: KillableRedis) -> AsyncIterator[StartWhole]:
    workers: list[WholeWorker] = []

    async def start(worker_id: str = "", **options: Any) -> WholeWorker:
        named = worker_id or f"w{len(workers) + 1}"
        given = {"database_url": database_url, "redis_url": server.url, **options}
        worker = WholeWorker(named, **given)
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.stop()


def kinds(*rounds: list[Verdict]) -> Counter[type]:
    return Counter(type(verdict) for verdicts in rounds for verdict in verdicts)


def holds_of(verdicts: list[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if isinstance(verdict, Hold)]


async def test_without_redis_postgres_admits_exactly_what_is_left_over_all_workers(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one, two = await start(), await start()
    # 30 are charged, 30 are under way when Redis dies.
    charged = await one.ask_many("a", 15) + await two.ask_many("a", 15)
    one.post(*charged[:15])
    two.post(*charged[15:])
    await asyncio.gather(one.settled(), two.settled())
    before = [await one.ask_many("a", 15), await two.ask_many("a", 15)]
    server.kill()
    rounds = await asyncio.gather(*(worker.ask_many("a", 30) for worker in (one, two) for _ in range(3)))
    assert kinds(*rounds) == {Hold: 40, BudgetExceeded: 140}
    assert one.admission.ladder.rung == two.admission.ladder.rung == "postgres"
    one.post(*before[0], *holds_of([verdict for verdicts in rounds[:3] for verdict in verdicts]))
    two.post(*before[1], *holds_of([verdict for verdicts in rounds[3:] for verdict in verdicts]))
    await asyncio.gather(one.settled(), two.settled())
    assert await books.used_cents("a") == 100
    assert await books.held() == 0


@pytest.mark.parametrize("outage", ["restarted empty", "hung", "flushed"])
async def test_what_was_admitted_by_postgres_is_in_redis_once_when_it_is_back(
    start: StartWhole, server: KillableRedis, books: Books, outage: str
) -> None:
    one, two = await start(redis_timeout="300ms"), await start(redis_timeout="300ms")
    before = [await one.ask_many("a", 20), await two.ask_many("a", 20)]
    if outage == "flushed":
        with_script = Script(server.url)
        with_script.redis.flushall()
        with_script.close()
        meanwhile = [await one.ask_many("a", 20), await two.ask_many("a", 20)]
    else:
        server.hang()
        if outage == "restarted empty":
            server.kill()
        meanwhile = [await one.ask_many("a", 20), await two.ask_many("a", 20)]
        assert one.admission.ladder.rung == "postgres"
        server.start() if outage == "restarted empty" else server.wake()
    assert kinds(*meanwhile) == {Hold: 40}
    # They race for what is left while Redis comes back.
    racing: list[list[Verdict]] = []
    async with asyncio.timeout(20):
        while not racing or not all(worker._serves() for worker in (one, two)):
            racing += await asyncio.gather(one.ask_many("a", 7), two.ask_many("a", 7))
    racing += await asyncio.gather(one.ask_many("a", 30), two.ask_many("a", 30))
    assert kinds(*racing)[Hold] == 20
    assert set(kinds(*racing)) == {Hold, BudgetExceeded}
    script = Script(server.url)
    assert script.account("a")["h"] == str(100 * CENT)
    one.post(*before[0], *meanwhile[0], *(hold for verdicts in racing[::2] for hold in holds_of(verdicts)))
    two.post(*before[1], *meanwhile[1], *(hold for verdicts in racing[1::2] for hold in holds_of(verdicts)))
    await asyncio.gather(one.settled(), two.settled())
    assert await books.used_cents("a") == 100
    assert script.account("a")["h"] == "0"
    assert script.account("a")["u:monthly/UTC/1"] == str(100 * CENT)
    for worker in (one, two):
        assert set(script.redis.hkeys(f"cg:{{0}}:h:{worker.worker_id}")) <= {"epoch", "seq"}
    script.close()
    await books.no_hold_left()


async def test_who_finds_redis_again_first_knows_of_what_others_admitted_by_postgres(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    """A hang a little longer than the time-out: one worker has gone on by Postgres, the other had no call meanwhile."""
    one, two = await start("one", redis_timeout="100ms"), await start("two", redis_timeout="100ms")
    before = await one.ask_many("a", 50), await two.ask_many("a", 49)
    assert kinds(*before) == {Hold: 99}
    await books.budget("b", 100)
    assert isinstance(await one.ask("b"), Hold)
    server.hang()
    # The first is on its way to Redis, which will do it in vain; the other waits for that, and Redis never hears of it.
    assert kinds(list(await asyncio.gather(one.ask("b"), one.ask("a")))) == {Hold: 2}
    connecting = one.admission._lanes[0]._connecting
    assert connecting is not None
    connecting.cancel()  # one's next try comes late
    async with asyncio.timeout(5):
        while two.admission._lanes[0].is_up:
            await asyncio.sleep(0.001)
    server.wake()
    for _ in range(100):
        assert isinstance(await two.ask("a"), BudgetExceeded)
        await asyncio.sleep(0.005)


async def test_with_several_partitions_each_comes_back_with_its_own_holds(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one, two = await start(partitions=3), await start(partitions=3)
    accounts = [f"account-{number}" for number in range(8)]
    for account in accounts:
        await books.budget(account, 10)
    before = [hold for account in accounts for hold in await one.ask_many(account, 3)]
    server.kill()
    meanwhile = [hold for account in accounts for hold in await two.ask_many(account, 3)]
    assert kinds(before, meanwhile) == {Hold: 48}
    server.start()
    await asyncio.gather(one.on("redis"), two.on("redis"))
    for account in accounts:
        assert kinds(await one.ask_many(account, 3), await two.ask_many(account, 3)) == {Hold: 4, BudgetExceeded: 2}


async def test_holds_of_a_worker_that_died_on_this_rung_are_charged_once_whoever_sweeps(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one, two = await start("one", hold_ttl="1s"), await start("two", hold_ttl="1s")
    dead = await start("dead")
    server.kill()
    await asyncio.gather(*(worker.ask("a") for worker in (one, two, dead)))
    assert kinds(await dead.ask_many("a", 9)) == {Hold: 9}
    await books.silence("dead")
    swept = await asyncio.gather(*(w.admission.orphans.sweep_postgres(w.database) for w in (one, two, one)))
    assert set(swept) <= {0, 10}
    assert sum(swept) >= 10
    await asyncio.gather(one.settled(), two.settled())
    assert await books.used_cents("a") == 10
    assert await books.held() == 2


async def test_orphans_are_voided_there_where_the_policy_says_so(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    voided = replace(DENY, on_orphan="void")
    one = await start("one", hold_ttl="1s", rules=replace(rules_of(), policies=(voided,)))
    dead = await start("dead")
    server.kill()
    assert kinds(await dead.ask_many("a", 3, voided)) == {Hold: 3}
    await books.silence("dead")
    assert await one.admission.orphans.sweep_postgres(one.database) == 3
    assert await books.held() == 0
    assert await books.used_cents("a") == 0


async def test_hundreds_of_orphans_are_taken_up_at_once(start: StartWhole, server: KillableRedis, books: Books) -> None:
    await books.budget("a", 1000)
    one, dead = await start("one"), await start("dead")
    server.kill()
    assert kinds(await dead.ask_many("a", 400)) == {Hold: 400}
    await books.silence("dead")
    assert await one.admission.orphans.sweep_postgres(one.database) == 400


async def test_the_state_of_budgets_is_told_while_redis_is_away(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one = await start()
    one.post(*await one.ask_many("a", 7))
    await one.settled()
    server.kill()
    held = await one.ask_many("a", 5)
    state = await one.admission.budget_state(one.account("a"))
    assert (state.used_microcents["monthly/UTC/1"], state.held_microcents) == (7 * CENT, 5 * CENT)
    hold = held[0]
    assert isinstance(hold, Hold)
    one.admission.void(hold)
    assert kinds(await one.ask_many("a", 100)) == {Hold: 89, BudgetExceeded: 11}


async def test_a_changed_budget_is_honoured_there_by_the_next_call_of_every_worker(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one, two = await start(), await start()
    await one.ask("a")
    await two.ask("a")
    server.kill()
    assert kinds(await one.ask_many("a", 2), await two.ask_many("a", 2)) == {Hold: 4}
    await books.budget("a", 7)
    await books.changed("a")
    assert kinds(await two.ask_many("a", 3)) == {Hold: 1, BudgetExceeded: 2}
    assert kinds(await one.ask_many("a", 3)) == {BudgetExceeded: 3}


async def test_rates_are_limited_there_too_and_a_refused_call_takes_nothing(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one = await start()
    limited = policy(per_minute(3, "token_bucket"), on_store_failure="deny")
    server.kill()
    assert kinds(await one.ask_many("a", 5, limited)) == {Hold: 3, RateLimited: 2}
    state = await one.admission.budget_state(one.account("a"))
    assert state.held_microcents == 3 * CENT
    await books.budget("b", 1)
    assert kinds(await one.ask_many("b", 2, limited)) == {Hold: 1, BudgetExceeded: 1}
    # Budget before rate, and what a spent budget refused was not counted.
    assert kinds(await one.ask_many("b", 4, limited)) == {BudgetExceeded: 4}


async def test_a_broken_connection_to_a_redis_that_serves_changes_no_rung(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one, two = await start(), await start()
    await asyncio.gather(one.ask_many("a", 30), two.ask_many("a", 30))
    script = Script(server.url)
    generation = script.redis.hget("cg:{0}:life", "g")
    for _ in range(3):
        script.redis.client_kill_filter(_type="normal", skipme=True)
        rounds = await asyncio.gather(one.ask_many("a", 5), two.ask_many("a", 5))
        assert kinds(*rounds) == {Hold: 10}
        await asyncio.gather(one.on("redis"), two.on("redis"))
    assert kinds(await one.ask_many("a", 20)) == {Hold: 10, BudgetExceeded: 10}
    assert generation is not None
    script.close()


async def test_what_redis_admitted_while_the_holds_were_on_their_way_to_postgres_counts_there(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one = await start()
    one.post(await one.ask("a"))
    await one.settled()
    script = Script(server.url)
    async with books.jammed():
        script.redis.client_kill_filter(_type="normal", skipme=True)
        await books.blocked()
        await one.on("redis")
        assert kinds(await one.ask_many("a", 40)) == {Hold: 40}
        server.kill()
        async with asyncio.timeout(20):
            while one.admission._lanes[0].is_up:
                await asyncio.sleep(0.002)
    script.close()
    assert kinds(await one.ask_many("a", 70)) == {Hold: 59, BudgetExceeded: 11}


async def test_calls_that_the_ledger_was_writing_when_redis_was_lost_count_once(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one = await start()
    one.post(await one.ask("a"))  # the account has its counters
    await one.settled()
    before = await one.ask_many("a", 40)
    async with books.locked("a"):
        one.post(*before)
        await books.blocked()
        server.kill()
        await books.told(40)
    await one.settled()
    assert kinds(await one.ask_many("a", 70)) == {Hold: 59, BudgetExceeded: 11}
    assert await books.used_cents("a") == 41


async def test_an_account_that_is_locked_for_longer_than_a_statement_waits_is_decided_by_postgres_all_the_same(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one = await start()
    one.post(*await one.ask_many("a", 98))
    await one.settled()
    server.kill()
    await one.on("postgres")
    async with books.locked("a"):
        asked = [one.asked("a") for _ in range(5)]
        await books.blocked()
        await asyncio.sleep(0.1)  # migrations/0009_usage_holds.sql: 40 ms
        assert one.admission.ladder.rung == "postgres"
    assert kinds(list(await asyncio.gather(*asked))) == {Hold: 2, BudgetExceeded: 3}


async def test_calls_given_back_while_the_holds_were_on_their_way_to_postgres_are_not_held_there(
    start: StartWhole, server: KillableRedis, books: Books
) -> None:
    one = await start(admission_timeout="100ms")
    before = await one.ask_many("a", 40)
    async with books.jammed():
        server.kill()
        await books.blocked()
        assert kinds(await one.ask_many("a", 1)) == {StoreUnavailable: 1}
        assert one.admission.ladder.rung == "memory"
        for hold in before:
            assert isinstance(hold, Hold)
            one.admission.void(hold)
    await one.on("postgres")
    await books.no_hold_left()


@pytest.mark.parametrize("who", ["a new worker", "one that forgot", "one that knows"])
async def test_sums_that_redis_has_from_an_old_snapshot_are_not_believed(
    database_url: str, start: StartWhole, books: Books, tmp_path: Path, who: str
) -> None:
    with killable_redis("--dir", str(tmp_path)) as server:
        one = await start(redis_url=server.url)
        one.post(*await one.ask_many("a", 10))
        await one.settled()
        script = Script(server.url)
        script.redis.save()
        one.post(*await one.ask_many("a", 80))
        await one.settled()
        script.close()
        server.kill()
        server.start()
        asker = await start(redis_url=server.url) if who == "a new worker" else one
        async with asyncio.timeout(20):
            while one.admission._lanes[0].generation < 2:
                await asyncio.sleep(0.002)
        await asker.on("redis")
        if who == "one that forgot":
            asker.accounts.rules_changed()
        assert kinds(await asker.ask_many("a", 30)) == {Hold: 10, BudgetExceeded: 20}
