"""What an operator's YAML means: policies, rate limits, costs and plans, frozen and validated before they get here.

``gateway.config`` builds these from files; a request takes one ``Rules`` snapshot and keeps it to its end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.policy.budgets import BudgetLimit

ENFORCE = "enforce"
SHADOW = "shadow"
ALGORITHMS = ("fixed_window", "sliding_window", "token_bucket", "concurrency")
CHARGE_WHEN = ("success", "sent", "always")
# In place of an upstream's status: the call was admitted but no byte of it went to the upstream; or went, unanswered.
NEVER_SENT = -1
NEVER_ANSWERED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """At most ``limit`` calls in ``window_ms`` for each value of ``key``.

    ``concurrency`` has no window (0): ``limit`` is how many calls may be under way at once.
    ``burst`` is the size of a token bucket (default: ``limit``).
    """

    name: str
    key: str  # account | api_key | ip | header:<name> | route
    limit: int
    window_ms: int
    algorithm: str
    burst: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a call costs. ``hold_microcents`` is taken at admission; the charge is known after the answer."""

    fixed_microcents: int = 0
    charge_when: str = "success"  # one of CHARGE_WHEN

    @property
    def hold_microcents(self) -> int:
        """The most that one call may cost."""
        return self.fixed_microcents

    def charge_microcents(self, status: int) -> int | None:
        """What the call costs given the upstream's ``status``; None: not charged.

        NEVER_SENT and NEVER_ANSWERED stand for calls without a status. 101 counts as success: the tunnel is the answer.
        """
        if self.charge_when == "always" or (self.charge_when == "sent" and status != NEVER_SENT):
            return self.fixed_microcents
        return self.fixed_microcents if 200 <= status < 400 or status == 101 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One route's rules."""

    name: str
    methods: frozenset[str]  # empty: every method
    path: str  # canonical; a trailing ``/*`` matches everything below
    mode: str = ENFORCE
    cost: Cost = field(default_factory=Cost)
    rate_limits: tuple[RateLimit, ...] = ()
    on_store_failure: str = "allow"  # allow | deny
    on_client_abort: str = "finish"  # charge | finish | void
    cast_id_pointer: str | None = None  # JSON pointer (RFC 6901) to the cast's id in the answer
    body_bytes_max: int | None = None  # of one request; None: the gateway's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a plan allows: a ceiling over the account's own budgets, and other limits for named rate limits."""

    name: str
    budgets: tuple[BudgetLimit, ...] = ()
    rate_limits: Mapping[str, int] = field(default_factory=dict)  # rate limit name -> limit
    stripe_price: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """One loaded version of everything under ``policies/``."""

    version: str  # hash of the files' text and the variables they used
    policies: tuple[Policy, ...]
    plans: Mapping[str, Plan]
    default_plan: str

    def plan_of(self, name: str | None) -> Plan:
        """The plan called ``name``; the default plan where that is None or no longer exists."""
        return self.plans.get(name or self.default_plan) or self.plans[self.default_plan]
