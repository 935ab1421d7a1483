"""Two whole gateways, the stand-ins as processes of their own, and what breaks between them."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession, ClientTimeout

from tests.gateways import ROOT, RunningGateway, migrated, running_gateway
from tests.ledger.link import Link
from tests.stripe_stub.running import RunningStub, stub_process
from tests.upstream_stub.running import Account, create_account
from tests.upstream_stub.running import stub_process as upstream_process

KEY, SECRET = "sk_test_canary_of_the_key", "whsec_canary_of_the_secret"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    gateways: tuple[RunningGateway, RunningGateway]
    stub: RunningStub
    session: ClientSession
    account: Account
    database_url: str
    environ: dict[str, str]
    link: Link  # between the gateways and Postgres

    async def post(self, path: str, gateway: int = 0, body: object = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.account.api_key}"}
        url = f"{self.gateways[gateway].base_url}{path}"
        async with self.session.post(url, json={} if body is None else body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def cast(self, gateway: int = 0) -> int:
        return (await self.post("/v1/cast", gateway, {"input": "light"}))[0]

    async def pay(self) -> str:
        status, body = await self.post("/v1/billing/checkout")
        assert status == 200, body
        paid = await self.stub.control("POST", f"checkout/{body['session_id']}/pay")
        subscription: str = paid["subscription"]
        return subscription

    async def standing(self) -> tuple[str, str | None]:
        connection = await asyncpg.connect(self.database_url)
        try:
            row = await connection.fetchrow(
                "SELECT status, plan FROM billing_accounts WHERE account_id = $1", self.account.user_id
            )
        finally:
            await connection.close()
        return (row["status"], row["plan"]) if row else ("none", None)


@pytest.fixture
async def fleet(database_url: str, redis_url: str) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        stub_url = await stack.enter_async_context(
            stub_process("--price", "price_pro=4900:Pro", "--retry-first-s", "0.2")
        )
        session = await stack.enter_async_context(ClientSession(timeout=ClientTimeout(total=15)))
        sync_stack = ExitStack()
        stack.callback(sync_stack.close)
        upstream = sync_stack.enter_context(upstream_process(database_url, redis_url, rate_limit_per_minute=0))
        await asyncio.to_thread(migrated, database_url)
        account = await create_account(database_url)
        link = Link(database_url)
        await link.open()
        stack.push_async_callback(link.close)
        environ = {
            "STRIPE_SECRET_KEY": KEY,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_BASE": stub_url,
            "STRIPE_PRICE_PRO": "price_pro",
            "COST_PER_CAST_CENTS": "500",  # one cast is all that the free plan has a month
            "LOG_LEVEL": "debug",
        }
        # Not on this thread: the link, which gateways need to write what they have, runs on its event loop.
        stack.push_async_callback(asyncio.to_thread, sync_stack.close)
        gateways = [
            await asyncio.to_thread(
                sync_stack.enter_context,
                running_gateway(
                    database_url=link.url,
                    redis_url=redis_url,
                    upstream_url=upstream.base_url,
                    workers=2,
                    environ=environ,
                ),
            )
            for _ in range(2)
        ]
        stub = RunningStub(base_url=stub_url, session=session)
        # Every event goes to both gateways, as two deliveries of it do.
        hooks = [{"url": f"{one.base_url}/webhooks/stripe", "secrets": [SECRET]} for one in gateways]
        await stub.control("PUT", "endpoints", hooks)
        yield Fleet(
            gateways=(gateways[0], gateways[1]),
            stub=stub,
            session=session,
            account=account,
            database_url=database_url,
            environ={
                **environ,
                "DATABASE_URL": database_url,
                "REDIS_URL": redis_url,
                "UPSTREAM_URL": upstream.base_url,
            },
            link=link,
        )


async def test_the_whole_story_over_http(fleet: Fleet) -> None:
    assert [await fleet.cast(0), await fleet.cast(1)] == [200, 402]
    subscription = await fleet.pay()
    await fleet.stub.idle()
    assert await fleet.standing() == ("active", "pro")
    assert [await fleet.cast(1), await fleet.cast(0)] == [200, 200]
    status, body = await fleet.post("/v1/billing/checkout")
    assert (status, body["error"]) == (409, "conflict")
    status, body = await fleet.post("/v1/billing/portal")
    assert status == 200
    await fleet.stub.control("POST", f"subscriptions/{subscription}/cancel")
    await fleet.stub.idle()
    assert await fleet.standing() == ("canceled", None)
    assert [await fleet.cast(0), await fleet.cast(1)] == [402, 402]

    applied = sum(gateway.metric("stripe_webhook_total", result="applied") for gateway in fleet.gateways)
    repeated = sum(gateway.metric("stripe_webhook_total", result="duplicate") for gateway in fleet.gateways)
    assert applied >= 4
    assert repeated >= applied
    assert fleet.gateways[0].metric("castgate_billing_enabled") == 1
    for gateway in fleet.gateways:
        log = "".join(gateway.log)
        assert "canary" not in log
        assert "webhook_handled" in log


async def test_duplicated_shuffled_concurrent_and_late_deliveries_to_two_gateways(fleet: Fleet) -> None:
    switches = {"order": "shuffle", "duplicates": 4, "concurrency": 16, "jitter_s": 0.3, "seed": 3}
    await fleet.stub.control("PUT", "delivery", {**switches, "running": False})
    subscription = await fleet.pay()
    for what in ("fail_payment", "pay", "pause", "resume", "fail_payment", "pay", "cancel"):
        await fleet.stub.control("POST", f"subscriptions/{subscription}/{what}")
    await fleet.stub.control("PUT", "delivery", {"running": True})
    await fleet.stub.idle()
    assert await fleet.standing() == ("canceled", None)
    deliveries = (await fleet.stub.control("GET", "deliveries"))["data"]
    assert len(deliveries) > 100
    assert {delivery["where"] for delivery in deliveries} == {"delivered"}
    statuses = {attempt["status"] for delivery in deliveries for attempt in delivery["attempts"]}
    assert statuses <= {200, 503}
    assert sum(gateway.metric("stripe_webhook_total", result="error") for gateway in fleet.gateways) < 20


async def test_while_postgres_is_away_stripe_is_told_to_come_back_and_then_the_state_is_right(fleet: Fleet) -> None:
    assert await fleet.cast() == 200  # the key is known from now on
    await fleet.stub.control("PUT", "delivery", {"running": False})
    await fleet.pay()
    await fleet.link.close()
    await fleet.stub.control("PUT", "delivery", {"running": True, "concurrency": 8, "retry_factor": 1.0})
    refused: set[int] = set()
    async with asyncio.timeout(15):
        while 503 not in refused:
            deliveries = (await fleet.stub.control("GET", "deliveries"))["data"]
            refused = {attempt["status"] for delivery in deliveries for attempt in delivery["attempts"]}
            await asyncio.sleep(0.1)
    assert refused == {503}
    assert await fleet.standing() == ("none", None)
    await fleet.link.open()
    await fleet.stub.idle()
    assert await fleet.standing() == ("active", "pro")
    assert await fleet.cast(1) == 200


async def test_casts_do_not_wait_for_a_stripe_that_hangs(fleet: Fleet) -> None:
    await fleet.pay()
    await fleet.stub.idle()
    await fleet.cast()
    await fleet.stub.control("PUT", "faults", [{"mode": "hang"}])
    loop = asyncio.get_running_loop()
    checkouts = asyncio.gather(*(fleet.post("/v1/billing/checkout") for _ in range(8)))
    slowest_s = 0.0
    for _ in range(20):
        began = loop.time()
        assert await fleet.cast() == 200
        slowest_s = max(slowest_s, loop.time() - began)
    assert slowest_s < 1.0
    began = loop.time()
    assert {(status, body["error"]) for status, body in await checkouts} == {(503, "billing_unavailable")}
    assert loop.time() - began < 8
    await fleet.stub.control("PUT", "faults", [])


async def test_the_command_repairs_what_was_lost_beside_gateways_that_serve(fleet: Fleet) -> None:
    assert [await fleet.cast(0), await fleet.cast(1)] == [200, 402]
    await fleet.stub.control("PUT", "delivery", {"lose": ["*"]})
    await fleet.pay()
    connection = await asyncpg.connect(fleet.database_url)
    await connection.execute("DELETE FROM stripe_sync")  # both gateways have synced at their start
    await connection.close()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "gateway", "billing", "sync"],
        cwd=ROOT,
        env={**os.environ, **fleet.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "missed events handled" in done.stdout
    assert "canary" not in done.stdout + done.stderr
    assert await fleet.standing() == ("active", "pro")
    assert [await fleet.cast(0), await fleet.cast(1)] == [200, 200]


async def test_bad_signatures_leave_no_secret_in_the_log(fleet: Fleet) -> None:
    for signature in ("", "t=1,v1=00", f"t=1,v1={SECRET}", KEY):
        async with fleet.session.post(
            f"{fleet.gateways[0].base_url}/webhooks/stripe",
            data=json.dumps({"id": SECRET}),
            headers={"Stripe-Signature": signature},
        ) as answer:
            assert answer.status == 400
            assert "canary" not in await answer.text()
    async with fleet.session.post(f"{fleet.gateways[0].base_url}/webhooks/stripe", data=b"x" * 900_000) as answer:
        assert answer.status == 400
    assert "canary" not in "".join(fleet.gateways[0].log)
