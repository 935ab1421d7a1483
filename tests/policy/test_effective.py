"""What is shown of rules, and compared: everything that a policy or plan may say."""

from collections.abc import Iterator
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import pytest

from gateway.policy.budgets import BudgetLimit
from gateway.policy.costs import BytesCost, DurationCost, HeaderCost, JsonCost
from gateway.policy.effective import CHANGES_MAX, Change, changes, cost_text, effective, limit_text
from gateway.policy.free_tier import FreeTier
from gateway.policy.rules import NO_STATUS, Cost, Idempotency, LogLines, Plan, Policy, RateLimit, Rules
from gateway.policy.weights import HeaderWeight

LIMIT = RateLimit(name="a", key="account", limit=1, window_ms=1000, algorithm="token_bucket", burst=2)
HEADER_WEIGHT = HeaderWeight(field="x-units", default=1, maximum=100)
COST = Cost(
    fixed_microcents=5,
    parts=(
        HeaderCost(field="x", microcents_per_unit=Fraction(1)),
        JsonCost(pointer="/n", microcents_per_unit=Fraction(2)),
        DurationCost(microcents_per_ms=Fraction(3)),
        BytesCost(microcents_per_byte=Fraction(4)),
    ),
    minimum_microcents=6,
    maximum_microcents=70,
    hold_microcents=60,
)
FREE = FreeTier(units=5, period="weekly")
POLICY = Policy(
    name="p", methods=frozenset({"POST"}), path="/p", cost=COST, rate_limits=(LIMIT,), cast_id_pointer="/id"
)
LOG = LogLines(slow_s=1.0)
WEEK = BudgetLimit(period="weekly", hard_limit_microcents=100)
PLAN = Plan(name="free", budgets=(WEEK,), rate_limits={"a": 2}, stripe_price="price_1")
OTHER: dict[type, Any] = {int: 7, str: "other", Fraction: Fraction(9)}


def rules(policy: Policy = POLICY, plan: Plan = PLAN) -> Rules:
    return Rules(version="v", policies=(policy,), plans={"free": plan}, default_plan="free")


def altered(value: Any, **special: Any) -> Iterator[tuple[str, Any]]:
    """The value with one field changed, for each field that is not made of others."""
    for field in (each for each in fields(value) if each.init):
        present = getattr(value, field.name)
        yield field.name, replace(value, **{field.name: special.get(field.name, OTHER.get(type(present), "other"))})


def cases() -> Iterator[tuple[str, Rules]]:
    for name, limit in altered(LIMIT):
        yield f"limit {name}", rules(replace(POLICY, rate_limits=(limit,)))
        unidentified = replace(POLICY, rate_limits=(limit,))
        yield f"unidentified {name}", rules(replace(POLICY, unidentified=unidentified))
    for weight in (HEADER_WEIGHT, *(other for _, other in altered(HEADER_WEIGHT))):
        yield f"limit {weight}", rules(replace(POLICY, rate_limits=(replace(LIMIT, weight=weight),)))
    for name, cost in altered(COST, parts=COST.parts[:3], charge_when=frozenset({200}), free=FREE):
        yield f"cost {name}", rules(replace(POLICY, cost=cost))
    for place, part in enumerate(COST.parts):
        for name, other in altered(part):
            parts = (*COST.parts[:place], other, *COST.parts[place + 1 :])
            yield f"part {place} {name}", rules(replace(POLICY, cost=replace(COST, parts=parts)))
    for name, log in altered(LOG, sample=0.5, status_min=NO_STATUS, denials=False, slow_s=9.0):
        yield f"log {name}", rules(replace(POLICY, log=log))
    for name, policy in altered(
        POLICY,
        methods=frozenset({"GET"}),
        cost=Cost(),
        rate_limits=(),
        unidentified=POLICY,
        cast_id_pointer=None,
        log=LogLines(denials=False),
        idempotency=Idempotency(header="idempotency-key", life_ms=1),
    ):
        yield f"policy {name}", rules(policy)
    for name, budget in altered(WEEK):
        yield f"budget {name}", rules(plan=replace(PLAN, budgets=(budget,)))
    for name, plan in altered(PLAN, budgets=(), rate_limits={}):
        if name != "name":  # plans go by their key
            yield f"plan {name}", rules(plan=plan)


CASES = dict(cases())


@pytest.mark.parametrize("case", CASES)
def test_no_change_goes_unseen(case: str) -> None:
    before, after = effective(rules()), effective(CASES[case])
    assert changes(before, after)
    assert not changes(after, after)


@pytest.mark.parametrize("field", ["units", "period", "time_zone", "week_start"])  # the others follow from the cost
def test_no_change_of_a_free_tier_goes_unseen(field: str) -> None:
    tiers = (FREE, dict(altered(FREE))[field])
    before, after = (effective(rules(replace(POLICY, cost=replace(COST, free=tier)))) for tier in tiers)
    assert changes(before, after)


def test_a_change_reads_as_a_line() -> None:
    other = replace(POLICY, cost=Cost(fixed_microcents=250_000), methods=frozenset({"GET", "PUT"}))
    lines = [str(change) for change in changes(effective(rules()), effective(rules(other)))]
    assert "policies.p.methods: [POST] -> [GET, PUT]" in lines
    assert "policies.p.cost.fixed_cents: 0.000005 -> 0.25" in lines
    assert "policies.p.cost.hold_cents: removed, was 0.00006" in lines
    added = changes(effective(rules()), effective(replace(rules(), plans={"free": PLAN, "new": Plan(name="new")})))
    assert [str(change) for change in added] == [
        "plans.new: added {budgets: {}, rate_limits: {}, stripe_price: none, soft_limit_percents: [50, 80, 100]}"
    ]


def test_a_cost_reads_as_a_line() -> None:
    assert cost_text(Cost(fixed_microcents=1_000_000)) == "1 cent"
    assert cost_text(COST) == (
        "0.000005 cents + 0.000001 cents × header x + 0.000002 cents × json /n (last) + 0.000003 cents × ms + "
        "0.000004 cents × bytes of answer, at least 0.000006, at most 0.00007, holds 0.00006"
    )


def test_a_limit_reads_as_a_line() -> None:
    assert limit_text(LIMIT) == "a: 1 in 1s per account, token_bucket"
    assert limit_text(replace(LIMIT, weight=5), 30) == "a: 30 in 1s per account, token_bucket, a call weighs 5"
    by_call = replace(LIMIT, weight=HEADER_WEIGHT, mode="shadow")
    assert limit_text(by_call) == (
        "a: 1 in 1s per account, token_bucket, a call weighs header x-units, 1 without it, at most 100, SHADOW"
    )


def test_changes_have_a_bound() -> None:
    before = {"policies": {str(n): n for n in range(1000)}}
    found = changes(before, {"policies": {}})
    assert len(found) == CHANGES_MAX
    assert found[0] == Change(key="policies.0", before=0, after=None)
