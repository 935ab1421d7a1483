import stripe

from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import RunningStub


async def test_events_are_listed_newest_first_by_type(
    client: stripe.StripeClient, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    every = await client.v1.events.list_async({"limit": 100})
    assert [event.id for event in every.data] == receiver.ids[::-1]
    invoices = await client.v1.events.list_async({"type": "invoice.*"})
    assert {event.type.partition(".")[0] for event in invoices.data} == {"invoice"}
    several = await client.v1.events.list_async({"types": ["invoice.paid", "customer.created"]})
    assert [event.type for event in several.data] == ["invoice.paid", "customer.created"]


async def test_an_event_read_is_the_event_sent(
    client: stripe.StripeClient, subscription: stripe.Subscription, receiver: Receiver
) -> None:
    sent = receiver.got[-1].event
    read = (await client.v1.events.retrieve_async(sent["id"])).to_dict()
    assert {**read, "pending_webhooks": 1} == sent
    assert read["pending_webhooks"] == 0


async def test_events_are_bounded_by_time(client: stripe.StripeClient, stub: RunningStub) -> None:
    for created in (1000, 2000, 3000):
        await stub.control("POST", "events", {"type": "test.event", "object": {"id": "x"}, "created": created})
    found = await client.v1.events.list_async({"created": {"gte": 2000, "lt": 3000}})
    assert [event.created for event in found.data] == [2000]
    assert [event.created for event in (await client.v1.events.list_async({"created": 3000})).data] == [3000]


async def test_events_that_nobody_took_are_found(client: stripe.StripeClient, stub: RunningStub) -> None:
    await client.v1.customers.create_async({})
    await stub.control("PUT", "delivery", {"lose": ["customer.created"]})
    lost = await client.v1.customers.create_async({})
    await stub.idle()
    found = await client.v1.events.list_async({"delivery_success": False})
    assert [event.data.object["id"] for event in found.data] == [lost.id]
    assert found.data[0].pending_webhooks == 1
