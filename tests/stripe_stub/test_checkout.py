import time

import pytest
import stripe

from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import RunningStub

GOOD = {
    "mode": "subscription",
    "line_items": [{"price": "price_pro", "quantity": 1}],
    "success_url": "https://shop.example/thanks",
}


async def test_a_session_is_open_and_has_a_page(
    client: stripe.StripeClient, session: stripe.checkout.Session, stub: RunningStub
) -> None:
    assert session.id.startswith("cs_test_")
    assert session.url == f"{stub.base_url}/c/pay/{session.id}"
    assert (session.status, session.payment_status, session.subscription) == ("open", "unpaid", None)
    assert (session.client_reference_id, session.amount_total, session.currency) == ("42", 4900, "usd")
    assert session.to_dict()["metadata"] == {"account": "42", "plan": "pro"}
    assert session.expires_at > time.time()
    assert (await client.v1.checkout.sessions.retrieve_async(session.id)).to_dict() == session.to_dict()


async def test_line_items_are_shown_where_asked_for(
    client: stripe.StripeClient, session: stripe.checkout.Session
) -> None:
    assert "line_items" not in session.to_dict()
    found = await client.v1.checkout.sessions.retrieve_async(session.id, {"expand": ["line_items", "customer"]})
    assert found.line_items is not None
    assert [item.price.id for item in found.line_items.data if item.price] == ["price_pro"]
    assert isinstance(found.customer, stripe.Customer)
    listed = await client.v1.checkout.sessions.line_items.list_async(session.id)
    assert [item.quantity for item in listed.data] == [1]


