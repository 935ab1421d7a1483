"""429 where calls come too fast, and 402 before it where both apply."""

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest

from gateway.embedded import RunningServer
from tests.acceptance.conftest import Fleet, _new_database
from tests.gateways import migrated, running_gateway
from tests.upstream_stub.running import stub_process


@pytest.fixture(scope="module")
def limited(postgres_url: str, redis_server: RunningServer) -> Iterator[Fleet]:
    """The same fleet with 10 casts a minute."""
    database_url = asyncio.run(_new_database(postgres_url, "limited"))
    redis_url = redis_server.url.rsplit("/", 1)[0] + "/61"
    with stub_process(database_url, redis_url, rate_limit_per_minute=0) as stub:
        migrated(database_url)
        stores = {"database_url": database_url, "redis_url": redis_url, "upstream_url": stub.base_url}
        environ = {"RATE_LIMIT_PER_MINUTE": "10"}
        with (
            running_gateway(**stores, workers=2, environ=environ) as one,
            running_gateway(**stores, workers=1, environ=environ) as two,
        ):
            yield Fleet(gateways=(one, two), stub_url=stub.base_url, database_url=database_url, redis_url=redis_url)


async def test_exactly_the_limit_passes_over_all_replicas(limited: Fleet) -> None:
    account = await limited.account()
    result = await limited.cast_many(account, total=200, connections=40)
    assert result.errors == {}
    assert result.statuses == {200: 10, 429: 190}


async def test_a_429_says_what_the_limit_is_and_when_to_come_back(limited: Fleet) -> None:
    account = await limited.account()
    await limited.cast_many(account, total=10, connections=1)
    headers = {"Authorization": f"Bearer {account.api_key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{limited.gateways[0].base_url}/v1/cast", json={"input": "x"}, headers=headers) as answer,
    ):
        body = await answer.json()
    assert answer.status == 429
    assert body["error"] == "rate_limited"
    assert (body["policy"], body["limit"], body["window_seconds"]) == ("cast", 10, 60)
    assert 0 < body["retry_after"] <= 62
    assert answer.headers["Retry-After"] == str(body["retry_after"])


async def test_where_budget_and_rate_are_both_spent_it_is_402_always(limited: Fleet) -> None:
    account = await limited.account(monthly_cents=10)
    first = await limited.cast_many(account, total=10, connections=5)
    assert first.statuses == {200: 10}
    both_spent = await limited.cast_many(account, total=300, connections=40)
    assert both_spent.statuses == {402: 300}


async def test_a_call_refused_for_its_rate_takes_no_budget(limited: Fleet) -> None:
    account = await limited.account(monthly_cents=100)
    result = await limited.cast_many(account, total=100, connections=20)
    assert result.statuses == {200: 10, 429: 90}
    await limited.settled(account, 10)
    rows = await limited.sql(
        "SELECT used_microcents FROM usage_counters WHERE account_id = $1 AND period = 'monthly'", account.user_id
    )
    assert [row["used_microcents"] for row in rows] == [10_000_000]


async def test_a_call_refused_for_its_budget_takes_no_rate(limited: Fleet) -> None:
    account = await limited.account(monthly_cents=4)
    assert (await limited.cast_many(account, total=100, connections=20)).statuses == {200: 4, 402: 96}
    headers = {"Authorization": f"Bearer {account.api_key}"}
    budget = {"period": "monthly", "hard_limit_cents": 100}
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{limited.gateways[0].base_url}/v1/budgets", json=budget, headers=headers) as answer,
    ):
        assert answer.status == 200
    # Ten a minute, four of them taken: the 96 refusals took none.
    assert (await limited.cast_many(account, total=50, connections=10)).statuses == {200: 6, 429: 44}
