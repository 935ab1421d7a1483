"""``policies/*.yaml``: routes, costs, limits and plans as operators write them, and what they compile to.

Editors show the descriptions of keys and sections: ``gateway.config.schema`` makes policies/schema.json of them.
"""

from dataclasses import replace
from math import inf
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from gateway.config.costs import CostSpec, JsonPointer, OptionalCents
from gateway.config.models import Section, contradiction, present
from gateway.config.rate_limits import Limit, Mode, Name, RateLimitSpec
from gateway.config.request_fields import request_field
from gateway.config.scalars import (
    Kind,
    choice,
    duration_s,
    expected,
    one_of_words,
    optional,
    or_variable,
    percents,
    share,
    size_bytes,
    text,
    time_zone,
)
from gateway.policy.budgets import PERIOD_PRECEDENCE, BudgetLimit
from gateway.policy.periods import WEEKDAYS
from gateway.policy.routes import is_canonical
from gateway.policy.rules import (
    BUDGET_HEADERS,
    ENFORCE,
    LOG_ALWAYS,
    NO_STATUS,
    RATE_LIMIT_HEADERS,
    SHADOW,
    Cost,
    Idempotency,
    LogLines,
    Plan,
    Policy,
)
from gateway.policy.thresholds import PERCENTS

# One script call checks all of a call's limits; more of them would be a policy that nobody can explain.
RATE_LIMITS_MAX = 8
# Each is a label of a metric, and a message for each account and period.
SOFT_LIMITS_MAX = 10
SLOW_AFTER_S = 2.0

RateLimitHeaders = Literal["none", "ietf", "x_ratelimit"]
BudgetHeaders = Literal["none", "x_budget"]
OnStoreFailure = Literal["allow", "deny"]
OnClientAbort = Literal["finish", "charge", "void"]
OnOrphan = Literal["charge", "void"]
LogAlways = Literal["errors", "denials", "slow"]

TimeZone = Annotated[str, time_zone()]
Method = Annotated[str, text("an HTTP method in capitals", r"[A-Z][A-Z-]{0,31}")]


def _path() -> Kind:
    def read(value: object) -> str:
        path = value.strip() if isinstance(value, str) else ""
        stem = path.removesuffix("/*")
        if not path.startswith("/") or len(path) > 1000 or "*" in stem or not is_canonical((stem or "/").encode()):
            raise expected("a canonical path such as /v1/cast or /v1/*", value)
        return path

    return Kind(read, schema=or_variable(r"/[^*]*(?:/\*)?"))


class Match(Section):
    """Which requests: a method of ``methods`` (none listed: every method) and the path."""

    methods: tuple[Method, ...] = Field(default=(), description="none listed: every method")
    path: Annotated[str, _path(), Field(description="exact; /v1/* is everything below /v1")]

    @model_validator(mode="after")
    def _methods_are_distinct(self) -> "Match":
        for place, method in enumerate(self.methods):
            if method in self.methods[:place]:
                raise contradiction(("methods", place), f"duplicate method {method}")
        return self


class JsonSource(Section):
    """A value inside a JSON answer."""

    json_pointer: JsonPointer = Field(alias="json", description="where in the answer: /id")


class Record(Section):
    """What is noted of the answer."""

    cast_id: Annotated[JsonSource | None, present(), Field(description="the cast's id, for casts.cost_cents")] = None


class LogSpec(Section):
    """Which calls have a line of their own in the log, with all that is known of them."""

    sample: Annotated[
        float | None,
        optional(share()),
        Field(description="the share of all calls, 0 to 1; blank: log.request_sample of config.yaml"),
    ] = None
    always: tuple[Annotated[LogAlways, choice(*LOG_ALWAYS)], ...] = Field(
        default=("errors", "denials"),
        description="errors (5xx, answers cut short), denials (402, 429) and slow calls have one in any case; []: none",
    )
    slow_after_s: Annotated[float | None, duration_s("1ms", "1h")] = Field(
        default=None, alias="slow_after", description="from when on a call is slow; default: 2s"
    )

    @model_validator(mode="after")
    def _is_slow_where_that_counts(self) -> "LogSpec":
        if self.slow_after_s is not None and "slow" not in self.always:
            raise contradiction(("slow_after",), "expected slow in always, which this is for")
        return self

    def compiled(self) -> LogLines:
        return LogLines(
            sample=self.sample,
            status_min=500 if "errors" in self.always else NO_STATUS,
            denials="denials" in self.always,
            slow_s=(self.slow_after_s or SLOW_AFTER_S) if "slow" in self.always else inf,
        )


