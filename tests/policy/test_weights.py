"""What a call weighs by its own word: never less than one, never more than the maximum, and nothing by guess."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.weights import HeaderWeight, usual_weight, weights_told

UNITS = HeaderWeight(field="x-units", default=2, maximum=100)


@pytest.mark.parametrize(
    ("values", "weight"),
    [
        ([], 2),
        ([b"1"], 1),
        ([b" 100\t"], 100),
        ([b"007"], 7),
        # none of these is one whole number of 1 to 100
        ([b""], 100),
        ([b"0"], 100),
        ([b"101"], 100),
        ([b"-1"], 100),
        ([b"+1"], 100),
        ([b"1.5"], 100),
        ([b"1e0"], 100),
        ([b"1, 1"], 100),
        ([b"\xd9\xa1"], 100),
        ([b"9" * 5000], 100),
        ([b"1", b"1"], 100),
    ],
)
def test_a_field_tells_one_whole_number_or_the_maximum(values: list[bytes], weight: int) -> None:
    assert UNITS.of(values) == weight


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=3))
def test_whatever_is_told_is_within_bounds(values: list[bytes]) -> None:
    assert 1 <= UNITS.of(values) <= 100


def test_each_limit_has_a_weight_of_its_own() -> None:
    other = HeaderWeight(field="x-tokens", default=5, maximum=9)
    lines = [b"Host: a\r\n", b"x-UNITS: 30\r\n", b"X-Units-Else: 1\r\n"]
    assert weights_told([3, UNITS, other, UNITS], lines) == (3, 30, 5, 30)
    assert weights_told([UNITS], [*lines, b"X-Units: 1\r\n"]) == (100,)
    # Some servers read both as one field.
    assert weights_told([UNITS], [*lines, b"X_Units: 1\r\n"]) == (100,)
    assert weights_told([UNITS], [b"x_units: 30\r\n"]) == (30,)
    assert [usual_weight(weight) for weight in (3, UNITS, other)] == [3, 2, 5]
