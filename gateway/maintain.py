"""The months of ``usage_events``: made in advance, and dropped when they are old (``castgate maintain``).

Making is also what one worker of each gateway does now and then, so that nobody who never runs the command ever finds
all events in the default partition. Dropping is the command's alone, and only where a retention is asked for. Both are
functions of the database (migrations/0010_usage_partitions.sql), where a transaction is one round trip.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.breaker import Breaker
from gateway.database import QUERIES, Database, StoreError
from gateway.metrics import Metrics
from gateway.policy.money import cents_text
from gateway.tables import table

if TYPE_CHECKING:
    from gateway.config import Settings

# A month of a hundred million events is summed up within this.
TIMEOUT_S = 3600.0
# All that the default partition has: the operator asked for it, and sees how long it takes.
_MOVE_ALL = 2**62
# What a worker moves of a month, for which the default partition is locked: some 50 ms.
_MOVE_MAX = 5000
# A worker looks at first after this, in which a fleet has started, and then now and then: partitions are months ahead.
FIRST_S = 60.0
INTERVAL_S = 6 * 3600.0
_HEAD = ("PARTITION", "FROM", "UNTIL", "EVENTS", "SIZE", "STATE")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """``retention_months`` 0 drops nothing. ``keep_tables`` leaves what is dropped as tables of their own."""

    ahead: int
    retention_months: int
    keep_tables: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """One partition. The default one has no ``until``, the oldest may have no ``since``; ``events`` is an estimate."""

    name: str
    since: datetime | None
    until: datetime | None
    events: int
    size_bytes: int
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A month that is no more a part of the ledger, and what it came to; in a dry run that is not known."""

    name: str
    until: datetime
    events: int
    cost_microcents: int
    kept: int  # events that stay, for their clocks were wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``months`` are those that are left, or in a dry run would be."""

    months: tuple[Month, ...]
    dropped: tuple[Dropped, ...]
    moved: int
    late_calls: int
    late_microcents: int
    asked: Asked


async def maintain(settings: "Settings", asked: Asked) -> Report:
    """Make what is lacking, drop what is old. Each month is dropped in a transaction of its own, the oldest first.

    Raises StoreError, asyncpg.PostgresError; what was done before stays.
    """
    async with _database(settings) as database:
        async with database.connection() as connection:
            trial = connection.transaction()
            await trial.start()
            try:
                await connection.execute(QUERIES["maintain_begin"])
                made = await connection.fetchrow(QUERIES["make_usage_months"], asked.ahead, _MOVE_ALL)
                assert made is not None, "a function with OUT parameters gives one row"
                rows = await connection.fetch(QUERIES["usage_months"], asked.retention_months or None)
            except BaseException:
                await trial.rollback()
                raise
            await (trial.rollback() if asked.dry_run else trial.commit())
        if asked.dry_run:
            dropped = [_would_drop(row) for row in rows if row["is_over"]]
        else:
            dropped = [one async for one in _drop(database, asked)]
        late = await database.fetchrow(QUERIES["late_usage"])
        assert late is not None, "a sum gives one row"
    gone = {one.name for one in dropped}
    return Report(
        months=tuple(_month(row, made["made"]) for row in rows if row["name"] not in gone),
        dropped=tuple(dropped),
        moved=made["moved"],
        late_calls=late["calls"],
        late_microcents=late["microcents"],
        asked=asked,
    )


async def _drop(database: Database, asked: Asked) -> AsyncIterator[Dropped]:
    while asked.retention_months:
        async with database.transaction() as connection:
            await connection.execute(QUERIES["maintain_begin"])
            row = await connection.fetchrow(QUERIES["drop_usage_month"], asked.retention_months, asked.keep_tables)
        if row is None or row["name"] is None:
            return
        yield Dropped(
            name=row["name"],
            until=row["until"],
            events=row["events"],
            cost_microcents=row["cost_microcents"],
            kept=row["kept"],
        )


def _would_drop(row: asyncpg.Record) -> Dropped:
    return Dropped(name=row["name"], until=row["until"], events=row["events_about"], cost_microcents=0, kept=0)


