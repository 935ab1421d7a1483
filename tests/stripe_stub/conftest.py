"""A stub, a place its webhooks go to, and the real library as its client."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import stripe

from tests.stripe_stub.receiver import Receiver, receiver_here
from tests.stripe_stub.running import RunningStub, client_of, endpoint, stub_here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """stripe 16.1 hands its body to httpx in a way that httpx 0.28 warns of; as an error it would fail every POST."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiver_here() as running:
        yield running


@pytest.fixture
async def stub(receiver: Receiver) -> AsyncIterator[RunningStub]:
    async with stub_here(endpoints=(endpoint(receiver.url),)) as running:
        yield running


@pytest.fixture
async def client(stub: RunningStub) -> AsyncIterator[stripe.StripeClient]:
    async with client_of(stub.base_url) as running:
        yield running


@pytest.fixture
async def customer(client: stripe.StripeClient) -> stripe.Customer:
    return await client.v1.customers.create_async({"email": "ann@example.com", "metadata": {"account": "42"}})


@pytest.fixture
async def session(client: stripe.StripeClient, customer: stripe.Customer) -> stripe.checkout.Session:
    """An open checkout session for the plan of 49 dollars."""
    return await client.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "customer": customer.id,
            "client_reference_id": "42",
            "line_items": [{"price": "price_pro", "quantity": 1}],
            "metadata": {"account": "42", "plan": "pro"},
            "subscription_data": {"metadata": {"account": "42"}},
            "success_url": "https://shop.example/thanks?session={CHECKOUT_SESSION_ID}",
            "cancel_url": "https://shop.example/pricing",
        }
    )


@pytest.fixture
async def subscription(
    stub: RunningStub, client: stripe.StripeClient, session: stripe.checkout.Session
) -> stripe.Subscription:
    """An active subscription, paid through `session`; its webhooks have been delivered."""
    paid = await stub.control("POST", f"checkout/{session.id}/pay")
    await stub.idle()
    return await client.v1.subscriptions.retrieve_async(paid["subscription"])
