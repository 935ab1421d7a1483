"""The two generations of payloads, as far as they differ in what a biller reads.

Until 2025-03-31 (`basil`) a subscription has `current_period_start/end` itself and an invoice has `subscription`,
`paid`, `charge` and `payment_intent`; since then the periods are on the subscription's items, and the invoice says
`parent.subscription_details.subscription` and lists `payments`. State holds the newer form; the older is made of it
here.
https://docs.stripe.com/changelog/basil/2025-03-31/deprecate-subscription-current-period-start-and-end
"""

import re
from typing import Any

from stripe_stub.errors import invalid
from stripe_stub.state import Json

NEWEST = "2026-10-28.endive"
OLD = "2017-08-15"
_NEWER_SHAPE_SINCE = "2025-03-31"
_VERSION = re.compile(r"\d{4}-\d\d-\d\d(\.[a-z]+)?")


def checked_version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        raise invalid(f"Invalid Stripe API version: {text}")
    return text


def render(value: Any, version: str) -> Any:
    """A copy of `value` as `version` shows it, all the way down, without the stand-in's notes."""
    if isinstance(value, list):
        return [render(inner, version) for inner in value]
    if not isinstance(value, dict) or value.get("object") == "event":  # an event keeps the form of its own version
        return value
    shown = value
    if version[:10] < _NEWER_SHAPE_SINCE:
        older = _OLDER.get(value.get("object", ""))
        shown = older(value) if older else value
    return {key: render(inner, version) for key, inner in shown.items() if not key.startswith("_")}


def render_changes(kind: str, previous: Json, version: str) -> Json:
    """`previous_attributes` of an event: a part of an object, without its `object`."""
    shown: Json = render({"object": kind, **previous}, version)
    del shown["object"]
    return shown


def _older_subscription(value: Json) -> Json:
    shown = dict(value)
    if "items" in shown:
        rows = shown["items"]["data"]
        first = rows[0]
        shown["current_period_start"] = first["current_period_start"]
        shown["current_period_end"] = first["current_period_end"]
        shown["plan"] = first["plan"]
        shown["quantity"] = first["quantity"]
    if "start_date" in shown:
        shown["start"] = shown["start_date"]
    return shown


def _older_item(value: Json) -> Json:
    return {key: inner for key, inner in value.items() if key not in {"current_period_start", "current_period_end"}}


def _older_invoice(value: Json) -> Json:
    shown = {key: inner for key, inner in value.items() if key not in {"parent", "payments"}}
    if "parent" in value:
        shown["subscription"] = value["parent"]["subscription_details"]["subscription"]
        shown["charge"] = value["_charge"]
        shown["payment_intent"] = value["_payment_intent"]
    if "status" in value:
        shown["paid"] = value["status"] == "paid"
    return shown


def _older_line(value: Json) -> Json:
    shown = {key: inner for key, inner in value.items() if key not in {"parent", "pricing"}}
    details = value["parent"]["subscription_item_details"]
    shown |= {"type": "subscription", "subscription": details["subscription"]}
    shown |= {"subscription_item": details["subscription_item"], "price": value["_price"], "plan": value["_plan"]}
    return shown


def _older_charge(value: Json) -> Json:
    return {**value, "invoice": value.get("_invoice")}


_OLDER = {
    "subscription": _older_subscription,
    "subscription_item": _older_item,
    "invoice": _older_invoice,
    "line_item": _older_line,
    "charge": _older_charge,
}
