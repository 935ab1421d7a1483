"""Money as integers. One cent is 1,000,000 microcents; floats never appear.

The API and ``casts.cost_cents`` speak cents with at most six decimals, so a microcent is the smallest
amount there is and no conversion ever rounds. Prices by the unit may be finer; what comes of them is rounded in one
place, ``rounded_up``.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

MICROCENTS_PER_CENT = 1_000_000
# Redis' Lua counts in doubles: above 2^53 two neighbouring amounts are no longer told apart.
MICROCENTS_MAX = 2**53 - 1
# Decimal() also takes "1_000", "١٢", "1e999999999" and "NaN"; an operator or a client who writes these meant no amount.
_PLAIN_NUMBER = re.compile(r"[+-]?[0-9]{1,64}(?:\.[0-9]{1,64})?")
# Zeros may follow the six decimals that count, but 1e-999999 would make a denominator of a million digits.
_DECIMALS_MAX = 64
# Longer than any amount there is; keeps a hostile megabyte of digits out of messages and logs.
_FOUND_LENGTH_MAX = 40


class AmountError(ValueError):
    """An amount that is no exact number of microcents from 0 to MICROCENTS_MAX.

    The text says what was expected and what was found; ``expected`` is the first half alone.
    """

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"{expected}, found {found}")
        self.expected = expected


def microcents_from_cents(cents: int | str | Decimal) -> int:
    """Exact microcents of an amount of cents, such as ``1``, ``"0.25"`` or ``Decimal("12.000001")``.

    Text is a plain decimal number, without exponent. Raises AmountError for anything that is negative, not finite,
    finer than a microcent or over the maximum.
    """
    if isinstance(cents, bool) or not isinstance(cents, int | str | Decimal):
        raise AmountError("expected cents as a number", type(cents).__name__)
    if isinstance(cents, str):
        found = _clipped(cents.strip())
        if _PLAIN_NUMBER.fullmatch(cents.strip()) is None:
            raise AmountError("expected cents as a number", _clipped(repr(cents)))
        exact = Decimal(cents.strip())
    elif isinstance(cents, int) and abs(cents) > MICROCENTS_MAX:
        # str() and Decimal() of an integer take quadratic time, or refuse: not for a megabyte of digits.
        found = "an integer of more than 15 digits"
        exact = Decimal(MICROCENTS_MAX if cents > 0 else -MICROCENTS_MAX)
    else:
        found = _clipped(str(cents))
        exact = Decimal(cents)
    if not exact.is_finite():
        raise AmountError("expected a finite number of cents", found)
    if exact < 0:
        raise AmountError("expected cents of 0 or more", found)
    # Compared before it is multiplied: a product would overflow, or be rounded to the context's 28 digits.
    if exact > _CENTS_MAX:
        raise AmountError(f"expected at most {cents_text(MICROCENTS_MAX)} cents (2^53 microcents)", found)
    amount_microcents = _whole_microcents(exact)
    if amount_microcents is None:
        raise AmountError("expected at most six decimals of a cent", found)
    return amount_microcents


@dataclass(frozen=True, slots=True)
class Cents:
    """An amount that goes out as cents, an exact JSON number: ``1000``, ``0.25``."""

    microcents: int

    def __str__(self) -> str:
        return cents_text(self.microcents)


def price_from_cents(cents: str | Decimal) -> Fraction:
    """Exact microcents for one unit, of cents as a plain decimal number such as ``"0.00003"``, however fine.

    Raises AmountError for anything that is negative, not a number or over the maximum.
    """
    exact = cents if isinstance(cents, Decimal) else plain_decimal(cents)
    if exact is None:
        raise AmountError("expected cents as a number", _clipped(repr(cents)))
    if exact < 0:
        raise AmountError("expected cents of 0 or more", _clipped(str(cents)))
    if exact > _CENTS_MAX:
        raise AmountError(
            f"expected at most {cents_text(MICROCENTS_MAX)} cents (2^53 microcents)", _clipped(str(cents))
        )
    return Fraction(exact) * MICROCENTS_PER_CENT


def rounded_up(amount_microcents: Fraction) -> int:
    """The one place where money is rounded: up to a whole microcent, and to no more than MICROCENTS_MAX.

    Up, so that no number of calls is ever cheaper than what they used; by less than a microcent a call.
    """
    return min(math.ceil(amount_microcents), MICROCENTS_MAX)


def plain_decimal(text: str) -> Decimal | None:
    """The number that ``text`` writes out in full, without exponent; None where it is none, or a far too long one."""
    stripped = text.strip()
    return Decimal(stripped) if _PLAIN_NUMBER.fullmatch(stripped) is not None else None


def price_text(microcents_per_unit: Fraction) -> str:
    """A price in cents, as it was written: ``0.00003``."""
    cents = Decimal(microcents_per_unit.numerator) / Decimal(microcents_per_unit.denominator * MICROCENTS_PER_CENT)
    text = f"{cents:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _whole_microcents(cents: Decimal) -> int | None:
    """The amount without rounding; None where it is no whole number of microcents."""
    if not cents:
        return 0
    exponent = cents.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_DECIMALS_MAX:
        return None
    numerator, denominator = cents.as_integer_ratio()
    amount_microcents, rest = divmod(numerator * MICROCENTS_PER_CENT, denominator)
    return None if rest else amount_microcents


def _clipped(text: str) -> str:
    return text if len(text) <= _FOUND_LENGTH_MAX else f"{text[:_FOUND_LENGTH_MAX]}…"


def cents_text(amount_microcents: int) -> str:
    """The amount in cents as a JSON number: ``1000``, ``0.25``; whole when whole, never in exponent form."""
    sign = "-" if amount_microcents < 0 else ""
    whole, fraction = divmod(abs(amount_microcents), MICROCENTS_PER_CENT)
    if fraction == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:06d}".rstrip("0")


def cents_decimal(amount_microcents: int) -> Decimal:
    """The amount in cents, exact, for ``NUMERIC(18,6)`` columns."""
    return Decimal(amount_microcents) / MICROCENTS_PER_CENT


_CENTS_MAX = cents_decimal(MICROCENTS_MAX)
