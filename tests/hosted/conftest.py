"""The hosted application over a real Postgres and Redis, an account with a key and a session, and a clock that stands."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.accounts import Accounts
from gateway.breaker import Breaker
from gateway.config.settings import Settings
from gateway.database import Database
from gateway.hosted.app import create_app
from gateway.hosted.services import Services
from gateway.identify import Identify
from gateway.metrics import Exposition, Metrics
from gateway.tasks import Tasks
from tests.hosted.world import KEY, SESSION, Call, Told, World, add_account, migrate


@pytest.fixture
async def world(database_url: str, redis_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(database_url)
        await migrate(connection)
        account_id = await add_account(connection, KEY, SESSION)
        await connection.close()
        settings = Settings.model_validate(
            {
                "upstream": {"url": "http://127.0.0.1:1"},
                "database": {"url": database_url},
                "redis": {"url": redis_url},
                "metrics": {"public": True},
            }
        )
        tasks, metrics = Tasks(), Metrics()
        stack.callback(metrics.close)
        database = Database(database_url, breaker=Breaker(clock=time.monotonic), metrics=metrics)
        stack.push_async_callback(database.close)
        stack.push_async_callback(tasks.drain, 5.0)
        accounts = Accounts(database, lambda: world.rules, tasks)
        admission = Told()
        services = Services(
            identify=Identify(database, accounts, settings.identity, tasks, metrics),
            accounts=accounts,
            admission=admission,  # type: ignore[arg-type]
            database=database,
            rules=lambda: world.rules,
            settings=lambda: world.settings,
            render_metrics=lambda _: Exposition(body=b"spell_cast_total 1.0\n", content_type="text/plain; version=0.0.4"),
            now_ms=lambda: round(world.now.timestamp() * 1000),
        )
        world = World(
            account_id=account_id, services=services, database=database, admission=admission, settings=settings
        )
        yield world


@pytest.fixture
async def anyone(world: World) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """A client that shows no credential of itself."""
    server = TestServer(create_app(world.services))
    async with TestClient(server) as client:
        yield client


@pytest.fixture
def call(anyone: TestClient[web.Request, web.Application]) -> Call:
    """Requests with the account's key: ``await call("POST", "/v1/budgets", json={…})``."""

    async def send(method: str, path: str, *, key: str = KEY, **more: Any) -> ClientResponse:
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        return await anyone.request(method, path, headers=headers, **more)

    return send
