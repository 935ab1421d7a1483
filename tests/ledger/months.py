"""Months from now on, their events, and where in usage_events these are."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count

import asyncpg

from gateway.database import QUERIES
from gateway.usage_columns import columns_of
from gateway.usage_events import UsageEvent, event_id

_numbers = count()


def month_start(after: int) -> datetime:
    """Where the month begins that is so many after this one."""
    now = datetime.now(UTC)
    months = now.year * 12 + now.month - 1 + after
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def partition_of(after: int) -> str:
    """The partition of that month."""
    return f"usage_events_{month_start(after):%Y_%m}"


def at_ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def id_at(at: datetime) -> str:
    """The id of a hold that was taken then, another one each time."""
    return f"{at_ms(at):012x}7{next(_numbers) % 4096:03x}{event_id()[16:]}"


async def record(connection: "asyncpg.Connection[asyncpg.Record]", events: Sequence[UsageEvent]) -> asyncpg.Record:
    """What castgate_record_usage answers."""
    row = await connection.fetchrow(QUERIES["record_usage"], *columns_of(events), None, [], [], None)
    assert row is not None
    return row


async def by_partition(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, int]:
    """How many events are where, without those that are empty."""
    rows = await connection.fetch("SELECT tableoid::regclass::text AS name, count(*) FROM usage_events GROUP BY 1")
    return {row["name"]: row["count"] for row in rows}
