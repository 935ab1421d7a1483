"""What a call costs by what was seen of it: parts, each so many units at a price, exact until they are added up.

Prices and units are fractions, so nothing is rounded before the sum is; that happens once, in ``money.rounded_up``.
Whoever reads an answer (``gateway.relay.meter``) brings one quantity for each part, in the parts' order; None is a part
that the answer does not tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from gateway.policy.money import plain_decimal

EVENTS = ("last", "sum")
BYTES_OF = ("answer", "request", "both")
# What is charged where an answer does not tell what it costs: all that was held, or the other parts alone.
HOLD = "hold"
FREE = "free"
IF_MISSING = (HOLD, FREE)
# More units than any call has; a number beyond it is no count but a mistake, and as good as missing.
UNITS_MAX = 10**15
# A JSON number may have an exponent: 1e-999999 would make a denominator of a million digits.
_EXPONENT_MIN = -30


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderCost:
    """Units in a field of the answer's head."""

    field: str  # in lower case
    microcents_per_unit: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCost:
    """Units at a JSON pointer (RFC 6901) into the answer; of server-sent events the last that has it, or the sum."""

    pointer: str
    microcents_per_unit: Fraction
    events: str = "last"  # one of EVENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class DurationCost:
    """Milliseconds from the call's being sent to the end of its answer."""

    microcents_per_ms: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesCost:
    """Bytes of the bodies, as they were sent: without heads and chunk framing, compressed where they are."""

    microcents_per_byte: Fraction
    of: str = "answer"  # one of BYTES_OF


Part = HeaderCost | JsonCost | DurationCost | BytesCost


def price_of(part: Part) -> Fraction:
    """Microcents per unit, whatever the unit."""
    if isinstance(part, DurationCost):
        return part.microcents_per_ms
    return part.microcents_per_byte if isinstance(part, BytesCost) else part.microcents_per_unit


def amount_of(parts: Sequence[Part], units: Sequence[Fraction | int | None]) -> Fraction:
    """Exact microcents; a part without units counts nothing."""
    amount = Fraction(0)
    for part, count in zip(parts, units, strict=True):
        if count is not None:
            amount += price_of(part) * count
    return amount


def quantity_of(value: object) -> Fraction | None:
    """A number of units as headers and JSON write one: a count or decimal of 0 to UNITS_MAX; None for all else."""
    number: int | Decimal | None = None
    if isinstance(value, str):
        number = plain_decimal(value)
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        number = value
    if isinstance(number, Decimal):
        exponent = number.as_tuple().exponent
        if not isinstance(exponent, int) or (number and exponent < _EXPONENT_MIN):
            return None  # no number at all, or one too fine
    if number is None or not 0 <= number <= UNITS_MAX:
        return None
    return Fraction(number)
