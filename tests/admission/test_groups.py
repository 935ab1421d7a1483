"""Like calls of one batch are one entry of their worker's book (``lua/groups.lua``): taken, ended, put back, found."""

import json
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway.admission_batch import GROUP_MAX, Ask
from gateway.admission_restore import group_row
from gateway.admission_settle import Settled
from gateway.console.holds import _ACCOUNT_HOLDS
from gateway.policy.rules import Cost, Policy
from gateway.policy.verdicts import BudgetExceeded, Hold
from gateway.redis_store import DRIFT, RESTORE
from tests.admission.conftest import StartWorker
from tests.admission.reference import Call
from tests.admission.script import PREFIX, WORKERS, Script, asks_of
from tests.admission.test_script import NOW_MS, PER_MINUTE, call, seeded, total
from tests.admission.world import CENT, Tables, monthly, per_minute, policy
from tests.redis_accounts import holds_in

_examples = count(1)


def entries(script: Script, worker: str = "w1") -> list[str]:
    """The names in the book as Redis has them."""
    names: list[str] = list(script.redis.hkeys(f"{PREFIX}h:{worker}"))  # type: ignore[arg-type]
    return sorted(name for name in names if name not in ("epoch", "seq"))


def like_calls(number: int, hard_limit: int = 1000, amount: int = 1) -> list[Call]:
    return [call(total(hard_limit), amount) for _ in range(number)]


def asked(script: Script, number: int, hard_limit: int = 1000, amount: int = 1) -> list[Ask]:
    """So many like calls, admitted."""
    asks = asks_of(like_calls(number, hard_limit, amount))
    assert sum(max(outcome, 1) for outcome in script.reply_to(asks, now=NOW_MS)[1:]) == number
    return asks


def over(asks: list[Ask], *, posted: bool = True) -> Settled:
    settled = Settled()
    for ask in asks:
        assert ask.group is not None
        settled.remove_grouped(ask.group.name, ask.place, posted=posted)
    return settled


@pytest.fixture(autouse=True)
def account(script: Script) -> None:
    script([], seeded(total=(0, 0)), now=NOW_MS)


def test_like_calls_are_one_entry_and_one_number_in_the_reply(script: Script) -> None:
    asks = asks_of(like_calls(5))
    assert script.reply_to(asks, now=NOW_MS) == [NOW_MS, 5]
    assert entries(script) == [f"g{asks[0].hold_id}"]
    assert script.holds() == {ask.hold_id for ask in asks}
    assert script.account("a")["h"] == "5"


def test_one_call_and_calls_that_differ_are_entries_of_their_own(script: Script) -> None:
    first, second, third = like_calls(3)
    asks = asks_of([first, replace(second, amount=2), third])
    assert script.reply_to(asks, now=NOW_MS) == [NOW_MS, 0, 0, 0]
    assert entries(script) == sorted(ask.hold_id for ask in asks)
    assert all(ask.group is None for ask in asks)


def test_a_group_is_no_larger_than_a_mask(script: Script) -> None:
    asks = asked(script, 2 * GROUP_MAX + 1)
    assert [len(group.ids.split(",")) for group in {ask.group for ask in asks if ask.group}] == [GROUP_MAX, GROUP_MAX]
    assert asks[-1].group is None
    assert script.account("a")["h"] == str(2 * GROUP_MAX + 1)
    script([], over(asks[:-1]), now=NOW_MS)
    assert entries(script) == [asks[-1].hold_id]
    assert script.account("a")["h"] == "1"


@pytest.mark.parametrize("limits", [[], [(PER_MINUTE, "a")]], ids=["by budget", "by rate limit"])
def test_those_that_find_room_pass_and_the_rest_does_not(script: Script, limits: list[object]) -> None:
    calls = [replace(one, limits=limits) for one in like_calls(7, hard_limit=1000 if limits else 3)]
    asks = asks_of(calls)
    reply = script.reply_to(asks, now=NOW_MS)
    assert reply[1:4] == [0, 0, 0]
    assert all(isinstance(outcome, list) for outcome in reply[4:])
    assert script.holds() == {ask.hold_id for ask in asks[:3]}
    assert script.account("a")["h"] == "3"
    script([], over(asks, posted=False), now=NOW_MS)  # more than there are, as a worker says that does not know
    assert entries(script) == []
    assert script.account("a")["h"] == "0"


