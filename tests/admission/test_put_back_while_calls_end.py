"""Calls that end, or come to cost something else, between the pages in which a worker puts its holds in place."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from gateway.policy.rules import Cost
from gateway.policy.verdicts import Hold, Verdict
from gateway.redis_store import RESTORE, RedisLink, Reply
from tests.admission.conftest import StartWorker
from tests.admission.script import PREFIX, Script
from tests.admission.world import CENT, Tables, Worker, monthly, policy
from tests.redis_accounts import holds_in

# May cost something else than what it holds, so each is an entry of its own.
ALONE = replace(policy(), cost=Cost(fixed_microcents=2 * CENT, hold_microcents=CENT))
BOOK = f"{PREFIX}h:one"


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, Callable[[], Awaitable[None]]], None]:
    """The next reply to a command, or to a script, is late: something happens before it comes."""

    def late(said: object, happens: Callable[[], Awaitable[None]]) -> None:
        call, waiting = RedisLink.call, [happens]

        async def called(link: RedisLink, *parts: str | int | bytes) -> Reply:
            reply = await call(link, *parts)
            if said in parts[:2] and waiting:
                await waiting.pop()()
            return reply

        monkeypatch.setattr(RedisLink, "call", called)

    return late


@pytest.fixture
async def one(start_worker: StartWorker, tables: Tables, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("gateway.admission_restore.PAGE", 1)
    monkeypatch.setattr("gateway.admission_restore.GROUPS_PAGE", 1, raising=False)
    tables.put("b", monthly(50))
    worker = await start_worker("one")
    await worker.ask("b", policy(cents=0))  # seeded
    return worker


async def groups_of(worker: Worker, *sizes: int) -> list[list[Verdict]]:
    await worker.ask("b", policy(cents=0))
    found = []
    for size in sizes:
        lane = worker.admission._lanes[0]
        lane._flying, flying = True, lane._flying  # nothing is sent before all are there
        assert not flying
        asked = [worker.asked("b") for _ in range(size)]
        lane._flying = False
        lane._send()
        found.append([await one for one in asked])
    return found


async def end(worker: Worker, *holds: Verdict, cost: int | None = None) -> None:
    worker.post(*holds, cost=cost)
    await worker.settled()


async def all_end(worker: Worker, script: Script, *holds: Verdict) -> None:
    """Of what was open nothing is left."""
    await end(worker, *holds)
    assert holds_in(script.redis, BOOK) == set()
    assert script.account("b")["h"] == "0"


def ids(*holds: Verdict) -> set[str]:
    return {hold.hold_id for hold in holds if isinstance(hold, Hold)}


@pytest.mark.parametrize("is_group", [True, False], ids=["of a group", "alone"])
async def test_what_ends_between_two_pages_is_not_put_in_place_again(
    one: Worker, script: Script, meanwhile: Callable[[object, object], None], is_group: bool
) -> None:
    if is_group:
        (first, second) = await groups_of(one, 2, 3)
    else:
        first, second = await one.ask_many("b", 2, ALONE), await one.ask_many("b", 3, ALONE)
    meanwhile(RESTORE.source, lambda: end(one, *second[:2]))
    script.redis.flushall()
    await one.serving()
    await one.settled()
    assert holds_in(script.redis, BOOK) == ids(*first, second[2])
    assert script.account("b")["h"] == str(3 * CENT)
    await all_end(one, script, *first, second[2])


@pytest.mark.parametrize("keeps_book", [False, True], ids=["flushed", "old book"])
async def test_what_leaves_its_group_between_two_pages_is_put_in_place_once(
    one: Worker, script: Script, meanwhile: Callable[[object, object], None], keeps_book: bool
) -> None:
    first, second = await groups_of(one, 2, 3)
    before, account = script.redis.dump(BOOK), script.redis.dump(f"{PREFIX}a:b")

    async def costs_more() -> None:
        for group in (first, second):  # one whose page was sent, and one whose was not
            assert isinstance(group[0], Hold)
            one.admission.finished(group[0], 3 * CENT)
        await one.settled()

    meanwhile(RESTORE.source, costs_more)
    script.redis.flushall()
    if keeps_book:
        script.redis.restore(BOOK, 0, before)
        script.redis.restore(f"{PREFIX}a:b", 0, account)
    await one.serving()
    await one.settled()
    assert holds_in(script.redis, BOOK) == ids(*first, *second)
    assert script.account("b")["h"] == str(9 * CENT)
    await all_end(one, script, *first, *second)


@pytest.mark.parametrize("said", ["HSCAN", RESTORE.source], ids=["looking for others", "between two pages"])
async def test_of_a_group_that_ends_meanwhile_nothing_is_left_of_an_old_snapshot(
    one: Worker, script: Script, meanwhile: Callable[[object, object], None], said: object
) -> None:
    first, second = await groups_of(one, 2, 3)
    before = script.redis.dump(BOOK)
    account = script.redis.dump(f"{PREFIX}a:b")
    await end(one, *second[:2])
    meanwhile(said, lambda: end(one, second[2]))
    script.redis.flushall()
    script.redis.restore(BOOK, 0, before)
    script.redis.restore(f"{PREFIX}a:b", 0, account)
    await one.serving()
    await one.settled()
    assert holds_in(script.redis, BOOK) == ids(*first)
    assert script.account("b")["h"] == str(2 * CENT)
    await all_end(one, script, *first)
