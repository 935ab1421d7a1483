"""What follows when a checkout session is paid: with a card at once, or by a bank that answers days later."""

from stripe_stub.cards import Card, give_card
from stripe_stub.customers import Customers
from stripe_stub.errors import CardDeclinedError, invalid
from stripe_stub.invoicing import Invoicing
from stripe_stub.journal import Journal
from stripe_stub.lifecycle import UPDATED, Lifecycle, Order
from stripe_stub.state import Json, State, new_id, now_s


class Completion:
    def __init__(
        self, state: State, journal: Journal, customers: Customers, invoicing: Invoicing, lifecycle: Lifecycle
    ) -> None:
        self._state = state
        self._journal = journal
        self._customers = customers
        self._invoicing = invoicing
        self._lifecycle = lifecycle

    def pay(self, session: Json, card: Card, email: str | None = None) -> Json:
        """Raises CardDeclinedError, and then the session stays open. Returns the event that tells of the end."""
        _refuse_unless_open(session)
        if not card.first_charge_succeeds:
            self._journal.record("payment_intent.payment_failed", self._failed_intent(session))
            raise CardDeclinedError
        return self._complete(session, card, email, paid_later=False)

    def pay_later(self, session: Json, card: Card, email: str | None = None) -> Json:
        """By a bank: the session completes `unpaid`, the subscription is `incomplete` until `settle`."""
        _refuse_unless_open(session)
        return self._complete(session, card, email, paid_later=True)

    def settle(self, session: Json, *, paid: bool) -> Json:
        """The bank has answered."""
        if session["status"] != "complete" or session["payment_status"] != "unpaid":
            raise invalid("This checkout session does not wait for a bank.")
        subscription = self._state.get("subscription", session["subscription"])
        if paid:
            self._lifecycle.pay(subscription)
            session["payment_status"] = "paid"
            return self._journal.record("checkout.session.async_payment_succeeded", session)
        invoice = self._state.get("invoice", subscription["latest_invoice"])
        self._invoicing.fail(invoice)
        with self._journal.change(subscription, UPDATED):
            subscription["status"] = "incomplete_expired"
        return self._journal.record("checkout.session.async_payment_failed", session)

    def _complete(self, session: Json, card: Card, email: str | None, *, paid_later: bool) -> Json:
        customer = self._customer(session, email)
        give_card(customer, card)
        order = session["_subscription"]
        subscription = self._lifecycle.start(
            Order(
                customer=customer,
                items=[(item["price"], item["quantity"]) for item in session["line_items"]["data"]],
                metadata=order["metadata"],
                trial_days=order["trial_days"],
                without_card_at_trial_end=order["without_card_at_trial_end"],
            ),
            paid_later=paid_later,
        )
        paid = "unpaid" if paid_later else "no_payment_required" if order["trial_days"] else "paid"
        session |= {
            "customer": customer["id"],
            "customer_details": {
                "address": None,
                "email": customer["email"] or email,
                "name": customer["name"],
                "phone": None,
                "tax_exempt": "none",
                "tax_ids": [],
            },
            "invoice": subscription["latest_invoice"],
            "payment_status": paid,
            "status": "complete",
            "subscription": subscription["id"],
            "url": None,
        }
        self._state.touch()
        return self._journal.record("checkout.session.completed", session)

    def _customer(self, session: Json, email: str | None) -> Json:
        if session["customer"] is not None:
            return self._state.get("customer", session["customer"])
        customer = self._state.add(self._customers.new(session["customer_email"] or email))
        self._journal.record("customer.created", customer)
        return customer

    def _failed_intent(self, session: Json) -> Json:
        return {
            "id": new_id("pi"),
            "object": "payment_intent",
            "amount": session["amount_total"],
            "created": now_s(),
            "currency": session["currency"],
            "customer": session["customer"],
            "latest_charge": None,
            "livemode": False,
            "metadata": {},
            "status": "requires_payment_method",
        }


def _refuse_unless_open(session: Json) -> None:
    if session["status"] != "open":
        raise invalid(f"This checkout session is {session['status']}.")
