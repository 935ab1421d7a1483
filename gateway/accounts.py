"""What the gateway knows of accounts: plan, budgets and their version; and the counters that admission starts from.

Why seeding and the ledger's writes never miss an event or count it twice, in whatever order they meet. Call E an event,
C a counter (one window of one account) that does not exist yet, T the account's total row, which is its lock. A writer
runs (1) insert E, (2) lock T, (3) add E's cost to the counters that exist, commit. A seeder runs (a) lock T, (b) insert
C with the sum of the window's events, commit. Every step is a statement with its own snapshot (READ COMMITTED), so it
sees what was committed before the step began. One of the two locks T first, and the other waits for its commit:
- the writer first: E is committed when (b) begins, so C's sum has E in it. The writer's (3) ran while C did not exist:
  E is counted once. (If (1) of the writer comes while the seeder waits at (a), nothing changes: (b) has not begun.)
- the seeder first: the writer is at (1) or before it, E is not committed and C's sum does not have it; the writer's (3)
  begins after the seeder's commit, sees C and adds E: once. This is why (3) must not share a snapshot with (1), or be
  part of the same statement as (2): a snapshot from before the wait does not show C, and E would be lost for good.
Two seeders of C: the second finds C when it has the lock, and its insert does nothing. Two writers of the same E
(a replay): the primary key makes the second wait for the first at (1) and then skip E; only who inserted E adds it.
A writer that dies between (1) and its commit leaves nothing. No deadlock: everybody takes events in order of id, then
locks in order of account, and touches other counters only under the lock. At REPEATABLE READ all of this is false, so
the functions refuse to run there. Reading counters that all exist takes no lock: at every instant, a committed counter
is the sum of the committed events. The steps are in migrations/0006_usage_functions.sql.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import asyncpg
import structlog

from gateway.database import QUERIES, Database, StoreError
from gateway.policy.budgets import BudgetLimit, effective_limits
from gateway.policy.free_tier import is_tier, tier_parts
from gateway.policy.periods import time_zone_names
from gateway.policy.rules import Plan, Rules
from gateway.usage_events import WindowUsage

if TYPE_CHECKING:
    from gateway.admission_batch import Known
    from gateway.policy.periods import Window
    from gateway.tasks import Tasks

# Accounts read or seeded by one statement: some 10 ms of Postgres, so that nobody behind it waits long for its locks.
_BATCH_MAX = 500
# After a failed refresh, before the next one.
_REFRESH_PAUSE_S = 1.0
# Budgets that differ, which are kept so that accounts with the same ones share them: half a KiB for each account.
_DISTINCT_MAX = 4096
NOT_LOADED = -1
_NO_SOFT_LIMITS: Mapping[str, int] = {}
_NO_TIERS: Mapping[str, int] = {}

_log = structlog.get_logger()


class Account:
    """One account; one object for each id in a worker, whoever asks.

    ``version`` is NOT_LOADED until the facts were read. ``admission`` belongs to admission: whatever it derives from
    the facts; a change of facts or rules resets it to None.
    """

    __slots__ = (
        "__weakref__",
        "account_id",
        "admission",
        "limits",
        "loaded",
        "own",
        "plan",
        "seeded",
        "seeded_tiers",
        "soft_limits",
        "stored_plan",
        "version",
        "watch",
    )

    def __init__(self, account_id: str) -> None:
        self.account_id = account_id
        self.plan = ""  # the plan that counts; the stored one may be None, or have left the rules
        self.stored_plan: str | None = None
        self.own: tuple[BudgetLimit, ...] = ()
        self.limits: tuple[BudgetLimit, ...] = ()
        self.soft_limits = _NO_SOFT_LIMITS  # of its own budgets that have one, in microcents by kind
        self.version = NOT_LOADED
        self.loaded = float("-inf")  # when the facts were last read, by the clock of Accounts
        self.admission: Known | None = None
        # Admission's too, and kept: the generation of Redis' data that was told by us what the account had used.
        self.seeded = 0
        self.watch: object | None = None  # soft limits': how far their thresholds are used
        self.seeded_tiers = _NO_TIERS  # the same for each free tier

    def __repr__(self) -> str:
        return f"Account({self.account_id!r}, plan={self.plan!r}, version={self.version})"


class Accounts:
    """The accounts of one worker. What somebody holds is never forgotten; of the others ``entries_max`` stay."""

    def __init__(
        self,
        database: Database,
        rules: Callable[[], Rules],
        tasks: Tasks,
        *,
        entries_max: int = 100_000,
        facts_ttl_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Told what accounts have used in the windows that were seeded.
        self.on_seeded: Callable[[Sequence[WindowUsage]], None] = _nobody_listens
        # The last used last; for reading alone.
        self.remembered: OrderedDict[str, Account] = OrderedDict()
        self._database = database
        self._rules = rules
        self._tasks = tasks
        self._entries_max = entries_max
        self._facts_ttl_s = facts_ttl_s
        self._clock = clock
        self._living: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._endings: WeakKeyDictionary[Account, asyncio.TimerHandle] = WeakKeyDictionary()
        self._due: dict[str, Account] = {}
        self._limits: dict[tuple[tuple[BudgetLimit, ...], str], tuple[Plan, tuple[BudgetLimit, ...]]] = {}
        self._refreshing = False
        self._refresh_after = float("-inf")

    def get(self, account_id: str) -> Account:
        """The account, perhaps not loaded yet. No IO."""
        account = self._living.get(account_id)
        if account is None:
            account = self._living[account_id] = Account(account_id)
        self.remembered[account_id] = account
        self.remembered.move_to_end(account_id)
        if len(self.remembered) > self._entries_max:
            self.remembered.popitem(last=False)
        return account

    def met(self, account_id: str) -> Account | None:
        """The account, if this worker has it and knows its facts."""
        # The first is a look-up in C, the second is Python's.
        account = self.remembered.get(account_id) or self._living.get(account_id)
        return account if account is not None and account.version != NOT_LOADED else None

    def recent(self) -> Sequence[Account]:
        """Those that are remembered, the last used first."""
        return list(reversed(self.remembered.values()))

    def due_s(self, account: Account) -> float:
        """When the account's facts should be read again, by the clock given."""
        return account.loaded + self._facts_ttl_s

    def refresh(self, account: Account) -> None:
        """Read the account's facts again in the background if they are due; the old ones serve meanwhile."""
        now = self._clock()
        if now < self.due_s(account) or now < self._refresh_after or len(self._due) >= self._entries_max:
            return
        self._due[account.account_id] = account
        if not self._refreshing:
            self._refreshing = True
            self._tasks.start("accounts.refresh", self._refresh())

    async def load(self, accounts: Sequence[Account]) -> None:
        """Read the facts of ``accounts``. Raises StoreError while Postgres is away, asyncpg.PostgresError."""
        for begin in range(0, len(accounts), _BATCH_MAX):
            batch = accounts[begin : begin + _BATCH_MAX]
            started = self._clock()
            rows = await self._database.fetch(QUERIES["load_facts"], [account.account_id for account in batch])
            self._apply(batch, rows, started)

    async def seed(self, wanted: Sequence[tuple[Account, Mapping[str, Window]]]) -> Mapping[str, Mapping[str, int]]:
        """What each account used in its windows (by ``BudgetLimit.kind``), from counters made where they were missing;
        and what free tiers (``FreeTier.kind``) have counted in theirs.

        Reads the facts of the same accounts again. Returns microcents by kind by account id. Raises StoreError while
        Postgres is away, asyncpg.PostgresError; what was seeded before stays.
        """
        used: dict[str, dict[str, int]] = {}
        for begin in range(0, len(wanted), _BATCH_MAX):
            batch = wanted[begin : begin + _BATCH_MAX]
            asked = [
                (account.account_id, kind, *parts_of(kind), window.start_ms, window.end_ms)
                for account, windows in batch
                for kind, window in windows.items()
                if not is_tier(kind)
            ]
            tiers = [
                (account.account_id, tier_parts(kind)[0], kind, window.start_ms, window.end_ms)
                for account, windows in batch
                for kind, window in windows.items()
                if is_tier(kind)
            ]
            counted: list[asyncpg.Record] = []
            counters: list[int] = []
            started = self._clock()
            async with self._database.connection() as connection:
                # Facts first: should they change in between, the version is old and admission hears so from Redis.
                rows = await connection.fetch(QUERIES["load_facts"], [account.account_id for account, _ in batch])
                if asked:
                    account_ids, _, periods, zones, week_starts, starts, ends = zip(*asked, strict=True)
                    counters = await connection.fetchval(
                        QUERIES["seed_usage"], account_ids, periods, zones, week_starts, starts, ends
                    )
                if tiers:
                    counted = await connection.fetch(QUERIES["free_units_used"], *zip(*tiers, strict=True))
            self._apply([account for account, _ in batch], rows, started)
            for account, _ in batch:
                used.setdefault(account.account_id, {})
            for (account_id, kind, *_), microcents in zip(asked, counters, strict=True):
                used[account_id][kind] = microcents
            self.on_seeded(
                [
                    WindowUsage(account_id, kind, start_ms, end_ms, microcents)
                    for (account_id, kind, _, _, _, start_ms, end_ms), microcents in zip(asked, counters, strict=True)
                ]
            )
            for (account_id, _, kind, *_), row in zip(tiers, counted, strict=True):
                used[account_id][kind] = row["used_units"]
        return used

    def rules_changed(self) -> None:
        """Plans changed: every account's limits are worked out anew. About 0.5 µs an account."""
        rules = self._rules()
        for account in list(self._living.values()):
            plan = rules.plan_of(account.stored_plan)
            account.plan = plan.name
            account.limits = self._limits_of(account.own, plan)
            account.admission = None

    async def _refresh(self) -> None:
        try:
            while self._due:
                batch = [self._due.popitem()[1] for _ in range(min(len(self._due), _BATCH_MAX))]
                await self.load(batch)
        except (StoreError, asyncpg.PostgresError) as error:
            # The old facts go on serving; whoever meets a due account asks again, after a pause.
            self._due.clear()
            self._refresh_after = self._clock() + _REFRESH_PAUSE_S
            _log.warning("accounts_refresh_failed", error=str(error))
        finally:
            self._refreshing = False

    def _apply(self, accounts: Sequence[Account], rows: Sequence[asyncpg.Record], started: float) -> None:
        rules = self._rules()
        now = self._clock()
        found = {row["account_id"]: row for row in rows}
        for account in accounts:
            row = found[account.account_id]
            if row["facts_version"] < account.version and started < account.loaded:
                continue  # an older answer that overtook a newer one
            plan = rules.plan_of(row["plan"])
            own, soft_limits = _own_limits(row["budgets"])
            limits = self._limits_of(own, plan)
            if limits != account.limits or plan.name != account.plan or row["facts_version"] != account.version:
                account.admission = None
            account.plan = plan.name
            account.stored_plan = row["plan"]
            account.own = own
            account.limits = limits
            account.soft_limits = soft_limits
            account.version = row["facts_version"]
            account.loaded = now
            self._end_plan_in(account, row["plan_left_s"])

    def _limits_of(self, own: tuple[BudgetLimit, ...], plan: Plan) -> tuple[BudgetLimit, ...]:
        """One object for all accounts with the same budgets and plan.

        Soft limits look whether it is the same object: another plan, or this one in new rules, may have other shares.
        """
        key = own, plan.name
        made_for, limits = self._limits.get(key, (None, ()))
        if made_for is not plan:
            if len(self._limits) >= _DISTINCT_MAX:
                self._limits.clear()
            limits = effective_limits(own, plan.budgets)
            self._limits[key] = plan, limits
        return limits

    def _end_plan_in(self, account: Account, left_s: float | None) -> None:
        """The stored plan counts for so long (None: without end), and no call admitted later has it any more."""
        ending = self._endings.pop(account, None)
        if ending is not None:
            ending.cancel()
        if left_s is not None:
            # The timer does not keep the account; one that is forgotten is read anew, and finds its plan over.
            self._endings[account] = asyncio.get_running_loop().call_later(left_s, self._end_plan, ref(account))

    def _end_plan(self, forgettable: ref[Account]) -> None:
        account = forgettable()
        if account is not None:
            self._endings.pop(account, None)
            account.stored_plan = None
            plan = self._rules().plan_of(None)
            account.plan = plan.name
            account.limits = self._limits_of(account.own, plan)
            account.admission = None


