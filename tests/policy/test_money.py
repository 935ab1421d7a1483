"""Money is exact, or it is refused."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.money import (
    MICROCENTS_MAX,
    AmountError,
    cents_decimal,
    cents_text,
    microcents_from_cents,
)

AMOUNTS = st.integers(0, MICROCENTS_MAX)


@given(AMOUNTS)
def test_every_amount_survives_its_text(amount_microcents: int) -> None:
    assert microcents_from_cents(cents_text(amount_microcents)) == amount_microcents


@given(AMOUNTS)
def test_every_amount_survives_its_decimal(amount_microcents: int) -> None:
    assert microcents_from_cents(cents_decimal(amount_microcents)) == amount_microcents


@given(AMOUNTS)
def test_the_text_is_the_decimal_without_an_exponent(amount_microcents: int) -> None:
    text = cents_text(amount_microcents)
    assert Decimal(text) == cents_decimal(amount_microcents)
    assert "E" not in text
    assert "." not in text or not text.endswith("0")


@given(st.integers(-(10**24), 10**24))
def test_a_sum_or_difference_of_amounts_has_an_exact_text_too(amount_microcents: int) -> None:
    assert Decimal(cents_text(amount_microcents)) * 1_000_000 == amount_microcents


@given(st.decimals(allow_nan=True, allow_infinity=True) | st.integers() | st.text())
def test_anything_else_is_exact_or_refused(cents: Decimal | int | str) -> None:
    try:
        amount_microcents = microcents_from_cents(cents)
    except AmountError:
        return
    assert 0 <= amount_microcents <= MICROCENTS_MAX
    numerator, denominator = Decimal(cents).as_integer_ratio()
    assert amount_microcents * denominator == numerator * 1_000_000


@pytest.mark.parametrize(
    ("cents", "microcents"),
    [
        (1, 1_000_000),
        ("1", 1_000_000),
        ("0.25", 250_000),
        (" 12.000001 ", 12_000_001),
        ("+1.50000000000000000000", 1_500_000),
        ("-0", 0),
        (Decimal("1E+3"), 1_000_000_000),
        (Decimal("0E-9999"), 0),
        ("9007199254.740991", MICROCENTS_MAX),
    ],
)
def test_cents_become_microcents(cents: int | str | Decimal, microcents: int) -> None:
    assert microcents_from_cents(cents) == microcents


@pytest.mark.parametrize(
    ("cents", "message"),
    [
        ("", "expected cents as a number, found ''"),
        ("1_000", "expected cents as a number, found '1_000'"),
        ("1e3", "expected cents as a number, found '1e3'"),
        ("٣", "expected cents as a number, found '٣'"),
        ("NaN", "expected cents as a number, found 'NaN'"),
        ("1,5", "expected cents as a number, found '1,5'"),
        (True, "expected cents as a number, found bool"),
        (0.1, "expected cents as a number, found float"),
        (None, "expected cents as a number, found NoneType"),
        (Decimal("NaN"), "expected a finite number of cents, found NaN"),
        (Decimal("sNaN"), "expected a finite number of cents, found sNaN"),
        (Decimal("-Infinity"), "expected a finite number of cents, found -Infinity"),
        (-1, "expected cents of 0 or more, found -1"),
        ("-0.000001", "expected cents of 0 or more, found -0.000001"),
        ("0.0000001", "expected at most six decimals of a cent, found 0.0000001"),
        (Decimal("1e-999999"), "expected at most six decimals of a cent, found 1E-999999"),
        # Rounded to 28 digits this one is whole, and the next is the maximum.
        ("1." + "0" * 27 + "1", "expected at most six decimals of a cent, found 1.0000000000000000000000000001"),
        (
            "9007199254.740991" + "0" * 20 + "1",
            "expected at most 9007199254.740991 cents (2^53 microcents), found 9007199254.740991000000000000000000001",
        ),
        (
            9_007_199_255,
            "expected at most 9007199254.740991 cents (2^53 microcents), found 9007199255",
        ),
        (
            Decimal("9e999999"),
            "expected at most 9007199254.740991 cents (2^53 microcents), found 9E+999999",
        ),
    ],
)
def test_what_is_no_exact_amount_is_refused_in_words(cents: int | str | Decimal, message: str) -> None:
    with pytest.raises(AmountError) as caught:
        microcents_from_cents(cents)
    assert str(caught.value) == message
    assert message.startswith(f"{caught.value.expected}, found ")


@pytest.mark.parametrize(
    "cents",
    [10**100_000, "1" * 100_000, "0." + "1" * 100_000, Decimal("1" * 10_000)],
    ids=["integer", "text", "decimals", "decimal"],
)
def test_a_hostile_number_of_digits_is_refused_without_being_repeated(cents: int | str | Decimal) -> None:
    with pytest.raises(AmountError) as caught:
        microcents_from_cents(cents)
    assert len(str(caught.value)) < 200
