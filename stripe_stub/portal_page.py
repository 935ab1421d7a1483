"""The hosted customer portal, ``/p/session/{token}``: change the plan, cancel, and decide how the next payment goes."""

from collections.abc import Callable
from datetime import UTC, datetime
from html import escape

from aiohttp import web

from stripe_stub.cards import CARDS, card_of, give_card
from stripe_stub.errors import ApiError, invalid
from stripe_stub.html import button, link, notice, page, price_text
from stripe_stub.journal import Journal
from stripe_stub.lifecycle import ENDED, Lifecycle
from stripe_stub.portal import Portal
from stripe_stub.state import Json, State
from stripe_stub.subscriptions import usable_price

_DONE = {
    "price": "The plan was changed.",
    "cancel": "The subscription was cancelled.",
    "cancel_later": "The subscription will end with its period.",
    "keep": "The subscription goes on.",
    "resume": "The subscription goes on.",
    "card": "The card was changed.",
    "bill": "The next period was billed.",
    "pay": "The open invoice was paid.",
}


class PortalPage:
    def __init__(self, state: State, journal: Journal, portal: Portal, lifecycle: Lifecycle) -> None:
        self._state = state
        self._journal = journal
        self._portal = portal
        self._lifecycle = lifecycle
        self._actions: dict[str, Callable[[Json, str], None]] = {
            "price": lambda subscription, price: lifecycle.change_price(subscription, usable_price(state, price, "do")),
            "cancel": lambda subscription, _: lifecycle.cancel(subscription),
            "cancel_later": lambda subscription, _: lifecycle.cancel_at_period_end(subscription, True),
            "keep": lambda subscription, _: lifecycle.cancel_at_period_end(subscription, False),
            "resume": lambda subscription, _: lifecycle.resume(subscription),
            "bill": lambda subscription, _: lifecycle.advance(subscription),
            "pay": lambda subscription, _: lifecycle.pay(subscription),
            "card": self._change_card,
        }

    async def show(self, request: web.Request) -> web.StreamResponse:
        try:
            session = self._portal.of_token(request.match_info["token"])
        except ApiError as error:
            return page("Not found", f"<h1>Nothing here</h1>{notice(str(error), bad=True)}", status=error.status)
        return page("Your subscription", self._body(session, request.query.get("done", "")))

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """The button pressed says what to do: ``do=price:price_pro``, about the subscription named in the form."""
        form = await request.post()
        try:
            session = self._portal.of_token(request.match_info["token"])
        except ApiError:
            return await self.show(request)
        action, _, value = str(form.get("do", "")).partition(":")
        try:
            subscription = self._state.get("subscription", str(form.get("subscription", "")))
            if subscription["customer"] != session["customer"] or action not in self._actions:
                raise invalid("That cannot be done here.")
            self._actions[action](subscription, value)
        except ApiError as error:
            body = self._body(session, "", problem=str(error))
            return page("Your subscription", body, status=error.status)
        raise web.HTTPSeeOther(f"{request.path}?done={action}")

    def _change_card(self, subscription: Json, name: str) -> None:
        if name not in CARDS:
            raise invalid("There is no such card.")
        customer = self._state.get("customer", subscription["customer"])
        with self._journal.change(customer, "customer.updated"):
            give_card(customer, CARDS[name])

    def _body(self, session: Json, done: str, problem: str = "") -> str:
        rows = [
            row
            for row in self._state.newest_first("subscription")
            if row["customer"] == session["customer"] and row["status"] not in ENDED
        ]
        said = notice(problem, bad=True) if problem else notice(_DONE[done]) if done in _DONE else ""
        shown = "".join(self._subscription(row) for row in rows) or "<p>There is no subscription.</p>"
        return f"<h1>Your subscription</h1>{said}{shown}{link('Go back', session['return_url'])}"

    def _subscription(self, subscription: Json) -> str:
        item = subscription["items"]["data"][0]
        product = self._state.get("product", item["price"]["product"])
        card = card_of(self._state.get("customer", subscription["customer"]))
        until = datetime.fromtimestamp(item["current_period_end"], UTC)
        ends = "Ends on" if subscription["cancel_at_period_end"] else "Renews on"
        facts = {
            "Plan": f"{product['name']}, {price_text(item['price'], item['quantity'])}",
            "Status": subscription["status"].replace("_", " "),
            ends: f"{until:%d %B %Y}",
            "Card": f"•••• {card.last4}" if card else "none",
            "Next payment": "succeeds" if card and card.later_charges_succeed else "fails",
        }
        listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
        return f"""<dl>{listed}</dl>
<form method="post"><input type="hidden" name="subscription" value="{escape(subscription["id"])}">
{self._buttons(subscription, item["price"])}
</form>"""

    def _buttons(self, subscription: Json, price: Json) -> str:
        others = [
            row
            for row in self._state.newest_first("price")
            if row["active"] and row["recurring"] and row["id"] != price["id"]
        ]
        shown = ["<h2>Plan</h2>"]
        for other in sorted(others, key=lambda row: int(row["unit_amount"])):
            name = self._state.get("product", other["product"])["name"]
            shown.append(button(f"Change to {name}, {price_text(other)}", "do", f"price:{other['id']}"))
        if subscription["status"] == "paused":
            shown.append(button("Resume", "do", "resume"))
        if subscription["cancel_at_period_end"]:
            shown.append(button("Do not cancel", "do", "keep"))
        else:
            shown.append(button("Cancel at the end of the period", "do", "cancel_later"))
        shown.append(button("Cancel now", "do", "cancel"))
        shown.append("<h2>Try out</h2>")
        if subscription["status"] in {"past_due", "unpaid", "incomplete"}:
            shown.append(button("Pay the open invoice", "do", "pay"))
        shown.append(button("Make the next payment fail", "do", "card:fails_later"))
        shown.append(button("Make the next payment succeed", "do", "card:good"))
        shown.append(button("End the period and bill the next", "do", "bill"))
        return "\n".join(shown)
