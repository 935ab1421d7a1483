"""Settles what dead workers held. Any living worker does, several may at once: the ledger takes each hold's event once.

The life of a hold, wherever it is (Redis' books, ``usage_holds``, the worker's own ``_open``):

    state   event                                                becomes   and
    held    the ledger has the call's event                      posted    what it cost is used
    held    the call is not charged, or its event is given up    voided    all is given back
    held    its worker is silent for hold_ttl, on_orphan charge  expired   its amount is used, by an event ``expired``
    held    its worker is silent for hold_ttl, on_orphan void    voided    all is given back
    posted, voided, expired   anything                           the same  nothing: an id is settled once

That a worker wakes after it was taken for dead, or that two sweepers find the same hold, changes nothing: the event has
the hold's id, and ``usage_events`` takes an id once.

A hold found is charged as ``expired`` with its own id and amount (or voided, where the policy says so). It stays in the
dead worker's book until the ledger has the event; if its finder dies too, the next one finds it again.
The same round forgets idempotency keys that are long over.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.admission_repeats import forget_keys
from gateway.database import QUERIES, StoreError
from gateway.ledger import UsageEvent
from gateway.redis_store import RedisLostError
from gateway.usage_events import Terms

if TYPE_CHECKING:
    from gateway.admission_lane import Lane
    from gateway.database import Database
    from gateway.metrics import Metrics

# Entries of a book taken up at once, of up to GROUP_MAX holds each: a worker that dies may leave thousands, and the
# ledger's queue is bounded. And rows of Postgres, of one hold each, in one sweep.
PAGE = 100
ROWS_PAGE = 500
CHARGE = "charge"
VOID = "void"

_log = structlog.get_logger()


class Orphans:
    """The sweeper of one worker. ``on_orphan`` says CHARGE or VOID for a policy's name."""

    def __init__(
        self,
        lanes: "list[Lane]",
        *,
        worker_id: str,
        database: "Database | None",
        hold_ttl_s: float,
        append: Callable[[UsageEvent], None],
        on_orphan: Callable[[str], str],
        keys_kept_s: float,
        metrics: "Metrics",
    ) -> None:
        self._lanes = lanes
        self._worker_id = worker_id
        self._database = database
        # The same for those found in Postgres, whose rows go when their events are written.
        self.pending_rows: set[str] = set()
        self._hold_ttl_s = hold_ttl_s
        self._append = append
        self._on_orphan = on_orphan
        self._keys_kept_s = keys_kept_s
        # Hold id -> the dead worker whose book it is in, until the ledger has its event. Bounded by what is found.
        self.pending: dict[str, str] = {}
        self._voided = metrics.counter("castgate_holds_settled_total", how="voided")

    async def run(self) -> None:
        """Sweep three times in a hold's life, for ever."""
        pause_s = self._hold_ttl_s / 3
        while True:
            await asyncio.sleep(pause_s)
            now_s = asyncio.get_running_loop().time()
            for lane in self._lanes:
                # After an outage of Redis everybody has been silent; those that live are heard of again by then.
                if lane.is_up and now_s - lane.up_since_s >= pause_s:
                    await self.sweep(lane)
            if self._database is not None:
                await self.sweep_postgres(self._database)
                with contextlib.suppress(StoreError, asyncpg.PostgresError):  # the next sweep does it
                    await forget_keys(self._database, self._keys_kept_s)

    async def sweep_postgres(self, database: "Database") -> int:
        """Take up the holds that dead workers left in Postgres. Returns how many."""
        found = 0
        try:
            rows = await database.fetch(QUERIES["orphaned_holds"], self._worker_id, self._hold_ttl_s, ROWS_PAGE)
            voided = [row["id"] for row in rows if self._on_orphan(row["policy"]) == VOID]
            if voided:
                await database.execute(QUERIES["forget_holds"], voided)
                self._voided.add(len(voided))
                found += len(voided)
        except (StoreError, asyncpg.PostgresError) as error:
            _log.debug("sweep_interrupted", error=str(error))
            return found
        for row in rows:
            hold_id = row["id"]
            if hold_id in voided or hold_id in self.pending_rows or hold_id in self.pending:
                continue
            self.pending_rows.add(hold_id)
            found += 1
            terms = Terms(*(row[name] for name in Terms._fields))
            self._charge(
                hold_id, row["account_id"], row["amount_microcents"], row["admitted_ms"], row["policy"], _or_none(terms)
            )
        if found:
            _log.warning("orphans_found", worker="in postgres", holds=found)
        return found

    async def sweep(self, lane: "Lane") -> int:
        """Take up the holds of all workers silent for hold_ttl. Returns how many."""
        silent_ms = int(self._hold_ttl_s * 1000)
        found = 0
        try:
            for worker in await lane.orphans(silent_ms):
                worker_id = worker.decode() if isinstance(worker, bytes) else str(worker)
                if worker_id != lane.worker_id:
                    found += await self._sweep_worker(lane, silent_ms, worker_id)
        except RedisLostError as error:
            _log.warning("sweep_interrupted", error=str(error))
        return found

    async def _sweep_worker(self, lane: "Lane", silent_ms: int, worker_id: str) -> int:
        cursor, found = "0", 0
        while True:
            reply = await lane.orphans(silent_ms, worker_id, cursor, PAGE)
            cursor = _text(reply[0])
            for at in range(1, len(reply), 6):
                hold_id, account_id, amount, admitted_ms, policy, terms = reply[at : at + 6]
                found += self._take_up(
                    lane,
                    worker_id,
                    _text(hold_id),
                    _text(account_id),
                    int(amount),
                    int(admitted_ms),
                    _text(policy),
                    _terms_in(_text(terms)),
                )
            if cursor == "0":
                break
        if found:
            _log.warning("orphans_found", worker=worker_id, holds=found)
        return found

    def _take_up(
        self,
        lane: "Lane",
        worker_id: str,
        hold_id: str,
        account_id: str,
        amount: int,
        admitted_ms: int,
        policy: str,
        terms: Terms | None,
    ) -> bool:
        if hold_id in self.pending or hold_id in self.pending_rows:
            return False
        if amount == 0 or not account_id or self._on_orphan(policy) == VOID:
            lane.settled.remove(worker_id, (hold_id,), posted=False)
            lane.settle_soon()
            self._voided.add()
            return True
        self.pending[hold_id] = worker_id
        self._charge(hold_id, account_id, amount, admitted_ms, policy, terms)
        return True

    def _charge(
        self, hold_id: str, account_id: str, amount: int, admitted_ms: int, policy: str, terms: Terms | None
    ) -> None:
        self._append(
            UsageEvent(
                event_id=hold_id,
                account_id=account_id,
                policy=policy,
                occurred_ms=admitted_ms,
                cost_microcents=amount,
                upstream_status=0,
                outcome="expired",
                cast_id=None,
                request_id=None,
                terms=terms,
            )
        )


def _or_none(terms: Terms) -> Terms | None:
    return terms if any(terms) else None


def _terms_in(text: str) -> Terms | None:
    """As ``lua/orphans.lua`` gives them; blank where there are none."""
    return _or_none(Terms(*(None if part is False else part for part in json.loads(text)))) if text else None


def _text(value: bytes | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
