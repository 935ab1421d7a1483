"""``GET /v1/openapi.json``: the gateway's own endpoints, described exactly enough to test them by (OpenAPI 3.1).

What a request's body looks like comes from the module that reads it; bounds of parameters are the handlers' constants.
Endpoints that are switched off (billing) are left out: a document is for what can be done here.
"""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.build import build_version
from gateway.hosted import usage
from gateway.hosted.billing_body import KEY_LENGTH_MAX, CheckoutBody, PortalBody
from gateway.hosted.budget_body import BUDGET_SCHEMA, WEEKDAYS
from gateway.hosted.services import SERVICES
from gateway.policy.periods import PERIODS, time_zone_names

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.config.settings_accounts import Identity

Json = dict[str, Any]

_CENTS: Json = {"type": "number", "minimum": 0, "description": "Cents, exact to six decimals."}
_INSTANT: Json = {"type": ["string", "null"], "format": "date-time"}
_KEY: Json = {"type": "string", "minLength": 1, "maxLength": KEY_LENGTH_MAX, "pattern": "^[!-~]+$"}
_DAY: Json = {"type": "string", "format": "date"}


async def get_document(request: web.Request) -> web.Response:
    """The document; public, and the same for everybody."""
    services = request.app[SERVICES]
    body = _document_bytes(services.settings(), with_billing=services.billing is not None)
    return web.Response(body=body, content_type="application/json")


@lru_cache(maxsize=2)
def _document_bytes(settings: "Settings", *, with_billing: bool) -> bytes:
    public = settings.metrics.public
    return json.dumps(document(settings.identity, metrics_public=public, with_billing=with_billing)).encode()


def document(identity: "Identity", *, metrics_public: bool, with_billing: bool = False) -> Json:
    """The OpenAPI document of a gateway that identifies its callers by ``identity``."""
    paths = {
        "/v1/budgets": _budget_paths(),
        "/v1/usage": {"get": _usage_operation()},
        "/v1/openapi.json": {"get": _document_operation()},
    }
    if with_billing:
        paths |= {
            "/v1/billing/checkout": {"post": _checkout_operation()},
            "/v1/billing/portal": {"post": _portal_operation()},
            "/webhooks/stripe": {"post": _webhook_operation()},
        }
    if metrics_public:
        paths["/metrics"] = {"get": _metrics_operation()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Castgate",
            "version": build_version(),
            "description": "The gateway's own endpoints. Everything else is relayed to the service behind it.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "BudgetBody": _budget_body_schema(),
                "Budget": _budget_schema(),
                "Budgets": _budgets_schema(),
                "FreeTier": _free_tier_schema(),
                "Usage": _usage_schema(),
                **(_billing_schemas() if with_billing else {}),
                "Error": _error_schema(),
            },
            "securitySchemes": _security_schemes(identity),
        },
    }


def _budget_paths() -> Json:
    body = {"required": True, "content": {"application/json": {"schema": _ref("BudgetBody")}}}
    period = {"name": "period", "in": "query", "schema": {"type": "string", "enum": list(PERIODS)}}
    return {
        "get": _operation(
            "listBudgets",
            "The account's budgets, and its plan's ceilings, with what is used, held and left",
            {"200": _json("The budgets", "Budgets")},
            parameters=[period],
        ),
        "post": _operation(
            "createBudget",
            "Create the budget of a period",
            {
                "201": {
                    **_json("The new budget", "Budget"),
                    "headers": {"Location": {"schema": {"type": "string"}, "required": True}},
                },
                **_errors("409", "422"),
            },
            requestBody=body,
        ),
        "put": _operation(
            "replaceBudget",
            "Replace the budget of a period as a whole",
            {"200": _json("The budget as it is now", "Budget"), **_errors("404", "422")},
            requestBody=body,
        ),
        "delete": _operation(
            "deleteBudget",
            "Remove the budget of a period",
            {"204": {"description": "Removed"}, **_errors("404")},
            parameters=[{**period, "required": True}],
        ),
    }


def _usage_operation() -> Json:
    def parameter(name: str, description: str, schema: Json) -> Json:
        return {"name": name, "in": "query", "description": description, "schema": schema}

    return _operation(
        "getUsage",
        "Usage by day and policy, newest day first",
        {"200": _json("A page", "Usage")},
        parameters=[
            parameter("from", f"First day; {usage.DAYS_DEFAULT} days by default, {usage.DAYS_MAX} at most", _DAY),
            parameter("to", "Last day, included; by default today", _DAY),
            parameter("timezone", "Whose midnights part the days; by default UTC", _time_zone_schema()),
            parameter(
                "limit",
                "Rows of a page",
                {"type": "integer", "minimum": 1, "maximum": usage.LIMIT_MAX, "default": usage.LIMIT_DEFAULT},
            ),
            parameter(
                "cursor",
                "next_cursor of the page before; from, to and timezone are the first page's, or left out",
                {"type": "string", "minLength": 1, "maxLength": usage.CURSOR_LENGTH_MAX},
            ),
        ],
    )


def _checkout_operation() -> Json:
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key gives the same page.",
        "schema": _KEY,
    }
    return _operation(
        "startCheckout",
        "A page of Stripe's on which the account subscribes to a plan",
        {"200": _json("The page", "Checkout"), **_errors("404", "409", "422")},
        parameters=[key],
        requestBody={"content": {"application/json": {"schema": _ref("CheckoutBody")}}},
    )


def _portal_operation() -> Json:
    return _operation(
        "openPortal",
        "A page of Stripe's on which the account changes or ends its subscription",
        {"200": _json("The page", "Portal"), **_errors("404", "422")},
        requestBody={"content": {"application/json": {"schema": _ref("PortalBody")}}},
    )


