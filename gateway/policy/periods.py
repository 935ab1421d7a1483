"""Budget periods as calendar windows: half-open spans [start, end) of Unix milliseconds.

Days, weeks and months begin at local midnight in the budget's IANA time zone, so a day that loses or gains an
hour is 23 or 25 hours long. Where a zone skips midnight itself, the day begins at the first instant that exists.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

PERIODS = ("daily", "weekly", "monthly", "total")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# A window that never ends: 9999-12-31T00:00:00Z, the last midnight that datetime and Postgres both know.
FOREVER_MS = 253_402_214_400_000
_WINDOWS_MAX = 4096  # kept: days times zones; accounts in the same window have the same object
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Window:
    """One span of a period; ``start_ms`` belongs to it, ``end_ms`` does not."""

    start_ms: int
    end_ms: int


ALL_TIME = Window(0, FOREVER_MS)


@lru_cache(maxsize=1)
def time_zone_names() -> frozenset[str]:
    """Every IANA time zone name this machine knows.

    Without ``localtime``, which is another zone on each machine, and ``Factory``, which says that none was set.
    """
    return frozenset(available_timezones() - {"localtime", "Factory"})


def window_at(period: str, time_zone: str, week_start: int, at_ms: int) -> Window:
    """The window of ``period`` that holds the instant ``at_ms``.

    ``week_start`` is an ISO weekday, 1 (Monday) to 7 (Sunday), and matters to ``weekly`` alone.
    Windows of one period, zone and week start tile time: each begins where the one before it ends.
    Raises ValueError for an unknown period, KeyError (ZoneInfoNotFoundError) for an unknown zone, OverflowError
    for instants too near the year 9999.
    """
    if period == "total":
        return ALL_TIME
    zone = ZoneInfo(time_zone)
    today = (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(zone).date()
    window = _window_of_day(period, zone, week_start, today)
    while at_ms >= window.end_ms:
        # Clocks that go back just after midnight show the old date again; the new day has begun all the same.
        today += timedelta(days=1)
        window = _window_of_day(period, zone, week_start, today)
    return window


@lru_cache(maxsize=_WINDOWS_MAX)
def _window_of_day(period: str, zone: ZoneInfo, week_start: int, day: date) -> Window:
    if period == "daily":
        first, after = day, day + timedelta(days=1)
    elif period == "weekly":
        first = day - timedelta(days=(day.isoweekday() - week_start) % 7)
        after = first + timedelta(days=7)
    elif period == "monthly":
        first = day.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    else:
        raise ValueError(f"unknown period {period!r}, expected one of {', '.join(PERIODS)}")
    return Window(_midnight_ms(first, zone), _midnight_ms(after, zone))


def _midnight_ms(day: date, zone: ZoneInfo) -> int:
    """The first instant at which local clocks show ``day`` or, where a zone skipped the whole day, a later one.

    PEP 495: where clocks show midnight twice, fold=0 is the first time. Where they skip it, fold=0 reads it with the
    offset before the gap, which lands after the gap, and fold=1 with the one after it, which lands before the gap.
    """
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    instant_s = _seconds(midnight)
    before_s = _seconds(midnight.replace(fold=1))
    if before_s < instant_s:
        # Skipped. Where the gap lies between the two readings only the zone's own clock tells; offsets are whole
        # seconds (Monrovia gained 44 min 30 s in 1972), so this ends after 17 steps even for Samoa's lost day.
        wall = midnight.replace(tzinfo=None)
        while instant_s - before_s > 1:
            middle_s = (before_s + instant_s) // 2
            if (_EPOCH + timedelta(seconds=middle_s)).astimezone(zone).replace(tzinfo=None) >= wall:
                instant_s = middle_s
            else:
                before_s = middle_s
    return instant_s * 1000


def _seconds(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(seconds=1)
