"""Phase 1's stand-in and two gateways of two workers each in front of it, shared by the tests of this folder."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
import asyncpg
import pytest

from bench.load import Endpoint, Load, LoadResult, run
from gateway.embedded import RunningServer
from tests.gateways import RunningGateway, migrated, running_gateway
from tests.upstream_stub.running import Account, create_account, stub_process

CAST_BODY = b'{"input": "a spell of light"}'


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Two gateways in front of one stub, on one Postgres and one Redis."""

    gateways: tuple[RunningGateway, RunningGateway]
    stub_url: str
    database_url: str
    redis_url: str

    async def account(self, *, monthly_cents: int | None = None) -> Account:
        account = await create_account(self.database_url)
        if monthly_cents is not None:
            await self.sql(
                "INSERT INTO budgets (account_id, period, hard_limit_microcents) VALUES ($1, 'monthly', $2)",
                account.user_id,
                monthly_cents * 1_000_000,
            )
        return account

    async def put_on_plan(self, account: Account, plan: str) -> None:
        await self.sql("INSERT INTO billing_accounts (account_id, plan) VALUES ($1, $2)", account.user_id, plan)

    async def sql(self, statement: str, *values: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    async def cast_many(self, account: Account, *, total: int, connections: int, seed: int = 0) -> LoadResult:
        """Exactly ``total`` casts by one account, spread over both gateways at random."""
        headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
        endpoints = [
            Endpoint.of(f"{gateway.base_url}/v1/cast", method="POST", headers=headers, body=CAST_BODY)
            for gateway in self.gateways
        ]
        return await run(endpoints, Load(connections=connections, total=total, seed=seed))

    async def nothing_held(self, account: Account) -> None:
        """Waits until no call of the account is held for, as every gateway sees it."""
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {account.api_key}"}) as session:
            for _ in range(500):
                async with session.get(f"{self.gateways[0].base_url}/v1/budgets") as answer:
                    if all(budget["held_cents"] == 0 for budget in (await answer.json())["budgets"]):
                        return
                await asyncio.sleep(0.01)
        raise AssertionError("held for ever")

    async def settled(self, account: Account, casts: int) -> None:
        """Waits until the ledger has ``casts`` events of the account; more or fewer is the caller's to notice."""
        for _ in range(200):
            rows = await self.sql("SELECT count(*) FROM usage_events WHERE account_id = $1", account.user_id)
            if rows[0][0] >= casts:
                return
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def fleet(postgres_url: str, redis_server: RunningServer) -> Iterator[Fleet]:
    database_url = asyncio.run(_new_database(postgres_url, "acceptance"))
    redis_url = redis_server.url.rsplit("/", 1)[0] + "/60"
    with stub_process(database_url, redis_url, rate_limit_per_minute=0) as stub:
        migrated(database_url)
        stores = {"database_url": database_url, "redis_url": redis_url, "upstream_url": stub.base_url}
        with running_gateway(**stores, workers=2) as one, running_gateway(**stores, workers=2) as two:
            yield Fleet(gateways=(one, two), stub_url=stub.base_url, database_url=database_url, redis_url=redis_url)


async def _new_database(postgres_url: str, name: str) -> str:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return postgres_url.rsplit("/", 1)[0] + f"/{name}"
