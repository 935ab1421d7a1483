"""The drift metrics: one worker of each gateway compares a page of accounts now and then, and begins anew at the end.

It costs one statement that reads the open windows of a page, and one script call. What is drift, and what is only on
its way, is ``reconcile``'s to say; here are only the sums.
"""

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.database import Database, StoreError
from gateway.reconcile import AccountLine, Reconciler, totals
from gateway.redis_store import RedisLostError
from gateway.redis_tell import teller_to

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.metrics import Metrics

# Accounts that are compared together: Postgres has other things to do.
_PAGE = 100
_BETWEEN = ("counters", "redis", "held", "over")

_log = structlog.get_logger()


class DriftWatch:
    """Two gauges, drift in microcents and in accounts: of the last pass over all accounts, or of the one under way
    where that has found more.
    """

    def __init__(self, database: Database, settings: "Settings", metrics: "Metrics") -> None:
        self._database = database
        self._settings = settings
        self._gauges = {name: metrics.gauge("castgate_drift_microcents", between=name) for name in _BETWEEN}
        self._accounts = metrics.gauge("castgate_drift_accounts")
        self._compared = metrics.counter("castgate_drift_accounts_compared_total")
        self._last = ""
        self._pass = dict.fromkeys(_BETWEEN, 0)
        self._pass_accounts = 0
        self._told = False

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._settings.ledger.drift_interval_s)
            try:
                await self.look()
            except (StoreError, asyncpg.PostgresError, RedisLostError) as error:
                _log.debug("drift_not_seen", error=str(error))  # that the store is away is said elsewhere

    async def look(self) -> None:
        """Compare the next page. Raises StoreError, asyncpg.PostgresError, RedisLostError."""
        async with teller_to(self._settings.redis) as redis:
            reconciler = Reconciler(self._database, redis, all_windows=False)
            page = await reconciler.page_after(self._last, _PAGE)
            if page:
                self._last = page[-1]  # also where it cannot be compared: the next ones can, perhaps
                lines = await reconciler.compare(page)
                self._compared.add(len(lines))
                self._add(lines)
                if await reconciler.page_after(self._last, 1):
                    return
        self._end_pass()

    def _add(self, lines: list[AccountLine]) -> None:
        wrong = [line for line in lines if line.has_drift]
        for name, amount in totals(wrong).items():
            if name in self._gauges:
                self._pass[name] += amount
                self._gauges[name].set(max(self._pass[name], self._gauges[name].value))
        self._pass_accounts += len(wrong)
        self._accounts.set(max(self._pass_accounts, self._accounts.value))
        if wrong and not self._told:
            self._told = True
            accounts = [line.account_id for line in wrong[:10]]
            _log.error("drift_found", accounts=accounts, **self._pass, mend="castgate reconcile --repair")

    def _end_pass(self) -> None:
        for name in _BETWEEN:
            self._gauges[name].set(self._pass[name])
        self._accounts.set(self._pass_accounts)
        if self._told and not self._pass_accounts:
            self._told = False
            _log.info("drift_gone")
        self._last = ""
        self._pass = dict.fromkeys(_BETWEEN, 0)
        self._pass_accounts = 0
