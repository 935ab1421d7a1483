"""Query parameters, read strictly: a misspelt ``form=`` must not silently mean the default."""

import re
from collections.abc import Callable, Sequence
from datetime import date
from typing import TypeVar

from aiohttp import web

from gateway.hosted.answers import Problem, found_text, invalid
from gateway.policy.periods import PERIODS, time_zone_names

# Days that calendars, zones and stores all know; nothing was used before, nothing will be after.
_DAY_FIRST, _DAY_LAST = date(1970, 1, 2), date(9998, 12, 31)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_WHOLE = re.compile(r"[0-9]{1,9}")

Query = dict[str, str]
T = TypeVar("T")


def read_query(request: web.Request, names: Sequence[str]) -> Query:
    """The request's query parameters, each at most once and none but ``names``; raises RefusedError (400)."""
    problems = []
    query: Query = {}
    for name, value in request.query.items():
        if name not in names:
            expected = f"no parameter but {', '.join(names)}" if names else "no parameters"
            problems.append(Problem(field=_plain(name), found=found_text(value), expected=expected))
        elif name in query:
            problems.append(Problem(field=name, found="more than one", expected="one"))
        else:
            query[name] = value
    if problems:
        raise invalid(*problems)
    return query


def _plain(name: str) -> str:
    return found_text(name).strip('"')


class Reading:
    """Parameters read one by one; what is wrong is collected, so that the answer lists all of it."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._problems: list[Problem] = []

    def get(self, name: str, read: Callable[[str], T | None], expected: str, default: T) -> T:
        """The parameter as ``read`` understands it; None from ``read`` means that it does not."""
        text = self._query.get(name)
        if text is None:
            return default
        value = read(text)
        if value is None:
            self.wrong(name, found_text(text), expected)
            return default
        return value

    def wrong(self, name: str, found: str, expected: str) -> None:
        """Note a problem."""
        self._problems.append(Problem(field=name, found=found, expected=expected))

    def close(self) -> None:
        """Raise RefusedError (400) where anything was wrong."""
        if self._problems:
            raise invalid(*self._problems)


def day(text: str) -> date | None:
    """``2026-11-22`` as a date."""
    if _DAY.fullmatch(text) is None:
        return None
    try:
        value = date.fromisoformat(text)
    except ValueError:
        return None
    return value if _DAY_FIRST <= value <= _DAY_LAST else None


def period(text: str) -> str | None:
    """One of PERIODS."""
    return text if text in PERIODS else None


def time_zone(text: str) -> str | None:
    """An IANA time zone's name."""
    return text if text in time_zone_names() else None


def whole_up_to(most: int) -> Callable[[str], int | None]:
    """Reads a whole number from 1 to ``most``."""

    def read(text: str) -> int | None:
        value = int(text) if _WHOLE.fullmatch(text) else 0
        return value if 1 <= value <= most else None

    return read
