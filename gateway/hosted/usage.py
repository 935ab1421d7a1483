"""``GET /v1/usage``: what an account used, by day and policy, newest day first, page by page.

Days are calendar days of the zone asked for, with the same midnights as a daily budget's windows; the store is asked
for spans of time, so it needs no opinion on time zones. A page asks for a month of days at a time until it is full.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import asyncpg
from aiohttp import web

from gateway.database import QUERIES
from gateway.hosted.answers import Cents, answer, found_text
from gateway.hosted.caller import caller_of
from gateway.hosted.query import Query, Reading, day, read_query, time_zone, whole_up_to
from gateway.hosted.services import SERVICES, Services
from gateway.hosted.standing import instant
from gateway.policy.periods import Window, window_at

PARAMETERS = ("from", "to", "timezone", "limit", "cursor")
# A year and its leap day: a bound on what one request may make the store sum up.
DAYS_MAX = 366
DAYS_DEFAULT = 30
LIMIT_MAX = 1000
LIMIT_DEFAULT = 100
# A cursor holds two days, a zone's name and a policy's name.
CURSOR_LENGTH_MAX = 1000
# Days asked of the store in one statement: usually the page is full, or the range is over, after one or two.
_DAYS_PER_STATEMENT = 31
_DAY_EXPECTED = "a day such as 2026-11-22"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The days asked for, both included, in one zone."""

    first: date
    last: date
    time_zone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The last row of a page; the next page begins right after it."""

    day: date
    policy: str


async def get_usage(request: web.Request) -> web.Response:
    """A page of usage. The cursor carries the span it belongs to, so a page never changes its range at midnight."""
    account = await caller_of(request)
    services = request.app[SERVICES]
    query = read_query(request, PARAMETERS)
    reading = Reading(query)
    limit = reading.get("limit", whole_up_to(LIMIT_MAX), f"a whole number from 1 to {LIMIT_MAX}", LIMIT_DEFAULT)
    cursor = reading.get("cursor", read_cursor, "a next_cursor of an earlier answer", None)
    if cursor is None:
        span, after = _span(reading, query, services.now_ms()), None
    else:
        span, after = cursor
        _check_same_span(reading, query, span)
    reading.close()
    # One row more than the page holds tells whether there is another page.
    rows = await _rows(services, account.account_id, span, after, limit + 1)
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    return answer(
        {
            "account_id": account.account_id,
            "from": span.first.isoformat(),
            "to": span.last.isoformat(),
            "timezone": span.time_zone,
            "usage": [row.shown() for row in rows[:limit]],
            "next_cursor": cursor_text(span, Position(day=last.day, policy=last.policy)) if last else None,
        }
    )


def _span(reading: Reading, query: Query, now_ms: int) -> Span:
    zone = reading.get("timezone", time_zone, "an IANA time zone name such as Asia/Tokyo", "UTC")
    today = instant(now_ms).astimezone(ZoneInfo(zone)).date()
    last = reading.get("to", day, _DAY_EXPECTED, today)
    first = reading.get("from", day, _DAY_EXPECTED, None) or last - timedelta(days=DAYS_DEFAULT - 1)
    if not 0 <= (last - first).days < DAYS_MAX:
        reading.wrong("from", found_text(query.get("from")), f"a day of the {DAYS_MAX} days that end with to ({last})")
    return Span(first=first, last=last, time_zone=zone)


def _check_same_span(reading: Reading, query: Query, span: Span) -> None:
    for name, value in (("from", span.first.isoformat()), ("to", span.last.isoformat()), ("timezone", span.time_zone)):
        if query.get(name, value) != value:
            reading.wrong(name, found_text(query[name]), f"the cursor's own ({value}), or nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    day: date
    policy: str
    calls: int
    microcents: int

    @classmethod
    def of(cls, record: asyncpg.Record) -> "_Row":
        microcents = int(record["microcents"])  # numeric, because a sum of bigints may outgrow them
        return cls(day=record["day"], policy=record["policy"], calls=record["calls"], microcents=microcents)

    def shown(self) -> dict[str, object]:
        cost = Cents(self.microcents)
        return {"day": self.day.isoformat(), "policy": self.policy, "calls": self.calls, "cost_cents": cost}


async def _rows(services: Services, account_id: str, span: Span, after: Position | None, most: int) -> list[_Row]:
    rows: list[_Row] = []
    days = _days(Span(first=span.first, last=after.day, time_zone=span.time_zone) if after else span)
    while len(rows) < most and (part := list(islice(days, _DAYS_PER_STATEMENT))):
        records = await services.database.fetch(
            QUERIES["usage_by_day"],
            account_id,
            [label for label, _ in part],
            [instant(window.start_ms) for _, window in part],
            [instant(window.end_ms) for _, window in part],
            after.day if after else None,
            after.policy if after else None,
            most - len(rows),
        )
        rows += map(_Row.of, records)
    return rows


def _days(span: Span) -> Iterator[tuple[date, Window]]:
    """The days of a span, newest first, each with its window."""
    zone = ZoneInfo(span.time_zone)
    label = span.last
    while label >= span.first:
        noon = datetime.combine(label, time(12), zone)
        window = window_at("daily", span.time_zone, 1, int(noon.timestamp() * 1000))
        # A zone that moved over the date line has skipped a day; its noon lies in another one, listed by itself.
        if instant(window.start_ms).astimezone(zone).date() == label:
            yield label, window
        label -= timedelta(days=1)


def cursor_text(span: Span, position: Position) -> str:
    """A position as clients carry it: opaque to them, and no secret; an account only ever sees its own rows."""
    parts = [span.first.isoformat(), span.last.isoformat(), span.time_zone, position.day.isoformat(), position.policy]
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def read_cursor(text: str) -> tuple[Span, Position] | None:
    """What cursor_text made; None where it did not make this."""
    if len(text) > CURSOR_LENGTH_MAX or not text.isascii():
        return None
    try:
        parts = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    if not isinstance(parts, list) or len(parts) != 5 or not all(isinstance(part, str) for part in parts):
        return None
    first, last, zone, at, policy = day(parts[0]), day(parts[1]), time_zone(parts[2]), day(parts[3]), parts[4]
    if first is None or last is None or zone is None or at is None or not policy.isprintable():
        return None
    if not first <= at <= last or (last - first).days >= DAYS_MAX:
        return None
    return Span(first=first, last=last, time_zone=zone), Position(day=at, policy=policy)
