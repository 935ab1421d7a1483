"""The hosted checkout page, ``/c/pay/{id}``: what a customer sees, and the Pay button."""

from html import escape

from aiohttp import web

from stripe_stub.cards import CARDS, card_of_number
from stripe_stub.checkout import Checkout
from stripe_stub.completion import Completion
from stripe_stub.delivery import Deliveries
from stripe_stub.errors import ApiError
from stripe_stub.html import button, link, money, notice, page, price_text
from stripe_stub.state import Json, State

REDIRECT_WAIT_S = 10.0  # Stripe waits so long for the webhook's answer before it sends the customer back
_PLACEHOLDER = "{CHECKOUT_SESSION_ID}"


class CheckoutPage:
    def __init__(self, state: State, checkout: Checkout, completion: Completion, deliveries: Deliveries) -> None:
        self._state = state
        self._checkout = checkout
        self._completion = completion
        self._deliveries = deliveries

    async def show(self, request: web.Request) -> web.StreamResponse:
        try:
            session = self._checkout.fresh(request.match_info["id"])
        except ApiError as error:
            return page("Not found", f"<h1>Nothing to pay here</h1>{notice(str(error), bad=True)}", status=error.status)
        return self._page(session)

    async def submit(self, request: web.Request) -> web.StreamResponse:
        try:
            session = self._checkout.fresh(request.match_info["id"])
        except ApiError:
            return await self.show(request)
        if session["status"] == "complete":
            raise web.HTTPSeeOther(success_address(session))  # pressed twice: paid once
        if session["status"] != "open":
            return self._page(session)
        form = await request.post()
        how, email, number = (str(form.get(name, "")) for name in ("how", "email", "card"))
        try:
            if how == "later":
                event = self._completion.pay_later(session, CARDS["good"], email or None)
            else:
                card = CARDS["declined"] if how == "declined" else card_of_number(number)
                event = self._completion.pay(session, card, email or None)
        except ApiError as error:
            return self._page(session, problem=str(error), number=number if how == "pay" else "", status=402)
        if self._deliveries.switches.running:
            await self._deliveries.tried(self._deliveries.find(event["id"]), REDIRECT_WAIT_S)
        raise web.HTTPSeeOther(success_address(session))

    def _page(self, session: Json, *, problem: str = "", number: str = "", status: int = 200) -> web.Response:
        if session["status"] == "complete":
            body = f"<h1>This is paid</h1>{link('Go on', success_address(session))}"
            return page("Paid", body)
        if session["status"] == "expired":
            body = f"<h1>This page has expired</h1><p>Nothing was paid.</p>{link('Go back', session['cancel_url'])}"
            return page("Expired", body, status=410)
        return page("Checkout", self._open(session, problem, number), status=status)

    def _open(self, session: Json, problem: str, number: str) -> str:
        items = session["line_items"]["data"]
        names = [self._state.get("product", item["price"]["product"])["name"] for item in items]
        total = sum(item["amount_total"] for item in items)
        trial_days = session["_subscription"]["trial_days"]
        per = price_text(items[0]["price"], items[0]["quantity"]).partition(" per ")[2]
        due = f"{trial_days} days free, then " if trial_days else ""
        email = session["customer_email"] or ""
        if session["customer"] is not None:
            email = self._state.get("customer", session["customer"])["email"] or ""
        good = CARDS["good"].number
        shown = number or " ".join(good[at : at + 4] for at in range(0, len(good), 4))
        return f"""<h1>Subscribe to {escape(", ".join(names))}</h1>
<p class="amount" id="amount">{escape(due)}{escape(money(total, session["currency"]))}
<span class="quiet">per {escape(per)}</span></p>
{notice(problem, bad=True) if problem else ""}
<form method="post">
<label for="email">E-mail</label>
<input id="email" name="email" type="email" autocomplete="email" value="{escape(email)}">
<label for="card">Card number (a test card)</label>
<input id="card" name="card" inputmode="numeric" autocomplete="off" value="{escape(shown)}">
<div class="pair">
<div><label for="expiry">Expiry</label><input id="expiry" name="expiry" autocomplete="off" value="12 / 34"></div>
<div><label for="cvc">CVC</label><input id="cvc" name="cvc" autocomplete="off" value="123"></div>
</div>
{button("Pay" if not trial_days else "Start the trial", "how", "pay", main=True)}
{link("Cancel", session["cancel_url"])}
<h2>Try out</h2>
{button("Pay with a card that is declined", "how", "declined")}
{button("Pay by bank, confirmed later", "how", "later")}
</form>"""


def success_address(session: Json) -> str:
    return str(session["success_url"]).replace(_PLACEHOLDER, session["id"])
