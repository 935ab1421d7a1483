"""Which workers live, as each says in Postgres: those that must put their holds in place before Redis serves again."""

import asyncio
from collections.abc import Sequence

import asyncpg
import structlog

from gateway.database import QUERIES, Database, StoreError

# A worker that died is waited for this long at most; one that lives has said so twice in that time.
SILENT_S = 12.0
PAUSE_S = 5.0
# Who asks is about to let calls wait: an answer that takes longer is none.
TIMEOUT_S = 0.25

_log = structlog.get_logger()


class Fleet:
    """All workers of all gateways on one Postgres, seen by one of them."""

    def __init__(self, database: Database, worker_id: str) -> None:
        self._database = database
        self._worker_id = worker_id

    async def living(self) -> Sequence[str]:
        """The ids of workers that live, our own among them; nothing where Postgres does not say."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):  # connecting included
                rows = await self._database.fetch(
                    QUERIES["workers_living"], self._worker_id, SILENT_S, timeout_s=TIMEOUT_S
                )
        except (StoreError, asyncpg.PostgresError, TimeoutError) as error:
            _log.debug("fleet_unknown", error=str(error))
            return ()
        return [row["worker_id"] for row in rows]

    async def run(self) -> None:
        """Say that we live, for ever."""
        while True:
            await self.living()
            await asyncio.sleep(PAUSE_S)

    async def leave(self) -> None:
        """We end: nobody need wait for us."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):  # connecting included
                await self._database.execute(QUERIES["worker_leaves"], self._worker_id, timeout_s=TIMEOUT_S)
        except (StoreError, asyncpg.PostgresError, TimeoutError) as error:
            _log.debug("fleet_not_left", error=str(error))
