"""Calendar windows hold their instant and tile time, whatever clocks do.

The reference is a walk along the zone's own clock, second by second where it matters: a day begins at the first instant
at which local clocks show its date, and it ends where the next one that comes begins.
"""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.policy.periods import ALL_TIME, FOREVER_MS, Window, time_zone_names, window_at

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_MS = 3_600_000
# Each has something of its own: midnight skipped (Sao_Paulo, Cairo, Asuncion, Beirut, Havana) or shown twice (St_Johns,
# at 00:01), a whole day skipped (Apia, Kwajalein), half an hour of summer (Lord_Howe), 45 minutes (Kathmandu, Chatham),
# seconds (Monrovia), a year with four changes (Casablanca), none at all (UTC, Tokyo).
ZONES = (
    "UTC",
    "Asia/Tokyo",
    "America/New_York",
    "Europe/Berlin",
    "America/Sao_Paulo",
    "Africa/Cairo",
    "Pacific/Apia",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Chatham",
    "Pacific/Kwajalein",
    "Africa/Monrovia",
    "Africa/Casablanca",
    "America/Asuncion",
    "Asia/Beirut",
    "America/Havana",
    "America/Scoresbysund",
)
CALENDAR = ("daily", "weekly", "monthly")
INSTANTS = st.integers(0, int((datetime(2080, 1, 1, tzinfo=UTC) - EPOCH).total_seconds()) * 1000)


def ms(text: str) -> int:
    """Unix milliseconds of a UTC time."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(milliseconds=1)


def local(zone: str, at_ms: int) -> datetime:
    return (EPOCH + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def changes(zone: str) -> list[int]:
    """The instants (Unix milliseconds) from 1970 to 2037 at which the zone's offset changes."""
    step_s = 2 * 86_400
    found = []
    before = local(zone, 0) - local("UTC", 0)
    for end_s in range(step_s, 2_145_000_000, step_s):
        offset = local(zone, end_s * 1000) - local("UTC", end_s * 1000)
        if offset != before:
            low_s, high_s = end_s - step_s, end_s
            while high_s - low_s > 1:
                middle_s = (low_s + high_s) // 2
                same = local(zone, middle_s * 1000) - local("UTC", middle_s * 1000) == before
                low_s, high_s = (middle_s, high_s) if same else (low_s, middle_s)
            found.append(high_s * 1000)
            before = offset
    return found


CHANGES = {zone: changes(zone) for zone in ZONES}


@st.composite
def moments(draw: st.DrawFn) -> tuple[str, int]:
    """A zone and an instant, most often within two days of a change of its clocks."""
    zone = draw(st.sampled_from(ZONES))
    is_near_change: bool = draw(st.booleans())
    if CHANGES[zone] and is_near_change:
        near_ms = draw(st.sampled_from(CHANGES[zone]))
        offset_ms = draw(st.one_of(st.sampled_from([-1, 0, 1]), st.integers(-48 * HOUR_MS, 48 * HOUR_MS)))
        return zone, max(0, near_ms + offset_ms)
    return zone, draw(INSTANTS)


@given(moment=moments(), period=st.sampled_from((*CALENDAR, "total")), week_start=st.integers(1, 7))
@example(moment=("America/St_Johns", ms("2009-11-01T02:30:30")), period="monthly", week_start=1)
@example(moment=("America/St_Johns", ms("2009-11-01T02:31:00")), period="monthly", week_start=1)
@example(moment=("Pacific/Apia", ms("2011-12-30T10:00:00")), period="daily", week_start=1)
def test_a_window_holds_its_instant(moment: tuple[str, int], period: str, week_start: int) -> None:
    zone, at_ms = moment
    window = window_at(period, zone, week_start, at_ms)
    assert window.start_ms <= at_ms < window.end_ms


