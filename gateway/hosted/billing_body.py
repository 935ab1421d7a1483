"""What a client may say when it asks for a checkout or portal page: a plan, and where the page leads back to."""

from collections.abc import Mapping
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.config.addresses import UNIX
from gateway.config.settings import Settings
from gateway.hosted.answers import Problem, found_text, invalid, unprocessable
from gateway.hosted.body import read_json_object
from gateway.policy.origins import URL_LENGTH_MAX, origin_of
from gateway.policy.rules import Plan, Rules

PLAN_LENGTH_MAX = 64
KEY_LENGTH_MAX = 255  # as at Stripe
_URL_EXPECTED = f"an http or https URL of at most {URL_LENGTH_MAX} characters"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CheckoutBody(_Body):
    """Body of ``POST /v1/billing/checkout``; all of it may be left out."""

    plan: str | None = Field(
        default=None, min_length=1, max_length=PLAN_LENGTH_MAX, description="By default the first paid plan."
    )
    success_url: str | None = Field(default=None, max_length=URL_LENGTH_MAX, description="Where paying leads to.")
    cancel_url: str | None = Field(default=None, max_length=URL_LENGTH_MAX, description="Where not paying leads to.")


class PortalBody(_Body):
    """Body of ``POST /v1/billing/portal``; all of it may be left out."""

    return_url: str | None = Field(default=None, max_length=URL_LENGTH_MAX, description="Where the page leads back to.")


AnyBody = TypeVar("AnyBody", CheckoutBody, PortalBody)
_EXPECTED = {
    "plan": "the name of a plan",
    "success_url": _URL_EXPECTED,
    "cancel_url": _URL_EXPECTED,
    "return_url": _URL_EXPECTED,
}


async def read_body(request: web.Request, model: type[AnyBody]) -> AnyBody:
    """The request's body; one that is not there is ``{}``. Raises RefusedError (400)."""
    value: Mapping[str, object] = {}
    if request.can_read_body:
        value = await read_json_object(request)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        known = ", ".join(model.model_fields)
        problems = []
        for details in error.errors(include_url=False):
            field = str(details["loc"][0]) if details["loc"] else "body"
            expected = _EXPECTED[field] if field in model.model_fields else f"no key but {known}"
            problems.append(
                Problem(field=found_text(field).strip('"'), found=found_text(details["input"]), expected=expected)
            )
        raise invalid(*problems) from None


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


def return_address(settings: Settings, field: str, asked: str | None, configured: str | None) -> str:
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


def _own_address(settings: Settings) -> str:
    listen = settings.listen
    scheme = "https" if listen.tls.files else "http"
    if listen.host.startswith(UNIX):  # what stands before us is the operator's to know, and to configure
        return f"{scheme}://localhost/"
    return f"{scheme}://{f'[{listen.host}]' if ':' in listen.host else listen.host}:{listen.port}/"
