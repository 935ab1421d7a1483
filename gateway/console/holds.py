"""What calls under way hold of an account: as Redis has it, or Postgres while Redis is away."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from gateway.database import QUERIES, Database
from gateway.policy.money import cents_text
from gateway.redis_store import RedisLostError, read_script
from gateway.redis_tell import teller_to

if TYPE_CHECKING:
    from gateway.config.settings_stores import Redis

HOLDS_MAX = 50  # that are listed, the oldest first
# Entries, of a call or a group of calls; Redis serves nobody else while these are looked through: 10 to 20 ms.
LOOKED_THROUGH_MAX = 5000
_ACCOUNT_HOLDS = read_script("parts", "partition", "holds", "account_holds", parts=("groups",))

_log = structlog.get_logger()


class Holds:
    """Asked seldom, by people: each look has a connection of its own."""

    def __init__(self, database: Database, redis: "Callable[[], Redis]") -> None:
        self._database = database
        self._redis = redis

    async def of(self, account_id: str) -> dict[str, object]:
        """Who says it, how many there are and what they come to (None: too many in all to look through), and a list."""
        try:
            return await self._of_redis(account_id)
        except RedisLostError as error:
            _log.info("console_holds_from_postgres", error=str(error))
        rows = await self._database.fetch(QUERIES["console_holds"], account_id, HOLDS_MAX)
        return {
            "source": "postgres",
            "count": rows[0]["holds"] if rows else 0,
            "held_cents": cents_text(int(rows[0]["held_microcents"])) if rows else "0",
            "list": [
                _hold(row["id"].hex, row["amount_microcents"], row["admitted_ms"], row["policy"], row["worker_id"])
                for row in rows
            ],
        }

    async def _of_redis(self, account_id: str) -> dict[str, object]:
        async with teller_to(self._redis()) as redis:
            partition = redis.partition_of(account_id)
            key = f"cg:{{{partition}}}:workers"
            limits = LOOKED_THROUGH_MAX, HOLDS_MAX
            _, count, held, rows = await redis.call(
                partition, "EVAL", _ACCOUNT_HOLDS.source, 1, key, account_id, *limits
            )
        return {
            "source": "redis",
            "count": count if count >= 0 else None,
            "held_cents": cents_text(held) if count >= 0 else None,
            "list": [
                _hold(hold_id.decode(), amount, admitted_ms, policy.decode(), worker_id.decode())
                for hold_id, amount, admitted_ms, policy, worker_id in rows
            ],
        }


def _hold(hold_id: str, amount: int, admitted_ms: int, policy: str, worker_id: str) -> dict[str, object]:
    at = datetime.fromtimestamp(admitted_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {"id": hold_id, "cents": cents_text(amount), "at": at, "policy": policy, "worker": worker_id}
