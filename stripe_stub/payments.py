"""What can be looked up of money: ``/v1/invoices``, ``/v1/charges``, ``/v1/invoice_payments``; and ``/v1/refunds``.

Since 2025-03-31 a charge does not name its invoice: one asks ``/v1/invoice_payments`` with its payment intent.
"""

from stripe_stub.api import Call
from stripe_stub.errors import invalid
from stripe_stub.invoicing import Invoicing
from stripe_stub.listing import PAGING, created_within, page
from stripe_stub.state import Json, State

INVOICE_LIST_FIELDS = PAGING | {"created", "customer", "status", "subscription"}
CHARGE_LIST_FIELDS = PAGING | {"created", "customer", "payment_intent"}
PAYMENT_LIST_FIELDS = PAGING | {"invoice", "payment", "status"}
REFUND_FIELDS = frozenset({"amount", "charge", "metadata", "payment_intent", "reason"})


class Payments:
    def __init__(self, state: State, invoicing: Invoicing) -> None:
        self._state = state
        self._invoicing = invoicing

    def retrieve_invoice(self, call: Call) -> Json:
        return self._state.get("invoice", call.path["id"])

    def list_invoices(self, call: Call) -> Json:
        parameters = call.parameters
        subscription, within = parameters.text("subscription"), created_within(parameters)
        wanted = {name: parameters.text(name) for name in ("customer", "status")}
        rows = (
            row
            for row in self._state.newest_first("invoice")
            if within(row)
            and subscription in {None, row["parent"]["subscription_details"]["subscription"]}
            and all(value in {None, row[name]} for name, value in wanted.items())
        )
        return page(call.url, rows, parameters)

    def retrieve_charge(self, call: Call) -> Json:
        return self._state.get("charge", call.path["id"])

    def list_charges(self, call: Call) -> Json:
        wanted = {name: call.parameters.text(name) for name in ("customer", "payment_intent")}
        within = created_within(call.parameters)
        rows = (
            row
            for row in self._state.newest_first("charge")
            if within(row) and all(value in {None, row[name]} for name, value in wanted.items())
        )
        return page(call.url, rows, call.parameters)

    def list_invoice_payments(self, call: Call) -> Json:
        wanted = {name: call.parameters.text(name) for name in ("invoice", "status")}
        intent = call.parameters.nested("payment").text("payment_intent")
        rows = (
            row
            for row in self._state.newest_first("invoice_payment")
            if intent in {None, row["payment"]["payment_intent"]}
            and all(value in {None, row[name]} for name, value in wanted.items())
        )
        return page(call.url, rows, call.parameters)

    def refund(self, call: Call) -> Json:
        parameters = call.parameters
        charge_id, intent_id = parameters.text("charge"), parameters.text("payment_intent")
        if charge_id is None and intent_id is not None:
            charge_id = self._state.get("payment_intent", intent_id, param="payment_intent")["latest_charge"]
        if charge_id is None:
            raise invalid("One of the following params should be provided for this request: payment_intent or charge.")
        charge = self._state.get("charge", charge_id, param="charge")
        amount, metadata = parameters.whole("amount", low=1), parameters.metadata()
        refund = self._invoicing.refund(charge, amount)
        refund |= {"reason": parameters.text("reason"), "metadata": metadata}
        return refund
