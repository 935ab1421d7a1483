"""Asks whose account is not known well enough, here or in Redis, wait here while Postgres is read.

However many asks of however many accounts wait: one statement for all that waits when it begins, and one at a time.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import asyncpg
import structlog

from gateway.accounts import NOT_LOADED, parts_of
from gateway.admission_batch import Ask, Known, windows_at
from gateway.admission_settle import Seed, Usage
from gateway.database import StoreError
from gateway.policy.free_tier import is_tier, tier_parts
from gateway.policy.periods import Window, window_at

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.admission_lane import Lane
    from gateway.tasks import Tasks

# Accounts read together; Accounts splits what is too much for one statement.
ACCOUNTS_MAX = 2000
# Accounts seeded together when Redis has lost what it knew of all; then there is a pause of the time that this took.
RESEED_MAX = 200
# Until that is tried again, where Postgres is away as well.
RESEED_PAUSE_S = 1.0
# While Postgres is away: how long a window that began meanwhile is trusted to begin with nothing used.
ROLLING_S = 1.0

_log = structlog.get_logger()


class Facts(Protocol):
    """What is asked of ``gateway.accounts.Accounts``."""

    async def load(self, accounts: "Sequence[Account]") -> None:
        """Read their facts. Raises StoreError."""

    def recent(self) -> "Sequence[Account]":
        """Those that are remembered, the last used first."""

    async def seed(self, wanted: "Sequence[tuple[Account, Mapping[str, Window]]]") -> Mapping[str, Mapping[str, int]]:
        """Their facts, and microcents used by account id and kind. Raises StoreError."""


class _Waiting:
    __slots__ = ("account", "asks", "at_least", "exactly", "lane", "seed")

    def __init__(self, account: "Account", lane: "Lane") -> None:
        self.account = account
        self.lane = lane
        self.asks: list[Ask] = []
        self.seed = False
        self.exactly = False
        self.at_least = NOT_LOADED


class Refresh:
    """The waiting room. ``again`` takes an ask that may be sent once more, ``undecided`` those that can not."""

    def __init__(
        self,
        facts: Facts,
        tasks: "Tasks",
        clock: Callable[[], float],
        again: Callable[[Ask], None],
        undecided: Callable[[list[Ask]], None],
    ) -> None:
        self._facts = facts
        self._tasks = tasks
        self._clock = clock
        self._again = again
        self._undecided = undecided
        self._waiting: dict[Account, _Waiting] = {}
        self._running = False

    def load(self, ask: Ask, account: "Account", *, at_least: int = NOT_LOADED) -> None:
        """The facts are not known, or older than those Redis knows, which are of version ``at_least``."""
        waiting = self._enter(ask, account)
        waiting.at_least = max(waiting.at_least, at_least)

    def seed(self, ask: Ask, account: "Account") -> None:
        """Redis does not know what was used."""
        self._enter(ask, account).seed = True

    def _enter(self, ask: Ask, account: "Account") -> _Waiting:
        waiting = self._waiting.get(account)
        if waiting is None:
            waiting = self._waiting[account] = _Waiting(account, ask.lane)
        waiting.asks.append(ask)
        if not self._running:
            self._running = True
            self._tasks.start("admission.refresh", self._run())
        return waiting

    async def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while self._waiting:
                batch = [self._waiting.pop(account) for account in list(self._waiting)[:ACCOUNTS_MAX]]
                await self._load([waiting for waiting in batch if not waiting.seed])
                await self._seed([waiting for waiting in batch if waiting.seed])
        finally:
            self._running = False
            left, self._waiting = self._waiting, {}
            for waiting in (*batch, *left.values()):  # cancelled, or a fault of ours: nobody is left waiting
                self._give_up(waiting)

    async def _load(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        try:
            await self._facts.load([waiting.account for waiting in batch])
        except (StoreError, asyncpg.PostgresError) as error:
            _log.warning("facts_not_loaded", accounts=len(batch), error=str(error))
            for waiting in batch:
                self._go_by_old_facts(waiting)
            return
        behind = []
        for waiting in batch:
            if waiting.account.version < waiting.at_least:
                # Redis hears of a version after its commit, so a later look at the ledger must find it or a newer one:
                # where it does not, the ledger was restored or replaced, and what Redis knows is of one that is gone.
                account = waiting.account
                _log.warning("ledger_behind_redis", account=account.account_id, version=account.version)
                waiting.exactly = True
                behind.append(waiting)
            else:
                self._retry(waiting)
        await self._seed(behind)

    def reseed(self, lane: "Lane", lane_of: Callable[[str], "Lane"]) -> None:
        """Redis lost what it knew: tell it again of the lane's accounts, before they call and Postgres is away."""
        self._tasks.start("admission.reseed", self._reseed(lane, lane.generation, lane_of))

    async def _reseed(self, lane: "Lane", generation: int, lane_of: Callable[[str], "Lane"]) -> None:
        accounts = self._facts.recent()
        for begin in range(0, len(accounts), RESEED_MAX):
            batch = [account for account in accounts[begin : begin + RESEED_MAX] if lane_of(account.account_id) is lane]
            while lane.generation == generation:
                started_s = self._clock()
                # Less those that have called meanwhile.
                batch = [account for account in batch if account.seeded != generation and account.limits]
                try:
                    await self._tell_used([_Waiting(account, lane) for account in batch])
                except (StoreError, asyncpg.PostgresError) as error:
                    _log.debug("accounts_not_reseeded", accounts=len(batch), error=str(error))
                    await asyncio.sleep(RESEED_PAUSE_S)
                    continue
                lane.settle_soon()
                await asyncio.sleep(self._clock() - started_s)
                break

    async def _seed(self, batch: list[_Waiting]) -> None:
        try:
            await self._tell_used(batch)
        except (StoreError, asyncpg.PostgresError) as error:
            _log.warning("accounts_not_seeded", accounts=len(batch), error=str(error))
            for waiting in batch:
                self._roll(waiting)
            return
        for waiting in batch:
            self._retry(waiting)

    async def _tell_used(self, batch: list[_Waiting]) -> None:
        """Raises StoreError, asyncpg.PostgresError."""
        if not batch:
            return
        wanted = []
        generations = [waiting.lane.generation for waiting in batch]
        for waiting in batch:
            limits = waiting.account.limits
            windows = windows_at(limits, waiting.lane.now_ms)
            kinds = {limit.kind: window for limit, window in zip(limits, windows, strict=True)}
            # Also those of other calls: until Redis is told what they have used, all their holds count at their price.
            names = {ask.shape.tier_kind for ask in waiting.asks} | waiting.account.seeded_tiers.keys()
            for kind in names - {""}:
                kinds[kind] = window_at(*parts_of(tier_parts(kind)[1]), waiting.lane.now_ms)
            wanted.append((waiting.account, kinds))
        used = await self._facts.seed(wanted)
        for waiting, (account, windows_of), generation in zip(batch, wanted, generations, strict=True):
            sums = used[account.account_id]
            usage: Usage = {}
            tiers: Usage = {}
            for kind, amount in sums.items():
                (tiers if is_tier(kind) else usage)[kind] = windows_of[kind].start_ms, amount
            waiting.lane.settled.seed(
                Seed(
                    account_id=account.account_id,
                    version=account.version,
                    usage=usage,
                    exactly=waiting.exactly,
                    alone=account.seeded != generation,
                    tiers=tiers,
                )
            )
            account.seeded_tiers = {**account.seeded_tiers, **dict.fromkeys(tiers, generation)}
            account.admission = None
            account.seeded = generation

    def _roll(self, waiting: _Waiting) -> None:
        """Postgres is away: Redis may begin a new window with nothing used, if it knows the one before."""
        account, lane = waiting.account, waiting.lane
        known = account.admission
        now_s = self._clock()
        if isinstance(known, Known) and known.rolling_until_s > now_s:
            self._give_up(waiting)  # Redis was asked so already: it knows nothing of this account
            return
        account.admission = Known(account, lane, windows_at(account.limits, lane.now_ms), now_s + ROLLING_S)
        self._retry(waiting)

    def _go_by_old_facts(self, waiting: _Waiting) -> None:
        """Postgres is away: the limits that were known are better than none, and Redis goes on to be exact by them.

        For a moment, and until Redis hears of another change.
        """
        account, lane = waiting.account, waiting.lane
        if account.version == NOT_LOADED:
            self._give_up(waiting)
            return
        known = account.admission
        now_s = self._clock()
        if not (isinstance(known, Known) and known.version >= waiting.at_least and known.rolling_until_s > now_s):
            windows = windows_at(account.limits, lane.now_ms)
            account.admission = Known(account, lane, windows, now_s + ROLLING_S, waiting.at_least)
        self._retry(waiting)

    def _retry(self, waiting: _Waiting) -> None:
        asks, waiting.asks = waiting.asks, []
        for ask in asks:
            self._again(ask)

    def _give_up(self, waiting: _Waiting) -> None:
        asks, waiting.asks = waiting.asks, []
        self._undecided(asks)
