"""A worker that died left many groups: its calls are ended by their ids, without reading its whole book each time."""

import json
from collections import Counter
from collections.abc import Callable

import pytest

from gateway.admission_batch import Ask
from gateway.admission_restore import group_row
from gateway.admission_settle import Settled
from gateway.policy.rules import Policy
from gateway.redis_store import RESTORE
from tests.admission.script import PREFIX, WORKERS, Script, asks_of
from tests.admission.test_script import NOW_MS, call, seeded, total
from tests.redis_accounts import holds_in

GROUPS = 300  # a large book, see READ_MAX in lua/members.lua
BOOK = f"{PREFIX}h:dead"
MEMBERS = f"{PREFIX}members:dead"
LATE_MS = NOW_MS + 60_000


@pytest.fixture
def dead(script: Script) -> list[Ask]:
    """Its calls, two in each group."""
    script([], seeded(total=(0, 0)), now=NOW_MS)
    script.worker_id = "dead"
    asks = asks_of([call(total(10_000), 1 + number // 2 % 2) for number in range(2 * GROUPS)])
    assert script.reply_to(asks, now=NOW_MS, beat=True)[1:] == [2] * GROUPS
    script.worker_id = "w1"
    return asks


def end(script: Script, *asks: Ask) -> Counter[str]:
    """The commands that it took."""
    settled = Settled()
    settled.remove("dead", [ask.hold_id for ask in asks], posted=True)
    script.join()
    script.redis.config_resetstat()
    script([], settled, now=LATE_MS)
    stats: dict[str, dict[str, int]] = script.redis.info("commandstats")  # type: ignore[assignment]
    return Counter({name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()})


def swept(script: Script) -> set[str]:
    cursor, found = "0", set()
    while True:
        cursor, *rows = script.orphans(60_000, "dead", now=LATE_MS, cursor=cursor, page=50)
        found |= set(rows[::6])
        if cursor == "0":
            return found


def nothing(_: Script) -> None:
    """Its spool is written by somebody else before anybody has swept."""


@pytest.mark.parametrize(("before", "reads"), [(swept, 0), (nothing, 1)], ids=["swept", "not swept"])
def test_its_book_is_read_once_at_most(
    script: Script, dead: list[Ask], before: Callable[[Script], object], reads: int
) -> None:
    before(script)
    first = end(script, *dead[:3])
    assert first["hgetall"] == reads
    assert holds_in(script.redis, BOOK) == {ask.hold_id for ask in dead[3:]}
    again = end(script, *dead[:100], *asks_of([call(total(1))]))  # some are over already, one was never there
    assert again["hgetall"] == 0
    assert holds_in(script.redis, BOOK) == {ask.hold_id for ask in dead[100:]}
    assert script.account("a")["h"] == str(3 * (GROUPS - 50))
    end(script, *dead)
    assert script.account("a")["h"] == "0"
    assert holds_in(script.redis, BOOK) == set()
    assert 0 < script.redis.ttl(MEMBERS) <= 3600
    assert swept(script) == set()
    assert script.redis.exists(BOOK, MEMBERS) == 0


def test_what_a_sweep_says_is_all_there_is(script: Script, dead: list[Ask]) -> None:
    assert swept(script) == {ask.hold_id for ask in dead}
    assert end(script, dead[5], dead[8])["hgetall"] == 0
    assert swept(script) == {ask.hold_id for place, ask in enumerate(dead) if place not in (5, 8)}


def test_groups_that_were_admitted_later_are_found_as_well(script: Script, dead: list[Ask]) -> None:
    end(script, dead[0])
    later = asks_of([call(total(10_000), 5) for _ in range(3)])
    script.worker_id = "dead"
    script.reply_to(later, now=NOW_MS)
    script.worker_id = "w1"
    assert end(script, later[1])["hgetall"] == 1
    assert holds_in(script.redis, BOOK) == {ask.hold_id for ask in (*dead[1:], later[0], later[2])}


def test_groups_that_were_put_in_place_later_are_found_as_well(script: Script, dead: list[Ask]) -> None:
    lost = dead[-2].group
    assert lost is not None
    script.redis.hdel(BOOK, lost.name)
    end(script, dead[0])
    for ask in dead[-2:]:
        ask.admitted_ms, ask.policy = NOW_MS, Policy(name="cast", methods=frozenset(), path="/")
    text = json.dumps([1, script.join(), [], [group_row(lost, dead)]])
    script.redis.eval(RESTORE.source.decode(), 2, WORKERS, BOOK, text, NOW_MS)
    end(script, dead[-1])
    assert holds_in(script.redis, BOOK) == {ask.hold_id for ask in dead[1:-1]}