def test_told_twice_or_in_parts_it_ends_once(script: Script) -> None:
    asks = asked(script, 6, amount=10)
    for part, left in ((asks[1:3], 40), (asks[1:3], 40), (asks[:4], 20), (asks, 0), (asks, 0)):
        script([], over(part), now=NOW_MS)
        assert script.account("a")["h"] == str(left)
    assert entries(script) == []


def test_posted_and_voided_of_one_group_in_one_call(script: Script) -> None:
    asks = asked(script, 4)
    settled = over(asks[:2])
    settled.remove_grouped(f"g{asks[0].hold_id}", asks[2].place | asks[3].place, posted=False)
    script([], settled, now=NOW_MS)
    assert entries(script) == []
    assert script.account("a")["h"] == "0"


def test_asked_for_by_its_id_a_hold_leaves_its_group(script: Script) -> None:
    asks = asked(script, 4, amount=10)
    settled = Settled()
    settled.adjust(asks[1].hold_id, 25)
    settled.remove("w1", [asks[2].hold_id, asks[2].hold_id, "f" * 32], posted=False)
    script([], settled, now=NOW_MS)
    assert script.holds() == {asks[place].hold_id for place in (0, 1, 3)}
    assert script.account("a")["h"] == "45"
    script([], over(asks), now=NOW_MS)  # the one that left is not in the mask any more
    assert entries(script) == [asks[1].hold_id]
    assert script.account("a")["h"] == "25"


def test_an_entry_of_an_old_snapshot_goes_as_a_whole(script: Script) -> None:
    asks = asked(script, 5)
    script([], over(asks[:2]), now=NOW_MS)
    settled = Settled()
    settled.remove("w1", [f"g{asks[0].hold_id}"], posted=False)
    script([], settled, now=NOW_MS)
    assert entries(script) == []
    assert script.account("a")["h"] == "0"


def test_a_dead_workers_group_is_found_and_ended_call_by_call(script: Script) -> None:
    asks = asked(script, 3)
    script([], over(asks[1:2]), now=NOW_MS)
    script.redis.zadd(WORKERS, {"w1": NOW_MS - 70_000})
    reply = script.orphans(60_000, "w1", now=NOW_MS)
    found = [reply[at : at + 6] for at in range(1, len(reply), 6)]
    assert sorted(found) == [[ask.hold_id, "a", 1, NOW_MS, "cast", ""] for ask in (asks[0], asks[2])]
    script.worker_id = "w2"
    settled = Settled()
    settled.remove("w1", [asks[2].hold_id], posted=True)
    script([], settled, now=NOW_MS)
    script.worker_id = "w1"
    assert script.holds() == {asks[0].hold_id}
    assert script.account("a")["h"] == "1"


def test_what_holds_come_to_counts_each_call_of_a_group(script: Script) -> None:
    asks = asked(script, 3, amount=7)
    script([], over(asks[:1]), now=NOW_MS)
    script.redis.zadd(WORKERS, {"w1": NOW_MS})
    drift = script.redis.eval(DRIFT.source.decode(), 1, WORKERS, 100, -(10**15), json.dumps(["a"]), "[]")
    assert drift[1][0][:2] == [14, 14]  # type: ignore[index]
    old = drift[2]  # type: ignore[index]
    assert sorted(old[at : at + 4] for at in range(0, len(old), 4)) == [["w1", ask.hold_id, "a", 7] for ask in asks[1:]]


@pytest.mark.parametrize("list_max", [1, 4, 5, 9, 50])
def test_the_oldest_calls_are_listed_also_where_they_are_in_groups(script: Script, list_max: int) -> None:
    held = []
    for at, numbers in ((0, [4]), (1, [1, 3, 2]), (2, [5])):
        for number in numbers:
            asks = asks_of(like_calls(number, amount=10 + at))
            script.reply_to(asks, now=NOW_MS + at)
            gone = asks[1:2]
            if gone:
                script([], over(gone), now=NOW_MS + at)
            held += [[ask.hold_id, 10 + at, NOW_MS + at, "cast", "w1"] for ask in asks if ask not in gone]
    script.redis.zadd(WORKERS, {"w1": NOW_MS})
    found = script.redis.eval(_ACCOUNT_HOLDS.source, 1, WORKERS, "a", 1000, list_max)
    assert found[1:] == [11, 122, sorted(held, key=lambda hold: (hold[2], hold[0]))[:list_max]]  # type: ignore[index]


