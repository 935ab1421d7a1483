"""What happens to a subscription, and what Stripe tells of it.

    incomplete ──paid──> active ──payment fails──> past_due ──given up──> unpaid | canceled
        │                  ↑ └──────── paid ──────────┘
        └─not in time─> incomplete_expired
    trialing ──end──> active | past_due | paused (no card) ──resume──> active
    any of them ──cancel──> canceled
https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses
"""

import calendar
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from stripe_stub.cards import card_of
from stripe_stub.errors import invalid
from stripe_stub.invoicing import Invoicing
from stripe_stub.journal import Journal
from stripe_stub.listing import whole_list
from stripe_stub.prices import plan_of
from stripe_stub.state import Json, State, new_id, now_s

UPDATED = "customer.subscription.updated"
ENDED = ("canceled", "incomplete_expired")
DAY_S = 24 * 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a subscription is made of."""

    customer: Json
    items: Sequence[tuple[Json, int]]  # price, quantity
    metadata: dict[str, str] = field(default_factory=dict)
    trial_days: int = 0
    without_card_at_trial_end: str = "create_invoice"  # or pause, cancel


class Lifecycle:
    def __init__(self, state: State, journal: Journal, invoicing: Invoicing) -> None:
        self._state = state
        self._journal = journal
        self._invoicing = invoicing

    def start(self, order: Order, *, paid_later: bool = False) -> Json:
        """A new subscription and its first invoice, charged at once unless it is `paid_later`."""
        now = now_s()
        trial_end = now + order.trial_days * DAY_S if order.trial_days else None
        subscription = self._state.add(_subscription(order, now, trial_end))
        invoice = self._invoicing.draft(subscription, "subscription_create", free=trial_end is not None)
        subscription["latest_invoice"] = invoice["id"]
        self._journal.record("customer.subscription.created", subscription)
        self._invoicing.send(invoice)
        if not paid_later and self._invoicing.collect(invoice) and trial_end is None:
            self._set_status(subscription, "active")
        return subscription

    def advance(self, subscription: Json, *, payment_fails: bool = False) -> None:
        """Go to the end of the period (of the trial, of the time to pay), as if time had passed."""
        self._refuse_ended(subscription)
        status = subscription["status"]
        if status == "paused":
            raise invalid("The subscription is paused; resume it first.")
        if status == "incomplete":
            self._expire(subscription)
        elif subscription["cancel_at_period_end"]:
            self.cancel(subscription)
        elif status == "trialing" and card_of(self._customer(subscription)) is None:
            match subscription["trial_settings"]["end_behavior"]["missing_payment_method"]:
                case "pause":
                    self.pause(subscription)
                case "cancel":
                    self.cancel(subscription)
                case _:
                    self._renew(subscription, payment_fails=True)
        else:
            self._renew(subscription, payment_fails=payment_fails)

    def pay(self, subscription: Json) -> None:
        """The open invoice is paid after all."""
        invoice = self._open_invoice(subscription)
        self._invoicing.pay(invoice)
        self._set_status(subscription, "active")

    def fail_payment(self, subscription: Json) -> None:
        """One more attempt at the open invoice fails; where none is open, the period ends and its payment fails."""
        if subscription["status"] in {"incomplete", "past_due", "unpaid"}:
            self._invoicing.fail(self._open_invoice(subscription))
        else:
            self.advance(subscription, payment_fails=True)

    def give_up(self, subscription: Json, *, cancel: bool) -> None:
        """The last attempt has failed."""
        invoice = self._open_invoice(subscription)
        self._invoicing.fail(invoice)
        invoice["next_payment_attempt"] = None
        if cancel:
            self.cancel(subscription)
        else:
            self._set_status(subscription, "unpaid")

    def cancel(self, subscription: Json) -> None:
        self._refuse_ended(subscription)
        now = now_s()
        subscription |= {"status": "canceled", "canceled_at": subscription["canceled_at"] or now, "ended_at": now}
        subscription["cancellation_details"]["reason"] = "cancellation_requested"
        self._state.touch()
        self._journal.record("customer.subscription.deleted", subscription)

    def cancel_at_period_end(self, subscription: Json, cancel: bool) -> None:
        self._refuse_ended(subscription)
        if subscription["cancel_at_period_end"] == cancel:
            return
        with self._journal.change(subscription, UPDATED):
            subscription["cancel_at_period_end"] = cancel
            subscription["canceled_at"] = now_s() if cancel else None
            end = subscription["items"]["data"][0]["current_period_end"]
            subscription["cancel_at"] = end if cancel else None

    def change_price(self, subscription: Json, price: Json, quantity: int = 1) -> None:
        """From now on at this price. What is left of the period is not billed anew: prorations are left out."""
        self._refuse_ended(subscription)
        with self._journal.change(subscription, UPDATED):
            item = subscription["items"]["data"][0]
            item |= {"price": price, "plan": plan_of(price), "quantity": quantity}

    def pause(self, subscription: Json) -> None:
        self._refuse_ended(subscription)
        self._set_status(subscription, "paused")
        self._journal.record("customer.subscription.paused", subscription)

    def resume(self, subscription: Json) -> None:
        if subscription["status"] != "paused":
            raise invalid("This subscription is not paused.", code="resource_not_paused")
        with self._journal.change(subscription, UPDATED):
            subscription["status"] = "active"
            _set_period(subscription, now_s())
        self._journal.record("customer.subscription.resumed", subscription)

    def tell_trial_will_end(self, subscription: Json) -> None:
        self._journal.record("customer.subscription.trial_will_end", subscription)

    def _renew(self, subscription: Json, *, payment_fails: bool) -> None:
        with self._journal.change(subscription, UPDATED):
            if subscription["status"] == "trialing":
                subscription["trial_end"] = now_s()
                subscription["status"] = "active"
            begun = subscription["items"]["data"][0]["current_period_start"]
            _set_period(subscription, max(now_s(), begun + 1))  # a new period differs even within one second
            invoice = self._invoicing.draft(subscription, "subscription_cycle")
            subscription["latest_invoice"] = invoice["id"]
        self._invoicing.send(invoice)
        if subscription["pause_collection"]:
            self._invoicing.stop_collecting(invoice, "void")
            return
        if payment_fails:
            self._invoicing.fail(invoice)
            paid = False
        else:
            paid = self._invoicing.collect(invoice)
        self._set_status(subscription, "active" if paid else "past_due")

    def _expire(self, subscription: Json) -> None:
        invoice = self._state.get("invoice", subscription["latest_invoice"])
        if invoice["status"] == "open":
            self._invoicing.stop_collecting(invoice, "void")
        self._set_status(subscription, "incomplete_expired")

    def _set_status(self, subscription: Json, status: str) -> None:
        with self._journal.change(subscription, UPDATED):
            subscription["status"] = status

    def _open_invoice(self, subscription: Json) -> Json:
        invoice = self._state.get("invoice", subscription["latest_invoice"])
        if invoice["status"] != "open":
            raise invalid("No invoice of the subscription is open.")
        return invoice

    def _customer(self, subscription: Json) -> Json:
        return self._state.get("customer", subscription["customer"])

    def _refuse_ended(self, subscription: Json) -> None:
        if subscription["status"] in ENDED:
            raise invalid(
                f"No such subscription: '{subscription['id']}'; it has ended.", code="resource_missing", param="id"
            )


def _subscription(order: Order, now: int, trial_end: int | None) -> Json:
    identifier = new_id("sub")
    items: list[Json] = [
        {
            "id": new_id("si"),
            "object": "subscription_item",
            "billing_thresholds": None,
            "created": now,
            "discounts": [],
            "metadata": {},
            "plan": plan_of(price),
            "price": price,
            "quantity": quantity,
            "subscription": identifier,
            "tax_rates": [],
        }
        for price, quantity in order.items
    ]
    subscription = {
        "id": identifier,
        "object": "subscription",
        "application": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": trial_end or now,
        "billing_mode": {"type": "flexible"},
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": now,
        "currency": order.items[0][0]["currency"],
        "customer": order.customer["id"],
        "days_until_due": None,
        "default_payment_method": order.customer["invoice_settings"]["default_payment_method"],
        "default_source": None,
        "description": None,
        "discounts": [],
        "ended_at": None,
        "items": whole_list(f"/v1/subscription_items?subscription={identifier}", items),
        "latest_invoice": None,
        "livemode": False,
        "metadata": dict(order.metadata),
        "pause_collection": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": now,
        "status": "incomplete" if trial_end is None else "trialing",
        "test_clock": None,
        "trial_end": trial_end,
        "trial_settings": {"end_behavior": {"missing_payment_method": order.without_card_at_trial_end}},
        "trial_start": now if trial_end else None,
    }
    _set_period(subscription, now, trial_end)
    return subscription


def _set_period(subscription: Json, start: int, end: int | None = None) -> None:
    for item in subscription["items"]["data"]:
        item["current_period_start"] = start
        item["current_period_end"] = end or _period_end(start, item["price"]["recurring"])


def _period_end(start: int, recurring: Json) -> int:
    count, interval = recurring["interval_count"], recurring["interval"]
    if interval in {"day", "week"}:
        return start + int(count) * (DAY_S if interval == "day" else 7 * DAY_S)
    begin = datetime.fromtimestamp(start, UTC)
    months = begin.month - 1 + count * (12 if interval == "year" else 1)
    year, month = begin.year + months // 12, months % 12 + 1
    day = min(begin.day, calendar.monthrange(year, month)[1])
    return int(begin.replace(year=year, month=month, day=day).timestamp())
