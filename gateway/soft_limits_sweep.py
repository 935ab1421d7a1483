"""Looks at all accounts for thresholds that were reached and not announced, a page at a time, again and again.

Whoever has the lease (a row in Postgres) goes on after the last account that was looked at, whichever gateway did that.
One worker of each gateway asks for it; the supervisor starts that worker again when it dies.
"""

import asyncio
import random
import time

import asyncpg
import structlog

from gateway.database import QUERIES, Database, StoreError
from gateway.soft_limits import SoftLimits

# Accounts of a page: some tens of ms of one backend, which then rests for nine times as long.
PAGE = 500
_PAUSE_FACTOR = 9
# Longer than the statements of a page may take together.
_LEASE_S = 15.0
# How often a worker asks whether the lease is free.
_ASK_S = 5.0
# So long after its window what was announced is kept for people to see; then nobody needs it any more.
_KEPT_S = 90 * 86400.0

_log = structlog.get_logger()


class Sweep:
    """One worker's part in it."""

    def __init__(
        self, database: Database, soft_limits: SoftLimits, *, interval_s: float, ask_s: float = _ASK_S, page: int = PAGE
    ) -> None:
        """``interval_s`` is between two passes over all accounts."""
        self._database = database
        self._soft_limits = soft_limits
        self._interval_s = interval_s
        self._ask_s = min(ask_s, interval_s)
        self._page = page

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._ask_s * random.uniform(0.5, 1.0))
            try:
                await self.look()
            except (StoreError, asyncpg.PostgresError) as error:
                _log.debug("soft_limits_not_swept", error=str(error))  # that Postgres is away is said elsewhere

    async def look(self) -> bool:
        """Goes on to the end of the pass; False where somebody else does. Raises StoreError, asyncpg.PostgresError."""
        lease = await self._database.fetchrow(QUERIES["soft_limits_sweep_lease"], _LEASE_S)
        if lease is None:
            return False
        after = lease["after"]
        while True:
            began_s = time.monotonic()
            rows = await self._database.fetch(QUERIES["soft_limits_accounts"], after, self._page)
            accounts = [row["account_id"] for row in rows]
            if accounts:
                await self._soft_limits.announce(accounts)
                await self._database.execute(QUERIES["soft_limits_forget"], accounts, _KEPT_S)
            if len(accounts) < self._page:
                await self._database.execute(QUERIES["soft_limits_sweep_done"], "", self._interval_s)
                return True
            after = accounts[-1]
            await self._database.execute(QUERIES["soft_limits_sweep_done"], after, _LEASE_S)
            await asyncio.sleep(min(_PAUSE_FACTOR * (time.monotonic() - began_s), _LEASE_S / 3))
