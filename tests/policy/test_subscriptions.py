"""The table of states, row by row, and which news counts."""

import pytest

from gateway.policy.subscriptions import (
    FINAL,
    NEWER,
    OLDER,
    STATUSES,
    TIE,
    Known,
    Standing,
    Subscription,
    place,
    standing_of,
    status_of,
)

PLANS = {"price_pro": "pro", "price_team": "team"}
WEEK_S = 7 * 86_400


def known(
    status: str, *, price: str = "price_pro", name: str = "sub_1", started_s: int = 10, created_s: int = 100
) -> Known:
    subscription = Subscription(
        id=name,
        customer_id="cus_1",
        status=status,
        prices=(price,),
        started_s=started_s,
        period_start_s=0,
        period_end_s=0,
        cancels=False,
    )
    return Known(subscription=subscription, event_created_s=created_s, revision=1, past_due_s=1000)


@pytest.mark.parametrize(
    ("status", "plan", "plan_until_s", "is_open", "has_ended"),
    [
        ("active", "pro", None, True, False),
        ("trialing", "pro", None, True, False),
        ("past_due", "pro", 1000 + WEEK_S, True, False),
        ("unpaid", None, None, True, False),
        ("paused", None, None, True, False),
        ("incomplete", None, None, True, False),
        ("canceled", None, None, False, True),
        ("incomplete_expired", None, None, False, True),
        ("invented_later", None, None, True, False),
    ],
)
def test_what_each_status_gives(
    status: str, plan: str | None, plan_until_s: int | None, *, is_open: bool, has_ended: bool
) -> None:
    standing = standing_of([known(status)], PLANS, WEEK_S)
    assert standing == Standing(status=status, plan=plan, subscription_id="sub_1", plan_until_s=plan_until_s)
    assert (status_of(status).open, status_of(status).ended) == (is_open, has_ended)


def test_every_status_that_stripe_has_is_in_the_table() -> None:
    documented = "active trialing past_due unpaid paused incomplete canceled incomplete_expired"
    assert list(STATUSES) == documented.split()


def test_an_account_without_subscriptions_has_the_default_plan() -> None:
    assert standing_of([], PLANS, WEEK_S) == Standing(status="none", plan=None, subscription_id=None, plan_until_s=None)


def test_a_price_of_no_plan_gives_the_default_plan() -> None:
    assert standing_of([known("past_due", price="price_else")], PLANS, WEEK_S).plan is None
    assert standing_of([known("past_due", price="price_else")], PLANS, WEEK_S).plan_until_s is None


def test_of_several_subscriptions_the_best_status_counts_then_the_newest() -> None:
    ended = known("canceled", name="sub_2", started_s=99)
    old = known("active", name="sub_3", price="price_team", started_s=5)
    new = known("active", name="sub_4", started_s=50)
    for some in ([ended, old, new], [new, old, ended]):
        assert standing_of(some, PLANS, WEEK_S).subscription_id == "sub_4"
    assert standing_of([ended, old], PLANS, WEEK_S).plan == "team"


@pytest.mark.parametrize(
    ("status", "created_s", "before", "where"),
    [
        ("active", 1, None, NEWER),
        ("active", 101, known("incomplete"), NEWER),
        ("active", 100, known("incomplete"), TIE),
        ("active", 99, known("incomplete"), OLDER),
        ("canceled", 1, known("active"), NEWER),
        ("active", 999, known("canceled"), FINAL),
        ("active", 999, known("incomplete_expired"), FINAL),
    ],
)
def test_where_news_stands(status: str, created_s: int, before: Known | None, where: str) -> None:
    assert place(status, created_s, before) == where
