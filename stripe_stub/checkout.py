"""``/v1/checkout/sessions``: subscription mode, with the hosted page (`checkout_page.py`)."""

from stripe_stub.api import Call
from stripe_stub.errors import invalid, missing_parameter, no_such
from stripe_stub.forms import Parameters
from stripe_stub.journal import Journal
from stripe_stub.listing import PAGING, created_within, page, whole_list
from stripe_stub.state import Json, State, new_id, now_s
from stripe_stub.subscriptions import TRIAL_DAYS_MAX, ordered_items, trial_end_behavior

OPEN_S = 24 * 3600
REFERENCE_CHARS_MAX = 200
# Those that change nothing here are taken all the same, so that a program written for Stripe need not know.
CREATE_FIELDS = frozenset(
    {
        "allow_promotion_codes",
        "automatic_tax",
        "billing_address_collection",
        "cancel_url",
        "client_reference_id",
        "consent_collection",
        "currency",
        "custom_text",
        "customer",
        "customer_email",
        "customer_update",
        "expires_at",
        "line_items",
        "locale",
        "metadata",
        "mode",
        "payment_method_collection",
        "payment_method_types",
        "phone_number_collection",
        "subscription_data",
        "success_url",
        "tax_id_collection",
        "ui_mode",
    }
)
LIST_FIELDS = PAGING | {"created", "customer", "customer_details", "status", "subscription"}


class Checkout:
    def __init__(self, state: State, journal: Journal, public_url: str | None) -> None:
        self._state = state
        self._journal = journal
        self._public_url = public_url  # where browsers find the pages; None: where the API was called

    def create(self, call: Call) -> Json:
        parameters = call.parameters
        mode = parameters.needed("mode")
        if mode != "subscription":
            raise invalid(f"This stand-in knows the mode subscription only, not {mode}.", param="mode")
        if parameters.text("ui_mode") not in {None, "hosted", "hosted_page"}:
            raise invalid("This stand-in has hosted pages only.", param="ui_mode")
        success_url = parameters.address("success_url")
        if success_url is None:
            raise missing_parameter("success_url")
        items = ordered_items(self._state, parameters, "line_items")
        customer = self._customer(parameters)
        if customer is not None and parameters.text("customer_email"):
            raise invalid("You may only specify one of these parameters: customer, customer_email.", param="customer")
        data = parameters.nested("subscription_data")
        now = now_s()
        identifier = new_id("cs_test")
        total = 0 if data.whole("trial_period_days") else sum(price["unit_amount"] * count for price, count in items)
        session = {
            "id": identifier,
            "object": "checkout.session",
            "allow_promotion_codes": None,
            "amount_subtotal": total,
            "amount_total": total,
            "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
            "billing_address_collection": None,
            "cancel_url": parameters.address("cancel_url"),
            "client_reference_id": parameters.text("client_reference_id", chars_max=REFERENCE_CHARS_MAX),
            "client_secret": None,
            "created": now,
            "currency": items[0][0]["currency"],
            "custom_fields": [],
            "customer": customer["id"] if customer else None,
            "customer_creation": None if customer else "always",
            "customer_details": None,
            "customer_email": parameters.text("customer_email"),
            "expires_at": parameters.whole("expires_at", low=now + 1, high=now + OPEN_S) or now + OPEN_S,
            "invoice": None,
            "line_items": whole_list(
                f"/v1/checkout/sessions/{identifier}/line_items", [_line_item(price, count) for price, count in items]
            ),
            "livemode": False,
            "locale": parameters.text("locale"),
            "metadata": parameters.metadata(),
            "mode": mode,
            "payment_intent": None,
            "payment_link": None,
            "payment_method_collection": "always",
            "payment_method_types": ["card"],
            "payment_status": "unpaid",
            "setup_intent": None,
            "status": "open",
            "subscription": None,
            "success_url": success_url,
            "ui_mode": "hosted",
            "url": f"{self._public_url or call.origin}/c/pay/{identifier}",
            "_subscription": {
                "metadata": data.metadata(),
                "trial_days": data.whole("trial_period_days", low=1, high=TRIAL_DAYS_MAX) or 0,
                "without_card_at_trial_end": trial_end_behavior(data),
            },
        }
        return self._state.add(session)

    def retrieve(self, call: Call) -> Json:
        return self.fresh(call.path["id"])

    def list(self, call: Call) -> Json:
        parameters = call.parameters
        wanted = {name: parameters.text(name) for name in ("customer", "status", "subscription")}
        email = parameters.nested("customer_details").text("email")
        within = created_within(parameters)
        rows = (
            row
            for row in self._state.newest_first("checkout.session")
            if within(row)
            and all(value in {None, row[name]} for name, value in wanted.items())
            and (email is None or email == (row["customer_details"] or {}).get("email"))
        )
        return page(call.url, rows, parameters)

    def line_items(self, call: Call) -> Json:
        return page(call.url, self.fresh(call.path["id"])["line_items"]["data"], call.parameters)

    def expire(self, call: Call) -> Json:
        session = self.fresh(call.path["id"])
        if session["status"] != "open":
            raise invalid(
                f'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status '
                f"of {session['status']}."
            )
        self._expire(session)
        return session

    def fresh(self, identifier: str) -> Json:
        """The session; where its time is up, it expires now."""
        session = self._state.get("checkout.session", identifier)
        if session["status"] == "open" and session["expires_at"] <= now_s():
            self._expire(session)
        return session

    def _expire(self, session: Json) -> None:
        session |= {"status": "expired", "url": None}
        self._state.touch()
        self._journal.record("checkout.session.expired", session)

    def _customer(self, parameters: Parameters) -> Json | None:
        identifier = parameters.text("customer")
        if identifier is None:
            return None
        customer = self._state.get("customer", identifier, param="customer")
        if customer.get("deleted"):
            raise no_such("customer", identifier, param="customer")
        return customer


def _line_item(price: Json, quantity: int) -> Json:
    amount = price["unit_amount"] * quantity
    return {
        "id": new_id("li"),
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": price["product"],
        "price": price,
        "quantity": quantity,
    }
