"""``rate_limits`` of a policy as operators write them, and the RateLimits that they compile to."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, GetJsonSchemaHandler, ModelWrapValidatorHandler, model_validator

from gateway.config.models import Section, contradiction
from gateway.config.request_fields import NAME, check_request_field, request_field
from gateway.config.scalars import Kind, choice, duration_ms, expected, reader_of, text, whole
from gateway.policy.rules import ALGORITHMS, ENFORCE, KEY_SEPARATOR, SHADOW, RateLimit
from gateway.policy.weights import HeaderWeight, Weight

KEYS_MAX = 4
# Beyond any real rate, and far below 2^53, where Redis' Lua stops counting exactly.
LIMIT_MAX = 1_000_000_000

Mode = Literal["enforce", "shadow"]
Algorithm = Literal["fixed_window", "sliding_window", "token_bucket", "concurrency"]
Callers = Literal["identified", "unidentified", "all"]

# Names become labels of metrics and parts of Redis keys.
_NAME = "a name of at most 64 letters, digits, dots, dashes or underscores"
Name = Annotated[str, text(_NAME, r"[A-Za-z0-9_.-]{1,64}")]
_LIMIT = whole(1, LIMIT_MAX)
Limit = Annotated[int, _LIMIT]
_KEY_KINDS = "account, api_key, ip, route or header:<name>"
_HEADER = "header:"
_HEADER_KEY = rf"account|api_key|ip|route|{_HEADER}{NAME}"


def _key() -> Kind:
    one = text(_KEY_KINDS, _HEADER_KEY)
    read_name = reader_of(one)

    def read_one(value: object) -> str:
        key = str(read_name(value))
        if key.startswith(_HEADER):
            check_request_field(key.removeprefix(_HEADER), value)
        return key

    def read(value: object) -> str:
        if not isinstance(value, list):
            return read_one(value)
        keys = [read_one(key) for key in value]
        if not 1 <= len(keys) <= KEYS_MAX or len({key.lower() for key in keys}) < len(keys):
            raise expected(f"a list of 1 to {KEYS_MAX} different keys", value)
        return KEY_SEPARATOR.join(keys)

    return Kind(read, schema={"anyOf": [one.schema, {"type": "array", "items": one.schema, "maxItems": KEYS_MAX}]})


class WeightSpec(Section):
    """What a field of the request's head says that the call weighs; or a plain number, the same for every call."""

    header: Annotated[str, request_field(), Field(description="holds one whole number; anything else weighs max")]
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
