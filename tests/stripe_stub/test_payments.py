import pytest
import stripe

from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import RunningStub


async def test_invoices_are_listed_by_subscription(
    client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    (invoice,) = (await client.v1.invoices.list_async({"subscription": subscription.id})).data
    assert (invoice.status, invoice.total, invoice.billing_reason) == ("paid", 4900, "subscription_create")
    assert invoice.parent is not None
    assert invoice.parent.subscription_details is not None
    assert invoice.parent.subscription_details.subscription == subscription.id
    found = await client.v1.invoices.retrieve_async(str(invoice.id), {"expand": ["customer", "payments"]})
    assert isinstance(found.customer, stripe.Customer)
    assert found.payments is not None
    assert [payment.status for payment in found.payments.data] == ["paid"]
    assert (await client.v1.invoices.list_async({"status": "open"})).data == []


async def test_a_refund_leads_back_to_its_subscription(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    (charge,) = (await client.v1.charges.list_async({"customer": str(subscription.customer)})).data
    refund = await client.v1.refunds.create_async({"charge": charge.id, "amount": 900})
    assert (refund.status, refund.amount) == ("succeeded", 900)
    await stub.idle()
    refunded = receiver.of_type("charge.refunded")
    assert (refunded["amount_refunded"], refunded["refunded"]) == (900, False)
    (payment,) = (
        await client.v1.invoice_payments.list_async(
            {"payment": {"type": "payment_intent", "payment_intent": refunded["payment_intent"]}}
        )
    ).data
    invoice = await client.v1.invoices.retrieve_async(str(payment.invoice))
    assert invoice.parent is not None
    assert invoice.parent.subscription_details is not None
    assert invoice.parent.subscription_details.subscription == subscription.id


async def test_no_more_is_refunded_than_was_paid(
    client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    (charge,) = (await client.v1.charges.list_async()).data
    await client.v1.refunds.create_async({"payment_intent": str(charge.payment_intent)})
    assert (await client.v1.charges.retrieve_async(charge.id)).refunded
    with pytest.raises(stripe.InvalidRequestError, match="already been refunded"):
        await client.v1.refunds.create_async({"charge": charge.id})


async def test_a_dispute_names_its_charge(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    await stub.control("POST", f"subscriptions/{subscription.id}/dispute")
    await stub.idle()
    dispute = receiver.of_type("charge.dispute.created")
    assert (await client.v1.charges.retrieve_async(dispute["charge"])).disputed
