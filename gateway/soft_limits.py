"""Soft limits: a threshold of a budget that is reached is announced once, whoever finds out first, and however often.

Two ways to find out. Every commit of the ledger tells what accounts have used (``committed``); that is compared in
memory with the next threshold of each, and only where it is reached, or the account is not known here, is Postgres
asked. And a sweep (``soft_limits_sweep``) looks at all accounts: for what nobody noticed, since a worker was killed
after the ledger's commit, or a limit was lowered.

Both end in one statement (soft_limits_announce in queries.sql), which compares what is committed with the limits as
they are and inserts what is missing, with the message for the webhook. What is known here only decides when to ask, so
it may be old or wrong: whoever inserted a row announces it, and nobody else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.accounts import NOT_LOADED
from gateway.database import QUERIES, StoreError
from gateway.policy.answers import instant_text
from gateway.policy.money import cents_text
from gateway.policy.periods import FOREVER_MS
from gateway.policy.thresholds import BudgetUse, Threshold, thresholds_of, use_of

if TYPE_CHECKING:
    from gateway.accounts import Account, Accounts
    from gateway.database import Database
    from gateway.metrics import Counter, Metrics
    from gateway.policy.budgets import BudgetLimit
    from gateway.policy.rules import Rules
    from gateway.tasks import Tasks
    from gateway.usage_events import WindowUsage

# Accounts of one statement: some tens of ms of Postgres.
BATCH_MAX = 500
# Accounts that wait while Postgres is away. Those beyond are the sweep's to find.
DUE_MAX = 100_000
# As in soft_limits_announce: an event may be late for its window, but not by more than this.
LATE_MS = 3_600_000
NEVER_MICROCENTS = 2**63
_DISTINCT_MAX = 4096
_PAUSE_MIN_S = 0.1
_PAUSE_MAX_S = 5.0
_CLOSE_TIMEOUT_S = 1.0

_log = structlog.get_logger()


class Standing:
    """How far one kind of budget is used, as this worker last heard."""

    __slots__ = ("end_ms", "kind", "limit", "next_microcents", "start_ms", "thresholds", "used_microcents")

    def __init__(self, kind: str, limit: BudgetLimit, thresholds: tuple[Threshold, ...]) -> None:
        self.kind = kind
        self.limit = limit
        self.thresholds = thresholds  # lowest first, at least one
        self.start_ms = -1
        self.end_ms = -1
        self.used_microcents = 0
        self.next_microcents = thresholds[0].amount_microcents  # of a window not heard of yet


class Watch:
    """What soft limits know of an account; made of its facts and kept until they change."""

    __slots__ = ("limits", "soft_limits", "standings", "thresholds")

    def __init__(self, account: Account, thresholds: Mapping[str, tuple[Threshold, ...]]) -> None:
        self.limits = account.limits
        self.soft_limits = account.soft_limits
        self.thresholds = thresholds
        # Most accounts have one or two. The names are those of ``thresholds``, which all with the same budgets share.
        self.standings = tuple(
            [
                Standing(kind, limit, of_kind)
                for kind, of_kind in thresholds.items()
                for limit in account.limits
                if limit.kind == kind
            ]
        )

    def of(self, kind: str) -> Standing | None:
        """That of one kind of budget."""
        for standing in self.standings:
            if standing.kind == kind:
                return standing
        return None

    def take_over(self, other: Watch) -> None:
        """What was used does not change with the facts; what is next is asked anew."""
        for standing in self.standings:
            known = other.of(standing.kind)
            if known is not None:
                standing.start_ms = known.start_ms
                standing.end_ms = known.end_ms
                standing.used_microcents = known.used_microcents


class SoftLimits:
    """The soft limits of one worker."""

    def __init__(
        self,
        *,
        database: Database,
        accounts: Accounts,
        rules: Callable[[], Rules],
        tasks: Tasks,
        metrics: Metrics,
        queued: Callable[[], None] | None,
    ) -> None:
        """``queued`` is told that messages for the webhook were written; None: there is no webhook."""
        self._database = database
        self._accounts = accounts
        self._rules = rules
        self._tasks = tasks
        self._metrics = metrics
        self._queued = queued
        self._due: dict[str, None] = {}  # in order of coming
        self._task: asyncio.Task[None] | None = None
        self._plans: tuple[Rules, Sequence[object]] | None = None
        self._counters: dict[str, Counter] = {}
        self._failing = False
        self._closing = False

    def committed(self, usages: Iterable[WindowUsage]) -> None:
        """What accounts have used, by the ledger's last write or a counter that was read. No IO."""
        accounts = self._accounts
        remembered = accounts.remembered
        for account_id, kind, start_ms, end_ms, used_microcents in usages:
            # What ``met`` does first, which is interpreted: this is done for each account of each write.
            account = remembered.get(account_id)
            if account is None or account.version == NOT_LOADED:
                account = accounts.met(account_id)
                if account is None:
                    self._look_soon(account_id)
                    continue
            standing = self._watch(account).of(kind)
            if standing is None:
                continue
            if start_ms > standing.start_ms:
                standing.start_ms = start_ms
                standing.end_ms = end_ms
                standing.used_microcents = 0
                standing.next_microcents = standing.thresholds[0].amount_microcents
            elif start_ms < standing.start_ms:
                # An event of a window that is over.
                if used_microcents >= standing.thresholds[0].amount_microcents and _is_open(end_ms):
                    self._look_soon(account_id)
                continue
            # What was read may be older than what was written.
            standing.used_microcents = max(standing.used_microcents, used_microcents)
            if used_microcents >= standing.next_microcents:
                standing.next_microcents = next(
                    (one.amount_microcents for one in standing.thresholds if one.amount_microcents > used_microcents),
                    NEVER_MICROCENTS,
                )
                if _is_open(end_ms):
                    self._look_soon(account_id)

    def use_of(self, account: Account) -> BudgetUse | None:
        """The budget that is used most of those past a threshold, in its window that now is."""
        if account.watch is None:
            return None
        now_ms = time.time() * 1000
        found = None
        for standing in self._watch(account).standings:
            if standing.start_ms <= now_ms < standing.end_ms:
                use = use_of(standing.limit, standing.thresholds, standing.used_microcents)
                if use is not None and (found is None or use.percent > found.percent):
                    found = use
        return found

    async def announce(self, account_ids: Sequence[str]) -> None:
        """Announces what the accounts have reached and nobody announced. Raises StoreError, asyncpg.PostgresError."""
        rows = await self._database.fetch(
            QUERIES["soft_limits_announce"], account_ids, *self._plan_columns(), self._queued is not None
        )
        for row in rows:
            self._announced(row)
        if rows and self._queued is not None:
            self._queued()

    async def close(self) -> None:
        """Announces what is due, within a second; what is left is the sweep's to find."""
        self._closing = True
        if self._task is not None:
            _, pending = await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT_S)
            for task in pending:
                task.cancel()

    def _watch(self, account: Account) -> Watch:
        watch = account.watch
        if isinstance(watch, Watch) and watch.limits is account.limits and watch.soft_limits is account.soft_limits:
            return watch
        percents = self._rules().plan_of(account.plan).soft_limit_percents
        thresholds = _thresholds_of(account.limits, tuple(account.soft_limits.items()), tuple(percents))
        if isinstance(watch, Watch) and watch.thresholds == thresholds and watch.limits == account.limits:
            # The facts were read again, and say the same.
            watch.limits = account.limits
            watch.soft_limits = account.soft_limits
            return watch
        account.watch = made = Watch(account, thresholds)
        if isinstance(watch, Watch):
            made.take_over(watch)
        return made

    def _look_soon(self, account_id: str) -> None:
        if len(self._due) < DUE_MAX:
            self._due[account_id] = None
        if self._task is None and not self._closing:
            self._task = self._tasks.start("soft_limits.announce", self._announce_due())

    async def _announce_due(self) -> None:
        pause_s = _PAUSE_MIN_S
        try:
            while self._due:
                batch = list(islice(self._due, BATCH_MAX))
                for account_id in batch:  # before asking: what is reached meanwhile is due again
                    del self._due[account_id]
                try:
                    await self.announce(batch)
                except (StoreError, asyncpg.PostgresError) as error:
                    self._due.update(dict.fromkeys(batch))
                    self._report(str(error).partition("\n")[0])
                    if self._closing:
                        return
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                    pause_s = min(2 * pause_s, _PAUSE_MAX_S)
                else:
                    pause_s = _PAUSE_MIN_S
                    self._report("")
        finally:
            self._task = None

    def _announced(self, row: asyncpg.Record) -> None:
        threshold = row["threshold"]
        counter = self._counters.get(threshold)
        if counter is None:
            counter = self._metrics.counter("castgate_soft_limit_total", threshold=threshold)
            self._counters[threshold] = counter
        counter.add()
        end_ms = int(row["window_end"].timestamp()) * 1000  # windows begin and end with a second
        _log.info(
            "soft_limit_reached",
            announcement=row["id"],
            account=row["account_id"],
            plan=row["plan"],
            period=row["period"],
            threshold=threshold,
            used_cents=cents_text(row["used_microcents"]),
            limit_cents=cents_text(row["limit_microcents"]),
            resets_at=None if end_ms >= FOREVER_MS else instant_text(end_ms),
        )

    def _report(self, error: str) -> None:
        if bool(error) != self._failing:
            self._failing = bool(error)
            if error:
                _log.warning("soft_limits_failing", error=error)
            else:
                _log.info("soft_limits_recovered")

    def _plan_columns(self) -> Sequence[object]:
        """What the statement is to know of plans, in its order."""
        rules = self._rules()
        if self._plans is None or self._plans[0] is not rules:
            ceilings = [(plan.name, limit) for plan in rules.plans.values() for limit in plan.budgets]
            shares = [(plan.name, percent) for plan in rules.plans.values() for percent in plan.soft_limit_percents]
            names = sorted(rules.plans, key=lambda name: name != rules.default_plan)
            self._plans = rules, (*_columns(ceilings), [name for name, _ in shares], [one for _, one in shares], names)
        return self._plans[1]


@lru_cache(maxsize=_DISTINCT_MAX)
def _thresholds_of(
    limits: tuple[BudgetLimit, ...], soft_limits: tuple[tuple[str, int], ...], percents: tuple[int, ...]
) -> Mapping[str, tuple[Threshold, ...]]:
    """One mapping for all accounts with the same budgets, of which nearly all have some that others have."""
    return thresholds_of(limits, dict(soft_limits), percents)


def _columns(ceilings: Sequence[tuple[str, BudgetLimit]]) -> tuple[list[object], ...]:
    return (
        [plan for plan, _ in ceilings],
        [limit.period for _, limit in ceilings],
        [limit.time_zone for _, limit in ceilings],
        [limit.week_start for _, limit in ceilings],
        [limit.hard_limit_microcents for _, limit in ceilings],
    )


def _is_open(end_ms: int) -> bool:
    return end_ms + LATE_MS > time.time() * 1000
