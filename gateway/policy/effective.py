"""Rules as data that people compare: in the words of the policy files, with every default filled in.

``castgate check`` and the admin listener show it, and ``changes`` says in which keys two versions differ.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from gateway.policy.budgets import BudgetLimit
from gateway.policy.costs import BytesCost, DurationCost, HeaderCost, Part
from gateway.policy.free_tier import FreeTier
from gateway.policy.money import MICROCENTS_MAX, Cents, cents_text, price_text
from gateway.policy.periods import WEEKDAYS
from gateway.policy.rules import LOG_ALWAYS, NO_STATUS, Cost, LogLines, Plan, Policy, RateLimit, Rules
from gateway.policy.weights import Weight

# Of a change, in logs and answers; whoever changes more reads the files.
CHANGES_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key that differs; None stands for a key that is not there."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.key}: added {_shown(self.after)}"
        if self.after is None:
            return f"{self.key}: removed, was {_shown(self.before)}"
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.after)}"


def effective(rules: Rules) -> dict[str, Any]:
    """All of the rules but their version: texts, integers, lists, mappings, and Cents."""
    return {
        "policies": {policy.name: policy_data(policy) for policy in rules.policies},
        "plans": {name: plan_data(plan) for name, plan in rules.plans.items()},
        "default_plan": rules.default_plan,
    }


def policy_data(policy: Policy) -> dict[str, Any]:
    return {
        "methods": sorted(policy.methods) or ["any"],
        "path": policy.path,
        "mode": policy.mode,
        "cost": cost_data(policy.cost),
        "rate_limits": {limit.name: _limit_data(limit) for limit in policy.rate_limits},
        "rate_limits_of_unidentified": {
            limit.name: _limit_data(limit) for limit in (policy.unidentified.rate_limits if policy.unidentified else ())
        },
        "cast_id": policy.cast_id_pointer or "none",
        "on_store_failure": policy.on_store_failure,
        "on_client_abort": policy.on_client_abort,
        "body_bytes_max": policy.body_bytes_max or "that of config.yaml",
        "on_orphan": policy.on_orphan,
        "rate_limit_headers": policy.rate_limit_headers,
        "idempotency": "none"
        if policy.idempotency is None
        else {"header": policy.idempotency.header, "life_ms": policy.idempotency.life_ms},
        "budget_headers": policy.budget_headers,
        "log": _log_data(policy.log),
    }


def _log_data(log: LogLines) -> dict[str, Any]:
    errors, slow = log.status_min < NO_STATUS, log.slow_s < inf
    always = [name for name, wanted in zip(LOG_ALWAYS, (errors, log.denials, slow), strict=True) if wanted]
    return {
        "sample": "that of config.yaml" if log.sample is None else f"{log.sample:g}",
        "always": always or ["nothing"],
        "slow_after": f"{log.slow_s:g}s" if slow else "none",
    }


def plan_data(plan: Plan) -> dict[str, Any]:
    return {
        "budgets": {budget.period: _budget_data(budget) for budget in plan.budgets},
        "rate_limits": dict(plan.rate_limits),
        "stripe_price": plan.stripe_price or "none",
        "soft_limit_percents": list(plan.soft_limit_percents),
    }


def cost_data(cost: Cost) -> dict[str, Any]:
    when = cost.charge_when
    data: dict[str, Any] = {"charge_when": sorted(when) if isinstance(when, frozenset) else when}
    if cost.fixed_microcents or not cost.parts:
        data["fixed_cents"] = Cents(cost.fixed_microcents)
    if cost.parts:
        data["measured"] = [part_text(part) for part in cost.parts]
        data["hold_cents"] = Cents(cost.hold_microcents)
        data["if_missing"] = cost.if_missing
        if cost.minimum_microcents:
            data["minimum_cents"] = Cents(cost.minimum_microcents)
        if cost.maximum_microcents < MICROCENTS_MAX:
            data["maximum_cents"] = Cents(cost.maximum_microcents)
    if cost.free is not None:
        data["free"] = {
            "units": cost.free.units // cost.free.scale,
            "per": cost.free.period,
            "time_zone": cost.free.time_zone,
            "week_start": WEEKDAYS[cost.free.week_start - 1],
        }
    return data


def cost_text(cost: Cost) -> str:
    """The cost on one line: ``1 cent``, ``0.1 cents + 0.0003 cents × json /usage/total_tokens, at most 5``."""
    terms = [cents_words(cost.fixed_microcents)] if cost.fixed_microcents else []
    terms += [part_text(part) for part in cost.parts]
    text = " + ".join(terms)
    if cost.parts:
        low = f"at least {cents_text(cost.minimum_microcents)}, " if cost.minimum_microcents else ""
        has_maximum = cost.maximum_microcents < MICROCENTS_MAX
        high = f"at most {cents_text(cost.maximum_microcents)}, " if has_maximum else ""
        text += f", {low}{high}holds {cents_text(cost.hold_microcents)}"
    if cost.free is not None:
        text += f", the first {free_text(cost.free)} free"
    return text


def free_text(free: FreeTier) -> str:
    """``1000 units monthly (Asia/Tokyo)``."""
    unit = "call" if free.is_by_call else "unit"
    count = free.units // free.scale
    zone = "" if free.time_zone == "UTC" or free.period == "total" else f" ({free.time_zone})"
    return f"{count} {unit}{'' if count == 1 else 's'} {'in all' if free.period == 'total' else free.period}{zone}"


def part_text(part: Part) -> str:
    if isinstance(part, HeaderCost):
        return f"{price_text(part.microcents_per_unit)} cents × header {part.field}"
    if isinstance(part, DurationCost):
        return f"{price_text(part.microcents_per_ms)} cents × ms"
    if isinstance(part, BytesCost):
        return f"{price_text(part.microcents_per_byte)} cents × bytes of {part.of}"
    return f"{price_text(part.microcents_per_unit)} cents × json {part.pointer} ({part.events})"


def limit_text(limit: RateLimit, number: int | None = None) -> str:
    """A rate limit on one line; ``number`` is what a plan makes of it."""
    count = limit.limit if number is None else number
    shadow = ", SHADOW" if limit.mode == "shadow" else ""
    if not limit.window_ms:
        return f"{limit.name}: {count} at once per {limit.key}{shadow}"
    weight = f", a call weighs {weight_text(limit.weight)}" if limit.weight != 1 else ""
    return f"{limit.name}: {count} in {limit.window_ms / 1000:g}s per {limit.key}, {limit.algorithm}{weight}{shadow}"


def weight_text(weight: Weight) -> str:
    if isinstance(weight, int):
        return str(weight)
    return f"header {weight.field}, {weight.default} without it, at most {weight.maximum}"


def cents_words(amount_microcents: int) -> str:
    text = cents_text(amount_microcents)
    return f"{text} cent" if text == "1" else f"{text} cents"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What differs, by key; a policy or plan that is new or gone is one change. At most CHANGES_MAX."""
    found: list[Change] = []
    for change in _changes("", before, after):
        if len(found) == CHANGES_MAX:
            break
        found.append(change)
    return found


def _changes(key: str, before: Any, after: Any) -> Iterator[Change]:
    if before == after:
        return
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        yield Change(key=key, before=before, after=after)
        return
    for name in [*before, *(name for name in after if name not in before)]:
        below = f"{key}.{name}" if key else name
        yield from _changes(below, before.get(name), after.get(name))


def _limit_data(limit: RateLimit) -> dict[str, Any]:
    data: dict[str, Any] = {"key": limit.key, "limit": limit.limit, "algorithm": limit.algorithm, "mode": limit.mode}
    if limit.window_ms:
        data["window"] = f"{limit.window_ms}ms" if limit.window_ms % 1000 else f"{limit.window_ms // 1000}s"
    if limit.burst:
        data["burst"] = limit.burst
    if limit.weight != 1:
        data["weight"] = weight_text(limit.weight)
    return data


def _budget_data(budget: BudgetLimit) -> dict[str, Any]:
    data: dict[str, Any] = {"hard_limit_cents": Cents(budget.hard_limit_microcents)}
    if budget.period != "total":
        data["time_zone"] = budget.time_zone
    if budget.period == "weekly":
        data["week_start"] = WEEKDAYS[budget.week_start - 1]
    return data


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)