@pytest.mark.parametrize("source", [_ACCOUNT_HOLDS.source, DRIFT.source], ids=["holds of an account", "drift"])
def test_who_looks_through_groups_makes_nothing_of_each_of_their_calls(script: Script, source: bytes) -> None:
    """Else 5,000 entries, which is how many are looked through, kept Redis for longer than its time-out."""
    for at in range(60):
        script.reply_to(asks_of(like_calls(GROUP_MAX, 60 * GROUP_MAX)), now=NOW_MS + at)
    script.redis.zadd(WORKERS, {"w1": NOW_MS})
    before, last, end = source.rpartition(b"return {")
    measured = b"collectgarbage('stop') local kib_before = collectgarbage('count')\n" + before
    measured += b"local kib = collectgarbage('count') - kib_before collectgarbage('restart') "
    measured += b"do return math.floor(kib * 1024) end\n" + last + end
    arguments = ("a", 5000, 50) if source is _ACCOUNT_HOLDS.source else (5000, 10**15, '["a"]', "[]")
    taken: int = script.redis.eval(measured, 1, WORKERS, *arguments)  # type: ignore[assignment]
    assert taken < 60 * GROUP_MAX * 100  # bytes


def test_any_history_of_groups_holds_what_is_open(script: Script) -> None:
    class History(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.account = f"account{next(_examples)}"
            self.open: dict[str, Ask] = {}
            self.told: list[Settled] = []  # and may be told again
            settled = Settled()
            settled.seed(replace(seeded(total=(0, 0)).seeds[0], account_id=self.account))
            script([], settled, now=NOW_MS)

        def tell(self, settled: Settled) -> None:
            self.told.append(settled)
            script([], settled, now=NOW_MS)

        @rule(number=st.integers(1, 35), amount=st.sampled_from([3, 5]), limit=st.integers(1, 200))
        def ask(self, number: int, amount: int, limit: int) -> None:
            calls = [replace(one, account_id=self.account) for one in like_calls(number, limit, amount)]
            asks = asks_of(calls)
            room = limit - sum(ask.hold_microcents for ask in self.open.values())
            passed = max(0, min(number, room // amount))
            reply = script.reply_to(asks, now=NOW_MS)[1:]
            admitted = sum(max(outcome, 1) for outcome in reply if isinstance(outcome, int))
            assert admitted == passed
            for ask in asks:
                ask.admitted_ms, ask.policy = NOW_MS, Policy(name="cast", methods=frozenset(), path="/")
            self.open |= {ask.hold_id: ask for ask in asks[:passed]}

        @rule(data=st.data(), posted=st.booleans())
        def some_end(self, data: st.DataObject, posted: bool) -> None:
            settled = Settled()
            for hold_id in data.draw(st.sets(st.sampled_from(sorted(self.open) or [""]))):
                ask = self.open.pop(hold_id, None)
                if ask is not None and ask.group is not None:
                    settled.remove_grouped(ask.group.name, ask.place, posted=posted)
                elif ask is not None:
                    settled.remove("w1", [hold_id], posted=posted)
            self.tell(settled)

        @rule(data=st.data())
        def one_ends_by_its_id(self, data: st.DataObject) -> None:
            if self.open:
                hold_id = data.draw(st.sampled_from(sorted(self.open)))
                del self.open[hold_id]
                settled = Settled()
                settled.remove("w1", [hold_id], posted=False)
                self.tell(settled)

        @rule(data=st.data(), actual=st.integers(0, 9))
        def one_costs_something_else(self, data: st.DataObject, actual: int) -> None:
            if self.open:
                ask = self.open[data.draw(st.sampled_from(sorted(self.open)))]
                ask.group, ask.hold_microcents = None, actual
                settled = Settled()
                settled.adjust(ask.hold_id, actual)
                script([], settled, now=NOW_MS)  # never again: it may cost another amount later

        @rule(data=st.data())
        def what_was_told_is_told_again(self, data: st.DataObject) -> None:
            if self.told:
                script([], data.draw(st.sampled_from(self.told)), now=NOW_MS)

        @rule(loses_all=st.booleans())
        def the_worker_puts_its_holds_in_place(self, loses_all: bool) -> None:
            if loses_all:
                script.redis.flushdb()
            generation = script.join()
            asks = list(self.open.values())
            alone = [ask for ask in asks if ask.group is None]
            rows = [[ask.hold_id, self.account, ask.hold_microcents, NOW_MS, "cast", []] for ask in alone]
            grouped = {ask.group for ask in asks if ask.group is not None}
            groups = [[row[0], self.account, *row[2:]] for row in (group_row(group, asks) for group in grouped)]
            text = json.dumps([1, generation, rows, groups])
            script.redis.eval(RESTORE.source.decode(), 2, WORKERS, script.book, text, NOW_MS)
            settled = Settled()
            settled.seed(replace(seeded(total=(0, 0)).seeds[0], account_id=self.account))
            script([], settled, now=NOW_MS)

        @invariant()
        def held_is_what_is_open(self) -> None:
            assert script.holds() == set(self.open)
            held = sum(ask.hold_microcents for ask in self.open.values())
            assert script.account(self.account).get("h", "0") == str(held)

        def teardown(self) -> None:
            script.redis.flushdb()

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        History,
        settings=settings(
            max_examples=60,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        ),
    )


async def test_a_worker_holds_by_groups_and_ends_them_call_by_call(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("b", monthly(5))
    one = await start_worker("one")
    await one.ask("b", policy(cents=0))  # seeded
    verdicts = await one.ask_many("b", 8)
    holds = [verdict for verdict in verdicts if isinstance(verdict, Hold)]
    assert [type(verdict) for verdict in verdicts] == [Hold] * 5 + [BudgetExceeded] * 3
    assert len(entries(script, "one")) == 1
    one.admission.void(holds[1])
    one.post(holds[2])
    one.post(holds[4], cost=CENT // 2)
    await one.settled()
    assert holds_in(script.redis, f"{PREFIX}h:one") == {holds[0].hold_id, holds[3].hold_id}
    assert script.account("b")["h"] == str(2 * CENT)
    one.post(*holds)  # some of them once more
    await one.settled()
    assert entries(script, "one") == []
    assert script.account("b")["h"] == "0"


@pytest.mark.parametrize("known", ["all", "nothing"])
async def test_groups_come_back_as_they_are_open(
    start_worker: StartWorker, tables: Tables, script: Script, known: str
) -> None:
    """Redis has lost all, or has the book as it was when none of the calls had ended."""
    tables.put("b", monthly(50))
    one = await start_worker("one")
    await one.ask("b", policy(cents=0))
    holds = await one.ask_many("b", 6)
    await one.settled()
    if known == "all":
        before = script.redis.dump(f"{PREFIX}h:one")
    one.post(*holds[:2])
    await one.settled()
    script.redis.flushall()
    if known == "all":
        script.redis.restore(f"{PREFIX}h:one", 0, before)
    await one.serving()
    await one.settled()
    assert holds_in(script.redis, f"{PREFIX}h:one") == {hold.hold_id for hold in holds[2:] if isinstance(hold, Hold)}
    assert len(entries(script, "one")) == 1  # of four calls
    one.post(*holds)
    await one.settled()
    assert entries(script, "one") == []
    assert script.account("b")["h"] == "0"


@pytest.mark.parametrize(
    "one_policy",
    [
        replace(policy(), cost=Cost(fixed_microcents=CENT, hold_microcents=2 * CENT)),
        policy(per_minute(9, "concurrency", window_ms=0)),
        replace(policy(per_minute(9)), rate_limit_headers="ietf"),
    ],
    ids=["costs something else", "slots", "tells"],
)
async def test_calls_that_may_leave_it_make_no_group(
    start_worker: StartWorker, tables: Tables, script: Script, one_policy: Policy
) -> None:
    tables.put("b", monthly(50))
    one = await start_worker("one")
    await one.ask("b", policy(cents=0))
    await one.ask_many("b", 3, one_policy)
    assert len(entries(script, "one")) == 3
