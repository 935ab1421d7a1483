"""Phase 1's own limit: so many casts a minute and user, a fixed window in Redis."""

import logging
import math
import uuid

from redis.asyncio import Redis
from redis.exceptions import RedisError

from upstream_stub.refusals import RefusalError

WINDOW_MS = 60_000

# Counts, and tells what is left of the window. The window begins with its first cast.
_COUNT_LUA = """
local count = redis.call('INCR', KEYS[1])
local left_ms = redis.call('PTTL', KEYS[1])
if left_ms < 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    left_ms = tonumber(ARGV[1])
end
return {count, left_ms}
"""

log = logging.getLogger("upstream_stub")


class RateLimit:
    """`limit_per_minute` 0 is off. Without Redis casts pass: Phase 1 would rather serve too much than nothing."""

    def __init__(self, redis: Redis, limit_per_minute: int) -> None:
        self._limit = limit_per_minute
        self._count = redis.register_script(_COUNT_LUA)

    async def take(self, user_id: uuid.UUID) -> None:
        """Count one cast; raises a 429 when it is one too many. Refused casts count as well, as in Phase 1."""
        if self._limit == 0:
            return
        try:
            count, left_ms = await self._count(keys=[f"ratelimit:cast:{user_id}"], args=[WINDOW_MS])
        except (RedisError, OSError) as error:
            log.warning("rate limit is off for this cast, Redis says: %s", error)
            return
        if count > self._limit:
            raise RefusalError(
                429,
                "too_many_requests",
                f"No more than {self._limit} casts a minute.",
                {"Retry-After": str(max(1, math.ceil(left_ms / 1000)))},
            )
