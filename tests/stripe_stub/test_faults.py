import asyncio

import pytest
import stripe
from aiohttp import ServerDisconnectedError

from tests.stripe_stub.running import RunningStub, client_of

AUTHORIZED = {"Authorization": "Bearer sk_test"}


@pytest.mark.parametrize(
    ("mode", "status", "wrong"),
    [
        ("html", 502, stripe.APIError),
        ("limited", 429, stripe.RateLimitError),
        ("error", 500, stripe.APIError),
        ("close", None, stripe.APIConnectionError),
        ("drop", None, stripe.APIConnectionError),
    ],
)
async def test_a_bad_day_is_what_the_library_makes_of_it(
    stub: RunningStub, client: stripe.StripeClient, mode: str, status: int | None, wrong: type[stripe.StripeError]
) -> None:
    await stub.control("PUT", "faults", [{"mode": mode}])
    with pytest.raises(wrong) as caught:
        await client.v1.customers.list_async()
    assert caught.value.http_status == status


@pytest.mark.parametrize("mode", ["html", "error", "close"])
async def test_a_fault_goes_away_after_so_many_times(stub: RunningStub, mode: str) -> None:
    await stub.control("PUT", "faults", [{"mode": mode, "times": 2}])
    async with client_of(stub.base_url, retries=2) as client:
        await client.v1.customers.create_async({})
    assert len(await stub.objects("customer")) == 1
    assert await stub.control("GET", "faults") == []


async def test_a_server_that_hangs_is_given_up(stub: RunningStub) -> None:
    await stub.control("PUT", "faults", [{"mode": "hang"}])
    async with client_of(stub.base_url, timeout_s=0.2) as client:
        with pytest.raises(stripe.APIConnectionError):
            await client.v1.customers.create_async({})
    assert await stub.objects("customer") == []


async def test_what_hangs_is_let_go_with_the_fault(stub: RunningStub) -> None:
    await stub.control("PUT", "faults", [{"mode": "hang"}])

    async def ask() -> None:
        with pytest.raises(ServerDisconnectedError):
            await stub.session.post(f"{stub.base_url}/v1/customers", headers=AUTHORIZED)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        while not (await stub.control("GET", "requests"))["data"]:
            await asyncio.sleep(0)
        await stub.control("PUT", "faults", [])
    assert await stub.objects("customer") == []


async def test_a_fault_may_be_one_endpoint_s_only(stub: RunningStub, client: stripe.StripeClient) -> None:
    await stub.control("PUT", "faults", [{"mode": "error", "path": "/v1/checkout", "method": "POST"}])
    assert (await client.v1.checkout.sessions.list_async()).data == []
    assert (await client.v1.customers.create_async({})).id
    with pytest.raises(stripe.APIError):
        await client.v1.checkout.sessions.create_async({"mode": "subscription"})


@pytest.mark.parametrize("fault", [{}, {"mode": "off"}, {"mode": "slow", "delay_s": -1}, {"mode": "hang", "x": 1}, 7])
async def test_what_is_no_fault_is_refused(stub: RunningStub, fault: object) -> None:
    async with stub.session.put(f"{stub.base_url}/_stub/faults", json=[fault]) as answer:
        assert answer.status == 400
