"""Invoices and the money that moves for them: drafts, attempts at payment, refunds and disputes."""

from stripe_stub.cards import card_of
from stripe_stub.errors import invalid
from stripe_stub.journal import Journal
from stripe_stub.listing import whole_list
from stripe_stub.state import Json, State, new_id, now_s

RETRY_AFTER_S = 3 * 24 * 3600  # when Stripe says it will try a failed payment again; here it is told to (`control`)


class Invoicing:
    def __init__(self, state: State, journal: Journal) -> None:
        self._state = state
        self._journal = journal

    def draft(self, subscription: Json, reason: str, *, free: bool = False) -> Json:
        """An invoice for the subscription's present period, not told to anybody yet. `free`: of a trial."""
        customer = self._state.get("customer", subscription["customer"])
        identifier = new_id("in")
        lines = [_line(subscription, item, free=free) for item in subscription["items"]["data"]]
        total = sum(line["amount"] for line in lines)
        now = now_s()
        first = subscription["items"]["data"][0]
        number = customer["next_invoice_sequence"]
        customer["next_invoice_sequence"] = number + 1
        return self._state.add(
            {
                "id": identifier,
                "object": "invoice",
                "account_country": "US",
                "account_name": "Castgate demo",
                "amount_due": total,
                "amount_paid": 0,
                "amount_remaining": total,
                "attempt_count": 0,
                "attempted": False,
                "auto_advance": True,
                "billing_reason": reason,
                "collection_method": "charge_automatically",
                "created": now,
                "currency": subscription["currency"],
                "customer": customer["id"],
                "customer_email": customer["email"],
                "customer_name": customer["name"],
                "default_payment_method": None,
                "description": None,
                "due_date": None,
                "effective_at": now,
                "hosted_invoice_url": None,
                "invoice_pdf": None,
                "lines": whole_list(f"/v1/invoices/{identifier}/lines", lines),
                "livemode": False,
                "metadata": {},
                "next_payment_attempt": None,
                "number": f"{customer['invoice_prefix']}-{number:04d}",
                "parent": {
                    "type": "subscription_details",
                    "quote_details": None,
                    "subscription_details": {
                        "metadata": dict(subscription["metadata"]),
                        "subscription": subscription["id"],
                    },
                },
                "payments": whole_list("/v1/invoice_payments", []),
                "period_end": first["current_period_end"],
                "period_start": first["current_period_start"],
                "status": "open",
                "status_transitions": {
                    "finalized_at": now,
                    "marked_uncollectible_at": None,
                    "paid_at": None,
                    "voided_at": None,
                },
                "subtotal": total,
                "total": total,
                "_charge": None,
                "_payment_intent": None,
            }
        )

    def send(self, invoice: Json) -> None:
        """Tell that the invoice is there."""
        self._journal.record("invoice.created", invoice)
        self._journal.record("invoice.finalized", invoice)

    def collect(self, invoice: Json) -> bool:
        """Charge the customer's card; whether that went well."""
        card = card_of(self._state.get("customer", invoice["customer"]))
        first = invoice["billing_reason"] == "subscription_create"
        if invoice["total"] and (
            card is None or not (card.first_charge_succeeds if first else card.later_charges_succeed)
        ):
            self.fail(invoice)
            return False
        self.pay(invoice)
        return True

    def pay(self, invoice: Json) -> None:
        now = now_s()
        if invoice["total"]:
            intent = self._intent(invoice, "succeeded")
            charge = self._charge(invoice, intent)
            intent["latest_charge"] = charge["id"]
            invoice["_charge"], invoice["_payment_intent"] = charge["id"], intent["id"]
            payment = self._state.add(_invoice_payment(invoice, intent, now))
            invoice["payments"] = whole_list("/v1/invoice_payments", [payment])
            self._journal.record("charge.succeeded", charge)
            self._journal.record("payment_intent.succeeded", intent)
        invoice |= {
            "status": "paid",
            "attempted": True,
            "attempt_count": invoice["attempt_count"] + bool(invoice["total"]),
            "amount_paid": invoice["total"],
            "amount_remaining": 0,
            "next_payment_attempt": None,
        }
        invoice["status_transitions"]["paid_at"] = now
        self._state.touch()
        self._journal.record("invoice.paid", invoice)
        self._journal.record("invoice.payment_succeeded", invoice)

    def fail(self, invoice: Json) -> None:
        intent = self._intent(invoice, "requires_payment_method")
        invoice |= {
            "attempted": True,
            "attempt_count": invoice["attempt_count"] + 1,
            "next_payment_attempt": now_s() + RETRY_AFTER_S,
            "_payment_intent": intent["id"],
        }
        self._state.touch()
        self._journal.record("payment_intent.payment_failed", intent)
        self._journal.record("invoice.payment_failed", invoice)

    def stop_collecting(self, invoice: Json, status: str) -> None:
        """`void`, or `uncollectible`: no more attempts."""
        invoice |= {"status": status, "next_payment_attempt": None, "auto_advance": False}
        kind = "voided" if status == "void" else "marked_uncollectible"
        invoice["status_transitions"][f"{kind}_at"] = now_s()
        self._journal.record(f"invoice.{kind}", invoice)

    def refund(self, charge: Json, amount: int | None = None) -> Json:
        """The whole of what is left, or `amount` cents of it."""
        left = charge["amount"] - charge["amount_refunded"]
        amount = left if amount is None else amount
        if not 0 < amount <= left:
            raise invalid(
                f"Charge {charge['id']} has already been refunded."
                if not left
                else f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})",
                code="charge_already_refunded" if not left else None,
            )
        refund = self._state.add(
            {
                "id": new_id("re"),
                "object": "refund",
                "amount": amount,
                "balance_transaction": None,
                "charge": charge["id"],
                "created": now_s(),
                "currency": charge["currency"],
                "metadata": {},
                "payment_intent": charge["payment_intent"],
                "reason": None,
                "status": "succeeded",
            }
        )
        with self._journal.change(charge, "charge.refunded"):
            charge["amount_refunded"] += amount
            charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        self._journal.record("refund.created", refund)
        return refund

    def dispute(self, charge: Json) -> Json:
        if charge["disputed"]:
            raise invalid(f"Charge {charge['id']} is disputed already.")
        charge["disputed"] = True
        dispute = self._state.add(
            {
                "id": new_id("du"),
                "object": "dispute",
                "amount": charge["amount"],
                "balance_transactions": [],
                "charge": charge["id"],
                "created": now_s(),
                "currency": charge["currency"],
                "evidence": {},
                "evidence_details": {"due_by": now_s() + 7 * 24 * 3600, "has_evidence": False, "submission_count": 0},
                "is_charge_refundable": False,
                "livemode": False,
                "metadata": {},
                "payment_intent": charge["payment_intent"],
                "reason": "fraudulent",
                "status": "needs_response",
            }
        )
        self._journal.record("charge.dispute.created", dispute)
        return dispute

    def _intent(self, invoice: Json, status: str) -> Json:
        return self._state.add(
            {
                "id": new_id("pi"),
                "object": "payment_intent",
                "amount": invoice["total"],
                "created": now_s(),
                "currency": invoice["currency"],
                "customer": invoice["customer"],
                "latest_charge": None,
                "livemode": False,
                "metadata": {},
                "status": status,
            }
        )

    def _charge(self, invoice: Json, intent: Json) -> Json:
        return self._state.add(
            {
                "id": new_id("ch"),
                "object": "charge",
                "amount": invoice["total"],
                "amount_captured": invoice["total"],
                "amount_refunded": 0,
                "balance_transaction": None,
                "captured": True,
                "created": now_s(),
                "currency": invoice["currency"],
                "customer": invoice["customer"],
                "description": "Subscription",
                "disputed": False,
                "livemode": False,
                "metadata": {},
                "paid": True,
                "payment_intent": intent["id"],
                "refunded": False,
                "status": "succeeded",
                "_invoice": invoice["id"],
            }
        )