async def test_sessions_are_listed_by_customer_and_status(
    client: stripe.StripeClient, session: stripe.checkout.Session
) -> None:
    await client.v1.checkout.sessions.create_async(GOOD)  # type: ignore[arg-type]
    found = await client.v1.checkout.sessions.list_async({"customer": str(session.customer), "status": "open"})
    assert [row.id for row in found.data] == [session.id]
    assert (await client.v1.checkout.sessions.list_async({"status": "complete"})).data == []


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"mode": None}, "parameter_missing", "mode"),
        ({"mode": "payment"}, None, "mode"),
        ({"line_items": None}, "parameter_missing", "line_items"),
        ({"line_items": [{"price": "price_none"}]}, "resource_missing", "line_items[0][price]"),
        ({"line_items": [{"quantity": 1}]}, "parameter_missing", "line_items[0][price]"),
        ({"success_url": None}, "parameter_missing", "success_url"),
        ({"success_url": "javascript:alert(1)"}, "url_invalid", "success_url"),
        ({"customer": "cus_none"}, "resource_missing", "customer"),
        ({"client_reference_id": "x" * 201}, "parameter_invalid_string_too_long", "client_reference_id"),
        ({"metadata": {"key": "x" * 501}}, None, "metadata"),
        ({"plan": "pro"}, "parameter_unknown", "plan"),
    ],
)
async def test_a_session_that_cannot_be_is_refused(
    client: stripe.StripeClient, change: dict[str, object], code: str | None, param: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.checkout.sessions.create_async({**GOOD, **change})  # type: ignore[arg-type]
    assert (caught.value.http_status, caught.value.code, caught.value.param) == (400, code, param)


async def test_a_paid_session_completes_with_a_subscription(
    stub: RunningStub, client: stripe.StripeClient, session: stripe.checkout.Session, receiver: Receiver
) -> None:
    await stub.control("POST", f"checkout/{session.id}/pay")
    await stub.idle()
    paid = await client.v1.checkout.sessions.retrieve_async(session.id, {"expand": ["subscription.latest_invoice"]})
    assert (paid.status, paid.payment_status, paid.url) == ("complete", "paid", None)
    assert isinstance(paid.subscription, stripe.Subscription)
    assert paid.subscription.status == "active"
    assert paid.subscription.to_dict()["metadata"] == {"account": "42"}
    assert isinstance(paid.subscription.latest_invoice, stripe.Invoice)
    assert (paid.subscription.latest_invoice.status, paid.subscription.latest_invoice.amount_paid) == ("paid", 4900)
    assert receiver.types == [
        "customer.created",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "charge.succeeded",
        "payment_intent.succeeded",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.updated",
        "checkout.session.completed",
    ]
    assert receiver.of_type("customer.subscription.created")["status"] == "incomplete"
    completed = receiver.of_type("checkout.session.completed")
    assert (completed["client_reference_id"], completed["subscription"]) == ("42", paid.subscription.id)
    assert "line_items" not in completed


async def test_a_session_without_a_customer_makes_one(stub: RunningStub, client: stripe.StripeClient) -> None:
    session = await client.v1.checkout.sessions.create_async({**GOOD, "customer_email": "bob@example.com"})  # type: ignore[arg-type]
    paid = await stub.control("POST", f"checkout/{session.id}/pay")
    assert (await client.v1.customers.retrieve_async(paid["customer"])).email == "bob@example.com"


async def test_a_declined_card_leaves_the_session_open(
    stub: RunningStub, client: stripe.StripeClient, session: stripe.checkout.Session
) -> None:
    async with stub.session.post(
        f"{stub.base_url}/_stub/checkout/{session.id}/pay", json={"card": "declined"}
    ) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (402, "card_declined")
    assert (await client.v1.checkout.sessions.retrieve_async(session.id)).status == "open"
    assert (await client.v1.subscriptions.list_async({"status": "all"})).data == []


async def test_a_session_is_paid_once(stub: RunningStub, session: stripe.checkout.Session) -> None:
    await stub.control("POST", f"checkout/{session.id}/pay")
    async with stub.session.post(f"{stub.base_url}/_stub/checkout/{session.id}/pay") as answer:
        assert answer.status == 400
    assert len(await stub.objects("subscription")) == 1


@pytest.mark.parametrize(
    ("said", "kind", "payment_status", "status"),
    [
        ("settle_paid", "checkout.session.async_payment_succeeded", "paid", "active"),
        ("settle_failed", "checkout.session.async_payment_failed", "unpaid", "incomplete_expired"),
    ],
)
async def test_a_bank_may_answer_later(
    stub: RunningStub,
    client: stripe.StripeClient,
    session: stripe.checkout.Session,
    receiver: Receiver,
    said: str,
    kind: str,
    payment_status: str,
    status: str,
) -> None:
    waiting = await stub.control("POST", f"checkout/{session.id}/pay_later")
    assert (waiting["status"], waiting["payment_status"]) == ("complete", "unpaid")
    assert (await client.v1.subscriptions.retrieve_async(waiting["subscription"])).status == "incomplete"
    await stub.control("POST", f"checkout/{session.id}/{said}")
    await stub.idle()
    assert receiver.of_type(kind)["payment_status"] == payment_status
    assert (await client.v1.subscriptions.retrieve_async(waiting["subscription"])).status == status


async def test_an_expired_session_cannot_be_paid(
    stub: RunningStub, client: stripe.StripeClient, session: stripe.checkout.Session, receiver: Receiver
) -> None:
    expired = await client.v1.checkout.sessions.expire_async(session.id)
    assert (expired.status, expired.url) == ("expired", None)
    with pytest.raises(stripe.InvalidRequestError, match="Only Checkout Sessions with a status in"):
        await client.v1.checkout.sessions.expire_async(session.id)
    async with stub.session.post(f"{stub.base_url}/_stub/checkout/{session.id}/pay") as answer:
        assert answer.status == 400
    await stub.idle()
    assert receiver.of_type("checkout.session.expired")["id"] == session.id


async def test_a_trial_needs_no_payment(stub: RunningStub, client: stripe.StripeClient) -> None:
    session = await client.v1.checkout.sessions.create_async({**GOOD, "subscription_data": {"trial_period_days": 7}})  # type: ignore[arg-type]
    paid = await stub.control("POST", f"checkout/{session.id}/pay")
    assert paid["payment_status"] == "no_payment_required"
    subscription = await client.v1.subscriptions.retrieve_async(paid["subscription"])
    assert subscription.status == "trialing"
    assert subscription.trial_end is not None
    assert subscription.trial_end == subscription.items.data[0].current_period_end
