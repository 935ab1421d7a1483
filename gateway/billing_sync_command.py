"""``castgate billing sync`` and the console: the one place that puts billing together outside a worker."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from zlib import crc32

import structlog

from gateway.billing import Billing
from gateway.billing_sync import Report, sync
from gateway.config import Loaded
from gateway.config.settings_stores import Redis
from gateway.database import Database
from gateway.metrics import Metrics
from gateway.payments import Payments
from gateway.redis_store import FACTS, RedisLostError
from gateway.redis_topology import topology_of

_log = structlog.get_logger()


async def sync_from_command(loaded: Loaded) -> Report:
    """One sync by the configuration. Raises what ``billing_sync.sync`` raises."""
    async with billing_of(loaded) as billing:
        return await sync(billing)


@asynccontextmanager
async def billing_of(loaded: Loaded) -> AsyncIterator[Billing]:
    """Billing by the configuration, with connections of its own, for the time of the block."""
    settings = loaded.settings
    async with AsyncExitStack() as cleanup:
        folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="castgate-"))
        metrics = Metrics(Path(folder), "sync")
        cleanup.callback(metrics.close)
        database = Database.from_settings(settings.database, metrics)
        cleanup.push_async_callback(database.close)
        payments = Payments(settings.billing)
        cleanup.push_async_callback(payments.close)
        yield Billing(
            database=database,
            payments=payments,
            rules=lambda: loaded.rules,
            tell=teller(settings.redis),
            grace_days=settings.billing.grace_days,
        )


def teller(settings: Redis) -> Callable[[str, int], Awaitable[None]]:
    """Makes a facts version known to every replica, as admission does in a worker.

    Where Redis is away they read facts anew within ``accounts.facts_ttl``.
    """

    async def tell(account_id: str, version: int) -> None:
        partition = crc32(account_id.encode()) % settings.partitions
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                link = await topology_of(settings).connect(partition, lost=lambda _: None)
                try:
                    await link.call("EVAL", FACTS.source, 1, f"cg:{{{partition}}}:workers", account_id, version)
                finally:
                    link.close()
        except (RedisLostError, TimeoutError) as error:
            _log.warning("facts_change_not_told", account=account_id, version=version, error=str(error))

    return tell