def _line(subscription: Json, item: Json, *, free: bool) -> Json:
    price = item["price"]
    return {
        "id": new_id("il"),
        "object": "line_item",
        "amount": 0 if free else price["unit_amount"] * item["quantity"],
        "currency": price["currency"],
        "description": f"{item['quantity']} × {price['id']}",
        "livemode": False,
        "metadata": dict(subscription["metadata"]),
        "parent": {
            "type": "subscription_item_details",
            "invoice_item_details": None,
            "subscription_item_details": {
                "proration": False,
                "subscription": subscription["id"],
                "subscription_item": item["id"],
            },
        },
        "period": {"start": item["current_period_start"], "end": item["current_period_end"]},
        "pricing": {
            "type": "price_details",
            "price_details": {"price": price["id"], "product": price["product"]},
            "unit_amount_decimal": price["unit_amount_decimal"],
        },
        "quantity": item["quantity"],
        "_price": price,
        "_plan": item["plan"],
    }


def _invoice_payment(invoice: Json, intent: Json, now: int) -> Json:
    return {
        "id": new_id("inpay"),
        "object": "invoice_payment",
        "amount_paid": invoice["total"],
        "amount_requested": invoice["total"],
        "created": now,
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": True,
        "livemode": False,
        "payment": {"type": "payment_intent", "payment_intent": intent["id"]},
        "status": "paid",
        "status_transitions": {"canceled_at": None, "paid_at": now},
    }
