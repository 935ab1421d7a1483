"""Admission by Postgres, for while Redis is away or does not know yet what it lost. Budgets stay exact.

Used is in Postgres anyway. What is held is known to each worker for itself: whoever comes onto this rung first puts its
own holds there (``tell_holds``), and admits once all that live have done so, for they lost Redis too and notice it soon
(``admission_lane.KEEP_S``). One that has not after ``ENTER_SHARE`` of the time-out is not waited for: it is dead,
stopped, or has a Redis that this worker cannot reach. From then on ``castgate_admit`` decides batches under the
accounts' locks, one batch of a worker at a time; what is asked meanwhile goes with the next one.

    state     asks                                 leaves when
    OFF       do not come here                     a lane cannot decide -> ENTERING
    ENTERING  wait                                 all holds are there, or nobody is waited for any more -> ON
    ON        go to Postgres in batches
    LOST      are decided in memory, at once       a probe puts our holds there -> ENTERING
    all                                            an ask waited for too long, or Postgres fails -> LOST
                                                   every lane decides again -> OFF, and our holds are taken away

Where there are several partitions, a worker may be here for the sake of another one, and its holds in this one may not
be: then nobody is asked, and the share is waited for as a whole. Who comes here for one partition more begins anew.

An ask waits no longer than ``timeout_s``, whatever it waits for. A batch that was given up may still run on the server:
what it takes then is replaced by the next ``tell_holds``.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.accounts import parts_of
from gateway.breaker import PAUSE_MAX_S, Breaker
from gateway.database import QUERIES, Database, StoreError
from gateway.fleet import SILENT_S
from gateway.usage_events import Terms

if TYPE_CHECKING:
    from gateway.admission_batch import Ask
    from gateway.tasks import Tasks

OFF, ENTERING, ON, LOST = range(4)

# Of the time that an ask may wait here: 15 ms of 45. A lane with open holds speaks every 8 ms, so the others notice so
# much later than we at most; the rest is for the statement that puts their holds here.
ENTER_SHARE = 1 / 3
TOLD_POLL_S = 0.003
# Calls that wait here; as many as a worker has connections by default. The rest is decided in memory.
WAITING_MAX = 20_000
# Calls decided by one transaction, some 10 ms of Postgres.
BATCH_MAX = 200
# Holds that ended, taken away together with the next batch, or alone after this.
RELEASE_DELAY_S = 0.005
# After the last batch: longer than the server lets a statement run that nobody waits for any more.
CLEAN_AGAIN_S = 3.0

_NO_TERMS = Terms()

# Postgres is there, and somebody was quicker: as a rule the ledger, with events of the same accounts.
_CONFLICTS = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

_log = structlog.get_logger()


class PostgresRung:
    """The rung of one worker. ``decided`` hears a batch with its outcomes, ``unanswered`` the asks without one."""

    def __init__(
        self,
        database: Database | None,
        worker_id: str,
        *,
        timeout_s: float,
        holds: Callable[[], Sequence["Ask"]],
        is_denied: Callable[["Ask"], bool],
        decided: Callable[[Sequence["Ask"], asyncpg.Record], None],
        unanswered: Callable[[Sequence["Ask"]], None],
        again: Callable[["Ask"], None],
        changed: Callable[[str], None],
        tasks: "Tasks",
        partitions: int = 1,
    ) -> None:
        """``is_denied`` says that an ask must not take anything here, whatever its budget; ``changed`` hears why."""
        self.state = OFF
        # There may be rows of ours in usage_holds.
        self.has_rows = False
        self._database = database
        self._worker_id = worker_id
        self._timeout_s = timeout_s
        self._holds = holds
        self._is_denied = is_denied
        self._decided = decided
        self._unanswered = unanswered
        self._again = again
        self._changed = changed
        self._tasks = tasks
        self._partitions = partitions
        self._loop = asyncio.get_running_loop()
        self._breaker = Breaker(clock=time.monotonic)
        self._waiting: list[tuple[float, Ask]] = []  # with the loop time at which it has waited for too long
        self._flight: list[Ask] = []
        self._flight_deadline_s = 0.0
        self._landed: list[asyncio.Future[None]] = []
        self._released: list[str] = []
        self._telling = False
        # What was told last and is not known to be over: whoever wrote its event may have looked before it was there.
        self._told: set[str] = set()
        self._entered_s = 0.0
        self._entries = 0  # how often a lane came here from Redis
        self._wake = asyncio.Event()
        self._running = False
        self._timer: asyncio.TimerHandle | None = None

    # --- from admission

    def enter(self) -> None:
        """A lane cannot decide any more that did until now: what it holds is to be told."""
        if self._database is None:
            self._become(LOST, "there is no Postgres")
            return
        self._entered_s = self._loop.time()
        self._entries += 1
        if self.state != LOST:
            self._become(ENTERING, "")
        if not self._running:
            self._running = True
            self._tasks.start("admission.postgres", self._run())

    def leave(self) -> None:
        """Every lane decides again."""
        if self.state != OFF:
            self._become(OFF, "")
            self._hand_back()

    def ask(self, ask: "Ask") -> None:
        """Decide it here, or find that Postgres cannot either."""
        if self.state == LOST or len(self._waiting) >= WAITING_MAX:
            self._unanswered([ask])
            return
        deadline_s = self._loop.time() + self._timeout_s
        self._waiting.append((deadline_s, ask))
        self._wake.set()
        if self._timer is None:
            self._timer = self._loop.call_at(deadline_s, self._overdue)

    def release(self, hold_id: str) -> None:
        """A hold is over that may be in Postgres."""
        if self.state in (ENTERING, ON) or self._telling:  # else all of ours is told anew, or taken away
            self._released.append(hold_id)
            if self.state == ON and len(self._released) == 1:
                self._loop.call_later(RELEASE_DELAY_S, self._wake.set)

    def posted(self, hold_id: str) -> None:
        """The ledger has written the hold's event, and has taken the hold away where it was told before that began."""
        if hold_id in self._told:
            self._told.remove(hold_id)
            self.release(hold_id)

    def quiesce(self) -> "asyncio.Future[None] | None":
        """Those that wait ask again; the future is done when none is being decided. None: none is."""
        self._hand_back()
        if not self._flight:
            return None
        landed: asyncio.Future[None] = self._loop.create_future()
        self._landed.append(landed)
        return landed

    async def close(self) -> None:
        """Leave no rows but those of calls that are not settled, as far as Postgres is there."""
        self.state = OFF
        self._wake.set()
        if self.has_rows and self._database is not None:
            try:
                await self._tell(self._database)
            except (StoreError, asyncpg.PostgresError) as error:
                _log.debug("holds_left_in_postgres", error=str(error))

    # --- the task

    async def _run(self) -> None:
        database = self._database
        assert database is not None
        try:
            while True:
                if self.state == OFF:
                    if not self.has_rows or await self._clean(database):
                        return
                    continue
                entries = self._entries
                try:
                    await self._tell(database)
                    self._breaker.succeeded()
                    if self.state == LOST:
                        self._entered_s = self._loop.time()
                        self._become(ENTERING, "")
                    await self._wait_for_others(database)
                    if entries != self._entries:
                        continue  # Redis served until after we told, and what it admitted was not among it
                    if self.state == ENTERING:
                        self._become(ON, "")
                    while self.state == ON:
                        await self._decide(database)
                except (StoreError, asyncpg.PostgresError) as error:
                    self._lose(str(error).partition("\n")[0])
                    await self._pause()
                except Exception:  # noqa: BLE001  a fault of ours must not leave asks waiting for a task that is gone
                    _log.exception("admission_fault")
                    self._lose("a fault in this program")
                    await self._pause()
        finally:
            self._running = False
            self._land()

    async def _pause(self) -> None:
        self._breaker.failed()
        await asyncio.sleep(self._breaker.wait_s())
        self._breaker.allows()  # what follows is the probe

    async def _tell(self, database: Database) -> None:
        """Our holds there become those that are open now. Raises StoreError, asyncpg.PostgresError."""
        self.has_rows = True
        self._released.clear()
        asks = [ask for ask in self._holds() if ask.account is not None and ask.hold_microcents > 0]
        self._told = {ask.hold_id for ask in asks}
        self._telling = True
        try:
            await database.execute(
                QUERIES["tell_holds"],
                self._worker_id,
                [ask.hold_id for ask in asks],
                [ask.account.account_id for ask in asks if ask.account is not None],
                [ask.hold_microcents for ask in asks],
                [ask.admitted_ms for ask in asks],
                [ask.policy.name for ask in asks],
                self.state != OFF,
                *_columns_of_terms([ask.terms(ask.admitted_ms) for ask in asks]),
            )
        finally:
            self._telling = False

    async def _wait_for_others(self, database: Database) -> None:
        """Raises StoreError, asyncpg.PostgresError."""
        until_s = self._entered_s + ENTER_SHARE * self._timeout_s
        while self.state == ENTERING and (self._partitions > 1 or not await self._all_told(database)):
            if self._loop.time() >= until_s:
                return
            await asyncio.sleep(TOLD_POLL_S)

    async def _all_told(self, database: Database) -> bool:
        row = await database.fetchrow(QUERIES["all_told"], self._worker_id, SILENT_S)
        return row is not None and bool(row[0])

    async def _clean(self, database: Database) -> bool:
        """Take our rows away; True once none can be left, or come."""
        try:
            for pause_s in (0.0, CLEAN_AGAIN_S):
                if not await self._stays_off(pause_s):
                    return False
                await database.execute(
                    QUERIES["tell_holds"], self._worker_id, [], [], [], [], [], False, *_columns_of_terms([])
                )
        except (StoreError, asyncpg.PostgresError) as error:
            _log.debug("holds_left_in_postgres", error=str(error))
            await self._stays_off(PAUSE_MAX_S)
            return False
        if self.state != OFF:
            return False
        self.has_rows = False
        self._told = set()
        return True

    async def _stays_off(self, pause_s: float) -> bool:
        """False, and at once, when somebody enters again before the pause is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                while self.state == OFF:
                    self._wake.clear()
                    await self._wake.wait()
        return self.state == OFF

    async def _decide(self, database: Database) -> None:
        """One batch, or what ended meanwhile, or wait for either. Raises StoreError, asyncpg.PostgresError."""
        if not self._waiting:
            self._wake.clear()
            if self._released:
                released, self._released = self._released, []
                await database.execute(QUERIES["forget_holds"], released, timeout_s=self._timeout_s)
            else:
                await self._wake.wait()
            return
        batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
        self._flight = asks = [ask for _, ask in batch]
        self._flight_deadline_s = batch[0][0]
        released, self._released = self._released, []
        columns = columns_of(asks, [self._is_denied(ask) for ask in asks])
        terms = [ask.terms(ask.lane.now_ms) for ask in asks]
        query = "admit"
        if any(terms):
            query = "admit_on_terms"
            columns += _columns_of_terms(terms)
        try:
            row = await self._admitted(database, QUERIES[query], released, columns)
            if self._flight:  # else they have waited for too long, and the next tell_holds undoes this
                self._flight = []
                self._decided(asks, row)
        finally:
            self._land()

    async def _admitted(
        self, database: Database, sql: str, released: list[str], columns: list[list[object]]
    ) -> asyncpg.Record:
        """Again and again while somebody has the accounts locked, and until the batch has waited for too long."""
        while True:
            try:
                row = await database.fetchrow(sql, self._worker_id, released, *columns, timeout_s=self._timeout_s)
            except _CONFLICTS:
                if not self._flight:
                    raise
            else:
                assert row is not None, "a function with OUT parameters gives one row"
                return row

    # --- time, and losing Postgres

    def _overdue(self) -> None:
        """Runs when the oldest ask has waited for too long, if it still waits."""
        self._timer = None
        oldest = [self._flight_deadline_s] if self._flight else []
        if self._waiting:
            oldest.append(self._waiting[0][0])
        if not oldest:
            return
        if min(oldest) > self._loop.time():
            self._timer = self._loop.call_at(min(oldest), self._overdue)
        else:
            self._lose(f"no answer within {self._timeout_s:g} s")

    def _lose(self, reason: str) -> None:
        if self.state != OFF:
            self._become(LOST, reason)
        flight, self._flight = self._flight, []
        waiting, self._waiting = self._waiting, []
        asks = [*flight, *(ask for _, ask in waiting)]
        self._land()
        if asks:
            self._unanswered(asks)

    def _land(self) -> None:
        landed, self._landed = self._landed, []
        for future in landed:
            if not future.done():
                future.set_result(None)

    def _hand_back(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._wake.set()
        for _, ask in waiting:
            self._again(ask)

    def _become(self, state: int, reason: str) -> None:
        before, self.state = self.state, state
        if before != state:
            self._wake.set()
            self._changed(reason)


def columns_of(asks: Sequence["Ask"], denied: Sequence[bool]) -> list[list[object]]:
    """The parameters of castgate_admit from ``entry_accounts`` on."""
    entries: dict[int, int] = {}  # id of what is known of an account -> its place, beginning with 1
    accounts: list[object] = []
    versions: list[object] = []
    windows: list[tuple[object, ...]] = []
    call_entries: list[object] = []
    for ask in asks:
        known = ask.known
        assert known is not None, "a call of nobody in particular has no budget"
        place = entries.get(id(known))
        if place is None:
            place = entries[id(known)] = len(entries) + 1
            accounts.append(known.account_id)
            versions.append(known.version)
            for limit, window in zip(known.limits, known.windows, strict=True):
                row = (place, *parts_of(limit.kind), window.start_ms, window.end_ms)
                windows.append((*row, limit.hard_limit_microcents))
        call_entries.append(place)
    columns: list[list[object]] = [list(column) for column in zip(*windows, strict=True)] or [[] for _ in range(7)]
    return [
        accounts,
        versions,
        *columns,
        call_entries,
        [ask.hold_id for ask in asks],
        [ask.hold_microcents for ask in asks],
        [ask.policy.name for ask in asks],
        list(denied),
    ]


def _columns_of_terms(terms: Sequence[Terms | None]) -> list[list[object]]:
    return [list(column) for column in zip(*(one or _NO_TERMS for one in terms), strict=True)] or [
        [] for _ in Terms._fields
    ]
