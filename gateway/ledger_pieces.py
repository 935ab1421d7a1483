"""What a write of the ledger has this process do, in pieces, between which the loop does what else there is.

A batch is two thousand events where many calls come. In one go, writing them out and telling of them would hold every
other call up for milliseconds; all of these would then go on at once (docs/decisions/0063).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice
from typing import TypeVar

import asyncpg

from gateway.usage_columns import Columns, by_id, have_terms, term_columns, terms_in
from gateway.usage_events import UsageEvent, WindowUsage

Row = TypeVar("Row")

# Some tens of µs of each kind of work.
PIECE_EVENTS = 128
# A turn of the loop may bring more events than a piece has: then pieces are so many times as large, and the ledger does
# not fall behind, however many connections a turn serves.
CATCH_UP = 4


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
        self,
        events: Sequence[UsageEvent],
        row: asyncpg.Record,
        listener: Callable[[Sequence[UsageEvent], Sequence[WindowUsage]], None],
    ) -> None:
        """Tells ``listener`` of ``events``, each once, and of the sums in ``row`` that they are in.

        Sums come before events, so that at no moment a call counts neither as used nor as held. Nothing is left untold
        if this is cancelled.
        """
        usages = map(
            WindowUsage,
            row["usage_accounts"],
            row["usage_kinds"],
            row["usage_start_ms"],
            row["usage_end_ms"],
            row["usage_microcents"],
        )
        if len(events) <= PIECE_EVENTS:
            listener(events, list(usages))
            return
        at, count = 0, PIECE_EVENTS
        try:
            while at < len(events):
                sums = list(islice(usages, count))
                piece = events[at : at + count - len(sums)]
                at += len(piece)
                listener(piece, sums)
                if at < len(events):
                    count = await self.next()
        finally:
            if at < len(events):
                listener(events[at:], list(usages))
