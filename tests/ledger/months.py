"""Events of other months, and where in usage_events they are."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from gateway.database import QUERIES
from gateway.usage_events import UsageEvent, columns_of, event_id


def id_at(at: datetime) -> str:
    """The id of a hold that was taken then."""
    return f"{int(at.timestamp() * 1000):012x}{event_id()[12:]}"


async def record(connection: "asyncpg.Connection[asyncpg.Record]", events: Sequence[UsageEvent]) -> asyncpg.Record:
    """What castgate_record_usage answers."""
    row = await connection.fetchrow(QUERIES["record_usage"], *columns_of(events), None, [], [])
    assert row is not None
    return row


async def by_partition(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, int]:
    """How many events are where, without those that are empty."""
    rows = await connection.fetch("SELECT tableoid::regclass::text AS name, count(*) FROM usage_events GROUP BY 1")
    return {row["name"]: row["count"] for row in rows}
