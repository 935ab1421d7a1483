"""What a call costs: exact, and rounded once, upwards."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.costs import BytesCost, DurationCost, HeaderCost, JsonCost, quantity_of
from gateway.policy.money import MICROCENTS_MAX, AmountError, price_from_cents, price_text, rounded_up
from gateway.policy.rules import NEVER_ANSWERED, NEVER_SENT, Cost

CENT = 1_000_000


def tokens(price: str) -> HeaderCost:
    return HeaderCost(field="x-tokens", microcents_per_unit=price_from_cents(price))


def test_units_times_price() -> None:
    cost = Cost(parts=(tokens("0.0003"),), hold_microcents=5 * CENT)
    assert cost.measured_microcents([1234]) == 370_200


def test_a_part_of_a_microcent_is_a_whole_one_once_a_call_not_once_a_part() -> None:
    cost = Cost(parts=(tokens("0.0000003"), tokens("0.0000003")), hold_microcents=CENT)
    assert cost.measured_microcents([1, 0]) == 1
    assert cost.measured_microcents([1, 1]) == 1
    assert cost.measured_microcents([2, 2]) == 2


@given(
    price=st.decimals(min_value=0, max_value=10, places=18),
    units=st.lists(st.integers(0, 10**6) | st.fractions(0, 10**6), max_size=5),
)
def test_a_cost_is_never_below_the_exact_one_and_less_than_a_microcent_above(
    price: Decimal, units: list[Fraction | int]
) -> None:
    cost = Cost(parts=(tokens(f"{price:f}"),) * len(units), hold_microcents=1)
    exact = sum((Fraction(price) * CENT * count for count in units), Fraction(0))
    assert 0 <= cost.measured_microcents(units) - exact < 1


@given(amount=st.fractions(min_value=0, max_value=2**54))
def test_money_is_rounded_up_and_never_beyond_what_counts_exactly(amount: Fraction) -> None:
    assert rounded_up(amount) == min(math.ceil(amount), MICROCENTS_MAX)


def test_a_sum_of_all_kinds() -> None:
    cost = Cost(
        fixed_microcents=CENT,
        parts=(
            tokens("0.5"),
            JsonCost(pointer="/n", microcents_per_unit=price_from_cents("2")),
            DurationCost(microcents_per_ms=price_from_cents("0.001")),
            BytesCost(microcents_per_byte=price_from_cents("0.000001")),
        ),
        hold_microcents=100 * CENT,
    )
    assert cost.measured_microcents([3, 4, Fraction(1500, 1000), 1024]) == 10_502_524


def test_minimum_and_maximum_bound_what_is_charged() -> None:
    cost = Cost(
        parts=(tokens("1"),), minimum_microcents=2 * CENT, maximum_microcents=5 * CENT, hold_microcents=5 * CENT
    )
    assert [cost.measured_microcents([count]) for count in (0, 1, 3, 7)] == [2 * CENT, 2 * CENT, 3 * CENT, 5 * CENT]


def test_what_an_answer_does_not_tell_costs_the_hold_or_nothing() -> None:
    parts = (tokens("1"), tokens("2"))
    assert Cost(parts=parts, hold_microcents=9 * CENT).measured_microcents([1, None]) == 9 * CENT
    assert Cost(parts=parts, hold_microcents=9 * CENT).measured_microcents([20, None]) == 20 * CENT
    assert Cost(parts=parts, hold_microcents=9 * CENT, if_missing="free").measured_microcents([1, None]) == CENT


def test_a_dearer_call_than_was_held_for_costs_what_it_costs() -> None:
    assert Cost(parts=(tokens("1"),), hold_microcents=CENT).measured_microcents([7]) == 7 * CENT


def test_a_fixed_cost_is_what_is_held() -> None:
    assert Cost(fixed_microcents=3).hold_microcents == 3
    assert Cost(fixed_microcents=3, hold_microcents=0).hold_microcents == 0


@pytest.mark.parametrize(
    ("charge_when", "charged"),
    [
        ("success", {101, 200, 302}),
        ("sent", {NEVER_ANSWERED, 101, 200, 302, 404, 500}),
        ("always", {NEVER_SENT, NEVER_ANSWERED, 101, 200, 302, 404, 500}),
        (frozenset({200, 404}), {200, 404}),
    ],
)
def test_when_a_call_is_charged(charge_when: str | frozenset[int], charged: set[int]) -> None:
    cost = Cost(fixed_microcents=CENT, charge_when=charge_when)
    outcomes = (NEVER_SENT, NEVER_ANSWERED, 101, 200, 302, 404, 500)
    assert {status for status in outcomes if cost.charge_microcents(status) is not None} == charged


@pytest.mark.parametrize(
    ("written", "units"),
    [
        ("12", 12),
        (" 0.25 ", Fraction(1, 4)),
        (7, 7),
        (Decimal("1e-5"), Fraction(1, 100_000)),
        (Decimal("1E3"), 1000),
        (0, 0),
        (10**15, 10**15),
    ],
)
def test_a_quantity_as_headers_and_json_write_it(written: object, units: Fraction | int) -> None:
    assert quantity_of(written) == units


@pytest.mark.parametrize(
    "written",
    ["", "-1", "1e3", "12 tokens", "NaN", "١", -1, True, None, [], {}, 10**15 + 1, Decimal("NaN"), Decimal("1e-40")],
)
def test_what_is_no_quantity(written: object) -> None:
    assert quantity_of(written) is None


def test_a_price_is_as_fine_as_it_is_written() -> None:
    assert price_from_cents("0.000000000000000001") == Fraction(1, 10**12)
    for text in ("0.00003", "1", "12.5", "0", "0.000000000000000001", "9007199254.740991"):
        assert price_text(price_from_cents(text)) == text
    for text in ("", "-1", "1e-5", "a cent", "9007199254.740992"):
        with pytest.raises(AmountError):
            price_from_cents(text)