def _webhook_operation() -> Json:
    """Security is the signature, which OpenAPI has no word for."""
    signature = {"name": "Stripe-Signature", "in": "header", "required": True, "schema": {"type": "string"}}
    return {
        "operationId": "takeEvent",
        "summary": "Where Stripe sends its events",
        "parameters": [signature],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {"200": _json("Its effect is stored", "Received"), **_errors("400", "500", "503")},
    }


def _billing_schemas() -> Json:
    address: Json = {"type": "string", "format": "uri"}
    return {
        "CheckoutBody": CheckoutBody.schema(),
        "PortalBody": PortalBody.schema(),
        "Checkout": _object(url=address, session_id={"type": "string"}),
        "Portal": _object(url=address),
        "Received": _object(received={"const": True}, result={"type": "string"}),
    }


def _document_operation() -> Json:
    answer = {"description": "This document", "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"operationId": "getDocument", "summary": "This document", "responses": {"200": answer}}


def _metrics_operation() -> Json:
    answer = {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"operationId": "getMetrics", "summary": "Metrics of all workers", "responses": {"200": answer}}


def _operation(name: str, summary: str, responses: Json, **more: object) -> Json:
    return {
        "operationId": name,
        "summary": summary,
        "security": [{scheme: []} for scheme in ("apiKey", "apiKeyHeader", "session")],
        "responses": {**responses, **_errors("400", "401", "500", "503")},
        **more,
    }


_ERRORS = {
    "400": "invalid_request: the request has a shape that no request has; invalid_signature: it is not Stripe's",
    "401": "unauthorized: no credential, or one that nobody has",
    "404": "not_found",
    "409": "conflict",
    "422": "unprocessable: well formed, and yet not possible; details say why",
    "500": "internal_error",
    "503": "overloaded: a store is away; billing_unavailable: Stripe is away; try again",
}


def _errors(*statuses: str) -> Json:
    return {status: _json(_ERRORS[status], "Error") for status in statuses}


def _json(description: str, schema: str) -> Json:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _list(schema: str) -> Json:
    return {"type": "array", "items": _ref(schema)}


def _object(**properties: Json) -> Json:
    """An object that has these properties, all of them and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _time_zone_schema() -> Json:
    return {"type": "string", "enum": sorted(time_zone_names())}


def _budget_body_schema() -> Json:
    properties = BUDGET_SCHEMA["properties"]
    return {
        **BUDGET_SCHEMA,
        "properties": {**properties, "timezone": {**properties["timezone"], **_time_zone_schema()}},
    }


def _budget_schema() -> Json:
    return _object(
        period={"type": "string", "enum": list(PERIODS)},
        hard_limit_cents=_CENTS,
        soft_limit_cents={**_CENTS, "type": ["number", "null"]},
        timezone=_time_zone_schema(),
        week_start={"type": "string", "enum": list(WEEKDAYS)},
        source={"type": "string", "enum": ["account", "plan"]},
        effective_limit_cents={**_CENTS, "description": "The lowest limit on this period, the plan's included."},
        used_cents=_CENTS,
        held_cents={**_CENTS, "description": "Taken by calls under way, for the most they may cost."},
        remaining_cents=_CENTS,
        window_start={**_INSTANT, "description": "When this period began; null for a total."},
        resets_at={**_INSTANT, "description": "When the next one begins; null for a total."},
    )


def _budgets_schema() -> Json:
    schema = _object(account_id={"type": "string"}, plan={"type": "string"}, budgets=_list("Budget"))
    tiers = {**_list("FreeTier"), "description": "There where a policy has a free tier."}
    return {**schema, "properties": {**schema["properties"], "free_tiers": tiers}}


def _free_tier_schema() -> Json:
    count = {"type": "integer", "minimum": 0}
    return _object(
        policy={"type": "string"},
        period={"type": "string", "enum": list(PERIODS)},
        timezone=_time_zone_schema(),
        unit={"type": "string", "enum": ["call", "unit"]},
        free_units={**count, "description": "How many of a period cost nothing."},
        used_units={**count, "description": "By calls that have ended, those that were paid for among them."},
        remaining_units=count,
        resets_at={**_INSTANT, "description": "When the next period begins; null for a total."},
    )


def _usage_schema() -> Json:
    row = _object(day=_DAY, policy={"type": "string"}, calls={"type": "integer", "minimum": 0}, cost_cents=_CENTS)
    return _object(
        account_id={"type": "string"},
        **{"from": _DAY},
        to=_DAY,
        timezone=_time_zone_schema(),
        usage={"type": "array", "items": row},
        next_cursor={"type": ["string", "null"]},
    )


def _error_schema() -> Json:
    problem = _object(field={"type": "string"}, found={"type": "string"}, expected={"type": "string"})
    portal_url = {"type": "string", "format": "uri", "description": "With 409: where the subscription is changed."}
    return {
        **_object(
            error={"type": "string"},
            message={"type": "string"},
            details={"type": "array", "items": problem},
            portal_url=portal_url,
        ),
        "required": ["error", "message"],
    }


def _security_schemes(identity: "Identity") -> Json:
    key = identity.api_key
    bearer: Json = {"type": "apiKey", "in": "header", "name": key.header}
    if key.header.lower() == "authorization" and key.scheme is not None:
        bearer = {"type": "http", "scheme": key.scheme.lower()}
    schemes = {"apiKey": bearer, "session": {"type": "apiKey", "in": "cookie", "name": identity.session.cookie}}
    if key.alternative_header is not None:
        schemes["apiKeyHeader"] = {"type": "apiKey", "in": "header", "name": key.alternative_header}
    return schemes
