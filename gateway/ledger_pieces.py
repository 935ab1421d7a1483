"""What a write of the ledger has this process do, in pieces, between which the loop does what else there is.

A batch is two thousand events where many calls come. In one go, writing them out and telling of them would hold every
other call up for milliseconds; all of these would then go on at once (docs/decisions/0063).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from time import monotonic
from typing import TypeVar

import asyncpg

from gateway.ledger_telling import SumsFirst, SumsThatRise
from gateway.usage_columns import Columns, by_id, have_terms, term_columns, terms_in
from gateway.usage_events import UsageEvent, WindowUsage, usages_of

Row = TypeVar("Row")
Listener = Callable[[Sequence[UsageEvent], Sequence[WindowUsage]], None]

# Some tens of µs of each kind of work.
PIECE_EVENTS = 128
# A turn of a loop with a thousand connections takes tens of milliseconds and brings hundreds of events. The longer the
# last turn was, the larger is a piece, which then takes about a quarter of it: so the ledger does not fall behind.
PIECE_EVENTS_PER_S = 250_000
# Where as many wait as are being written it has: then all is done at once.
ALL_EVENTS = 2**31
# Postgres lets others have its processor after so many events (docs/decisions/0066), but not more than so many times in
# a batch: on a busy machine its turn comes milliseconds later.
POSTGRES_PIECE_EVENTS = 100
POSTGRES_PAUSES_MAX = 10
# Sums that may be told with each piece: more are told once, and first.
RISING_SUMS_MAX = 64


class Turns:
    """Turns of the loop. ``waiting`` tells how many events wait to be written, ``clock`` the seconds."""

    def __init__(self, waiting: Callable[[], int], clock: Callable[[], float] = monotonic) -> None:
        self._waiting = waiting
        self._clock = clock
        self._count = PIECE_EVENTS

    def first(self, events: int) -> int:
        """How many of the events that are to be worked on may be so until the next turn."""
        # What was found when a turn was last waited for is believed less each time.
        self._count = max(PIECE_EVENTS, self._count // 2)
        return ALL_EVENTS if self._waiting() >= events else self._count

    async def next(self, events: int) -> int:
        """Gives the loop a turn; returns the same."""
        began_s = self._clock()
        await asyncio.sleep(0)
        self._count = max(PIECE_EVENTS, int((self._clock() - began_s) * PIECE_EVENTS_PER_S))
        return ALL_EVENTS if self._waiting() >= events else self._count

    def for_postgres(self, events: int) -> int | None:
        """How many of so many events it may write before it lets others have its processor; None: all."""
        if self._waiting() >= events:
            return None
        return max(POSTGRES_PIECE_EVENTS, events // POSTGRES_PAUSES_MAX)

    async def pieces(self, rows: Sequence[Row]) -> AsyncIterator[Sequence[Row]]:
        """``rows`` in their order, with a turn between each two pieces."""
        at, count = 0, self.first(len(rows))
        while at < len(rows):
            yield rows[at : at + count]
            at += count
            if at < len(rows):
                count = await self.next(len(rows))

    async def columns(self, events: Sequence[UsageEvent]) -> tuple[list[str], list[str]]:
        """What the ledger's statements have as their first parameters, and as their last; none where none has terms."""
        columns = Columns()
        if not have_terms(events):
            async for piece in self.pieces(by_id(events)):
                columns.add(piece)
            return columns.short(), []
        terms = term_columns()
        async for piece in self.pieces(events):
            columns.add(piece)
            terms.add(terms_in(piece))
        return columns.full(), terms.full()

    async def tell(
        self, events: Sequence[UsageEvent], row: asyncpg.Record, listener: Listener, *, are_held: bool
    ) -> None:
        """Tells ``listener`` of ``events``, each once, and of the sums in ``row``; all of it also if this is cancelled.

        ``are_held``: each is in the sums from now on with the cost that it has, and held until it is told.
        """
        usages = usages_of(
            row["usage_accounts"],
            row["usage_kinds"],
            row["usage_start_ms"],
            row["usage_end_ms"],
            row["usage_microcents"],
        )
        if len(events) <= PIECE_EVENTS:
            listener(events, usages)
            return
        is_rising = are_held and len(usages) <= RISING_SUMS_MAX
        parts = SumsThatRise(events, usages) if is_rising else SumsFirst(events, usages)
        count = self.first(len(events))
        try:
            while parts.left:
                listener(*parts.next(count))
                if parts.left:
                    count = await self.next(len(events))
        finally:
            if parts.left:
                listener(*parts.rest())
