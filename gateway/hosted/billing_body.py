"""What a client may say when it asks for a checkout or portal page: a plan, and where the page leads back to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from aiohttp import web

from gateway.config.addresses import UNIX
from gateway.hosted.answers import Problem, found_text, invalid, unprocessable
from gateway.hosted.body import is_text, read_json_object, unknown_keys
from gateway.policy.origins import URL_LENGTH_MAX, origin_of
from gateway.policy.rules import Plan, Rules

if TYPE_CHECKING:
    from gateway.config.settings import Settings

PLAN_LENGTH_MAX = 64
KEY_LENGTH_MAX = 255  # as at Stripe
_URL_EXPECTED = f"an http or https URL of at most {URL_LENGTH_MAX} characters"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """A text that may be left out, or be null."""

    description: str
    expected: str = _URL_EXPECTED
    length_min: int = 0
    length_max: int = URL_LENGTH_MAX

    def takes(self, value: object) -> bool:
        return value is None or (
            isinstance(value, str) and self.length_min <= len(value) <= self.length_max and is_text(value)
        )

    def schema(self) -> dict[str, Any]:
        least = {"minLength": self.length_min} if self.length_min else {}
        text = {"type": "string", **least, "maxLength": self.length_max}
        return {"anyOf": [text, {"type": "null"}], "default": None, "description": self.description}


class _Body:
    """What all bodies here share: ``texts`` says what each of their fields is."""

    __slots__ = ()
    texts: ClassVar[Mapping[str, _Text]]

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """For the OpenAPI document."""
        properties = {name: text.schema() for name, text in cls.texts.items()}
        return {"type": "object", "title": cls.__name__, "additionalProperties": False, "properties": properties}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutBody(_Body):
    """Body of ``POST /v1/billing/checkout``; all of it may be left out."""

    texts: ClassVar = {
        "plan": _Text(
            description="By default the first paid plan.",
            expected="the name of a plan",
            length_min=1,
            length_max=PLAN_LENGTH_MAX,
        ),
        "success_url": _Text(description="Where paying leads to."),
        "cancel_url": _Text(description="Where not paying leads to."),
    }
    plan: str | None = None
    success_url: str | None = None
    cancel_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalBody(_Body):
    """Body of ``POST /v1/billing/portal``; all of it may be left out."""

    texts: ClassVar = {"return_url": _Text(description="Where the page leads back to.")}
    return_url: str | None = None


AnyBody = TypeVar("AnyBody", CheckoutBody, PortalBody)


async def read_body(request: web.Request, kind: type[AnyBody]) -> AnyBody:
    """The request's body; one that is not there is ``{}``. Raises RefusedError (400)."""
    value: Mapping[str, Any] = {}
    if request.can_read_body:
        value = await read_json_object(request)
    problems = [
        Problem(field=name, found=found_text(value[name]), expected=text.expected)
        for name, text in kind.texts.items()
        if not text.takes(value.get(name))
    ]
    problems += unknown_keys(value, kind.texts)
    if problems:
        raise invalid(*problems)
    return kind(**value)


def idempotency_key(request: web.Request) -> str | None:
    """The client's Idempotency-Key. Raises RefusedError (400)."""
    values = request.headers.getall("Idempotency-Key", ())
    if not values:
        return None
    key = values[0].strip()
    if len(values) > 1 or not 0 < len(key) <= KEY_LENGTH_MAX or not key.isascii() or not key.isprintable():
        expected = f"one key of 1 to {KEY_LENGTH_MAX} printable ASCII characters"
        raise invalid(
            Problem(field="Idempotency-Key", found=f"{len(values)} × {len(key)} characters", expected=expected)
        )
    return key


def paid_plans(rules: Rules) -> Mapping[str, Plan]:
    """The plans that have a price, in the order in which they are written."""
    return {name: plan for name, plan in rules.plans.items() if plan.stripe_price}


def return_address(settings: "Settings", field: str, asked: str | None, configured: str | None) -> str:
    """Where a page of Stripe's leads back to: what the request asks for if that is allowed, else what is configured.

    Raises RefusedError: 400 for what is no URL, 422 for a site that is not in ``billing.return_origins``.
    """
    if asked is None:
        return configured or _own_address(settings)
    origin = origin_of(asked)
    if origin is None:
        raise invalid(Problem(field=field, found=found_text(asked), expected=_URL_EXPECTED))
    if origin not in settings.billing.return_origins:
        raise unprocessable(Problem(field=field, found=origin, expected="a site of billing.return_origins"))
    return asked


def _own_address(settings: "Settings") -> str:
    listen = settings.listen
    scheme = "https" if listen.tls.files else "http"
    if listen.host.startswith(UNIX):  # what stands before us is the operator's to know, and to configure
        return f"{scheme}://localhost/"
    return f"{scheme}://{f'[{listen.host}]' if ':' in listen.host else listen.host}:{listen.port}/"
