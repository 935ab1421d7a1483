"""A stub on a fresh database, somebody who has an account there, and a client."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession

from tests.upstream_stub.running import Account, RunningStub, create_account, stub_here


@pytest.fixture
async def stub(database_url: str, redis_url: str) -> AsyncIterator[RunningStub]:
    async with stub_here(database_url, redis_url) as running:
        yield running


@pytest.fixture
async def account(stub: RunningStub) -> Account:
    return await create_account(stub.database_url)


@pytest.fixture
async def anyone(stub: RunningStub) -> AsyncIterator[ClientSession]:
    """A client that is nobody yet."""
    async with ClientSession(stub.base_url) as session:
        yield session


@pytest.fixture
async def client(stub: RunningStub, account: Account) -> AsyncIterator[ClientSession]:
    """A client with the account's API key."""
    async with ClientSession(stub.base_url, headers={"Authorization": f"Bearer {account.api_key}"}) as session:
        yield session
