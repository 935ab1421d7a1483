"""What a write of the ledger has this process do, in pieces, between which the loop does what else there is.

A batch is two thousand events where many calls come. In one go, writing them out and telling of them would hold every
other call up for milliseconds; all of these would then go on at once (docs/decisions/0063).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

import asyncpg

from gateway.ledger_telling import SumsFirst, SumsThatRise
from gateway.usage_columns import Columns, by_id, have_terms, term_columns, terms_in
from gateway.usage_events import UsageEvent, WindowUsage

Row = TypeVar("Row")
Listener = Callable[[Sequence[UsageEvent], Sequence[WindowUsage]], None]

# Some tens of µs of each kind of work.
PIECE_EVENTS = 128
# A turn of the loop may bring more events than a piece has: then pieces are so many times as large, and the ledger does
# not fall behind, however many connections a turn serves.
CATCH_UP = 4
# Sums that may be told with each piece: more are told once, and first.
RISING_SUMS_MAX = 64


class Turns:
    """Turns of the loop. ``waiting`` tells how many events have come that are not being written."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._waiting = waiting

    async def next(self) -> int:
        """Gives the loop a turn; returns how many events may be worked on until the next one."""
        before = self._waiting()
        await asyncio.sleep(0)
        return max(PIECE_EVENTS, CATCH_UP * (self._waiting() - before))

    async def pieces(self, rows: Sequence[Row]) -> AsyncIterator[Sequence[Row]]:
        """``rows`` in their order, with a turn between each two pieces."""
        at, count = 0, PIECE_EVENTS
        while at < len(rows):
            yield rows[at : at + count]
            at += count
            if at < len(rows):
                count = await self.next()

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
        usages = list(
            map(
                WindowUsage,
                row["usage_accounts"],
                row["usage_kinds"],
                row["usage_start_ms"],
                row["usage_end_ms"],
                row["usage_microcents"],
            )
        )
        if len(events) <= PIECE_EVENTS:
            listener(events, usages)
            return
        is_rising = are_held and len(usages) <= RISING_SUMS_MAX
        parts = SumsThatRise(events, usages) if is_rising else SumsFirst(events, usages)
        count = PIECE_EVENTS
        try:
            while not parts.is_over:
                listener(*parts.next(count))
                if not parts.is_over:
                    count = await self.next()
        finally:
            if not parts.is_over:
                listener(*parts.rest())
