"""A configuration as tables for a terminal: which calls cost what and may come how often, and what plans allow."""

from collections.abc import Iterable

from gateway.config import Loaded
from gateway.policy.budgets import BudgetLimit
from gateway.policy.effective import cost_text, limit_text
from gateway.policy.money import cents_text
from gateway.policy.rules import ENFORCE, Plan, Policy
from gateway.tables import table


def summary(loaded: Loaded) -> Iterable[str]:
    """What the configuration means, as tables."""
    rules = loaded.rules
    yield f"configuration {rules.version}"
    yield ""
    yield from table(
        ("METHODS", "PATH", "POLICY", "MODE", "COST", "RATE LIMITS"),
        [_policy_row(policy) for policy in rules.policies],
    )
    yield "everything else is relayed untouched"
    yield ""
    yield from table(
        ("PLAN", "BUDGETS", "RATE LIMITS", "STRIPE PRICE"),
        [_plan_row(plan, is_default=plan.name == rules.default_plan) for plan in rules.plans.values()],
    )
    yield ""
    yield f"billing is {'on' if loaded.billing_enabled else 'off'}"


def _policy_row(policy: Policy) -> tuple[str, ...]:
    cost = cost_text(policy.cost)
    return (
        ",".join(sorted(policy.methods)) or "any",
        policy.path,
        policy.name,
        policy.mode if policy.mode == ENFORCE else policy.mode.upper(),
        f"{cost}, {_when_text(policy.cost.charge_when)}" if cost else "free",
        "; ".join(_limits(policy)) or "none",
    )


def _limits(policy: Policy) -> Iterable[str]:
    yield from map(limit_text, policy.rate_limits)
    if policy.unidentified is not None:
        yield from (f"unidentified {limit_text(limit)}" for limit in policy.unidentified.rate_limits)


def _when_text(charge_when: str | frozenset[int]) -> str:
    return charge_when if isinstance(charge_when, str) else f"for {' '.join(map(str, sorted(charge_when)))}"


def _plan_row(plan: Plan, *, is_default: bool) -> tuple[str, ...]:
    return (
        f"{plan.name} (default)" if is_default else plan.name,
        "; ".join(_budget_text(budget) for budget in plan.budgets) or "none",
        "; ".join(f"{name}: {limit}" for name, limit in plan.rate_limits.items()) or "as the policy says",
        plan.stripe_price or "none",
    )


def _budget_text(budget: BudgetLimit) -> str:
    zone = "" if budget.time_zone == "UTC" else f" {budget.time_zone}"
    return f"{budget.period} {cents_text(budget.hard_limit_microcents)} cents{zone}"
