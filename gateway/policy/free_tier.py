"""The free tier of a policy: the first units of a period cost nothing, the others their price.

Units are counted as whole numbers of the smallest unit that the cost knows (``UNIT_SCALE_…``): a byte, a microsecond, a
millionth of what a header or an answer tells. Where a cost has no unit of its own, a call is one.

Which calls the free units go to is the ledger's to say, in the order in which it writes (castgate_record_usage). Before
that it is only known what calls may come to: of units used, held and asked for, all beyond the free ones are held at
``hold_microcents / hold_units`` each, whichever calls' they will be.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from gateway.policy.periods import Window, window_at

# Smallest units in a unit. Millionths, as of cents: what tells money by the call has six decimals or fewer.
UNIT_SCALE_CALL = 1
UNIT_SCALE_BYTE = 1
UNIT_SCALE_MS = 1_000
UNIT_SCALE_TOLD = 1_000_000
# In smallest units: Redis' Lua counts in doubles, exactly up to here.
UNITS_COUNTED_MAX = 2**53 - 1

_last: dict[tuple[str, str, int], Window] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeTier:
    """All units are smallest units. ``hold_units`` are what ``hold_microcents`` pays for; a call counts no more than
    ``units_max``, what its maximum cost pays for."""

    units: int
    period: str
    time_zone: str = "UTC"
    week_start: int = 1
    scale: int = UNIT_SCALE_CALL
    is_by_call: bool = True
    hold_units: int = 1
    hold_microcents: int = 0
    units_max: int = UNITS_COUNTED_MAX

    @property
    def price(self) -> tuple[int, int]:
        """Microcents for one smallest unit, as numerator and denominator."""
        exact = Fraction(self.hold_microcents, self.hold_units)
        return exact.numerator, exact.denominator

    def window_at(self, at_ms: int) -> Window:
        """The window that holds ``at_ms``; calls come by the thousand in each, so the last one is kept."""
        key = (self.period, self.time_zone, self.week_start)
        window = _last.get(key)
        if window is None or not window.start_ms <= at_ms < window.end_ms:
            window = _last[key] = window_at(*key, at_ms)
        return window

    def kind(self, policy: str) -> str:
        """The name of the count in Redis; another period, zone or week start is another count."""
        week_start = self.week_start if self.period == "weekly" else 1
        zone = self.time_zone if self.period != "total" else "UTC"
        return f"free/{policy}/{self.period}/{zone}/{week_start}"

    def units_of(self, quantity: Fraction | int | None, exact_microcents: int, charge_microcents: int) -> int:
        """What a call counts that told ``quantity`` units, which come to ``exact_microcents``, and is charged so much.

        Where it is charged more than its units come to (a minimum, or the hold as it told nothing), what that pays for.
        """
        if self.is_by_call:
            return 1
        if quantity is None or charge_microcents > exact_microcents:
            return min(self._paid_for_by(charge_microcents), self.units_max)
        return min(math.ceil(quantity * self.scale), self.units_max)

    def held_units(self, units: int, charge_microcents: int) -> int:
        """The units that an ended call of ``units`` holds until the ledger has it: enough to pay its charge as well."""
        return max(units, self._paid_for_by(charge_microcents))

    def _paid_for_by(self, amount_microcents: int) -> int:
        return min(-(-amount_microcents * self.hold_units // self.hold_microcents), UNITS_COUNTED_MAX)


def is_tier(kind: str) -> bool:
    """Whether this is the kind of a free tier, which counts units, and not of a budget."""
    return kind.startswith("free/")


def tier_parts(kind: str) -> tuple[str, str]:
    """The policy whose free tier a kind is, and the rest of it: a budget's kind, with period, zone and week start."""
    _, policy, window_kind = kind.split("/", 2)
    return policy, window_kind


def free_tier(
    units: int,
    period: str,
    *,
    time_zone: str,
    week_start: int,
    hold_microcents: int,
    maximum_microcents: int,
    scale: int = UNIT_SCALE_CALL,
    microcents_per_unit: Fraction | None = None,
) -> FreeTier:
    """A tier of ``units`` units. Without a price per unit a call is a unit."""
    by_call = microcents_per_unit is None
    per_smallest = Fraction(hold_microcents) if microcents_per_unit is None else microcents_per_unit / scale
    return FreeTier(
        units=units * scale,
        period=period,
        time_zone=time_zone,
        week_start=week_start,
        scale=scale,
        is_by_call=by_call,
        hold_units=max(1, min(math.ceil(hold_microcents / per_smallest), UNITS_COUNTED_MAX)),
        hold_microcents=hold_microcents,
        units_max=max(1, min(math.ceil(maximum_microcents / per_smallest), UNITS_COUNTED_MAX)),
    )
