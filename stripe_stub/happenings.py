"""What takes a person, a bank or time, on request: ``/_stub/checkout/…``, ``/_stub/subscriptions/…``."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from stripe_stub.cards import CARDS, Card, give_card
from stripe_stub.checkout import Checkout
from stripe_stub.completion import Completion
from stripe_stub.control import read_object
from stripe_stub.errors import invalid, no_such
from stripe_stub.invoicing import Invoicing
from stripe_stub.journal import Journal
from stripe_stub.lifecycle import Lifecycle
from stripe_stub.state import Json, State
from stripe_stub.subscriptions import usable_price
from stripe_stub.versions import NEWEST, render


class Happenings:
    """Every answer is the object as it is afterwards, in the newest form."""

    def __init__(
        self,
        state: State,
        journal: Journal,
        checkout: Checkout,
        completion: Completion,
        lifecycle: Lifecycle,
        invoicing: Invoicing,
    ) -> None:
        self._state = state
        self._journal = journal
        self._checkout = checkout
        self._completion = completion
        self._invoicing = invoicing
        self._of_session: dict[str, Callable[[Json, Json], object]] = {
            "pay": lambda session, body: completion.pay(session, _card(body), body.get("email")),
            "pay_later": lambda session, body: completion.pay_later(session, _card(body), body.get("email")),
            "settle_paid": lambda session, _: completion.settle(session, paid=True),
            "settle_failed": lambda session, _: completion.settle(session, paid=False),
        }
        self._of_subscription: dict[str, Callable[[Json, Json], object]] = {
            "advance": lambda subscription, _: lifecycle.advance(subscription),
            "fail_payment": lambda subscription, _: lifecycle.fail_payment(subscription),
            "pay": lambda subscription, _: lifecycle.pay(subscription),
            "give_up": lambda subscription, body: lifecycle.give_up(subscription, cancel=body.get("cancel", False)),
            "trial_will_end": lambda subscription, _: lifecycle.tell_trial_will_end(subscription),
            "pause": lambda subscription, _: lifecycle.pause(subscription),
            "resume": lambda subscription, _: lifecycle.resume(subscription),
            "cancel": lambda subscription, _: lifecycle.cancel(subscription),
            "change_price": lambda subscription, body: lifecycle.change_price(
                subscription, usable_price(state, str(body.get("price", "")), "price")
            ),
            "refund": lambda subscription, body: invoicing.refund(self._charge(subscription), body.get("amount")),
            "dispute": lambda subscription, _: invoicing.dispute(self._charge(subscription)),
        }

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/_stub/checkout/{id}/{what}", self.to_session),
            web.post("/_stub/subscriptions/{id}/{what}", self.to_subscription),
            web.put("/_stub/customers/{id}/card", self.change_card),
        ]

    async def to_session(self, request: web.Request) -> web.Response:
        """pay | pay_later ``{"card"?, "email"?}``; settle_paid, settle_failed: what the bank says after `pay_later`."""
        session = self._checkout.fresh(request.match_info["id"])
        return await _happen(self._of_session, request, session)

    async def to_subscription(self, request: web.Request) -> web.Response:
        """advance (to the end of the period, trial or time to pay), fail_payment, pay, give_up ``{"cancel"?}``,
        trial_will_end, pause, resume, cancel, change_price ``{"price"}``, refund ``{"amount"?}``, dispute."""
        subscription = self._state.get("subscription", request.match_info["id"])
        return await _happen(self._of_subscription, request, subscription)

    async def change_card(self, request: web.Request) -> web.Response:
        """``{"card": "good" | "declined" | "fails_later"}``"""
        customer = self._state.get("customer", request.match_info["id"])
        card = _card(await read_object(request))
        with self._journal.change(customer, "customer.updated"):
            give_card(customer, card)
        return web.json_response(render(customer, NEWEST))

    def _charge(self, subscription: Json) -> Json:
        """The last charge that was paid for the subscription."""
        for invoice in self._state.newest_first("invoice"):
            details = invoice["parent"]["subscription_details"]
            if details["subscription"] == subscription["id"] and invoice["_charge"] is not None:
                return self._state.get("charge", invoice["_charge"])
        raise no_such("charge", f"of {subscription['id']}")


async def _happen(
    happenings: dict[str, Callable[[Json, Json], object]], request: web.Request, thing: Json
) -> web.Response:
    body: dict[str, Any] = await read_object(request)
    happen = happenings.get(request.match_info["what"])
    if happen is None:
        raise invalid(f"What can happen: {', '.join(happenings)}.")
    happen(thing, body)
    return web.json_response(render(thing, NEWEST))


def _card(body: Json) -> Card:
    name = body.get("card", "good")
    if name not in CARDS:
        raise invalid(f"Cards are {', '.join(CARDS)}.")
    return CARDS[name]
