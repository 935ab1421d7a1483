"""What a command tells Redis: the same items, by the same script, as a worker tells between its asks, and no asks.

A command is no worker: it has no book, holds nothing, and is not missed when it ends.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from zlib import crc32

from gateway.admission_settle import Settled
from gateway.redis_store import ADMIT, RedisLink, RedisLostError, Reply
from gateway.redis_topology import topology_of

if TYPE_CHECKING:
    from gateway.config.settings_stores import Redis as RedisSettings

# A command waits longer than a cast would.
CALL_TIMEOUT_S = 5.0
_BOOK_TTL_MS = 60_000
_NAME = "command"


class Teller:
    """A connection for each partition, with what is to be told to it. Raises RedisLostError where Redis is away."""

    def __init__(self, links: Sequence[RedisLink]) -> None:
        self._links = links
        self._name = f"{_NAME}-{os.urandom(8).hex()}"
        self._waiting = [Settled() for _ in links]

    def settled_of(self, account_id: str) -> Settled:
        """Where to put items of this account."""
        return self._waiting[self.partition_of(account_id)]

    def partition_of(self, account_id: str) -> int:
        """As admission does it."""
        return crc32(account_id.encode("utf-8", "surrogatepass")) % len(self._waiting)

    async def tell(self) -> None:
        """All that waits."""
        for partition, settled in enumerate(self._waiting):
            while settled.count:
                taken = settled.take()
                items = json.loads(taken.text())
                text = json.dumps([1, 0, [], [], [], items, 0, 0], separators=(",", ":"))
                prefix = f"cg:{{{partition}}}:"
                book = f"{prefix}h:{self._name}"
                try:
                    # Usage may be told in any generation; without a book of its own the script takes Redis for lost.
                    await self.call(partition, "HSET", book, "epoch", 1)
                    await self.call(partition, "PEXPIRE", book, _BOOK_TTL_MS)
                    await self.call(partition, "EVAL", ADMIT.source, 2, f"{prefix}workers", book, text)
                    await self.call(partition, "DEL", book)
                except RedisLostError:
                    settled.put_back(taken)
                    raise

    async def call(self, partition: int, *parts: str | int | bytes) -> Reply:
        """One command's reply, by the server of that partition."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await self._links[partition].call(*parts)
        except TimeoutError:
            raise RedisLostError(f"no answer within {CALL_TIMEOUT_S:g} s") from None


@asynccontextmanager
async def teller_to(settings: "RedisSettings") -> AsyncIterator[Teller]:
    """A teller for the time of the block. Raises RedisLostError."""
    links = await topology_of(settings).connect_all(settings.partitions, lost=lambda _: None)
    try:
        yield Teller(links)
    finally:
        for link in links:
            link.close()
