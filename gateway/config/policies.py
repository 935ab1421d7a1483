"""``policies/*.yaml``: routes, costs, limits and plans as operators write them, and what they compile to."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from gateway.config.models import Section, contradiction, present
from gateway.config.scalars import (
    cents,
    choice,
    duration_ms,
    expected,
    one_of_words,
    optional,
    size_bytes,
    text,
    time_zone,
    whole,
)
from gateway.policy.budgets import PERIOD_PRECEDENCE, BudgetLimit
from gateway.policy.routes import is_canonical
from gateway.policy.rules import ALGORITHMS, CHARGE_WHEN, ENFORCE, SHADOW, Cost, Plan, Policy, RateLimit

# One script call checks all of a call's limits; more of them would be a policy that nobody can explain.
RATE_LIMITS_MAX = 8
# Beyond any real rate, and far below 2^53, where Redis' Lua stops counting exactly.
LIMIT_MAX = 1_000_000_000

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Mode = Literal["enforce", "shadow"]
Algorithm = Literal["fixed_window", "sliding_window", "token_bucket", "concurrency"]
ChargeWhen = Literal["success", "sent", "always"]
OnStoreFailure = Literal["allow", "deny"]
OnClientAbort = Literal["finish", "charge", "void"]

# Names become labels of metrics and parts of Redis keys.
_NAME = "a name of at most 64 letters, digits, dots, dashes or underscores"
Name = Annotated[str, text(_NAME, r"[A-Za-z0-9_.-]{1,64}")]
Cents = Annotated[int, cents()]  # microcents, once read
OptionalCents = Annotated[int | None, cents()]
TimeZone = Annotated[str, time_zone()]
Limit = Annotated[int, whole(1, LIMIT_MAX)]
Method = Annotated[str, text("an HTTP method in capitals", r"[A-Z][A-Z-]{0,31}")]
_KEY_KINDS = "account, api_key, ip, route or header:<name>"
_HEADER_KEY = r"account|api_key|ip|route|header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}"


def _path() -> BeforeValidator:
    def read(value: object) -> str:
        path = value.strip() if isinstance(value, str) else ""
        stem = path.removesuffix("/*")
        if not path.startswith("/") or len(path) > 1000 or "*" in stem or not is_canonical((stem or "/").encode()):
            raise expected("a canonical path such as /v1/cast or /v1/*", value)
        return path

    return BeforeValidator(read)


class Match(Section):
    """Which requests: a method of ``methods`` (none listed: every method) and the path."""

    methods: tuple[Method, ...] = ()
    path: Annotated[str, _path()]

    @model_validator(mode="after")
    def _methods_are_distinct(self) -> "Match":
        for place, method in enumerate(self.methods):
            if method in self.methods[:place]:
                raise contradiction(("methods", place), f"duplicate method {method}")
        return self


class FixedCost(Section):
    """Every call costs the same."""

    cents: Cents


class CostSpec(Section):
    """What a call costs, and when it is charged."""

    fixed: Annotated[FixedCost | None, present()] = None
    charge_when: Annotated[ChargeWhen, choice(*CHARGE_WHEN)] = "success"


class RateLimitSpec(Section):
    """At most ``limit`` calls a ``window`` for each value of ``key``."""

    name: Name
    key: Annotated[str, text(_KEY_KINDS, _HEADER_KEY)] = "account"
    limit: Limit
    # Longer windows are what budgets are for.
    window_ms: Annotated[int | None, duration_ms("100ms", "31d")] = Field(default=None, alias="window")
    algorithm: Annotated[Algorithm, choice(*ALGORITHMS)] = "sliding_window"
    burst: Annotated[int | None, whole(1, LIMIT_MAX)] = None

    @model_validator(mode="after")
    def _has_what_its_algorithm_needs(self) -> "RateLimitSpec":
        if self.algorithm == "concurrency" and self.window_ms is not None:
            raise contradiction(("window",), "expected no window for the algorithm concurrency")
        if self.algorithm != "concurrency" and self.window_ms is None:
            raise contradiction((), f'missing key "window" (algorithm {self.algorithm})')
        if self.algorithm != "token_bucket" and self.burst is not None:
            raise contradiction(("burst",), f"expected no burst for the algorithm {self.algorithm}")
        return self


class JsonSource(Section):
    """A value inside a JSON answer."""

    json_pointer: Annotated[str, text("a JSON pointer such as /id", r"(?:/(?:[^~/]|~[01])*)+")] = Field(alias="json")


class Record(Section):
    """What is noted of the answer."""

    cast_id: Annotated[JsonSource | None, present()] = None


class PolicySpec(Section):
    """One route's rules."""

    name: Name
    match: Match
    mode: Annotated[Mode, choice(ENFORCE, SHADOW)] = "enforce"
    cost: CostSpec = CostSpec()
    rate_limits: tuple[RateLimitSpec, ...] = ()
    record: Record = Record()
    on_store_failure: Annotated[OnStoreFailure, choice(*get_args(OnStoreFailure))] = "allow"
    on_client_abort: Annotated[OnClientAbort, choice(*get_args(OnClientAbort))] = "finish"
    # Of one request; blank: limits.body_bytes_max of config.yaml.
    body_bytes_max: Annotated[int | None, optional(size_bytes("0B", "1024GiB"))] = None

    @model_validator(mode="after")
    def _rate_limits_have_names(self) -> "PolicySpec":
        if len(self.rate_limits) > RATE_LIMITS_MAX:
            raise contradiction(
                ("rate_limits",), f"expected at most {RATE_LIMITS_MAX} rate limits, found {len(self.rate_limits)}"
            )
        names = [limit.name for limit in self.rate_limits]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise contradiction(("rate_limits", place, "name"), f'duplicate rate limit "{name}"')
        return self

    def compiled(self) -> Policy:
        return Policy(
            name=self.name,
            methods=frozenset(self.match.methods),
            path=self.match.path,
            mode=self.mode,
            cost=Cost(
                fixed_microcents=self.cost.fixed.cents if self.cost.fixed else 0, charge_when=self.cost.charge_when
            ),
            rate_limits=tuple(
                RateLimit(
                    name=limit.name,
                    key=limit.key,
                    limit=limit.limit,
                    window_ms=limit.window_ms or 0,
                    algorithm=limit.algorithm,
                    burst=limit.burst or 0,
                )
                for limit in self.rate_limits
            ),
            on_store_failure=self.on_store_failure,
            on_client_abort=self.on_client_abort,
            cast_id_pointer=self.record.cast_id.json_pointer if self.record.cast_id else None,
            body_bytes_max=self.body_bytes_max,
        )


