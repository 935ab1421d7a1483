"""What is the same for all endpoints: keys, errors, versions, expansion, what is not known."""

import base64
import json

import pytest
import stripe

from stripe_stub.versions import OLD
from tests.stripe_stub.running import RunningStub, client_of, stub_here


@pytest.mark.parametrize("key", ["pk_test_x", "nonsense"])
async def test_a_key_that_is_none_is_a_401(stub: RunningStub, key: str) -> None:
    async with client_of(stub.base_url, key=key) as client:
        with pytest.raises(stripe.AuthenticationError, match="Invalid API Key provided") as caught:
            await client.v1.customers.list_async()
    assert key not in str(caught.value)


async def test_no_key_is_a_401(stub: RunningStub) -> None:
    async with stub.session.get(f"{stub.base_url}/v1/customers") as answer:
        assert (answer.status, (await answer.json())["error"]["type"]) == (401, "invalid_request_error")


async def test_only_the_key_given_at_the_start_is_taken() -> None:
    async with stub_here(secret_key="sk_test_right") as stub:
        async with client_of(stub.base_url, key="sk_test_wrong") as client:
            with pytest.raises(stripe.AuthenticationError):
                await client.v1.customers.list_async()
        async with client_of(stub.base_url, key="sk_test_right") as client:
            assert (await client.v1.customers.list_async()).data == []


async def test_a_key_may_be_the_user_of_basic_authorization(stub: RunningStub) -> None:
    basic = base64.b64encode(b"sk_test_x:").decode()
    async with stub.session.get(f"{stub.base_url}/v1/customers", headers={"Authorization": f"Basic {basic}"}) as answer:
        assert answer.status == 200


async def test_an_address_that_is_not_known_is_a_404(stub: RunningStub) -> None:
    for method in ("GET", "PUT"):
        async with stub.session.request(
            method, f"{stub.base_url}/v1/customers/x/nothing", headers={"Authorization": "Bearer sk_test"}
        ) as answer:
            assert (answer.status, "Unrecognized request URL" in await answer.text()) == (404, True)


async def test_an_unknown_parameter_is_refused_by_name(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="Received unknown parameter: colour") as caught:
        await client.v1.customers.create_async({"colour": "red"})  # type: ignore[arg-type]
    assert caught.value.param == "colour"


async def test_every_answer_has_a_request_id(client: stripe.StripeClient) -> None:
    customer = await client.v1.customers.create_async({})
    assert customer.last_response is not None
    assert str(customer.last_response.request_id).startswith("req_")
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.customers.retrieve_async("cus_none")
    assert str(caught.value.request_id).startswith("req_")


async def test_what_cannot_be_expanded_is_refused(client: stripe.StripeClient, customer: stripe.Customer) -> None:
    for path in ("email", "nothing", "metadata.account", "a.b.c.d.e"):
        with pytest.raises(stripe.InvalidRequestError, match="expand"):
            await client.v1.customers.retrieve_async(customer.id, {"expand": [path]})


async def test_rows_of_a_list_are_expanded(client: stripe.StripeClient, subscription: stripe.Subscription) -> None:
    found = await client.v1.subscriptions.list_async({"expand": ["data.latest_invoice.customer"]})
    assert isinstance(found.data[0].latest_invoice, stripe.Invoice)
    assert isinstance(found.data[0].latest_invoice.customer, stripe.Customer)
    row = await client.v1.subscriptions.retrieve_async(subscription.id, {"expand": ["items.data.price.product"]})
    assert isinstance(row.items.data[0].price.product, stripe.Product)


async def test_an_old_version_gets_the_old_form(stub: RunningStub, subscription: stripe.Subscription) -> None:
    period_end = subscription.items.data[0].current_period_end
    assert "current_period_end" not in subscription.to_dict()
    async with client_of(stub.base_url, version=OLD) as client:
        older = (await client.v1.subscriptions.retrieve_async(subscription.id)).to_dict()
        invoice = (await client.v1.invoices.retrieve_async(str(subscription.latest_invoice))).to_dict()
        charge = (await client.v1.charges.retrieve_async(invoice["charge"])).to_dict()
    assert older["current_period_end"] == period_end
    assert "current_period_end" not in older["items"]["data"][0]
    assert (older["plan"]["id"], older["quantity"]) == ("price_pro", 1)
    assert (invoice["subscription"], invoice["paid"]) == (subscription.id, True)
    assert "parent" not in invoice
    assert invoice["lines"]["data"][0]["subscription"] == subscription.id
    assert charge["invoice"] == invoice["id"]


async def test_a_version_that_is_none_is_refused(stub: RunningStub) -> None:
    async with client_of(stub.base_url, version="latest") as client:
        with pytest.raises(stripe.InvalidRequestError, match="Invalid Stripe API version: latest"):
            await client.v1.customers.list_async()


async def test_notes_of_the_stand_in_are_never_shown(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    expand = ["customer", "latest_invoice", "items.data.price"]
    shown = str(await client.v1.subscriptions.retrieve_async(subscription.id, {"expand": expand}))
    for kind in ("customer", "subscription", "invoice", "charge", "checkout.session", "event"):
        shown += json.dumps(await stub.objects(kind))
    assert '"_' not in shown


async def test_requests_are_noted(stub: RunningStub, client: stripe.StripeClient) -> None:
    await client.v1.customers.create_async({"metadata": {"account": "42"}}, {"idempotency_key": "once"})
    (noted,) = (await stub.control("GET", "requests"))["data"]
    assert (noted["method"], noted["path"], noted["status"]) == ("POST", "/v1/customers", 200)
    assert noted["parameters"] == {"metadata": {"account": "42"}}
    assert noted["headers"]["Idempotency-Key"] == "once"
    assert noted["headers"]["Stripe-Version"].startswith("2026-")


async def test_a_reset_forgets_all_but_the_prices(stub: RunningStub, subscription: stripe.Subscription) -> None:
    await stub.control("PUT", "delivery", {"running": False})
    await stub.control("PUT", "faults", [{"mode": "error"}])
    await stub.control("POST", "reset")
    assert await stub.objects("customer") == []
    assert len(await stub.objects("price")) == 2
    assert (await stub.control("GET", "deliveries"))["data"] == []
    assert (await stub.control("GET", "delivery"))["running"]
    assert await stub.control("GET", "faults") == []
