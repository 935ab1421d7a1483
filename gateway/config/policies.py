"""``policies/*.yaml``: routes, costs, limits and plans as operators write them, and what they compile to.

Editors show the descriptions of keys and sections: ``gateway.config.schema`` makes policies/schema.json of them.
"""

from dataclasses import replace
from math import inf
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, GetJsonSchemaHandler, ModelWrapValidatorHandler, model_validator

from gateway.config.costs import CostSpec, FieldName, JsonPointer, OptionalCents
from gateway.config.models import Section, contradiction, present
from gateway.config.scalars import (
    Kind,
    choice,
    duration_ms,
    duration_s,
    expected,
    one_of_words,
    optional,
    or_variable,
    percents,
    reader_of,
    share,
    size_bytes,
    text,
    time_zone,
    whole,
)
from gateway.policy.budgets import PERIOD_PRECEDENCE, BudgetLimit
from gateway.policy.periods import WEEKDAYS
from gateway.policy.routes import is_canonical
from gateway.policy.rules import (
    ALGORITHMS,
    BUDGET_HEADERS,
    ENFORCE,
    KEY_SEPARATOR,
    LOG_ALWAYS,
    NO_STATUS,
    RATE_LIMIT_HEADERS,
    SHADOW,
    Cost,
    Idempotency,
    LogLines,
    Plan,
    Policy,
    RateLimit,
)
from gateway.policy.thresholds import PERCENTS
from gateway.policy.weights import HeaderWeight, Weight

# One script call checks all of a call's limits; more of them would be a policy that nobody can explain.
RATE_LIMITS_MAX = 8
KEYS_MAX = 4
# Each is a label of a metric, and a message for each account and period.
SOFT_LIMITS_MAX = 10
SLOW_AFTER_S = 2.0
# Beyond any real rate, and far below 2^53, where Redis' Lua stops counting exactly.
LIMIT_MAX = 1_000_000_000

Mode = Literal["enforce", "shadow"]
Algorithm = Literal["fixed_window", "sliding_window", "token_bucket", "concurrency"]
Callers = Literal["identified", "unidentified", "all"]
RateLimitHeaders = Literal["none", "ietf", "x_ratelimit"]
BudgetHeaders = Literal["none", "x_budget"]
OnStoreFailure = Literal["allow", "deny"]
OnClientAbort = Literal["finish", "charge", "void"]
OnOrphan = Literal["charge", "void"]
LogAlways = Literal["errors", "denials", "slow"]

# Names become labels of metrics and parts of Redis keys.
_NAME = "a name of at most 64 letters, digits, dots, dashes or underscores"
Name = Annotated[str, text(_NAME, r"[A-Za-z0-9_.-]{1,64}")]
TimeZone = Annotated[str, time_zone()]
_LIMIT = whole(1, LIMIT_MAX)
Limit = Annotated[int, _LIMIT]
Method = Annotated[str, text("an HTTP method in capitals", r"[A-Z][A-Z-]{0,31}")]
_KEY_KINDS = "account, api_key, ip, route or header:<name>"
_HEADER_KEY = r"account|api_key|ip|route|header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}"


def _path() -> Kind:
    def read(value: object) -> str:
        path = value.strip() if isinstance(value, str) else ""
        stem = path.removesuffix("/*")
        if not path.startswith("/") or len(path) > 1000 or "*" in stem or not is_canonical((stem or "/").encode()):
            raise expected("a canonical path such as /v1/cast or /v1/*", value)
        return path

    return Kind(read, schema=or_variable(r"/[^*]*(?:/\*)?"))


def _key() -> Kind:
    one = text(_KEY_KINDS, _HEADER_KEY)
    read_one = reader_of(one)

    def read(value: object) -> str:
        if not isinstance(value, list):
            return str(read_one(value))
        keys = [str(read_one(key)) for key in value]
        if not 1 <= len(keys) <= KEYS_MAX or len({key.lower() for key in keys}) < len(keys):
            raise expected(f"a list of 1 to {KEYS_MAX} different keys", value)
        return KEY_SEPARATOR.join(keys)

    return Kind(read, schema={"anyOf": [one.schema, {"type": "array", "items": one.schema, "maxItems": KEYS_MAX}]})


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


