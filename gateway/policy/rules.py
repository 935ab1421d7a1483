"""What an operator's YAML means: policies, rate limits, costs and plans, frozen and validated before they get here.

``gateway.config`` builds these from files; a request takes one ``Rules`` snapshot and keeps it to its end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf

from gateway.policy.budgets import BudgetLimit
from gateway.policy.costs import HOLD, Part, amount_of
from gateway.policy.free_tier import FreeTier
from gateway.policy.money import MICROCENTS_MAX, rounded_up
from gateway.policy.thresholds import PERCENTS
from gateway.policy.weights import HeaderWeight, Weight

ENFORCE = "enforce"
SHADOW = "shadow"
ALGORITHMS = ("fixed_window", "sliding_window", "token_bucket", "concurrency")
CHARGE_WHEN = ("success", "sent", "always")
# What a 429 tells in its head beside Retry-After.
RATE_LIMIT_HEADERS = ("none", "ietf", "x_ratelimit")
# Which calls have a line in the log whatever the sample says.
LOG_ALWAYS = ("errors", "denials", "slow")
# What the answer to an admitted call past a soft limit tells in its head.
BUDGET_HEADERS = ("none", "x_budget")
# Between the parts of a rate limit's key; in no header's name.
KEY_SEPARATOR = ","
# In place of an upstream's status: the call was admitted but no byte of it went to the upstream; or went, unanswered.
NEVER_SENT = -1
NEVER_ANSWERED = 0
NO_STATUS = 1000  # above every status


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """At most ``limit`` calls in ``window_ms`` for each value of ``key``; or units, where ``weight`` is not 1.

    ``concurrency`` has no window (0): ``limit`` is how many calls may be under way at once.
    ``burst`` is the size of a token bucket (default: ``limit``).
    """

    name: str
    key: str  # account | api_key | ip | header:<name> | route, or several of them between KEY_SEPARATORs
    limit: int
    window_ms: int
    algorithm: str
    burst: int = 0
    mode: str = ENFORCE  # SHADOW: what it would refuse passes, and is counted
    weight: Weight = 1  # of a call; 1 for ``concurrency``, where a call takes a slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a call costs. ``hold_microcents`` is taken at admission; the charge is known after the answer.

    Without ``parts`` every call costs ``fixed_microcents``. With them a call costs that and what they come to, within
    minimum and maximum; it may then cost more than was held, which the next calls' budgets know of.
    """

    fixed_microcents: int = 0
    parts: tuple[Part, ...] = ()
    minimum_microcents: int = 0
    maximum_microcents: int = MICROCENTS_MAX
    if_missing: str = HOLD  # one of costs.IF_MISSING
    charge_when: str | frozenset[int] = "success"  # one of CHARGE_WHEN, or the statuses that are charged
    hold_microcents: int = -1  # below 0: the fixed cost
    free: FreeTier | None = None

    def __post_init__(self) -> None:
        if self.hold_microcents < 0:
            object.__setattr__(self, "hold_microcents", self.fixed_microcents)

    def charge_microcents(self, status: int) -> int | None:
        """What a call without ``parts`` costs given the upstream's ``status``; None: not charged.

        NEVER_SENT and NEVER_ANSWERED stand for calls without a status. 101 counts as success: the tunnel is the answer.
        """
        when = self.charge_when
        if when == "success":
            return self.fixed_microcents if 200 <= status < 400 or status == 101 else None
        if isinstance(when, frozenset):
            return self.fixed_microcents if status in when else None
        return self.fixed_microcents if when == "always" or status != NEVER_SENT else None

    def measured_microcents(self, units: Sequence[Fraction | int | None]) -> int:
        """What a charged call costs, ``units`` being what was seen of each of ``parts``."""
        amount = self._exact_microcents(units)
        charge = min(max(amount, self.minimum_microcents), self.maximum_microcents)
        return max(charge, self.hold_microcents) if self.if_missing == HOLD and None in units else charge

    def free_units(self, free: FreeTier, units: Sequence[Fraction | int | None], charge_microcents: int) -> int:
        """What a call that is charged so much counts in ``free``; ``units`` as for ``measured_microcents``."""
        quantity = units[0] if units else None
        return free.units_of(quantity, 0 if quantity is None else self._exact_microcents(units), charge_microcents)

    def _exact_microcents(self, units: Sequence[Fraction | int | None]) -> int:
        return rounded_up(self.fixed_microcents + amount_of(self.parts, units))


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """A call whose ``header`` has a value that was billed within ``life_ms`` is a repeat, and is not billed."""

    header: str  # in lower case
    life_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLines:
    """Which of a policy's calls have a line of their own in the log."""

    sample: float | None = None  # the share of all calls; None: log.request_sample of config.yaml
    status_min: int = 500  # answers from this status on, and those that are cut short; NO_STATUS: none for that
    denials: bool = True
    slow_s: float = inf  # calls that take as long; inf: none for that


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
    on_orphan: str = "charge"  # charge | void
    rate_limit_headers: str = "none"  # one of RATE_LIMIT_HEADERS
    budget_headers: str = "none"  # one of BUDGET_HEADERS
    # The limits on callers whom nobody knows, as a policy of its own; None: they pass, and the service behind decides.
    unidentified: "Policy | None" = None
    cast_id_pointer: str | None = None  # JSON pointer (RFC 6901) to the cast's id in the answer
    body_bytes_max: int | None = None  # of one request; None: the gateway's own limit
    log: LogLines = field(default_factory=LogLines)
    idempotency: Idempotency | None = None  # None: every call is billed
    # Whether what a call weighs in some limit is for the call to tell.
    is_weighed_by_call: bool = field(init=False, default=False)
    # Whether admission need not know more of a call than its account.
    asks_for_account: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        by_call = any(isinstance(limit.weight, HeaderWeight) for limit in self.rate_limits)
        object.__setattr__(self, "is_weighed_by_call", by_call)
        by_account = [limit.key for limit in self.rate_limits] == ["account"]
        object.__setattr__(self, "asks_for_account", by_account and not by_call and self.idempotency is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a plan allows: a ceiling over the account's own budgets, and other limits for named rate limits."""

    name: str
    budgets: tuple[BudgetLimit, ...] = ()
    rate_limits: Mapping[str, int] = field(default_factory=dict)  # rate limit name -> limit
    stripe_price: str | None = None
    soft_limit_percents: tuple[int, ...] = PERCENTS  # of a budget, ascending: what is announced when it is used


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
