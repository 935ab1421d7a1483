"""Stripe's events, read from JSON of any of its API versions: what they say that counts here.

The shape of an event follows the version of the webhook endpoint (or of the account), not the library's. Until
2025-03-31 the period stands on the subscription and an invoice says ``subscription``; since then the period is on the
items and an invoice says ``parent.subscription_details.subscription``. Both are read. An id may be given expanded.
https://docs.stripe.com/api/events
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.policy.subscriptions import PAST_DUE, Subscription

# What the event is about decides how it is read, and what follows.
SUBSCRIPTION = "subscription"  # says all of a subscription
SESSION = "session"  # says that a checkout has come to something
INVOICE = "invoice"  # says that a subscription was paid, or was not
MONEY = "money"  # is for people to look at

HANDLED: Mapping[str, str] = {
    "checkout.session.completed": SESSION,
    "checkout.session.async_payment_succeeded": SESSION,
    "checkout.session.async_payment_failed": SESSION,
    "checkout.session.expired": SESSION,
    "customer.subscription.created": SUBSCRIPTION,
    "customer.subscription.updated": SUBSCRIPTION,
    "customer.subscription.deleted": SUBSCRIPTION,
    "customer.subscription.paused": SUBSCRIPTION,
    "customer.subscription.resumed": SUBSCRIPTION,
    "customer.subscription.trial_will_end": SUBSCRIPTION,
    "invoice.paid": INVOICE,
    "invoice.payment_failed": INVOICE,
    "charge.refunded": MONEY,
    "charge.dispute.created": MONEY,
}
OTHER = "other"  # in metrics, every type that is not handled

# How the gateway marks what it makes at Stripe.
ACCOUNT_KEY = "account_id"
PLAN_KEY = "plan"

_ID = re.compile(r"[!-~]{1,255}")
_TYPE = re.compile(r"[a-z0-9_.]{1,100}")
_ACCOUNT = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,255}")
_SECONDS_MAX = 10**11  # the year 5138; far below what a bigint holds
_ITEMS_MAX = 100


class EventError(ValueError):
    """Not an event, or one that lacks what events of its type have. ``field`` and ``expected`` say what is wrong."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}")
        self.field = field
        self.expected = expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What one event says."""

    id: str
    type: str
    created_s: int
    kind: str | None = None  # SUBSCRIPTION, SESSION, INVOICE, MONEY; None: not handled
    subscription_id: str | None = None
    customer_id: str | None = None
    account_id: str | None = None  # as the gateway wrote it into the object when it was made
    subscription: Subscription | None = None  # of SUBSCRIPTION
    plan: str | None = None  # of SESSION: the plan that was asked for
    paid: bool = False  # of SESSION: nothing is left to be paid

    @property
    def label(self) -> str:
        """The type as a label of metrics: one of a closed set."""
        return self.type if self.kind else OTHER

    @property
    def status(self) -> str | None:
        """What the event says of its subscription's status."""
        if self.subscription is not None:
            return self.subscription.status
        return {"invoice.payment_failed": PAST_DUE, "invoice.paid": "active"}.get(self.type)


def read_event(value: object) -> Event:
    """The event in parsed JSON. Raises EventError."""
    if not isinstance(value, dict):
        raise EventError("body", "a JSON object")
    if value.get("object") != "event":  # a thin event is a "v2.core.event"
        raise EventError("object", '"event"')
    event_id, event_type = _text(value, "id", _ID), _text(value, "type", _TYPE)
    created_s = _seconds(value, "created")
    kind = HANDLED.get(event_type)
    if kind is None:
        return Event(id=event_id, type=event_type, created_s=created_s)
    data = value.get("data")
    thing = data.get("object") if isinstance(data, dict) else None
    if not isinstance(thing, dict):
        raise EventError("data.object", "an object")
    subscription = read_subscription(thing) if kind == SUBSCRIPTION else None
    metadata = _mapping(thing.get("metadata"))
    details = _mapping(_mapping(thing.get("parent")).get("subscription_details"))
    subscription_id = _reference(thing.get("subscription")) or _reference(details.get("subscription"))
    if kind == INVOICE and ACCOUNT_KEY not in metadata:  # the subscription's, copied by Stripe; where, is the version's
        metadata = _mapping(details.get("metadata")) or _mapping(
            _mapping(thing.get("subscription_details")).get("metadata")
        )
    return Event(
        id=event_id,
        type=event_type,
        created_s=created_s,
        kind=kind,
        subscription_id=subscription.id if subscription else subscription_id,
        customer_id=_reference(thing.get("customer")),
        account_id=_account(metadata.get(ACCOUNT_KEY))
        or (_account(thing.get("client_reference_id")) if kind == SESSION else None),
        subscription=subscription,
        plan=_account(metadata.get(PLAN_KEY)),
        paid=kind == SESSION
        and thing.get("status") in (None, "complete")
        and thing.get("payment_status") in ("paid", "no_payment_required"),
    )


def read_subscription(thing: Mapping[str, object]) -> Subscription:
    """A subscription in parsed JSON. Raises EventError."""
    items = _mapping(thing.get("items")).get("data")
    rows = [row for row in items[:_ITEMS_MAX] if isinstance(row, dict)] if isinstance(items, list) else []
    # Before there were prices there were plans, with the same ids; before there were items there was one plan.
    sources = [(row.get("price") or row.get("plan")) for row in rows] or [thing.get("plan")]
    prices = tuple(price for price in map(_reference, sources) if price is not None)
    first = rows[0] if rows else {}
    return Subscription(
        id=_text(thing, "id", _ID),
        customer_id=_reference(thing.get("customer")),
        status=_text(thing, "status", _TYPE),
        prices=prices,
        started_s=_optional_seconds(thing.get("created")),
        period_start_s=_optional_seconds(thing.get("current_period_start") or first.get("current_period_start")),
        period_end_s=_optional_seconds(thing.get("current_period_end") or first.get("current_period_end")),
        cancels=thing.get("cancel_at_period_end") is True,
    )


def account_of(thing: Mapping[str, object]) -> str | None:
    """The account that the gateway wrote into an object's metadata."""
    return _account(_mapping(thing.get("metadata")).get(ACCOUNT_KEY))


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: Mapping[str, object], key: str, pattern: re.Pattern[str]) -> str:
    found = value.get(key)
    if not isinstance(found, str) or pattern.fullmatch(found) is None:
        raise EventError(key, "a text as Stripe's are")
    return found


def _reference(value: object) -> str | None:
    """The id of an object that is given by its id, or expanded."""
    found = value.get("id") if isinstance(value, dict) else value
    return found if isinstance(found, str) and _ID.fullmatch(found) else None


def _account(value: object) -> str | None:
    return value if isinstance(value, str) and _ACCOUNT.fullmatch(value) else None


def _seconds(value: Mapping[str, object], key: str) -> int:
    found = value.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= _SECONDS_MAX:
        raise EventError(key, "seconds since 1970")
    return found


def _optional_seconds(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _SECONDS_MAX else 0
