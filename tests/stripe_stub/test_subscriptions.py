import pytest
import stripe

from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import RunningStub


async def happen(stub: RunningStub, subscription: stripe.Subscription, what: str, **body: object) -> dict[str, object]:
    changed: dict[str, object] = await stub.control("POST", f"subscriptions/{subscription.id}/{what}", body)
    await stub.idle()
    return changed


@pytest.fixture
async def trial(client: stripe.StripeClient, customer: stripe.Customer) -> stripe.Subscription:
    return await client.v1.subscriptions.create_async(
        {
            "customer": customer.id,
            "items": [{"price": "price_pro"}],
            "trial_period_days": 14,
            "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}},
        }
    )


async def test_subscriptions_are_listed_by_customer_and_status(
    client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    customer = str(subscription.customer)
    assert [row.id for row in (await client.v1.subscriptions.list_async({"customer": customer})).data] == [
        subscription.id
    ]
    assert (await client.v1.subscriptions.list_async({"customer": "cus_none"})).data == []
    assert (await client.v1.subscriptions.list_async({"status": "past_due"})).data == []
    await client.v1.subscriptions.cancel_async(subscription.id)
    assert (await client.v1.subscriptions.list_async({"customer": customer})).data == []
    assert len((await client.v1.subscriptions.list_async({"customer": customer, "status": "all"})).data) == 1


async def test_an_upgrade_changes_the_price(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    item = subscription.items.data[0].id
    changed = await client.v1.subscriptions.update_async(
        subscription.id, {"items": [{"id": item, "price": "price_team"}], "proration_behavior": "none"}
    )
    assert changed.items.data[0].price.id == "price_team"
    await stub.idle()
    assert receiver.types[-1] == "customer.subscription.updated"
    event = receiver.got[-1].event
    assert event["data"]["previous_attributes"]["items"]["data"][0]["price"]["id"] == "price_pro"
    assert event["request"]["id"].startswith("req_")
    assert event["request"]["idempotency_key"]


@pytest.mark.parametrize("row", [{"price": "price_team"}, {"id": "si_none", "price": "price_team"}])
async def test_an_item_that_is_not_there_is_not_changed(
    client: stripe.StripeClient, subscription: stripe.Subscription, row: dict[str, str]
) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription item"):
        await client.v1.subscriptions.update_async(subscription.id, {"items": [row]})  # type: ignore[arg-type]


async def test_a_cancelled_subscription_is_deleted(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    cancelled = await client.v1.subscriptions.cancel_async(subscription.id)
    assert (cancelled.status, cancelled.ended_at is not None) == ("canceled", True)
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.subscriptions.cancel_async(subscription.id)
    with pytest.raises(stripe.InvalidRequestError, match="canceled subscription"):
        await client.v1.subscriptions.update_async(subscription.id, {"cancel_at_period_end": True})
    await stub.idle()
    assert receiver.of_type("customer.subscription.deleted")["status"] == "canceled"


async def test_a_cancellation_may_wait_for_the_end_of_the_period(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    leaving = await client.v1.subscriptions.update_async(subscription.id, {"cancel_at_period_end": True})
    assert (leaving.status, leaving.cancel_at) == ("active", subscription.items.data[0].current_period_end)
    staying = await client.v1.subscriptions.update_async(subscription.id, {"cancel_at_period_end": False})
    assert (staying.cancel_at, staying.canceled_at) == (None, None)
    await client.v1.subscriptions.update_async(subscription.id, {"cancel_at_period_end": True})
    assert (await happen(stub, subscription, "advance"))["status"] == "canceled"
    assert receiver.types[-1] == "customer.subscription.deleted"


async def test_a_period_that_ends_is_followed_by_the_next(
    stub: RunningStub, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    receiver.got.clear()
    assert (await happen(stub, subscription, "advance"))["status"] == "active"
    invoice = receiver.of_type("invoice.paid")
    assert (invoice["billing_reason"], invoice["amount_paid"]) == ("subscription_cycle", 4900)


async def test_a_payment_that_fails_makes_it_past_due_until_it_is_paid(
    stub: RunningStub, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    receiver.got.clear()
    assert (await happen(stub, subscription, "fail_payment"))["status"] == "past_due"
    assert receiver.of_type("invoice.payment_failed")["attempt_count"] == 1
    await happen(stub, subscription, "fail_payment")
    assert receiver.got[-1].event["data"]["object"]["attempt_count"] == 2
    assert (await happen(stub, subscription, "pay"))["status"] == "active"


@pytest.mark.parametrize(("cancel", "status"), [(False, "unpaid"), (True, "canceled")])
async def test_attempts_end_some_day(
    stub: RunningStub, subscription: stripe.Subscription, cancel: bool, status: str
) -> None:
    await happen(stub, subscription, "fail_payment")
    assert (await happen(stub, subscription, "give_up", cancel=cancel))["status"] == status


async def test_a_card_may_fail_later(stub: RunningStub, subscription: stripe.Subscription) -> None:
    await stub.control("PUT", f"customers/{subscription.customer}/card", {"card": "fails_later"})
    assert (await happen(stub, subscription, "advance"))["status"] == "past_due"


async def test_a_first_payment_that_fails_leaves_it_incomplete(
    stub: RunningStub, client: stripe.StripeClient, customer: stripe.Customer
) -> None:
    subscription = await client.v1.subscriptions.create_async(
        {"customer": customer.id, "items": [{"price": "price_pro"}]}
    )
    assert subscription.status == "incomplete"
    assert (await happen(stub, subscription, "advance"))["status"] == "incomplete_expired"


async def test_a_customer_with_a_card_subscribes_through_the_api(
    client: stripe.StripeClient, customer: stripe.Customer
) -> None:
    await client.v1.customers.update_async(
        customer.id, {"invoice_settings": {"default_payment_method": "pm_card_visa"}}
    )
    subscription = await client.v1.subscriptions.create_async(
        {"customer": customer.id, "items": [{"price": "price_pro"}]}
    )
    assert subscription.status == "active"


async def test_a_trial_without_a_card_ends_in_a_pause(
    stub: RunningStub, client: stripe.StripeClient, trial: stripe.Subscription, receiver: Receiver
) -> None:
    await happen(stub, trial, "trial_will_end")
    assert receiver.types[-1] == "customer.subscription.trial_will_end"
    assert (await happen(stub, trial, "advance"))["status"] == "paused"
    assert receiver.types[-2:] == ["customer.subscription.updated", "customer.subscription.paused"]
    assert (await client.v1.subscriptions.resume_async(trial.id)).status == "active"
    await stub.idle()
    assert receiver.types[-1] == "customer.subscription.resumed"


async def test_a_trial_with_a_card_becomes_active(
    stub: RunningStub, client: stripe.StripeClient, trial: stripe.Subscription
) -> None:
    await stub.control("PUT", f"customers/{trial.customer}/card", {"card": "good"})
    assert (await client.v1.subscriptions.update_async(trial.id, {"trial_end": "now"})).status == "active"


async def test_a_subscription_is_paused_and_resumed(
    client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    assert (await client.v1.subscriptions.pause_async(subscription.id)).status == "paused"
    assert (await client.v1.subscriptions.resume_async(subscription.id)).status == "active"
    with pytest.raises(stripe.InvalidRequestError, match="not paused"):
        await client.v1.subscriptions.resume_async(subscription.id)


async def test_collection_may_be_paused(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    changed = await client.v1.subscriptions.update_async(subscription.id, {"pause_collection": {"behavior": "void"}})
    assert changed.pause_collection is not None
    assert (await happen(stub, subscription, "advance"))["status"] == "active"
    invoices = await client.v1.invoices.list_async({"subscription": subscription.id})
    assert [invoice.status for invoice in invoices.data] == ["void", "paid"]
    changed = await client.v1.subscriptions.update_async(subscription.id, {"pause_collection": ""})
    assert changed.pause_collection is None


async def test_subscriptions_are_searched_by_metadata(
    client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    found = await client.v1.subscriptions.search_async({"query": "metadata['account']:'42' AND status:'active'"})
    assert [row.id for row in found.data] == [subscription.id]


async def test_what_cannot_happen_is_refused_with_what_can(
    stub: RunningStub, subscription: stripe.Subscription
) -> None:
    async with stub.session.post(f"{stub.base_url}/_stub/subscriptions/{subscription.id}/vanish") as answer:
        assert (answer.status, "advance, fail_payment" in await answer.text()) == (400, True)
