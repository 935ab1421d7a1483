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
    while not parts.is_over:
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


async def told_of(ledger_and_more: MakeLedger, accounts: int, **more: object) -> list[tuple[int, list[int]]]:
    """Of each time: how many events, and the sums of the first account."""
    ledger, _ = ledger_and_more(batch_max=10_000)
    calls: list[tuple[int, list[int]]] = []
    ledger.on_committed = lambda events, usages: calls.append(
        (len(events), [one.used_microcents for one in usages if one.account_id == "0"])
    )
    events = [event(str(number % accounts), cost_microcents=1, **more) for number in range(3 * PIECE_EVENTS)]
    for one in events:
        ledger.append(one)
    await ledger.close()
    calls.append((0, []))
    await ledger.rewrite(events)
    return calls


async def test_sums_of_few_accounts_rise_with_the_pieces_and_those_of_events_that_were_there_come_first(
    make_ledger: MakeLedger,
) -> None:
    piece = PIECE_EVENTS
    calls = await told_of(make_ledger, 1)
    assert calls[:3] == [(piece, [piece]), (piece, [2 * piece]), (piece, [3 * piece])]
    assert calls[4:] == [(piece - 1, [3 * piece]), (piece, []), (piece, []), (1, [])]


async def test_sums_of_many_accounts_come_first(make_ledger: MakeLedger) -> None:
    calls = await told_of(make_ledger, RISING_SUMS_MAX + 1)
    sums = [used for _, used in calls[: calls.index((0, []))]]
    assert sums == [[6], [], [], []]


async def test_sums_of_what_has_terms_come_first(make_ledger: MakeLedger) -> None:
    """What it was charged is for the ledger to say: of calls with one idempotency key only the first."""
    calls = await told_of(make_ledger, 1, terms=Terms(key="k", key_life_ms=1000))
    assert [used for _, used in calls[: calls.index((0, []))]] == [[1], [], [], []]
