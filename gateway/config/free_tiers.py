"""``free`` of a cost as operators write it, and the FreeTier that it compiles to."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.config.models import Section, contradiction
from gateway.config.scalars import choice, one_of_words, time_zone, whole
from gateway.policy.costs import BytesCost, DurationCost, Part, price_of
from gateway.policy.free_tier import (
    UNIT_SCALE_BYTE,
    UNIT_SCALE_CALL,
    UNIT_SCALE_MS,
    UNIT_SCALE_TOLD,
    UNITS_COUNTED_MAX,
    FreeTier,
    free_tier,
)
from gateway.policy.periods import PERIODS, WEEKDAYS

TimeZone = Annotated[str, time_zone()]
Period = Literal["daily", "weekly", "monthly", "total"]


class FreeSpec(Section):
    """The first units of a period. A unit is the cost's own; of a fixed cost and of a sum it is a call."""

    units: Annotated[int, whole(1, UNITS_COUNTED_MAX), Field(description="how many cost nothing")]
    per: Annotated[Period, choice(*PERIODS), Field(description="how often they are given anew; total: once")]
    time_zone: Annotated[TimeZone, Field(description="in whose midnights days, weeks and months begin")] = "UTC"
    week_start: Annotated[int, one_of_words(WEEKDAYS), Field(description="the first day of a week")] = 1

    def check(self, part: Part | None) -> None:
        """Raises where units of ``part`` (None: calls) cannot be counted, or not so many."""
        if part is not None and price_of(part) == 0:
            raise contradiction(("free",), "expected a price above 0 beside it, found 0")
        most = UNITS_COUNTED_MAX // _scale_of(part)
        if self.units > most:
            raise contradiction(("free", "units"), f"expected at most {most} for this cost, found {self.units}")

    def compiled(self, part: Part | None, hold_microcents: int, maximum_microcents: int) -> FreeTier | None:
        """None where calls cost nothing anyway."""
        if hold_microcents == 0:
            return None
        return free_tier(
            self.units,
            self.per,
            time_zone=self.time_zone,
            week_start=self.week_start,
            hold_microcents=hold_microcents,
            maximum_microcents=maximum_microcents,
            scale=_scale_of(part),
            microcents_per_unit=None if part is None else price_of(part),
        )


def _scale_of(part: Part | None) -> int:
    if part is None:
        return UNIT_SCALE_CALL
    if isinstance(part, BytesCost):
        return UNIT_SCALE_BYTE
    return UNIT_SCALE_MS if isinstance(part, DurationCost) else UNIT_SCALE_TOLD
