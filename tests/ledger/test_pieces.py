"""A large batch is written and told of in pieces, and whatever happens between two of them, each event ends once."""

import asyncio
from collections.abc import Callable, Sequence

import asyncpg
import pytest

from gateway.ledger import UsageEvent, WindowUsage
from gateway.ledger_pieces import ALL_EVENTS, PIECE_EVENTS, PIECE_EVENTS_PER_S, Turns
from tests.ledger.conftest import CheckCounters, MakeLedger
from tests.ledger.making import event

Connection = asyncpg.Connection
MANY = 5 * PIECE_EVENTS + 7
Call = tuple[Sequence[UsageEvent], Sequence[WindowUsage]]


class Listener:
    """What was told; ``then`` is called after each time."""

    def __init__(self, then: Callable[[int], None] = lambda _: None) -> None:
        self.calls: list[Call] = []
        self._then = then

    def __call__(self, events: Sequence[UsageEvent], usages: Sequence[WindowUsage]) -> None:
        self.calls.append((events, usages))
        self._then(len(self.calls))

    @property
    def events(self) -> list[UsageEvent]:
        return [one for events, _ in self.calls for one in events]

    @property
    def usages(self) -> list[WindowUsage]:
        return [one for _, usages in self.calls for one in usages]


class Passing:
    """Counts the turns of the loop."""

    def __init__(self) -> None:
        self.turns = 0
        self._loop = asyncio.get_running_loop()
        self._pass()

    def _pass(self) -> None:
        self.turns += 1
        self._next = self._loop.call_soon(self._pass)

    def stop(self) -> None:
        self._next.cancel()


@pytest.mark.parametrize("accounts", [1, MANY])
async def test_between_two_pieces_the_loop_has_a_turn(
    make_ledger: MakeLedger, counters_equal_ledger: CheckCounters, accounts: int
) -> None:
    ledger, _ = make_ledger()
    passing = Passing()
    turns: list[int] = []
    ledger.on_committed = listener = Listener(lambda _: turns.append(passing.turns))
    events = [event(f"a{number % accounts}", cost_microcents=number) for number in range(MANY)]
    for one in events:
        ledger.append(one)
    await ledger.close()
    passing.stop()
    assert listener.events == events
    assert {usage.account_id for usage in listener.usages} == {one.account_id for one in events}
    assert all(max(len(told), len(sums)) <= PIECE_EVENTS for told, sums in listener.calls)
    assert len(set(turns)) == len(turns) >= MANY // PIECE_EVENTS
    await counters_equal_ledger()


async def test_a_batch_is_written_out_in_pieces() -> None:
    """With as many turns between them, whether they have terms or not."""
    for terms in (None, (None, None, None, None, None, "key", 1)):
        passing = Passing()
        before = passing.turns
        columns, last = await Turns(lambda: 0, lambda: 0.0).columns([event("a", terms=terms) for _ in range(MANY)])
        assert passing.turns - before >= MANY // PIECE_EVENTS
        passing.stop()
        assert len(columns) == 9
        assert len(last) == (7 if terms else 0)


@pytest.mark.parametrize(
    ("events", "waiting", "piece"), [(1, 0, 100), (500, 499, 100), (500, 500, None), (2000, 0, 200), (0, 0, None)]
)
def test_postgres_writes_in_pieces_unless_as_many_wait(events: int, waiting: int, piece: int | None) -> None:
    assert Turns(lambda: waiting).for_postgres(events) == piece


async def test_the_longer_a_turn_takes_the_larger_are_the_pieces() -> None:
    """A turn of a thousand connections takes 20 ms and brings hundreds of events: small pieces would fall behind."""
    now_s = 0.0

    def serve() -> None:
        nonlocal now_s
        now_s += 0.02

    turns = Turns(lambda: 0, lambda: now_s)
    assert turns.first(10_000) == PIECE_EVENTS
    asyncio.get_running_loop().call_soon(serve)
    long = int(0.02 * PIECE_EVENTS_PER_S)
    assert await turns.next(10_000) == long
    assert [turns.first(10_000) for _ in range(3)] == [long // 2, long // 4, long // 8]
    assert await turns.next(10_000) == PIECE_EVENTS == turns.first(10_000)


@pytest.mark.parametrize(("waiting", "count"), [(999, PIECE_EVENTS), (1000, ALL_EVENTS), (9000, ALL_EVENTS)])
async def test_a_ledger_that_is_behind_makes_no_pieces(waiting: int, count: int) -> None:
    turns = Turns(lambda: waiting, lambda: 0.0)
    assert turns.first(1000) == await turns.next(1000) == count


async def test_a_listener_that_fails_at_one_piece_hears_of_the_others(make_ledger: MakeLedger) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise ZeroDivisionError

    ledger, _ = make_ledger()
    ledger.on_committed = listener = Listener(fail)
    events = [event("a") for _ in range(MANY)]
    for one in events:
        ledger.append(one)
    await ledger.close()
    assert listener.events == events


@pytest.mark.parametrize("at", [1, 4])
async def test_cancelled_between_two_pieces_the_rest_is_told_at_once(
    make_ledger: MakeLedger, sql: Connection, at: int
) -> None:
    spilled: list[UsageEvent] = []
    ledger, committed = make_ledger(spill=lambda events: spilled.extend(events) or True)

    def cancel(number: int) -> None:
        if number == at and ledger._task is not None:
            ledger._task.cancel()

    ledger.on_committed = listener = Listener(cancel)
    events = [event("a") for _ in range(MANY)]
    for one in events:
        ledger.append(one)
    task = ledger._task
    assert task is not None
    await asyncio.wait({task})
    assert task.cancelled()
    assert listener.events == events
    assert len(listener.calls) == at + 1
    await ledger.close()
    assert spilled == committed.dropped == []
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == MANY


@pytest.mark.parametrize("turns", [1, 3])
async def test_cancelled_while_a_batch_is_written_out_nothing_of_it_is_lost(
    make_ledger: MakeLedger, sql: Connection, turns: int
) -> None:
    """As by a close that has no time: all of it is spilled, in order."""
    spilled: list[UsageEvent] = []
    ledger, _ = make_ledger(spill=lambda events: spilled.extend(events) or True, batch_max=MANY)
    ledger.on_committed = listener = Listener()
    events = [event("a") for _ in range(MANY)]
    for one in events:
        ledger.append(one)
    for _ in range(turns):
        await asyncio.sleep(0)
    assert len(ledger._pieces) == 1
    assert ledger._task is not None
    ledger._task.cancel()
    await ledger.close()
    assert spilled == events
    assert listener.calls == []
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == 0


async def test_a_close_without_time_leaves_nothing_untold(make_ledger: MakeLedger) -> None:
    closing: list[asyncio.Task[None]] = []

    def close(number: int) -> None:
        if number == 1:
            closing.append(asyncio.ensure_future(ledger.close(0.0)))

    ledger, _ = make_ledger()
    ledger.on_committed = listener = Listener(close)
    events = [event("a") for _ in range(MANY)]
    for one in events:
        ledger.append(one)
    while not closing:
        await asyncio.sleep(0)
    await closing[0]
    assert listener.events == events


async def test_a_replay_that_ends_between_two_pieces_leaves_nothing_untold(make_ledger: MakeLedger) -> None:
    ledger, _ = make_ledger()
    ledger.on_committed = listener = Listener(lambda number: number == 1 and replay.cancel())
    events = [event("a") for _ in range(MANY)]
    replay = asyncio.ensure_future(ledger.rewrite(events))
    await asyncio.wait({replay})
    assert replay.cancelled()
    assert listener.events == events
