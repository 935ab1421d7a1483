"""However a batch is cut: each event is told once, in order, and at no moment a call is neither used nor held."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger_pieces import PIECE_EVENTS, RISING_SUMS_MAX
from gateway.ledger_telling import SumsFirst, SumsThatRise
from gateway.usage_events import Terms, UsageEvent, WindowUsage
from tests.ledger.conftest import MakeLedger
from tests.ledger.making import event

ACCOUNTS = ("a", "b", "c")
# Windows as (kind, begin, end): the whole, two that meet amid the events, one that is over and one that is yet to come.
WINDOWS = (
    ("total", 0, 100),
    ("daily", 40, 60),
    ("weekly", 0, 50),
    ("monthly", 50, 100),
    ("old", 0, 10),
    ("new", 90, 99),
)
EVENTS = st.lists(
    st.builds(
        lambda name, cost, at: event(name, cost_microcents=cost, occurred_ms=at),
        st.sampled_from(ACCOUNTS),
        st.integers(0, 5),
        st.integers(40, 59),
    ),
    min_size=1,
    max_size=30,
)
BEFORE = 1000  # used in each window before the batch


def cost_in(events: Sequence[UsageEvent], account_id: str, begin: int, end: int) -> int:
    return sum(one.cost_microcents for one in events if one.account_id == account_id and begin <= one.occurred_ms < end)


def sums_after(events: Sequence[UsageEvent]) -> list[WindowUsage]:
    return [
        WindowUsage(name, kind, begin, end, BEFORE + cost_in(events, name, begin, end))
        for name in sorted({one.account_id for one in events})
        for kind, begin, end in WINDOWS
    ]


@given(EVENTS, st.lists(st.integers(1, 12), min_size=1), st.integers(0, 12), st.booleans())
def test_a_call_counts_at_every_moment(events: list[UsageEvent], counts: list[int], cut_at: int, rising: bool) -> None:
    sums = sums_after(events)
    parts = SumsThatRise(events, sums) if rising else SumsFirst(events, sums)
    told: list[UsageEvent] = []
    used = {(one.account_id, one.kind): BEFORE for one in sums}
    number = 0
    while parts.left:
        piece, some = parts.rest() if number == cut_at else parts.next(counts[number % len(counts)])
        number += 1
        told += piece
        for one in some:
            used[one.account_id, one.kind] = max(used[one.account_id, one.kind], one.used_microcents)
        for one in sums:
            held = cost_in(events[len(told) :], one.account_id, one.start_ms, one.end_ms)
            counted = used[one.account_id, one.kind] + held
            assert counted >= one.used_microcents
            if rising and (one.start_ms, one.end_ms) in ((0, 100), (40, 60), (0, 10), (90, 99)):
                assert counted == one.used_microcents, "no call counts twice in a window that has all of the events"
    assert told == events
    assert used == {(one.account_id, one.kind): one.used_microcents for one in sums}


class Told:
    """A ledger, and of each time that it told of events: how many, and the sums of the account 0."""

    def __init__(self, make_ledger: MakeLedger, accounts: int = 1, **more: object) -> None:
        self.ledger, _ = make_ledger(batch_max=10_000)
        self.calls: list[tuple[int, list[int]]] = []
        self.ledger.on_committed = self._committed
        self.events = [event(str(number % accounts), cost_microcents=1, **more) for number in range(3 * PIECE_EVENTS)]

    def _committed(self, events: Sequence[UsageEvent], usages: Sequence[WindowUsage]) -> None:
        self.calls.append((len(events), [one.used_microcents for one in usages if one.account_id == "0"]))

    async def append(self) -> list[list[int]]:
        """The sums of each time."""
        for one in self.events:
            self.ledger.append(one)
        await self.ledger.close()
        return [sums for _, sums in self.calls]


async def test_sums_of_few_accounts_rise_with_the_pieces(make_ledger: MakeLedger) -> None:
    assert await Told(make_ledger).append() == [[PIECE_EVENTS], [2 * PIECE_EVENTS], [3 * PIECE_EVENTS]]


async def test_sums_of_many_accounts_come_first(make_ledger: MakeLedger) -> None:
    assert await Told(make_ledger, accounts=RISING_SUMS_MAX + 1).append() == [[6], [], [], []]


async def test_sums_come_first_where_one_of_the_events_was_there(make_ledger: MakeLedger) -> None:
    """Another worker may have told its sum already, and removed its hold."""
    told = Told(make_ledger)
    await told.ledger.rewrite(told.events[-1:])
    told.calls.clear()
    assert await told.append() == [[3 * PIECE_EVENTS], [], [], []]


async def test_sums_come_first_where_nobody_knows_whether_the_events_are_held(make_ledger: MakeLedger) -> None:
    """Those of a spool that others left behind may not be."""
    told = Told(make_ledger)
    await told.ledger.rewrite(told.events)
    full, rest = 3 * PIECE_EVENTS, PIECE_EVENTS
    assert told.calls == [(rest - 1, [full]), (rest, []), (rest, []), (1, [])]


async def test_sums_of_what_has_terms_come_first(make_ledger: MakeLedger) -> None:
    """What it was charged is for the ledger to say: of calls with one idempotency key only the first."""
    assert await Told(make_ledger, terms=Terms(key="k", key_life_ms=1000)).append() == [[1], [], [], []]
