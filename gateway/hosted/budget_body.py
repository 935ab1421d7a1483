"""A budget as a client writes it: the body of ``POST`` and ``PUT /v1/budgets``.

Three kinds of wrong have three answers. What is not JSON, or not this shape, is 400; what has the shape but cannot
be meant (a soft limit above the hard one, a week that begins on Sunday in a month's budget) is 422; everything that
is wrong with the shape is listed at once, so that a client corrects its request in one go.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from gateway.hosted.answers import Cents, Problem, found_text, invalid, unprocessable
from gateway.policy.budgets import BudgetLimit
from gateway.policy.money import MICROCENTS_MAX, AmountError, microcents_from_cents
from gateway.policy.periods import PERIODS, time_zone_names

# ISO weekdays, 1 to 7; names go over the wire, because 0-based and Sunday-first countings abound.
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Period = Literal["daily", "weekly", "monthly", "total"]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
# The same bound as 2^53 - 1 microcents, for readers that count in doubles.
_CENTS_SCHEMA: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": MICROCENTS_MAX / 1_000_000}
_CENTS_EXPECTED = "a number of cents"
_AMOUNT = "amount"


def _microcents(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError(_AMOUNT, "not an amount", {"expected": _CENTS_EXPECTED})
    try:
        return microcents_from_cents(value)
    except AmountError as error:
        # The text is "expected …, found …"; the second half is said again, cut to size, by the problem itself.
        expected = str(error).removeprefix("expected ").partition(", found ")[0]
        raise PydanticCustomError(_AMOUNT, "not an amount", {"expected": expected}) from None


def _known_time_zone(name: str) -> str:
    if name not in time_zone_names():
        raise ValueError
    return name


AmountOfCents = Annotated[int, BeforeValidator(_microcents), WithJsonSchema(_CENTS_SCHEMA)]
TimeZone = Annotated[str, AfterValidator(_known_time_zone)]


class BudgetBody(BaseModel):
    """The shape; amounts are microcents once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="BudgetBody")

    period: Period = Field(description="How often the budget begins anew; total never does.")
    hard_limit_cents: AmountOfCents = Field(description="At most this much is spent in a period.")
    soft_limit_cents: AmountOfCents | None = Field(
        default=None, description="Worth a warning once reached; at most hard_limit_cents."
    )
    timezone: TimeZone = Field(default="UTC", description="IANA name of the zone in whose midnights periods begin.")
    week_start: Weekday = Field(default="monday", description="The day that weeks begin on; other periods have monday.")

    @property
    def limit(self) -> BudgetLimit:
        """What admission is to check. A total has no beginning, so its zone is always UTC: one counter serves all."""
        return BudgetLimit(
            period=self.period,
            hard_limit_microcents=self.hard_limit_cents,
            time_zone="UTC" if self.period == "total" else self.timezone,
            week_start=WEEKDAYS.index(self.week_start) + 1,
        )


_EXPECTED: Mapping[str, str] = {
    "period": f"one of {', '.join(PERIODS)}",
    "hard_limit_cents": _CENTS_EXPECTED,
    "soft_limit_cents": f"{_CENTS_EXPECTED} or null",
    "timezone": "an IANA time zone name such as Asia/Tokyo",
    "week_start": f"one of {', '.join(WEEKDAYS)}",
}


def read_budget(value: Mapping[str, object]) -> BudgetBody:
    """The budget that a JSON object describes; raises RefusedError, 400 for its shape and 422 for its meaning."""
    try:
        body = BudgetBody.model_validate(value)
    except ValidationError as error:
        raise invalid(*map(_problem, error.errors(include_url=False))) from None
    problems = []
    if body.soft_limit_cents is not None and body.soft_limit_cents > body.hard_limit_cents:
        expected = f"at most hard_limit_cents ({Cents(body.hard_limit_cents)})"
        problems.append(Problem(field="soft_limit_cents", found=str(Cents(body.soft_limit_cents)), expected=expected))
    if body.week_start != "monday" and body.period != "weekly":
        expected = f"no week_start in a {body.period} budget"
        problems.append(Problem(field="week_start", found=found_text(body.week_start), expected=expected))
    if problems:
        raise unprocessable(*problems)
    return body


def _problem(error: ErrorDetails) -> Problem:
    if not error["loc"]:  # a key with half a surrogate pair, which JSON can write and no text can hold
        return Problem(field="body", found=found_text(error["input"]), expected="keys that are Unicode text")
    field = str(error["loc"][0])
    if error["type"] == "missing":
        return Problem(field=field, found="nothing", expected=_EXPECTED[field])
    if error["type"] == "extra_forbidden":
        expected = f"no key but {', '.join(_EXPECTED)}"
        return Problem(field=found_text(field).strip('"'), found=found_text(error["input"]), expected=expected)
    expected = error.get("ctx", {}).get("expected", "") if error["type"] == _AMOUNT else _EXPECTED[field]
    if field == "soft_limit_cents" and expected == _CENTS_EXPECTED:
        expected = _EXPECTED[field]
    return Problem(field=field, found=found_text(error["input"]), expected=expected)
