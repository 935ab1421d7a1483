from collections import Counter
from contextlib import closing

import pytest
import redis
from aiohttp import ClientSession

from tests.upstream_stub.running import Account, RunningStub, create_account, stub_here


async def test_the_61st_cast_in_a_minute_is_refused_with_when_to_come_back(client: ClientSession) -> None:
    statuses: Counter[int] = Counter()
    for _ in range(60):
        async with client.post("/v1/cast") as answer:
            statuses[answer.status] += 1
    assert statuses == {200: 60}
    async with client.post("/v1/cast") as answer:
        assert answer.status == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert await answer.json() == {"error": "too_many_requests", "message": "No more than 60 casts a minute."}


async def test_users_are_limited_each_alone(account: Account, database_url: str, redis_url: str) -> None:
    async with stub_here(database_url, redis_url, rate_limit_per_minute=1) as stub, ClientSession(stub.base_url) as one:
        other = await create_account(database_url)
        statuses = []
        for key in (account.api_key, account.api_key, other.api_key):
            async with one.post("/v1/cast", headers={"X-API-Key": key}) as answer:
                statuses.append(answer.status)
    assert statuses == [200, 429, 200]


async def test_the_window_ends_by_itself(client: ClientSession, account: Account, stub: RunningStub) -> None:
    async with client.post("/v1/cast") as answer:
        assert answer.status == 200
    with closing(redis.Redis.from_url(stub.redis_url)) as store:
        assert 0 < int(str(store.pttl(f"ratelimit:cast:{account.user_id}"))) <= 60_000


async def test_without_redis_casts_pass(
    account: Account, database_url: str, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = f"redis://127.0.0.1:{free_port}/0"
    async with (
        stub_here(database_url, nowhere) as stub,
        ClientSession(stub.base_url, headers={"X-API-Key": account.api_key}) as client,
        client.post("/v1/cast") as answer,
    ):
        assert answer.status == 200
    assert "rate limit is off for this cast" in caplog.text
