"""The form and the signature of webhooks, as the real library checks them."""

import time

import pytest
import stripe

from stripe_stub.signing import signature_header
from stripe_stub.versions import OLD
from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import SECRET, RunningStub

OLD_SECRET, NEW_SECRET = "whsec_old", "whsec_new"


async def test_a_webhook_verifies_with_the_real_library(
    stub: RunningStub, client: stripe.StripeClient, receiver: Receiver
) -> None:
    made = await client.v1.customers.create_async({"name": "Ann é 🪄"})
    await stub.idle()
    (webhook,) = receiver.got
    event = stripe.Webhook.construct_event(webhook.body, webhook.signature, SECRET, api_key="sk_test")
    assert (event.object, event.type, event.livemode) == ("event", "customer.created", False)
    assert event.data.object.to_dict() == made.to_dict()
    assert event.api_version == "2026-10-28.endive"
    assert webhook.headers["Content-Type"] == "application/json; charset=utf-8"


async def test_another_secret_does_not_verify(
    stub: RunningStub, client: stripe.StripeClient, receiver: Receiver
) -> None:
    await client.v1.customers.create_async({})
    await stub.idle()
    (webhook,) = receiver.got
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.WebhookSignature.verify_header(webhook.body, webhook.signature, "whsec_other", 300)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.WebhookSignature.verify_header(webhook.body + b" ", webhook.signature, SECRET, 300)


async def test_both_secrets_sign_while_one_takes_over(
    stub: RunningStub, client: stripe.StripeClient, receiver: Receiver
) -> None:
    await stub.control("PUT", "endpoints", [{"url": receiver.url, "secrets": [NEW_SECRET, OLD_SECRET]}])
    await client.v1.customers.create_async({})
    await stub.idle()
    (webhook,) = receiver.got
    for secret in (OLD_SECRET, NEW_SECRET):
        assert stripe.WebhookSignature.verify_header(webhook.body, webhook.signature, secret, 300)


async def test_a_signature_may_be_stale(stub: RunningStub, client: stripe.StripeClient, receiver: Receiver) -> None:
    await stub.control("PUT", "delivery", {"clock_offset_s": -301})
    await client.v1.customers.create_async({})
    await stub.idle()
    (webhook,) = receiver.got
    with pytest.raises(stripe.SignatureVerificationError, match="outside the tolerance"):
        stripe.WebhookSignature.verify_header(webhook.body, webhook.signature, SECRET, 300)


def test_only_v1_is_a_signature() -> None:
    header = signature_header(b"{}", [SECRET], int(time.time()))
    without = ",".join(part for part in header.split(",") if not part.startswith("v1="))
    assert stripe.WebhookSignature.verify_header("{}", header, SECRET, 300)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.WebhookSignature.verify_header("{}", without, SECRET, 300)


async def test_each_endpoint_gets_its_own_generation(
    stub: RunningStub, client: stripe.StripeClient, session: stripe.checkout.Session, receiver: Receiver
) -> None:
    new, old = {"url": receiver.url, "secrets": [NEW_SECRET]}, {"url": receiver.url, "secrets": [OLD_SECRET]}
    await stub.idle()
    receiver.got.clear()
    await stub.control("PUT", "endpoints", [new, {**old, "api_version": OLD}])
    paid = await stub.control("POST", f"checkout/{session.id}/pay")
    await stub.control("POST", f"subscriptions/{paid['subscription']}/advance")
    await stub.idle()
    found: dict[tuple[str, str], dict[str, object]] = {}
    for webhook in receiver.got:
        event = webhook.event
        found.setdefault((event["type"], event["api_version"][:4]), event["data"])
        secret = OLD_SECRET if event["api_version"] == OLD else NEW_SECRET
        assert stripe.WebhookSignature.verify_header(webhook.body, webhook.signature, secret, 300)
    created_old = found["customer.subscription.created", "2017"]["object"]
    created_new = found["customer.subscription.created", "2026"]["object"]
    assert isinstance(created_old, dict)
    assert isinstance(created_new, dict)
    assert created_old["current_period_end"] == created_new["items"]["data"][0]["current_period_end"]
    assert "current_period_end" not in created_new
    paid_old, paid_new = found["invoice.paid", "2017"]["object"], found["invoice.paid", "2026"]["object"]
    assert isinstance(paid_old, dict)
    assert isinstance(paid_new, dict)
    assert paid_old["subscription"] == paid_new["parent"]["subscription_details"]["subscription"]
    assert ("subscription" in paid_new, "parent" in paid_old) == (False, False)


async def test_the_account_s_version_is_that_of_events_read(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    await stub.control("PUT", "account", {"api_version": OLD})
    await stub.control("POST", f"subscriptions/{subscription.id}/advance")
    (event,) = (await client.v1.events.list_async({"type": "customer.subscription.updated", "limit": 1})).data
    assert event.api_version == OLD
    assert "current_period_end" in event.data.object
    assert "current_period_end" in (event.data.previous_attributes or {})


async def test_an_endpoint_gets_only_the_types_it_wants(
    stub: RunningStub, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    receiver.got.clear()
    wanted = {"url": receiver.url, "secrets": [SECRET], "enabled_events": ["invoice.paid", "customer.subscription.*"]}
    await stub.control("PUT", "endpoints", [wanted])
    await stub.control("POST", f"subscriptions/{subscription.id}/advance")
    await stub.idle()
    assert receiver.types == ["customer.subscription.updated", "invoice.paid"]


@pytest.mark.parametrize("row", [{}, {"url": "ftp://x", "secrets": ["a"]}, {"url": "http://x", "secrets": []}, 7])
async def test_what_is_no_endpoint_is_refused(stub: RunningStub, row: object) -> None:
    async with stub.session.put(f"{stub.base_url}/_stub/endpoints", json=[row]) as answer:
        assert answer.status == 400
