"""``localstripe``, which others wrote and which knows nothing of us, signs webhooks; the gateway verifies them.

It speaks the shape of 2017 (subscriptions with their period on top, plans instead of prices).
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from gateway.embedded import free_port
from tests.gateways import RunningGateway, migrated, running_gateway
from tests.upstream_stub.running import Account, create_account, stub_process

SECRET = "whsec_of_a_second_signer"
PLAN = "plan_of_a_second_signer"
# Its own start listens on all addresses and keeps its state in a file that all users of a machine share.
LOCALSTRIPE = """
import sys
from aiohttp import web
from localstripe.server import app, store
store.dump_to_disk = lambda: None
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None)
"""
ARRIVAL_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    body: bytes
    headers: dict[str, str]
    status: int  # the gateway's


@dataclass(kw_only=True)
class PassedOn:
    """Stands between the two: passes deliveries on as they are, and keeps them."""

    target: str = ""
    deliveries: dict[str, Delivery] = field(default_factory=dict)  # by type
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def pass_on(self, request: web.Request) -> web.Response:
        body, kept = await request.read(), ("Content-Type", "Stripe-Signature")
        headers = {name: request.headers[name] for name in kept}
        status, _ = await post(self.target, body, headers)
        kind = (await request.json())["type"]
        async with self.arrived:
            self.deliveries[kind] = Delivery(body=body, headers=headers, status=status)
            self.arrived.notify_all()
        return web.Response(status=status)

    async def wait_for(self, kind: str) -> Delivery:
        async with asyncio.timeout(ARRIVAL_TIMEOUT_S), self.arrived:
            await self.arrived.wait_for(lambda: kind in self.deliveries)
        return self.deliveries[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    gateway: RunningGateway
    localstripe_url: str
    between: PassedOn
    account: Account
    database_url: str

    async def call(self, method: str, path: str, form: dict[str, str] | None = None) -> dict[str, Any]:
        headers = {"Authorization": "Bearer sk_test_of_a_second_signer"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"{self.localstripe_url}/v1/{path}", headers=headers, data=form) as answer,
        ):
            found: dict[str, Any] = await answer.json()
            assert answer.status == 200, found
            return found

    async def subscribed(self) -> dict[str, Any]:
        """A subscription of the account's customer."""
        card = {"object": "card", "number": "4242424242424242", "exp_month": "12", "exp_year": "2034", "cvc": "123"}
        form = {"email": self.account.email, **{f"source[{name}]": value for name, value in card.items()}}
        customer = await self.call("POST", "customers", form)
        await self.sql(  # webhooks come a second after the call
            "INSERT INTO billing_accounts (account_id, plan, stripe_customer_id) VALUES ($1, 'free', $2)",
            self.account.user_id,
            customer["id"],
        )
        items = {"customer": customer["id"], "items[0][plan]": PLAN}
        return await self.call("POST", "subscriptions", items)

    async def sql(self, statement: str, *values: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    async def billing(self) -> tuple[str, str | None]:
        (row,) = await self.sql("SELECT status, plan FROM billing_accounts WHERE account_id = $1", self.account.user_id)
        return row["status"], row["plan"]


async def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        return answer.status, await answer.json()


@contextmanager
def localstripe() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", LOCALSTRIPE, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "Running on" in line, f"localstripe did not start: {line!r}"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@asynccontextmanager
async def serving(between: PassedOn) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/", between.pass_on)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest.fixture
async def world(database_url: str, redis_url: str) -> AsyncIterator[World]:
    between = PassedOn()
    stores = {"database_url": database_url, "redis_url": redis_url}
    with localstripe() as url, stub_process(**stores, rate_limit_per_minute=0) as upstream:
        await asyncio.to_thread(migrated, database_url)
        variables = {
            "STRIPE_SECRET_KEY": "sk_test_of_a_second_signer",
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_BASE": url,
            "STRIPE_PRICE_PRO": PLAN,
        }
        with running_gateway(**stores, upstream_url=upstream.base_url, environ=variables) as gateway:
            async with serving(between) as hook_url:
                between.target = f"{gateway.base_url}/webhooks/stripe"
                world = World(
                    gateway=gateway,
                    localstripe_url=url,
                    between=between,
                    account=await create_account(database_url),
                    database_url=database_url,
                )
                hook = {"url": hook_url, "secret": SECRET}
                async with (
                    aiohttp.ClientSession() as session,
                    session.post(f"{url}/_config/webhooks/one", json=hook) as answer,
                ):
                    assert answer.status == 200
                plan = {"id": PLAN, "amount": "4900", "currency": "usd", "interval": "month", "name": "Pro"}
                await world.call("POST", "plans", plan)
                yield world


async def test_its_webhooks_verify_and_count(world: World) -> None:
    subscription = await world.subscribed()
    await world.between.wait_for("customer.subscription.created")
    assert await world.billing() == ("active", "pro")
    await world.call("DELETE", f"subscriptions/{subscription['id']}")
    await world.between.wait_for("customer.subscription.deleted")
    assert await world.billing() == ("canceled", None)
    statuses = {kind: delivery.status for kind, delivery in world.between.deliveries.items()}
    assert {"customer.created", "plan.created", "invoice.payment_succeeded"} <= statuses.keys()
    assert set(statuses.values()) == {200}, statuses


async def test_a_body_that_was_tampered_with_does_not_verify(world: World) -> None:
    await world.subscribed()
    delivery = await world.between.wait_for("customer.subscription.created")
    tampered = delivery.body.replace(b'"active"', b'"paused"')
    assert tampered != delivery.body
    status, answer = await post(world.between.target, tampered, delivery.headers)
    assert (status, answer["error"]) == (400, "invalid_signature")
    assert await world.billing() == ("active", "pro")
    status, _ = await post(world.between.target, delivery.body, delivery.headers)
    assert status == 200
