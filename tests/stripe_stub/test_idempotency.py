import asyncio

import pytest
import stripe

from tests.stripe_stub.running import RunningStub, client_of

ONCE: stripe.RequestOptions = {"idempotency_key": "once"}


async def test_the_same_request_gets_the_same_answer(stub: RunningStub, client: stripe.StripeClient) -> None:
    first = await client.v1.customers.create_async({"email": "ann@example.com"}, ONCE)
    again = await client.v1.customers.create_async({"email": "ann@example.com"}, ONCE)
    assert first.to_dict() == again.to_dict()
    assert len(await stub.objects("customer")) == 1
    assert first.last_response is not None
    assert again.last_response is not None
    headers = again.last_response.headers
    assert headers["idempotent-replayed"] == "true"
    assert headers["original-request"] == first.last_response.request_id
    assert "idempotent-replayed" not in first.last_response.headers


async def test_other_parameters_under_the_same_key_are_refused(client: stripe.StripeClient) -> None:
    await client.v1.customers.create_async({"email": "ann@example.com"}, ONCE)
    with pytest.raises(stripe.IdempotencyError, match="same parameters") as caught:
        await client.v1.customers.create_async({"email": "bob@example.com"}, ONCE)
    assert caught.value.http_status == 400


async def test_another_endpoint_under_the_same_key_is_refused(client: stripe.StripeClient) -> None:
    await client.v1.customers.create_async({}, ONCE)
    with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
        await client.v1.products.create_async({"name": "Max"}, ONCE)


async def test_a_key_in_use_is_a_conflict(stub: RunningStub, client: stripe.StripeClient) -> None:
    await stub.control("PUT", "faults", [{"mode": "slow", "delay_s": 0.3, "times": 1}])
    async with asyncio.TaskGroup() as group:
        first = group.create_task(client.v1.customers.create_async({}, ONCE))
        while not (await stub.control("GET", "requests"))["data"]:
            await asyncio.sleep(0)
        with pytest.raises(stripe.APIError) as caught:
            await client.v1.customers.create_async({}, ONCE)
    assert caught.value.http_status == 409
    assert caught.value.error is not None
    assert caught.value.error.code == "idempotency_key_in_use"
    assert (await client.v1.customers.create_async({}, ONCE)).id == first.result().id


async def test_a_refusal_leaves_the_key_free(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.products.create_async({}, ONCE)  # type: ignore[typeddict-item]
    assert (await client.v1.products.create_async({"name": "Max"}, ONCE)).name == "Max"


async def test_the_library_tries_a_lost_answer_again_and_makes_one_customer(stub: RunningStub) -> None:
    await stub.control("PUT", "faults", [{"mode": "drop", "times": 1}])
    async with client_of(stub.base_url, retries=2) as client:
        made = await client.v1.customers.create_async({})
    assert [row["id"] for row in await stub.objects("customer")] == [made.id]


async def test_a_key_too_long_is_refused(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="255"):
        await client.v1.customers.create_async({}, {"idempotency_key": "x" * 256})
