"""Own budgets and a plan's, as one list of limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.budgets import PERIOD_PRECEDENCE, BudgetLimit, effective_limits
from gateway.policy.periods import window_at

LIMITS = st.builds(
    BudgetLimit,
    period=st.sampled_from(PERIOD_PRECEDENCE),
    hard_limit_microcents=st.integers(0, 2**53 - 1),
    time_zone=st.sampled_from(["UTC", "Asia/Tokyo", "America/New_York"]),
    week_start=st.integers(1, 7),
)
SETS = st.lists(LIMITS, max_size=8)


def limit(period: str, cents: int, time_zone: str = "UTC", week_start: int = 1) -> BudgetLimit:
    return BudgetLimit(
        period=period, hard_limit_microcents=cents * 1_000_000, time_zone=time_zone, week_start=week_start
    )


def test_the_lower_of_own_and_plan_holds() -> None:
    own, plan = limit("monthly", 300), limit("monthly", 500)
    assert effective_limits([own], [plan]) == (own,)
    assert effective_limits([plan], [own]) == (own,)


def test_without_an_own_budget_the_plan_holds_and_the_other_way_round() -> None:
    assert effective_limits([], [limit("monthly", 500)]) == (limit("monthly", 500),)
    assert effective_limits([limit("daily", 5)], []) == (limit("daily", 5),)
    assert effective_limits([], []) == ()


def test_another_time_zone_is_another_window_and_both_hold() -> None:
    own, plan = limit("monthly", 300, "Asia/Tokyo"), limit("monthly", 500)
    assert set(effective_limits([own], [plan])) == {own, plan}


def test_a_zone_or_week_start_that_moves_no_window_makes_no_second_limit() -> None:
    assert effective_limits([limit("total", 3, "Asia/Tokyo")], [limit("total", 5)]) == (
        limit("total", 3, "Asia/Tokyo"),
    )
    assert effective_limits([limit("monthly", 3, week_start=7)], [limit("monthly", 5)]) == (
        limit("monthly", 3, week_start=7),
    )


def test_the_longest_period_comes_first() -> None:
    limits = [limit(period, 1) for period in ("daily", "total", "weekly", "monthly")]
    assert [each.period for each in effective_limits(limits, [])] == ["total", "monthly", "weekly", "daily"]


@pytest.mark.parametrize(
    ("budget", "kind"),
    [
        (limit("monthly", 1, "Asia/Tokyo"), "monthly/Asia/Tokyo/1"),
        (limit("weekly", 1, "UTC", 7), "weekly/UTC/7"),
        (limit("daily", 1, "UTC", 7), "daily/UTC/1"),
        (limit("total", 1, "Asia/Tokyo", 7), "total/UTC/1"),
    ],
)
def test_the_kind_names_the_window(budget: BudgetLimit, kind: str) -> None:
    assert budget.kind == kind


@given(own=SETS, plan=SETS)
def test_no_limit_is_lost_and_none_is_stricter_than_written(own: list[BudgetLimit], plan: list[BudgetLimit]) -> None:
    effective = effective_limits(own, plan)
    kinds = {each.kind: each.hard_limit_microcents for each in effective}
    assert len(kinds) == len(effective)
    assert kinds.keys() == {each.kind for each in (*own, *plan)}
    for kind, amount_microcents in kinds.items():
        assert amount_microcents == min(each.hard_limit_microcents for each in (*own, *plan) if each.kind == kind)


@given(one=LIMITS, other=LIMITS, at_ms=st.integers(0, 4_000_000_000_000))
def test_limits_of_one_kind_share_their_windows(one: BudgetLimit, other: BudgetLimit, at_ms: int) -> None:
    if one.kind == other.kind:
        windows = {window_at(each.period, each.time_zone, each.week_start, at_ms) for each in (one, other)}
        assert len(windows) == 1
