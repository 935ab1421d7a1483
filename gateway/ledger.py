"""Charged calls on their way to Postgres: queued without waiting, written in batches, kept until Postgres has them.

One batch is under way at a time; what comes meanwhile is the next one. A batch is one call of castgate_write_batch
(migrations/0016_counter_plans.sql): one round trip, one transaction, several statements on the server. It cannot be
one SQL statement: the counters must be read in a snapshot from after the account's lock, and a statement has one
snapshot, from before (accounts.py has the whole argument). And with BEGIN … COMMIT sent by us, busy accounts would be
locked while this process is busy or stopped.

What can go wrong with a batch, and what follows:
- The write lost to another one (deadlock, serialization, lock time-out): tried again until it is written.
- Postgres is away, or any other error that is the operator's to mend (no table, no partition, no permission): after
  the first failed write ``spill`` is offered all that waits, and from then on each event as it comes; an empty write
  is tried, with growing pauses, until one succeeds. What ``spill`` does not take waits here and is tried again in the
  same way. Ids make it harmless if a failed attempt was committed after all.
- A row that can never be written (``ledger_failures``): the batch is halved until the row is alone; it is logged in
  full and dropped, its neighbours are written.
- The queue is full: ``spill`` is offered the newest events; what it does not take stays a hold, or is dropped
  (``at_bound``), and is counted and logged either way. ``refuses`` then asks for no more calls that cost, where that is
  the operator's choice.
- A hold of a dead worker (``expired``) is never spilled: it is safe in Redis, from where it is swept again
  (``on_put_off``). Every worker sweeps: in their spools it would be once for each.
- An event is there already: an earlier attempt wrote it, or a sweeper charged its hold as expired while we were stopped
  or it was in the spool. Then the row learns what only we know (cast, status, request), its cost stays as it was
  charged, and that is what the cast is told to cost.
Every event ends in exactly one of ``on_committed``, ``spill``, ``on_put_off`` and ``on_dropped``; or, where there is no
room for it or the process ends, as the hold that it still is.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.database import QUERIES, Database, StoreError
from gateway.ledger_failures import reason_of
from gateway.ledger_pieces import Turns
from gateway.usage_columns import columns_of, full_columns_of
from gateway.usage_events import UsageEvent, WindowUsage, event_id

if TYPE_CHECKING:
    from gateway.config.settings_stores import Ledger as LedgerSettings
    from gateway.metrics import Metrics
    from gateway.tasks import Tasks

__all__ = ["Ledger", "UsageEvent", "WindowUsage", "columns_of", "event_id"]

_PAUSE_MIN_S = 0.05
_PAUSE_MAX_S = 2.0
# Casts that were locked by Phase 1 go with the next batch; where there is none, they are tried again after this.
_LATE_CASTS_PAUSE_S = 1.0
# By itself a batch costs Postgres as much as some tens of events: where so many came within the interval, they wait
# until there are enough, for so many intervals at most (docs/decisions/0059, 0063).
_BUSY_EVENTS = 64
_ENOUGH_EVENTS = 400
_BUSY_INTERVALS = 3
# Dropped events logged one by one; the rest of a batch is summed up.
_LOGGED_MAX = 100

_log = structlog.get_logger()


def _ignore_commit(_events: Sequence[UsageEvent], _usages: Sequence[WindowUsage]) -> None:
    pass


def _ignore_drop(_events: Sequence[UsageEvent]) -> None:
    pass


def _has_no_holds() -> bool:
    return False


def _no_spill(_events: Sequence[UsageEvent]) -> bool:
    return False


class Ledger:
    """The events of one worker that are not yet in Postgres, which need not be there to ``append``."""

    def __init__(
        self,
        database: Database,
        settings: LedgerSettings,
        tasks: Tasks,
        metrics: Metrics,
        *,
        spill: Callable[[Sequence[UsageEvent]], bool] | None = None,
    ) -> None:
        """``spill`` keeps events that cannot stay here, to ``rewrite`` them in better times; False: it cannot."""
        self.on_committed: Callable[[Sequence[UsageEvent], Sequence[WindowUsage]], None] = _ignore_commit
        self.on_dropped: Callable[[Sequence[UsageEvent]], None] = _ignore_drop
        self.on_put_off: Callable[[Sequence[UsageEvent]], None] = _ignore_drop
        self.refuses = False  # calls that cost should not begin: there would be no room for their events
        # Whether Postgres may have holds of these events, which go when they are written.
        self.has_holds: Callable[[], bool] = _has_no_holds
        self._database = database
        self._tasks = tasks
        self._interval_s = settings.flush_interval_s
        self._batch_max = settings.batch_max
        # How many wait when one more may begin a batch: none, nearly enough, nearly all that one has room for.
        self._nearly = frozenset((0, min(_ENOUGH_EVENTS, settings.batch_max) - 1, settings.batch_max - 1))
        self._queue_max = settings.queue_max
        self._cast_cost_sql = settings.cast_cost_sql
        self._spill = spill or _no_spill
        self._at_bound = settings.spool.at_bound
        self._queue: deque[UsageEvent] = deque()
        self._turns = Turns(self._queue.__len__)
        # Taken out of the queue to be written: one batch, or the pieces of one with bad rows, the first one last.
        self._pieces: list[Sequence[UsageEvent]] = []
        self._late_casts: list[tuple[str, int]] = []
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()  # enough for a batch, or closing
        self._last_write = float("-inf")
        self._closing = False
        self._full = False
        self._spilling = False  # Postgres is away, and ``spill`` has taken what waited
        self._failing = ""
        self._casts_error = ""
        self._length = metrics.gauge("castgate_ledger_queue_length")
        self._written = metrics.counter("castgate_ledger_events_total", result="written")
        self._duplicate = metrics.counter("castgate_ledger_events_total", result="duplicate")
        self._dropped = metrics.counter("castgate_ledger_events_total", result="dropped")
        self._flushed = metrics.counter("castgate_ledger_flushes_total", result="ok")
        self._flush_failed = metrics.counter("castgate_ledger_flushes_total", result="error")
        self._duration = metrics.histogram("castgate_ledger_flush_duration_seconds")
        self._batch_size = metrics.histogram("castgate_ledger_batch_size")
        self._failures = {
            reason: metrics.counter("castgate_ledger_failures_total", reason=reason)
            for reason in ("away", "conflict", "error", "poison", "full", "held", "closed", "cast", "cast_missing")
        }

    def __len__(self) -> int:
        """Events that are not yet known to be in Postgres."""
        return len(self._queue) + sum(map(len, self._pieces))

    def append(self, event: UsageEvent) -> None:
        """Take ``event`` on. Never blocks and never raises."""
        if self._spilling and self._keep_elsewhere((event,)):
            return
        queue = self._queue
        length = len(queue)
        if length >= self._queue_max:
            self._overflow(event)
            return
        queue.append(event)
        if self._task is None:
            self._task = self._tasks.start("ledger.write", self._write())
        elif length in self._nearly:
            self._wake.set()

    @property
    def is_behind(self) -> bool:
        """Whether new events have more use for Postgres than old ones: it is away, or they wait for it already."""
        return self._failing != "" or len(self._queue) > self._batch_max // 2

    @property
    def is_failing(self) -> bool:
        """Whether the last write failed."""
        return self._failing != ""

    def take_back(self, events: Sequence[UsageEvent]) -> None:
        """``spill`` took ``events`` and cannot keep them after all."""
        self._spilling = False
        if self._closing:
            self._failures["closed"].add()
            self._give_up(events, "closed", self._failing)
            return
        for event in events:
            self.append(event)

    async def rewrite(self, events: Sequence[UsageEvent]) -> None:
        """Write what ``spill`` once took, in a transaction beside the live ones.

        Raises StoreError, asyncpg.PostgresError: then part of them may be written, and all may be given again.
        """
        pieces = [events]
        while pieces:
            piece = pieces.pop()
            try:
                row, _ = await self._record(piece, ())
            except asyncpg.PostgresError as error:
                if reason_of(error) != "poison":
                    raise
                pieces += self._isolated(piece, str(error))
            else:
                await self._committed(piece, row, 0, are_held=False)  # perhaps, in somebody's book

    async def close(self, timeout_s: float = 5.0) -> None:
        """Write what is there; what is not written after ``timeout_s`` is spilled, or stays a hold."""
        self._closing = True
        self._wake.set()
        task = self._task
        if task is not None:
            _, pending = await asyncio.wait({task}, timeout=timeout_s)
            for one in pending:
                one.cancel()
                await asyncio.wait({one}, timeout=1.0)
        left = list(self._queue)
        self._queue.clear()
        if left:
            self._failures["closed"].add()
            self._give_up(left, "closed", self._failing)
        self._length.set(0)

    async def _write(self) -> None:
        """Batch after batch, until there is nothing to write."""
        try:
            while self._queue or (self._late_casts and not self._closing):
                await self._gather()
                self._pieces = [self._taken()]
                self._last_write = asyncio.get_running_loop().time()
                self._length.set(len(self))
                while self._pieces:
                    await self._write_piece()
                self._length.set(len(self))
        finally:
            # Only where this task was cancelled or failed: nothing is lost with it.
            while self._pieces:
                self._queue.extendleft(reversed(self._pieces.pop(0)))
            self._task = None

    def _taken(self) -> list[UsageEvent]:
        queue = self._queue
        if len(queue) > self._batch_max:
            return [queue.popleft() for _ in range(self._batch_max)]
        events = list(queue)
        queue.clear()
        return events

    async def _gather(self) -> None:
        """Wait until a batch is full, or the interval since the last one began is over; or more, for more events."""
        clock = asyncio.get_running_loop().time
        while not self._closing and (length := len(self._queue)) < self._batch_max:
            pause_s = self._interval_s if length else _LATE_CASTS_PAUSE_S
            passed = (clock() - self._last_write) / pause_s
            waits_for_more = _BUSY_EVENTS <= length < _ENOUGH_EVENTS and passed < _BUSY_INTERVALS
            if passed >= 1 and not waits_for_more:
                return
            left_s = (int(passed) + 1 - passed) * pause_s
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._wake.wait()

    async def _write_piece(self) -> None:
        """Returns once the last of the pieces is committed, dropped or cut in two, however long that takes."""
        events = self._pieces[-1]
        pause_s = _PAUSE_MIN_S
        while True:
            started = time.monotonic()
            late = len(self._late_casts)
            try:
                row, is_plain = await self._record(events, self._late_casts)
            except (StoreError, asyncpg.PostgresError) as error:
                reason = reason_of(error)
                self._flush_failed.add()
                self._failures[reason].add()
                if reason == "poison":
                    self._pieces += self._isolated(self._pieces.pop(), str(error))
                    return
                self._report(reason, str(error))
                if reason != "conflict" and self._hand_over():
                    events = self._pieces[-1]
                self._length.set(len(self))
                await self._pause(pause_s * random.uniform(0.5, 1.0))
                if self._spilling and self._closing:
                    self._pieces.clear()
                    return
                if reason != "conflict":
                    pause_s = min(2 * pause_s, _PAUSE_MAX_S)
                continue
            self._duration.observe(time.monotonic() - started)
            self._batch_size.observe(len(events))
            self._report("", "")
            self._spilling = False
            self._pieces.pop()
            await self._committed(events, row, late, are_held=is_plain)
            return

    async def _pause(self, pause_s: float) -> None:
        """A pause that ends at once where the ledger is to close and has given everything away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                while not (self._spilling and self._closing):
                    self._wake.clear()
                    await self._wake.wait()

    def _hand_over(self) -> bool:
        """Give all that waits to ``spill``; an empty write takes its place, which finds out when Postgres is back."""
        waiting = [event for piece in reversed(self._pieces) for event in piece] + list(self._queue)
        if not self._keep_elsewhere(waiting):
            return False
        self._queue.clear()
        self._pieces = [()]
        self._spilling = True
        return True

    def _keep_elsewhere(self, events: Sequence[UsageEvent]) -> bool:
        orphans = [event for event in events if event.outcome == "expired"]
        if not self._spill([event for event in events if event.outcome != "expired"] if orphans else events):
            return False
        if orphans:
            self._tell(self.on_put_off, orphans)
        return True

    def _isolated(self, events: Sequence[UsageEvent], error: str) -> list[Sequence[UsageEvent]]:
        """What to try instead of ``events``, of which at least one can never be written; the last one first."""
        if len(events) <= 1:
            plain = [event._replace(cast_id=None, request_id=None) for event in events]
            if plain != list(events):  # perhaps it is only the ids, which somebody else made
                _log.error("usage_event_without_ids", error=error.partition("\n")[0], event_id=plain[0].event_id)
                return [plain]
            self._give_up(events, "poison", error)
            return []
        middle = len(events) // 2
        return [events[middle:], events[:middle]]

    async def _record(
        self, events: Sequence[UsageEvent], late: Sequence[tuple[str, int]]
    ) -> tuple[asyncpg.Record, bool]:
        """What the ledger says, and whether all ``events`` are in its sums from now on with the cost that they have."""
        row, has_terms = await self._call_record(events, late)
        if row["recorded"] == len(events):
            return row, not has_terms
        known = [event for event in events if event.outcome == "posted"]
        ids, _, _, _, _, statuses, _, cast_ids, request_ids = full_columns_of(known)
        told = await self._database.fetch(QUERIES["complete_events"], ids, statuses, cast_ids, request_ids)
        charges = [(charge["cast_id"], charge["cost_microcents"]) for charge in told]
        if charges:
            charged, _ = await self._call_record((), charges)
            self._keep_late_casts(charged, 0)
        return row, False

    async def _call_record(
        self, events: Sequence[UsageEvent], late: Sequence[tuple[str, int]]
    ) -> tuple[asyncpg.Record, bool]:
        late_ids, late_costs = zip(*late, strict=True) if late else ((), ())
        columns, terms = await self._turns.columns(events)
        last: list[str] | list[int | None] = terms or [self._turns.for_postgres(len(events))]
        query = "record_usage_on_terms" if terms else "record_usage_of_holds" if self.has_holds() else "record_usage"
        row = await self._database.fetchrow(QUERIES[query], *columns, self._cast_cost_sql, late_ids, late_costs, *last)
        assert row is not None, "a function with OUT parameters gives one row"
        return row, bool(terms)

    async def _committed(self, events: Sequence[UsageEvent], row: asyncpg.Record, late: int, *, are_held: bool) -> None:
        self._flushed.add()
        self._written.add(row["recorded"])
        self._duplicate.add(len(events) - row["recorded"])
        self._keep_late_casts(row, late)
        if events:
            await self._turns.tell(events, row, self._tell_committed, are_held=are_held)

    def _tell_committed(self, events: Sequence[UsageEvent], usages: Sequence[WindowUsage]) -> None:
        try:
            self.on_committed(events, usages)
        except Exception:  # noqa: BLE001  the events are safe; whoever listens must not stop the next ones
            _log.exception("ledger_listener_failed", events=len(events))

    def _keep_late_casts(self, row: asyncpg.Record, told: int) -> None:
        """``told`` of those there were, the first ones, went with the call that gave ``row``."""
        late = self._late_casts[told:]
        late += zip(row["casts_late"] or (), row["casts_late_microcents"] or (), strict=True)
        excess = max(len(late) - self._queue_max, 0)
        self._late_casts = late[excess:]
        self._failures["cast"].add(row["casts_refused"] + excess)
        self._failures["cast_missing"].add(row["casts_missing"])
        error: str = row["casts_error"] or ""
        if error and error != self._casts_error:
            _log.error("casts_not_charged", error=error, refused=row["casts_refused"] + excess, later=len(late))
        self._casts_error = error

    def _overflow(self, event: UsageEvent) -> None:
        if not self._full:
            self._full = True
            _log.error("ledger_full", queue_max=self._queue_max)
        self._failures["full"].add()
        if self._keep_elsewhere([event]):
            return
        if event.outcome == "expired":
            self._tell(self.on_put_off, [event])
            return
        self.refuses = self._at_bound == "refuse"
        if self._at_bound == "drop":
            self._dropped.add()
            self._tell(self.on_dropped, [event])
        else:
            self._failures["held"].add()

    def _give_up(self, events: Sequence[UsageEvent], reason: str, error: str) -> None:
        # What can never be written is not to come back from the spool either.
        if reason != "poison" and self._keep_elsewhere(events):
            return
        if reason == "closed":
            # Their holds stay in Redis, where another worker finds and charges them when this one is long gone.
            _log.error("ledger_closed_early", events=len(events), error=error, effect="charged as expired holds")
            return
        self._dropped.add(len(events))
        for event in events[:_LOGGED_MAX]:
            _log.error("usage_event_dropped", reason=reason, error=error, **event._asdict())
        if len(events) > _LOGGED_MAX:
            cost = sum(event.cost_microcents for event in events[_LOGGED_MAX:])
            _log.error("usage_events_dropped", reason=reason, events=len(events) - _LOGGED_MAX, cost_microcents=cost)
        self._tell(self.on_dropped, events)

    def _tell(self, listener: Callable[[Sequence[UsageEvent]], None], events: Sequence[UsageEvent]) -> None:
        try:
            listener(events)
        except Exception:  # noqa: BLE001  as for on_committed
            _log.exception("ledger_listener_failed", events=len(events))

    def _report(self, reason: str, error: str) -> None:
        """One line when writing begins to fail, or fails for another reason, and one when it works again."""
        if reason not in (self._failing, "conflict"):
            if reason:
                _log.warning("ledger_failing", reason=reason, error=error.partition("\n")[0], queued=len(self))
            else:
                _log.info("ledger_recovered", queued=len(self))
            self._failing = reason
        if self._full and not reason and len(self._queue) < self._queue_max // 2:
            self._full = self.refuses = False
            _log.info("ledger_no_longer_full", dropped_total=self._dropped.value)
