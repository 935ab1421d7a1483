"""A budget as a client writes it: the body of ``POST`` and ``PUT /v1/budgets``.

Three kinds of wrong have three answers. What is not JSON, or not this shape, is 400; what has the shape but cannot
be meant (a soft limit above the hard one, a week that begins on Sunday in a month's budget) is 422; everything that
is wrong with the shape is listed at once, so that a client corrects its request in one go.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gateway.hosted.answers import Cents, Problem, found_text, invalid, unprocessable
from gateway.hosted.body import unknown_keys
from gateway.policy.budgets import BudgetLimit
from gateway.policy.money import MICROCENTS_MAX, AmountError, microcents_from_cents
from gateway.policy.periods import PERIODS, time_zone_names

# ISO weekdays, 1 to 7; names go over the wire, because 0-based and Sunday-first countings abound.
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# The same bound as 2^53 - 1 microcents, for readers that count in doubles.
_CENTS_SCHEMA: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": MICROCENTS_MAX / 1_000_000}
_CENTS_EXPECTED = "a number of cents"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBody:
    """What a client wrote; amounts are microcents once read."""

    period: str
    hard_limit_cents: int
    soft_limit_cents: int | None = None
    timezone: str = "UTC"
    week_start: str = "monday"

    @property
    def limit(self) -> BudgetLimit:
        """What admission is to check. A total has no beginning, so its zone is always UTC: one counter serves all."""
        return BudgetLimit(
            period=self.period,
            hard_limit_microcents=self.hard_limit_cents,
            time_zone="UTC" if self.period == "total" else self.timezone,
            week_start=WEEKDAYS.index(self.week_start) + 1,
        )


class _UnexpectedError(Exception):
    """Not what was expected; the text is what that is."""


def _microcents(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _UnexpectedError(_CENTS_EXPECTED)
    try:
        return microcents_from_cents(value)
    except AmountError as error:
        # The text is "expected …, found …"; the second half is said again, cut to size, by the problem itself.
        raise _UnexpectedError(str(error).removeprefix("expected ").partition(", found ")[0]) from None


def _microcents_or_none(value: object) -> int | None:
    try:
        return None if value is None else _microcents(value)
    except _UnexpectedError as error:
        expected = str(error)
        raise _UnexpectedError(f"{expected} or null" if expected == _CENTS_EXPECTED else expected) from None


def _one_of(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise _UnexpectedError(f"one of {', '.join(words)}")
        return value

    return read


def _time_zone(value: object) -> str:
    if not isinstance(value, str) or value not in time_zone_names():
        raise _UnexpectedError("an IANA time zone name such as Asia/Tokyo")
    return value


_READERS: Mapping[str, Callable[[object], object]] = {
    "period": _one_of(*PERIODS),
    "hard_limit_cents": _microcents,
    "soft_limit_cents": _microcents_or_none,
    "timezone": _time_zone,
    "week_start": _one_of(*WEEKDAYS),
}
_MISSING: Mapping[str, str] = {"period": f"one of {', '.join(PERIODS)}", "hard_limit_cents": _CENTS_EXPECTED}
# The same for who reads the OpenAPI document.
BUDGET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "BudgetBody",
    "additionalProperties": False,
    "required": list(_MISSING),
    "properties": {
        "period": {
            "type": "string",
            "enum": list(PERIODS),
            "description": "How often the budget begins anew; total never does.",
        },
        "hard_limit_cents": {**_CENTS_SCHEMA, "description": "At most this much is spent in a period."},
        "soft_limit_cents": {
            "anyOf": [_CENTS_SCHEMA, {"type": "null"}],
            "default": None,
            "description": "Worth a warning once reached; at most hard_limit_cents.",
        },
        "timezone": {
            "type": "string",
            "default": "UTC",
            "description": "IANA name of the zone in whose midnights periods begin.",
        },
        "week_start": {
            "type": "string",
            "enum": list(WEEKDAYS),
            "default": "monday",
            "description": "The day that weeks begin on; other periods have monday.",
        },
    },
}


def read_budget(value: Mapping[str, object]) -> BudgetBody:
    """The budget that a JSON object describes; raises RefusedError, 400 for its shape and 422 for its meaning."""
    read: dict[str, Any] = {}
    problems = []
    for field, reader in _READERS.items():
        if field not in value:
            if field in _MISSING:
                problems.append(Problem(field=field, found="nothing", expected=_MISSING[field]))
            continue
        try:
            read[field] = reader(value[field])
        except _UnexpectedError as error:
            problems.append(Problem(field=field, found=found_text(value[field]), expected=str(error)))
    problems += unknown_keys(value, _READERS)
    if problems:
        raise invalid(*problems)
    body = BudgetBody(**read)
    if body.soft_limit_cents is not None and body.soft_limit_cents > body.hard_limit_cents:
        expected = f"at most hard_limit_cents ({Cents(body.hard_limit_cents)})"
        problems.append(Problem(field="soft_limit_cents", found=str(Cents(body.soft_limit_cents)), expected=expected))
    if body.week_start != "monday" and body.period != "weekly":
        expected = f"no week_start in a {body.period} budget"
        problems.append(Problem(field="week_start", found=found_text(body.week_start), expected=expected))
    if problems:
        raise unprocessable(*problems)
    return body