@given(moment=moments(), period=st.sampled_from(CALENDAR), week_start=st.integers(1, 7))
def test_every_instant_of_a_window_has_that_window(moment: tuple[str, int], period: str, week_start: int) -> None:
    zone, at_ms = moment
    window = window_at(period, zone, week_start, at_ms)
    for inside_ms in (window.start_ms, (window.start_ms + window.end_ms) // 2, window.end_ms - 1):
        assert window_at(period, zone, week_start, inside_ms) == window


@given(moment=moments(), period=st.sampled_from(CALENDAR), week_start=st.integers(1, 7))
def test_windows_tile_time_without_gap_or_overlap(moment: tuple[str, int], period: str, week_start: int) -> None:
    zone, at_ms = moment
    window = window_at(period, zone, week_start, at_ms)
    assert window_at(period, zone, week_start, window.end_ms).start_ms == window.end_ms
    assert window_at(period, zone, week_start, window.start_ms - 1).end_ms == window.start_ms


@given(moment=moments())
def test_a_day_begins_when_clocks_first_show_its_date(moment: tuple[str, int]) -> None:
    zone, at_ms = moment
    start_ms = window_at("daily", zone, 1, at_ms).start_ms
    assert local(zone, start_ms - 1).date() < local(zone, start_ms).date()
    # … and never before: no clock change of the two days before had shown it.
    earlier = range(start_ms - 48 * HOUR_MS, start_ms, 15 * 60_000)
    assert all(local(zone, each_ms).date() < local(zone, start_ms).date() for each_ms in earlier)


@given(moment=moments(), week_start=st.integers(1, 7))
def test_a_week_begins_on_its_weekday(moment: tuple[str, int], week_start: int) -> None:
    zone, at_ms = moment
    window = window_at("weekly", zone, week_start, at_ms)
    first, last = (local(zone, each).date() for each in (window.start_ms, window.end_ms - 1))
    # Where the weekday itself is the day that Samoa or Kwajalein skipped, the week begins with the next.
    skipped = {date(2011, 12, 30), date(1993, 8, 21)}
    begins = first - timedelta(days=1) if first - timedelta(days=1) in skipped else first
    assert week_start in (first.isoweekday(), begins.isoweekday())
    assert (last - first).days in (5, 6)


@given(moment=moments())
def test_a_month_begins_on_its_first_and_ends_before_the_next(moment: tuple[str, int]) -> None:
    zone, at_ms = moment
    window = window_at("monthly", zone, 1, at_ms)
    first, after = local(zone, window.start_ms).date(), local(zone, window.end_ms).date()
    assert (first.day, after.day) == (1, 1)
    assert (after.year * 12 + after.month) - (first.year * 12 + first.month) == 1


@pytest.mark.parametrize("zone", ZONES)
def test_days_and_months_are_whole_numbers_of_each_other(zone: str) -> None:
    year = window_at("monthly", zone, 1, ms("2024-01-15")), window_at("monthly", zone, 1, ms("2024-12-15"))
    at_ms, days, months = year[0].start_ms, 0, 0
    while at_ms < year[1].end_ms:
        if window_at("monthly", zone, 1, at_ms).start_ms == at_ms:
            months += 1
        at_ms = window_at("daily", zone, 1, at_ms).end_ms
        days += 1
    assert (days, months) == (366, 12)
    assert at_ms == year[1].end_ms


@pytest.mark.parametrize(
    ("period", "zone", "at", "start", "end"),
    [
        # plain
        ("daily", "UTC", "2024-02-29T23:59:59.999", "2024-02-29", "2024-03-01"),
        ("monthly", "UTC", "2024-02-29T12:00", "2024-02-01", "2024-03-01"),
        ("monthly", "UTC", "2023-02-28T12:00", "2023-02-01", "2023-03-01"),
        ("monthly", "UTC", "2100-02-28T12:00", "2100-02-01", "2100-03-01"),
        ("monthly", "UTC", "2024-12-31T23:59", "2024-12-01", "2025-01-01"),
        ("weekly", "UTC", "2024-12-31T12:00", "2024-12-30", "2025-01-06"),
        ("monthly", "Asia/Tokyo", "2024-01-31T15:00", "2024-01-31T15:00", "2024-02-29T15:00"),
        ("daily", "Asia/Kathmandu", "2024-06-01T18:14:59", "2024-05-31T18:15", "2024-06-01T18:15"),
        # a day of 23 and one of 25 hours
        ("daily", "America/New_York", "2024-03-10T12:00", "2024-03-10T05:00", "2024-03-11T04:00"),
        ("daily", "America/New_York", "2024-11-03T12:00", "2024-11-03T04:00", "2024-11-04T05:00"),
        ("daily", "Australia/Lord_Howe", "2024-10-06T00:00", "2024-10-05T13:30", "2024-10-06T13:00"),
        # midnight skipped: the day begins at 01:00
        ("daily", "America/Sao_Paulo", "2018-11-04T03:00", "2018-11-04T03:00", "2018-11-05T02:00"),
        ("daily", "America/Sao_Paulo", "2018-11-04T02:59:59", "2018-11-03T03:00", "2018-11-04T03:00"),
        ("daily", "Africa/Cairo", "2024-04-26T00:00", "2024-04-25T22:00", "2024-04-26T21:00"),
        ("monthly", "America/Asuncion", "2017-10-15T00:00", "2017-10-01T04:00", "2017-11-01T03:00"),
        # 23:00 to midnight shown twice
        ("daily", "America/Sao_Paulo", "2018-02-18T02:30", "2018-02-17T02:00", "2018-02-18T03:00"),
        ("daily", "Africa/Cairo", "2023-10-26T21:30", "2023-10-25T21:00", "2023-10-26T22:00"),
        # the first minute of a day, then the day before once more: the new day and the new month have begun
        ("daily", "America/St_Johns", "2009-11-01T02:30", "2009-11-01T02:30", "2009-11-02T03:30"),
        ("daily", "America/St_Johns", "2009-11-01T03:00", "2009-11-01T02:30", "2009-11-02T03:30"),
        ("monthly", "America/St_Johns", "2009-11-01T03:00", "2009-11-01T02:30", "2009-12-01T03:30"),
        ("weekly", "America/St_Johns", "2009-11-01T03:00", "2009-10-26T02:30", "2009-11-02T03:30"),
        # a day that never was
        ("daily", "Pacific/Apia", "2011-12-30T09:59", "2011-12-29T10:00", "2011-12-30T10:00"),
        ("daily", "Pacific/Apia", "2011-12-30T10:00", "2011-12-30T10:00", "2011-12-31T10:00"),
        ("weekly", "Pacific/Apia", "2011-12-30T10:00", "2011-12-26T10:00", "2012-01-01T10:00"),
        ("daily", "Pacific/Kwajalein", "1993-08-21T12:00", "1993-08-21T12:00", "1993-08-22T12:00"),
        # a gap of 44 minutes and 30 seconds at midnight
        ("daily", "Africa/Monrovia", "1972-01-07T12:00", "1972-01-07T00:44:30", "1972-01-08"),
        # beyond the tables, by rule
        ("monthly", "America/New_York", "2079-07-01T12:00", "2079-07-01T04:00", "2079-08-01T04:00"),
    ],
)
def test_known_windows(period: str, zone: str, at: str, start: str, end: str) -> None:
    assert window_at(period, zone, 1, ms(at)) == Window(ms(start), ms(end))


@pytest.mark.parametrize("week_start", range(1, 8))
def test_a_week_holds_seven_days_from_its_first(week_start: int) -> None:
    window = window_at("weekly", "UTC", week_start, ms("2024-02-29T12:00"))
    assert local("UTC", window.start_ms).isoweekday() == week_start
    assert window.end_ms - window.start_ms == 7 * 24 * HOUR_MS


def test_only_weeks_mind_the_week_start() -> None:
    at_ms = ms("2024-02-29T12:00")
    for period in ("daily", "monthly", "total"):
        assert len({window_at(period, "Asia/Tokyo", week_start, at_ms) for week_start in range(1, 8)}) == 1


def test_the_total_has_one_window_in_every_zone() -> None:
    assert {window_at("total", zone, 1, ms("2024-02-29")) for zone in ZONES} == {ALL_TIME}
    assert ms("9999-12-31") == FOREVER_MS == ALL_TIME.end_ms


def test_an_unknown_period_or_zone_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown period 'hourly', expected one of daily, weekly, monthly, total"):
        window_at("hourly", "UTC", 1, 0)
    with pytest.raises(ZoneInfoNotFoundError):
        window_at("daily", "Mars/Olympus", 1, 0)


def test_zone_names_are_the_same_zone_on_every_machine() -> None:
    assert {"UTC", "Europe/Berlin", "Asia/Kolkata"} <= time_zone_names()
    assert not {"localtime", "Factory", "posixrules"} & time_zone_names()
    assert not [name for name in time_zone_names() if name.startswith(("posix/", "right/"))]


def test_time_only_moves_forward_through_the_windows_of_every_zone() -> None:
    for zone in ZONES:
        for change_ms in CHANGES[zone]:
            if change_ms > 72 * HOUR_MS:
                starts = [
                    window_at("daily", zone, 1, at_ms).start_ms
                    for at_ms in range(change_ms - 30 * HOUR_MS, change_ms + 30 * HOUR_MS, 2 * HOUR_MS)
                ]
                assert all(one <= other for one, other in pairwise(starts))