def _nobody_listens(_: Sequence[WindowUsage]) -> None:
    pass


@lru_cache(maxsize=_DISTINCT_MAX)
def _own_limits(budgets: str | None) -> tuple[tuple[BudgetLimit, ...], Mapping[str, int]]:
    """The rows of ``budgets`` as load_facts gives them: hard limits, and soft ones in microcents by kind."""
    if budgets is None:
        return (), _NO_SOFT_LIMITS
    limits = []
    soft_limits = {}
    for period, hard_limit_microcents, time_zone, week_start, soft_limit_microcents in json.loads(budgets):
        limit = BudgetLimit(
            period=period,
            hard_limit_microcents=hard_limit_microcents,
            time_zone=_known_zone(time_zone),
            week_start=week_start if period == "weekly" else 1,
        )
        limits.append(limit)
        if soft_limit_microcents is not None:
            soft_limits[limit.kind] = soft_limit_microcents
    return tuple(limits), soft_limits


@lru_cache(maxsize=4096)
def _known_zone(name: str) -> str:
    """The zone, or UTC where this machine does not know it: a budget must go on to hold."""
    if name in time_zone_names():
        return name
    _log.error("time_zone_unknown", time_zone=name, instead="UTC")
    return "UTC"


@lru_cache(maxsize=4096)
def parts_of(kind: str) -> tuple[str, str, int]:
    """Period, time zone and week start of a ``BudgetLimit.kind``; zones have slashes of their own."""
    period, _, rest = kind.partition("/")
    time_zone, _, week_start = rest.rpartition("/")
    return period, time_zone, int(week_start)
