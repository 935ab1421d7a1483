"""A whole gateway whose only way to Postgres is pgbouncer in transaction mode, with fewer connections than it makes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession, ClientTimeout
from click.testing import CliRunner

from bench.load import Endpoint, Load, run
from gateway.cli import main
from tests.acceptance.conftest import CAST_BODY
from tests.admission.killable import killable_redis
from tests.gateways import ROOT, running_gateway
from tests.ledger.pgbouncer import PROGRAM, WHY_NOT, pgbouncer
from tests.stripe_stub.running import RunningStub
from tests.stripe_stub.running import stub_process as stripe_process
from tests.upstream_stub.running import create_account
from tests.upstream_stub.running import stub_process as upstream_process

pytestmark = [pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT), pytest.mark.timeout(180)]

LIMIT = 30
STRIPE = {"STRIPE_SECRET_KEY": "sk_test_1", "STRIPE_WEBHOOK_SECRET": "whsec_1", "STRIPE_PRICE_PRO": "price_pro"}


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_casts_budgets_billing_the_rungs_and_the_commands(
    database_url: str, stack: AsyncExitStack, tmp_path: Path
) -> None:
    here = stack.enter_context(ExitStack())
    pooled_url = here.enter_context(pgbouncer(database_url, pool_size=4))
    redis = here.enter_context(killable_redis())
    upstream = here.enter_context(upstream_process(database_url, redis.url, rate_limit_per_minute=0))
    stub_url = await stack.enter_async_context(stripe_process("--price", "price_pro=4900:Pro"))
    session = await stack.enter_async_context(ClientSession(timeout=ClientTimeout(total=15)))
    stores = {"database_url": pooled_url, "redis_url": redis.url, "upstream_url": upstream.base_url}
    environ = {**STRIPE, "STRIPE_API_BASE": stub_url, "COST_PER_CAST_CENTS": "1", "SPOOL_DIR": str(tmp_path)}

    async def castgate(*arguments: str) -> tuple[int, str]:
        runner = CliRunner(env={**environ, **{name.upper(): url for name, url in stores.items()}})
        command = [arguments[0], "--config", str(ROOT / "config.yaml"), *arguments[1:]]
        done = await asyncio.to_thread(runner.invoke, main, command, catch_exceptions=False)
        return done.exit_code, done.output

    assert (await castgate("migrate", "--dry-run"))[0] == 0
    assert (await castgate("migrate"))[0] == 0
    assert await castgate("migrate") == (0, "up to date\n")
    gateway = await asyncio.to_thread(here.enter_context, running_gateway(**stores, workers=2, environ=environ))
    stub = RunningStub(base_url=stub_url, session=session)
    hook = {"url": f"{gateway.base_url}/webhooks/stripe", "secrets": [STRIPE["STRIPE_WEBHOOK_SECRET"]]}
    await stub.control("PUT", "endpoints", [hook])
    account = await create_account(database_url)
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    cast = Endpoint.of(f"{gateway.base_url}/v1/cast", method="POST", headers=headers, body=CAST_BODY)

    async def call(method: str, path: str, body: object = None) -> tuple[int, Any]:
        async with session.request(method, f"{gateway.base_url}{path}", json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    assert (await call("POST", "/v1/budgets", {"period": "total", "hard_limit_cents": LIMIT}))[0] == 201
    # Redis admits, then Postgres, then Redis again: never one too many, and never one too few.
    first = await run([cast], Load(connections=8, total=10))
    assert first.statuses == {200: 10}
    redis.kill()
    second = await run([cast], Load(connections=8, total=LIMIT))
    assert second.statuses == {200: LIMIT - 10, 402: 10}
    await asyncio.to_thread(redis.start)
    third = await run([cast], Load(connections=8, total=10))
    assert third.statuses == {402: 10}
    assert (await call("PUT", "/v1/budgets", {"period": "total", "hard_limit_cents": LIMIT + 5}))[0] == 200
    fourth = await run([cast], Load(connections=8, total=10))
    assert fourth.statuses == {200: 5, 402: 5}

    status, checkout = await call("POST", "/v1/billing/checkout", {})
    assert status == 200, checkout
    await stub.control("POST", f"checkout/{checkout['session_id']}/pay")
    await stub.idle()
    sql = await asyncpg.connect(database_url)
    stack.push_async_callback(sql.close)
    plan = "SELECT plan FROM billing_accounts WHERE account_id = $1"
    assert await sql.fetchval(plan, account.user_id) == "pro"

    async with asyncio.timeout(10):
        while await sql.fetchval("SELECT count(*) FROM usage_events") < LIMIT + 5:
            await asyncio.sleep(0.05)
    status, usage = await call("GET", "/v1/usage")
    assert status == 200, usage
    code, output = await castgate("reconcile")
    assert (code, output.startswith("1 accounts compared, 0 with drift: ")) == (0, True), output
    code, output = await castgate("maintain")
    assert (code, output.startswith("PARTITION")) == (0, True), output
    assert await sql.fetchval("SELECT count(*) FROM usage_events") == LIMIT + 5
    log = "".join(gateway.log)
    assert log.count("postgres_behind_pooler") == 2, "once by each worker"
    assert "prepared statement" not in log