class IdempotencySpec(Section):
    """A call whose key was billed within its life, for the same account under the same policy, is not billed again."""

    header: Annotated[str, request_field(), Field(description="the request's header that has the key")] = (
        "Idempotency-Key"
    )
    life_s: Annotated[float, duration_s("1s", "31d")] = Field(
        default=86_400.0, alias="life", description="how long a key counts after the call that was billed"
    )

    def compiled(self) -> Idempotency:
        return Idempotency(header=self.header.lower(), life_ms=round(self.life_s * 1000))


class PolicySpec(Section):
    """One route's rules."""

    name: Annotated[Name, Field(description="in metrics, in the ledger and in 429 answers")]
    match: Match
    mode: Annotated[
        Mode, choice(ENFORCE, SHADOW), Field(description="shadow: decide, count and log, but let every call pass")
    ] = "enforce"
    cost: CostSpec = CostSpec()
    rate_limits: tuple[RateLimitSpec, ...] = ()
    rate_limit_headers: Annotated[
        RateLimitHeaders,
        choice(*RATE_LIMIT_HEADERS),
        Field(
            description="what answers tell of the limits: ietf (RateLimit, RateLimit-Policy), x_ratelimit "
            "(X-RateLimit-*), or none"
        ),
    ] = "none"
    budget_headers: Annotated[
        BudgetHeaders,
        choice(*BUDGET_HEADERS),
        Field(description="of admitted calls past a soft limit: x_budget (X-Budget-Used-Percent, ...), or none"),
    ] = "none"
    record: Record = Record()
    on_store_failure: Annotated[
        OnStoreFailure, choice(*get_args(OnStoreFailure)), Field(description="Redis and Postgres both away")
    ] = "allow"
    on_client_abort: Annotated[
        OnClientAbort,
        choice(*get_args(OnClientAbort)),
        Field(description="a client that hangs up: finish (charge if the call succeeds), charge or void"),
    ] = "finish"
    on_orphan: Annotated[
        OnOrphan,
        choice(*get_args(OnOrphan)),
        Field(description="its gateway died while the call was under way: charge or void"),
    ] = "charge"
    idempotency: Annotated[
        IdempotencySpec | None, present(), Field(description="calls with a key that was billed are not billed again")
    ] = None
    body_bytes_max: Annotated[
        int | None,
        optional(size_bytes("0B", "1024GiB")),
        Field(description="of one request's body; blank: limits.body_bytes_max of config.yaml"),
    ] = None

    log: LogSpec = LogSpec()

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
        unidentified = tuple(limit.compiled() for limit in self.rate_limits if limit.callers != "identified")
        policy = Policy(
            name=self.name,
            methods=frozenset(self.match.methods),
            path=self.match.path,
            mode=self.mode,
            cost=self.cost.compiled(),
            rate_limits=tuple(limit.compiled() for limit in self.rate_limits if limit.callers != "unidentified"),
            on_store_failure=self.on_store_failure,
            on_client_abort=self.on_client_abort,
            rate_limit_headers=self.rate_limit_headers,
            budget_headers=self.budget_headers,
            on_orphan=self.on_orphan,
            cast_id_pointer=self.record.cast_id.json_pointer if self.record.cast_id else None,
            body_bytes_max=self.body_bytes_max,
            log=self.log.compiled(),
            idempotency=self.idempotency.compiled() if self.idempotency else None,
        )
        if not unidentified:
            return policy
        return replace(policy, unidentified=replace(policy, rate_limits=unidentified, cost=Cost(), idempotency=None))


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

    stripe_price: Annotated[
        str | None,
        optional(text("a Stripe price id", r"[!-~]+")),
        Field(description="the Stripe price whose subscribers get the plan"),
    ] = None
    hard_limit_cents: HardLimits = HardLimits()
    time_zone: Annotated[TimeZone, Field(description="in whose midnights days, weeks and months begin")] = "UTC"
    week_start: Annotated[int, one_of_words(WEEKDAYS), Field(description="the first day of a week")] = 1
    rate_limits: dict[Name, RateLimitOverride] = Field(
        default_factory=dict, description="another limit for a policy's rate limit of that name"
    )
    soft_limit_percents: Annotated[
        tuple[int, ...],
        percents(SOFT_LIMITS_MAX),
        Field(description="announced once a period when so much of a budget is used, in percent; [] announces nothing"),
    ] = PERCENTS

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
            soft_limit_percents=self.soft_limit_percents,
        )


class PoliciesFile(Section):
    """One file; any file may hold policies, plans or both."""

    policies: tuple[PolicySpec, ...] = ()
    plans: dict[Name, PlanSpec] = Field(default_factory=dict)