class WeightSpec(Section):
    """What a field of the request's head says that the call weighs; or a plain number, the same for every call."""

    header: Annotated[FieldName, Field(description="holds one whole number; anything else weighs max")]
    default: Annotated[Limit, Field(description="the weight of a call without the field")] = 1
    maximum: Annotated[Limit, Field(alias="max", description="no call weighs more")]

    @classmethod
    def of(cls, units: int) -> "WeightSpec":
        """The same for every call."""
        return cls.model_construct(header="", default=units, maximum=units)

    @model_validator(mode="wrap")
    @classmethod
    def _may_be_a_number(cls, value: Any, handler: ModelWrapValidatorHandler["WeightSpec"]) -> "WeightSpec":
        return handler(value) if isinstance(value, dict | WeightSpec) else cls.of(reader_of(_LIMIT)(value))

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [_LIMIT.schema, handler.resolve_ref_schema(handler(core_schema))]}

    @model_validator(mode="after")
    def _default_is_within(self) -> "WeightSpec":
        if self.default > self.maximum:
            raise contradiction(("default",), f"expected at most max ({self.maximum}), found {self.default}")
        return self

    def compiled(self) -> Weight:
        if not self.header:
            return self.default
        return HeaderWeight(field=self.header.lower(), default=self.default, maximum=self.maximum)


class RateLimitSpec(Section):
    """At most ``limit`` calls a ``window`` for each value of ``key``."""

    name: Annotated[Name, Field(description="in 429 answers and metrics; plans give it another limit by this name")]
    key: Annotated[
        str,
        _key(),
        Field(description="what is counted apart: account, api_key, ip, route or header:<name>, or a list of them"),
    ] = "account"
    limit: Annotated[Limit, Field(description="calls in a window, or at once for the algorithm concurrency")]
    # Longer windows are what budgets are for.
    window_ms: Annotated[int | None, duration_ms("100ms", "31d")] = Field(
        default=None, alias="window", description="none for the algorithm concurrency"
    )
    algorithm: Annotated[
        Algorithm,
        choice(*ALGORITHMS),
        Field(description="sliding_window: never more than the limit in any span of one window"),
    ] = "sliding_window"
    burst: Annotated[
        int | None, whole(1, LIMIT_MAX), Field(description="token_bucket: how many tokens fit in; default: the limit")
    ] = None
    weight: Annotated[
        WeightSpec, Field(description="what a call takes from the limit: a number, or what a field of the request says")
    ] = WeightSpec.of(1)
    mode: Annotated[
        Mode, choice(ENFORCE, SHADOW), Field(description="shadow: count and log what it would refuse, but let pass")
    ] = "enforce"
    callers: Annotated[
        Callers,
        choice(*get_args(Callers)),
        Field(
            description="identified by their credentials, unidentified (whose calls the service behind judges), or all"
        ),
    ] = "identified"

    @model_validator(mode="after")
    def _has_what_its_algorithm_needs(self) -> "RateLimitSpec":
        if self.algorithm == "concurrency" and self.window_ms is not None:
            raise contradiction(("window",), "expected no window for the algorithm concurrency")
        if self.algorithm != "concurrency" and self.window_ms is None:
            raise contradiction((), f'missing key "window" (algorithm {self.algorithm})')
        if self.algorithm != "token_bucket" and self.burst is not None:
            raise contradiction(("burst",), f"expected no burst for the algorithm {self.algorithm}")
        if self.algorithm == "concurrency" and self.weight.compiled() != 1:
            raise contradiction(
                ("weight",), "expected no weight for the algorithm concurrency, where each call takes one slot"
            )
        if self.weight.default > (self.burst or self.limit):
            most = f"burst ({self.burst})" if self.burst else f"limit ({self.limit})"
            raise contradiction(
                ("weight", "default") if self.weight.header else ("weight",),
                f"expected at most the {most}, as no call would pass, found {self.weight.default}",
            )
        if self.callers != "identified":
            if self.algorithm == "concurrency":
                raise contradiction(("callers",), "expected identified for the algorithm concurrency")
            for kind in self.key.split(KEY_SEPARATOR):
                if kind in ("account", "api_key"):
                    raise contradiction(
                        ("key",), f"expected ip, route or header:<name> for callers {self.callers}, found {kind}"
                    )
        return self

    def compiled(self) -> RateLimit:
        return RateLimit(
            name=self.name,
            key=self.key,
            limit=self.limit,
            window_ms=self.window_ms or 0,
            algorithm=self.algorithm,
            burst=self.burst or 0,
            mode=self.mode,
            weight=self.weight.compiled(),
        )


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

    header: Annotated[FieldName, Field(description="the request's header that has the key")] = "Idempotency-Key"
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