class HardLimits(Section):
    """Ceilings by period, in cents as written and microcents as read."""

    daily: OptionalCents = None
    weekly: OptionalCents = None
    monthly: OptionalCents = None
    total: OptionalCents = None


class RateLimitOverride(Section):
    """Another limit for a rate limit of that name, in whichever policy."""

    limit: Limit


class PlanSpec(Section):
    """What accounts on a plan may do at most."""

    stripe_price: Annotated[str | None, optional(text("a Stripe price id", r"[!-~]+"))] = None
    hard_limit_cents: HardLimits = HardLimits()
    time_zone: TimeZone = "UTC"
    week_start: Annotated[int, one_of_words(WEEKDAYS)] = 1
    rate_limits: dict[Name, RateLimitOverride] = Field(default_factory=dict)

    def compiled(self, name: str) -> Plan:
        amounts = {period: getattr(self.hard_limit_cents, period) for period in PERIOD_PRECEDENCE}
        return Plan(
            name=name,
            budgets=tuple(
                BudgetLimit(
                    period=period,
                    hard_limit_microcents=amount,
                    time_zone=self.time_zone if period != "total" else "UTC",
                    week_start=self.week_start if period == "weekly" else 1,
                )
                for period, amount in amounts.items()
                if amount is not None
            ),
            rate_limits={limit_name: override.limit for limit_name, override in self.rate_limits.items()},
            stripe_price=self.stripe_price,
        )


class PoliciesFile(Section):
    """One file; any file may hold policies, plans or both."""

    policies: tuple[PolicySpec, ...] = ()
    plans: dict[Name, PlanSpec] = Field(default_factory=dict)
