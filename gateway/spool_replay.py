"""The way back: what the spool keeps is written to Postgres once it is there again, the oldest first.

Replaying may stop anywhere and begin again: events have ids. A file is removed when Postgres has all of it. The holds
of its events are in the book of the worker whose id the file's header has. Where that is not us, ``claim`` is told
before the events are written, so that what hears of the commit can remove them there. A sweeper may be about to charge
the same holds as expired; whoever comes first, the ledger has one row, and ``ledger.rewrite`` sees to what it says.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.database import StoreError
from gateway.spool_records import event_of
from gateway.usage_events import UsageEvent

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from gateway.spool import Spool
    from gateway.spool_file import SpoolFile

# Between two looks for files whose workers are gone, and for whether Postgres is back.
LOOK_S = 1.0
# Rows of one transaction.
BATCH = 500
# Live events go first, but not for ever: a spool that is never emptied is lost with its machine.
YIELD_MAX_S = 1.0
_YIELD_STEP_S = 0.02

Claim = Callable[[str, Sequence[UsageEvent]], None]

_log = structlog.get_logger()


class Replay:
    """Replays the files of ``spool`` through ``ledger``. ``claim`` hears of workers that are gone, and their events."""

    def __init__(self, spool: "Spool", ledger: "Ledger", *, worker_id: str, claim: Claim) -> None:
        self._spool = spool
        self._ledger = ledger
        self._worker_id = worker_id
        self._claim = claim
        self._failing = ""

    async def run(self) -> None:
        """For ever: take up what was left behind, and replay what there is while Postgres is there."""
        while True:
            await self._spool.adopt()
            while not self._ledger.is_failing and (file := self._spool.next_file()) is not None:
                if not await self._try(file):
                    break
            await asyncio.sleep(LOOK_S)

    async def _try(self, file: "SpoolFile") -> bool:
        try:
            await self.replay(file)
        except (StoreError, asyncpg.PostgresError, OSError) as error:
            reason = str(error).partition("\n")[0]
            if not self._failing:
                _log.warning("replay_interrupted", file=file.path.name, error=reason)
            self._failing = reason
            if not isinstance(error, StoreError):
                self._spool.later(file)  # it may be this one alone that cannot be written
            return False
        self._failing = ""
        return True

    async def replay(self, file: "SpoolFile") -> None:
        """All of one file. Raises StoreError, asyncpg.PostgresError and OSError, and may then be called again."""
        started = time.monotonic()
        payloads = await asyncio.to_thread(file.payloads)
        for at in range(0, len(payloads), BATCH):
            events = _events_of(file, payloads[at : at + BATCH])
            await self._let_live_ones_pass()
            if file.header.worker_id not in ("", self._worker_id):
                self._claim(file.header.worker_id, events)
            begun = time.monotonic()
            await self._ledger.rewrite(events)
            await asyncio.sleep(time.monotonic() - begun)  # at most half of the time
        await self._spool.done(file)
        _log.info(
            "spool_replayed", file=file.path.name, events=len(payloads), took_s=round(time.monotonic() - started, 3)
        )

    async def _let_live_ones_pass(self) -> None:
        for _ in range(int(YIELD_MAX_S / _YIELD_STEP_S)):
            if not self._ledger.is_behind:
                return
            await asyncio.sleep(_YIELD_STEP_S)


def _events_of(file: "SpoolFile", payloads: Sequence[bytes]) -> list[UsageEvent]:
    events = []
    for payload in payloads:
        try:
            events.append(event_of(payload))
        except (ValueError, TypeError) as error:
            # Whole, so somebody wrote it: another version, perhaps, which will want it back.
            file.damaged = True
            record = payload[:1000].decode("ascii", "replace")
            _log.error("spool_record_unknown", file=file.path.name, error=str(error), record=record)
    return events