def _month(row: asyncpg.Record, made: Sequence[str]) -> Month:
    return Month(
        name=row["name"],
        since=row["since"],
        until=row["until"],
        events=row["events_about"],
        size_bytes=row["bytes"],
        is_new=row["name"] in made,
    )


@asynccontextmanager
async def _database(settings: "Settings") -> AsyncIterator[Database]:
    metrics = Metrics()
    database = Database(
        settings.database.url,
        breaker=Breaker(clock=time.monotonic),
        metrics=metrics,
        connections_max=1,
        connect_timeout_s=settings.database.connect_timeout_s,
        acquire_timeout_s=settings.database.acquire_timeout_s,
        statement_timeout_s=TIMEOUT_S,
    )
    try:
        yield database
    finally:
        await database.close()
        metrics.close()


def as_table(report: Report) -> Iterable[str]:
    """For people."""
    asked = report.asked
    rows = [_dropped_cells(one, asked) for one in report.dropped]
    rows += [_month_cells(month, asked) for month in report.months]
    yield from table(_HEAD, rows)
    yield ""
    made = sum(month.is_new for month in report.months)
    kept = f"the {asked.retention_months} before this one" if asked.retention_months else "all"
    yield (
        f"{made} made, {report.moved} events moved into them; {len(report.dropped)} dropped ({kept} are kept)"
        + ("; dry run: nothing was changed" if asked.dry_run else "")
    )


def _dropped_cells(one: Dropped, asked: Asked) -> tuple[str, ...]:
    if asked.dry_run:
        return one.name, "-", _date(one.until), f"~{one.events}", "-", "would be dropped"
    state = "left as a table" if asked.keep_tables else "dropped"
    state += f": {one.events} calls, {cents_text(one.cost_microcents)} cents"
    if one.kept:
        state += f"; {one.kept} moved to the default partition, as their clocks were wrong"
    return one.name, "-", _date(one.until), str(one.events), "-", state


def _month_cells(month: Month, asked: Asked) -> tuple[str, ...]:
    state = "for ids of no month" if month.until is None else "kept"
    if month.is_new:
        state = "would be made" if asked.dry_run else "made"
    return month.name, _date(month.since), _date(month.until), f"~{month.events}", _size(month.size_bytes), state


def _date(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d}"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


class MonthsAhead:
    """What a worker does about it: partitions for the months that come. It drops nothing."""

    def __init__(
        self, database: Database, ahead: int, *, first_s: float = FIRST_S, interval_s: float = INTERVAL_S
    ) -> None:
        self._database = database
        self._ahead = ahead
        self._first_s = first_s
        self._interval_s = interval_s
        self._error = ""
        self._late = 0

    async def run(self) -> None:
        """For ever."""
        await asyncio.sleep(self._first_s)
        while True:
            done = await self.look()
            await asyncio.sleep(self._interval_s if done else self._first_s)

    async def look(self) -> bool:
        """Make what is lacking; whether it could be done, or never can by us."""
        try:
            row = await self._database.fetchrow(QUERIES["make_usage_months"], self._ahead, _MOVE_MAX)
        except StoreError:
            return False  # that Postgres is away is said elsewhere
        except asyncpg.PostgresError as error:
            # No right to, or tables of another version. Nothing is lost: there is the default partition.
            reason = str(error).partition("\n")[0]
            if reason != self._error:
                _log.warning("months_not_made", error=reason, mend="castgate maintain, as the owner of the tables")
            self._error = reason
            return isinstance(error, asyncpg.SyntaxOrAccessError)
        assert row is not None, "a function with OUT parameters gives one row"
        self._error = ""
        if row["made"]:
            _log.info("months_made", partitions=row["made"], moved=row["moved"])
        if row["waiting"]:
            _log.warning("months_not_made", events_in_default=row["waiting"], mend="castgate maintain")
        if row["late"] > self._late:
            _log.error("usage_came_late", calls=row["late"], table="usage_events_late", effect="not counted")
        self._late = row["late"]
        return True
