"""What the rules say to one call, and why: the verdict as admission would give it, with everything that led to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.policy.answers import instant_text
from gateway.policy.budgets import BudgetLimit
from gateway.policy.effective import cents_words, cost_text, free_text
from gateway.policy.free_tier import FreeTier
from gateway.policy.money import Cents, cents_text
from gateway.policy.periods import FOREVER_MS, Window
from gateway.policy.rules import SHADOW, Policy, RateLimit
from gateway.policy.verdicts import BudgetExceeded, Denial, RateLimited, StoreUnavailable

ADMITTED = "admitted"
REFUSED = "refused"
RELAYED = "relayed"  # no policy, or nobody we know: the service behind decides
HOSTED = "hosted"  # the gateway's own endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStanding:
    """One budget, in the window that now is."""

    limit: BudgetLimit
    window: Window
    used_microcents: int
    held_microcents: int  # by calls under way

    def blocks(self, hold_microcents: int) -> bool:
        """As lua/admit.lua decides."""
        return hold_microcents > 0 and self.taken_microcents + hold_microcents > self.limit.hard_limit_microcents

    @property
    def taken_microcents(self) -> int:
        return self.used_microcents + self.held_microcents

    @property
    def resets_ms(self) -> int | None:
        return None if self.window.end_ms >= FOREVER_MS else self.window.end_ms

    def data(self, hold_microcents: int) -> dict[str, Any]:
        left = max(0, self.limit.hard_limit_microcents - self.taken_microcents)
        return {
            "period": self.limit.period,
            "time_zone": self.limit.time_zone,
            "limit_cents": Cents(self.limit.hard_limit_microcents),
            "used_cents": Cents(self.used_microcents),
            "held_cents": Cents(self.held_microcents),
            "remaining_cents": Cents(left),
            "resets_at": None if self.resets_ms is None else instant_text(self.resets_ms),
            "blocks": self.blocks(hold_microcents),
        }

    def line(self, hold_microcents: int) -> str:
        zone = "" if self.limit.time_zone == "UTC" else f" ({self.limit.time_zone})"
        resets = "never resets" if self.resets_ms is None else f"resets {instant_text(self.resets_ms)}"
        verdict = "BLOCKS: this call needs " + cents_text(hold_microcents) if self.blocks(hold_microcents) else "passes"
        return (
            f"{self.limit.period}{zone}: {cents_text(self.used_microcents)} used + {cents_text(self.held_microcents)} "
            f"held of {cents_words(self.limit.hard_limit_microcents)}, {resets}; {verdict}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStanding:
    """The policy's free tier, in the window that now is. Units are smallest units."""

    tier: FreeTier
    window: Window
    used_units: int
    held_units: int  # by calls under way
    need_microcents: int  # what this call would hold for its units beyond the free ones

    @property
    def left_units(self) -> int:
        return max(0, self.tier.units - self.used_units - self.held_units)

    def data(self) -> dict[str, Any]:
        return {
            "period": self.tier.period,
            "time_zone": self.tier.time_zone,
            "unit": "call" if self.tier.is_by_call else "unit",
            "free_units": units_text(self.tier.units, self.tier.scale),
            "used_units": units_text(self.used_units, self.tier.scale),
            "held_units": units_text(self.held_units, self.tier.scale),
            "left_units": units_text(self.left_units, self.tier.scale),
            "resets_at": None if self.window.end_ms >= FOREVER_MS else instant_text(self.window.end_ms),
        }

    def line(self) -> str:
        told = (units_text(units, self.tier.scale) for units in (self.used_units, self.held_units, self.left_units))
        used, held, left = told
        return f"the first {free_text(self.tier)}: {used} used + {held} held, {left} left"


