import asyncio
import json
import re
import sys

import asyncpg
import pytest
from aiohttp import ClientSession

import upstream_stub
from tests.upstream_stub.running import ROOT, stub_here
from upstream_stub.hashing import new_api_key, sha256_hex
from upstream_stub.seed import DEMO_EMAIL, seed

KEY = "ck_" + "0123456789abcdef" * 3


async def test_a_seeded_key_and_password_are_good_at_the_stub(database_url: str, redis_url: str) -> None:
    account = await seed(database_url)
    async with stub_here(database_url, redis_url) as stub, ClientSession(stub.base_url) as client:
        async with client.post("/v1/cast", headers={"X-API-Key": account.api_key}) as answer:
            assert answer.status == 200
        credentials = {"email": account.email, "password": account.password}
        async with client.post("/v1/auth/login", json=credentials) as answer:
            assert (await answer.json())["user_id"] == account.account_id


async def test_seeding_again_with_the_same_key_changes_nothing(database_url: str) -> None:
    assert await seed(database_url, api_key=KEY) == await seed(database_url, api_key=KEY)
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetchrow("SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM api_keys)")
    await connection.close()
    assert rows is not None
    assert tuple(rows) == (1, 1)


async def test_seeds_at_once_agree(database_url: str) -> None:
    accounts = await asyncio.gather(*(seed(database_url, api_key=KEY) for _ in range(4)))
    assert len(set(accounts)) == 1


async def test_another_password_replaces_the_old_one(database_url: str, redis_url: str) -> None:
    await seed(database_url, password="old")
    await seed(database_url, password="new")
    async with stub_here(database_url, redis_url) as stub, ClientSession(stub.base_url) as client:
        statuses = []
        for password in ("old", "new"):
            async with client.post("/v1/auth/login", json={"email": DEMO_EMAIL, "password": password}) as answer:
                statuses.append(answer.status)
    assert statuses == [401, 200]


async def test_a_key_of_somebody_else_is_refused(database_url: str) -> None:
    await seed(database_url, api_key=KEY)
    with pytest.raises(ValueError, match="another user's"):
        await seed(database_url, email="other@example.com", api_key=KEY)


async def test_a_key_that_is_none_of_phase_1_is_refused(database_url: str) -> None:
    with pytest.raises(ValueError, match="begins with ck_"):
        await seed(database_url, api_key="sk_live")


async def test_the_command_prints_the_account_as_json(database_url: str) -> None:
    command = [sys.executable, "-m", "upstream_stub.seed", "--database-url", database_url, "--api-key", KEY]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    account = json.loads(output)
    assert list(account) == ["account_id", "email", "password", "api_key"]
    assert account["api_key"] == KEY


async def test_the_documented_statements_find_the_account(database_url: str, redis_url: str) -> None:
    by_key, by_session = re.findall(r"SELECT .*\$1.*", upstream_stub.__doc__ or "")
    account = await seed(database_url)
    async with stub_here(database_url, redis_url) as stub, ClientSession(stub.base_url) as client:
        credentials = {"email": account.email, "password": account.password}
        async with client.post("/v1/auth/login", json=credentials) as answer:
            token = answer.cookies["session"].value
    connection = await asyncpg.connect(database_url)
    found = [
        await connection.fetchval(by_key, sha256_hex(account.api_key)),
        await connection.fetchval(by_session, sha256_hex(token)),
        await connection.fetchval(by_key, sha256_hex(new_api_key())),
    ]
    await connection.close()
    assert found == [account.account_id, account.account_id, None]
