"""Calls that a budget refuses and that have an idempotency key: one whose key is billed already needs no budget.

Only they are looked up, so a key costs nothing while there is money. The truth is in Postgres, where each event is
written (castgate_settle_terms); here it is only asked whether a call will cost something. However many wait: one
statement for all that wait when it begins, and one at a time. Where Postgres does not answer, or not within the time
that a call may wait for it, the refusal stands.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.database import QUERIES, Database, StoreError
from gateway.policy.verdicts import Verdict

if TYPE_CHECKING:
    from gateway.admission_batch import Ask
    from gateway.tasks import Tasks

# Looked up together, some ms of Postgres; and how many may wait, the others are refused at once.
BATCH_MAX = 500
WAITING_MAX = 5_000
# A key that will be forgotten so soon counts as forgotten: its call must be written within its life to be a repeat.
MARGIN_S = 5
# Keys deleted by one statement, and statements of one sweep.
FORGOTTEN_MAX = 2_000
STATEMENTS_MAX = 50

_log = structlog.get_logger()


class _Refused:
    __slots__ = ("ask", "denial", "timer")

    def __init__(self, ask: "Ask", denial: Verdict) -> None:
        self.ask = ask
        self.denial = denial
        self.timer: asyncio.TimerHandle | None = None  # None: it has been told


class Repeats:
    """``again`` takes a call that is a repeat and now asks for nothing, ``tell`` one whose refusal stands."""

    def __init__(
        self,
        database: Database | None,
        tasks: "Tasks",
        *,
        timeout_s: float,
        again: Callable[["Ask"], None],
        tell: Callable[["Ask", Verdict], None],
    ) -> None:
        self._database = database
        self._tasks = tasks
        self._again = again
        self._tell = tell
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Refused] = []
        self._running = False

    def refused(self, ask: "Ask", denial: Verdict) -> None:
        """A budget has no room for ``ask``, which has a key."""
        if self._database is None or len(self._waiting) >= WAITING_MAX:
            self._tell(ask, denial)
            return
        waiting = _Refused(ask, denial)
        waiting.timer = self._loop.call_later(self._timeout_s, self._stands, waiting)
        self._waiting.append(waiting)
        if not self._running:
            self._running = True
            self._tasks.start("admission.repeats", self._run(self._database))

    async def _run(self, database: Database) -> None:
        batch: list[_Refused] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                batch = [one for one in batch if one.timer is not None]
                if not batch:
                    continue
                billed = await self._billed(database, [one.ask for one in batch])
                asked, batch = batch, []
                for one, is_billed in zip(asked, billed, strict=True):
                    if one.timer is None:
                        continue
                    if is_billed:
                        one.timer.cancel()
                        one.timer = None
                        one.ask.is_repeat = True
                        one.ask.hold_microcents = 0
                        self._again(one.ask)
                    else:
                        self._stands(one)
        finally:
            self._running = False
            left, self._waiting = self._waiting, []
            for one in (*batch, *left):  # cancelled, or a fault of ours: nobody is left waiting
                self._stands(one)

    def _stands(self, refused: _Refused) -> None:
        if refused.timer is not None:
            refused.timer.cancel()
            refused.timer = None
            self._tell(refused.ask, refused.denial)

    async def _billed(self, database: Database, asks: "list[Ask]") -> list[bool]:
        accounts = ["" if ask.account is None else ask.account.account_id for ask in asks]
        try:
            rows = await database.fetch(
                QUERIES["billed_keys"], accounts, [ask.policy.name for ask in asks], [ask.key for ask in asks], MARGIN_S
            )
        except (StoreError, asyncpg.PostgresError) as error:
            _log.debug("repeats_unknown", calls=len(asks), error=str(error))
            return [False] * len(asks)
        return [row["is_billed"] for row in rows]


async def forget_keys(database: Database, kept_s: float) -> int:
    """Delete keys whose life has been over for ``kept_s``; how many. Raises StoreError, asyncpg.PostgresError.

    So long an event may wait in a spool that happened while its key lived.
    """
    forgotten = 0
    for _ in range(STATEMENTS_MAX):
        row = await database.fetchrow(QUERIES["forget_keys"], kept_s, FORGOTTEN_MAX)
        assert row is not None
        forgotten += row["forgotten"]
        if row["forgotten"] < FORGOTTEN_MAX:
            break
    return forgotten