def units_text(units: int, scale: int) -> str:
    """Smallest units as units: ``1000``, ``0.25``."""
    whole, part = divmod(units, scale)
    return f"{whole}.{part:0{len(str(scale)) - 1}d}".rstrip("0") if part else str(whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitStanding:
    """One rate limit, for this call's value of its key."""

    limit: RateLimit
    number: int  # the limit, as the plan has it
    value: str
    weight: int  # of this call
    taken: int
    wait_ms: int  # 0: a call passes now

    def denial(self, policy: str) -> RateLimited:
        """What admission says while there is no room."""
        return RateLimited(
            policy=policy,
            limit_name=self.limit.name,
            limit=self.number,
            window_ms=self.limit.window_ms,
            retry_after_ms=self.wait_ms,
            weight=self.weight,
            burst=self.limit.burst,
        )

    def data(self, plan: str | None) -> dict[str, Any]:
        return {
            "name": self.limit.name,
            "key": self.limit.key,
            "value": self.value,
            "algorithm": self.limit.algorithm,
            "mode": self.limit.mode,
            "limit": self.number,
            "limit_from": f"plan {plan}" if self.number != self.limit.limit else "policy",
            "window_ms": self.limit.window_ms,
            "weight": self.weight,
            "taken": self.taken,
            "retry_after_ms": self.wait_ms,
            "blocks": self.wait_ms > 0,
        }

    def line(self, plan: str | None) -> str:
        span = f"in {self.limit.window_ms / 1000:g}s" if self.limit.window_ms else "at once"
        origin = f" (from plan {plan})" if self.number != self.limit.limit else ""
        weighs = f", this call weighs {self.weight}" if self.weight != 1 else ""
        verdict = "passes"
        if self.wait_ms and self.limit.mode == SHADOW:
            verdict = "would block (shadow)"
        elif self.wait_ms:
            verdict = "BLOCKS always" if self.denial("").never_passes else f"BLOCKS for {self.wait_ms} ms"
        return (
            f"{self.limit.name}: {self.taken} of {self.number} {span} per {self.limit.key}{origin}{weighs}; {verdict}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All of it. ``why`` is a sentence; ``denial`` is there where admission refuses or, in shadow mode, would."""

    version: str
    method: str
    target: str
    verdict: str
    why: str
    status: int | None = None  # of the gateway's own answer
    denial: Denial | None = None
    policy: Policy | None = None
    account_id: str | None = None
    plan: str | None = None
    identified_by: str | None = None
    budgets: Sequence[BudgetStanding] = ()
    limits: Sequence[LimitStanding] = ()
    tier: TierStanding | None = None
    notes: Sequence[str] = ()

    @property
    def hold_microcents(self) -> int:
        if self.tier is not None:
            return self.tier.need_microcents
        return self.policy.cost.hold_microcents if self.policy is not None and self.account_id is not None else 0

    def data(self) -> dict[str, Any]:
        """Texts, integers, lists, mappings, and Cents."""
        policy = self.policy
        return {
            "version": self.version,
            "request": {"method": self.method, "path": self.target},
            "verdict": self.verdict,
            "status": self.status,
            "why": self.why,
            "policy": None
            if policy is None
            else {
                "name": policy.name,
                "path": policy.path,
                "methods": sorted(policy.methods) or ["any"],
                "mode": policy.mode,
                "cost": cost_text(policy.cost) or "free",
                "hold_cents": Cents(self.hold_microcents),
            },
            "account": None
            if self.account_id is None
            else {"id": self.account_id, "plan": self.plan, "identified_by": self.identified_by},
            "budgets": [budget.data(self.hold_microcents) for budget in self.budgets],
            "rate_limits": [limit.data(self.plan) for limit in self.limits],
            **({"free_tier": self.tier.data()} if self.tier is not None else {}),
            "notes": list(self.notes),
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield f"request   {self.method} {self.target}, rules {self.version}"
        policy = self.policy
        if policy is not None:
            methods = ",".join(sorted(policy.methods)) or "any method"
            yield f"policy    {policy.name}: {methods} {policy.path}, {policy.mode}, {cost_text(policy.cost) or 'free'}"
            if self.account_id is None and self.status != 400:
                yield "account   none: nobody is known by these credentials"
            elif self.account_id is not None:
                yield f"account   {self.account_id} by {self.identified_by}, plan {self.plan}"
        if self.tier is not None:
            yield f"free tier {self.tier.line()}"
        for place, budget in enumerate(self.budgets):
            yield ("          " if place else "budgets   ") + budget.line(self.hold_microcents)
        for place, limit in enumerate(self.limits):
            yield ("          " if place else "limits    ") + limit.line(self.plan)
        for note in self.notes:
            yield f"note      {note}"
        status = f" {self.status}" if self.status else ""
        yield f"verdict   {self.verdict}{status}: {self.why}"


def denial_of(
    policy: Policy,
    budgets: Sequence[BudgetStanding],
    limits: Sequence[LimitStanding],
    hold_microcents: int,
    now_ms: int,
) -> tuple[Denial | None, list[str]]:
    """What admission answers, by its precedence: budgets, then rate limits, each in their order; and what only shadow
    mode lets pass."""
    for budget in budgets:
        if budget.blocks(hold_microcents):
            return (
                BudgetExceeded(
                    period=budget.limit.period,
                    limit_microcents=budget.limit.hard_limit_microcents,
                    used_microcents=budget.taken_microcents,
                    cost_microcents=hold_microcents,
                    resets_ms=budget.resets_ms,
                    now_ms=now_ms,
                ),
                [],
            )
    passed = []
    for standing in limits:
        if not standing.wait_ms:
            continue
        if standing.limit.mode == SHADOW and policy.mode != SHADOW:
            passed.append(f"the limit {standing.limit.name} would refuse this call, but is in shadow mode")
            continue
        return standing.denial(policy.name), passed
    return None, passed


def reason_of(denial: Denial) -> str:
    """A denial in one sentence."""
    if isinstance(denial, BudgetExceeded):
        used, cost = cents_text(denial.used_microcents), cents_text(denial.cost_microcents)
        limit = cents_words(denial.limit_microcents)
        return f"the {denial.period} budget of {limit} has {used} used or held, and this call needs {cost}"
    if isinstance(denial, StoreUnavailable):
        return "no store can decide now, and the policy says on_store_failure: deny"
    if denial.never_passes:
        most = denial.burst or denial.limit
        return f"the limit {denial.limit_name} never lets more than {most} pass, and this call weighs {denial.weight}"
    weighs = f"for a call that weighs {denial.weight} " if denial.weight != 1 else ""
    return f"the limit {denial.limit_name} has no room {weighs}for {denial.retry_after_ms} ms"
