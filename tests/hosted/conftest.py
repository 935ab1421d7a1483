"""The hosted application over real stores, an account with a key and a session, and a clock that stands."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.accounts import Accounts
from gateway.config.settings import Settings
from gateway.database import Database
from gateway.fleet import Fleet
from gateway.hosted.app import create_app
from gateway.hosted.services import Services
from gateway.identify import Identify
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.metrics_scrape import Exposition
from gateway.tasks import Tasks
from tests.hosted.world import KEY, SESSION, Call, Replica, WatchedAdmission, World, add_account, migrate


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
                # Admission gives up on Redis quickly; a test machine's hiccup must not look like Redis being away.
                "redis": {"url": redis_url, "timeout": "5s"},
                "metrics": {"public": True},
            }
        )
        scene = World(account_id=account_id, settings=settings)
        tasks, metrics = Tasks(), Metrics()
        stack.callback(metrics.close)
        database = scene.database = Database.from_settings(settings.database, metrics)
        stack.push_async_callback(database.close)
        stack.push_async_callback(tasks.drain, 5.0)
        ledger = scene.ledger = Ledger(database, settings.ledger, tasks, metrics)

        async def replica(worker_id: str) -> Replica:
            accounts = Accounts(database, lambda: scene.rules, tasks)
            admission = WatchedAdmission(
                worker_id=worker_id,
                settings=settings,
                accounts=accounts,
                ledger=ledger,
                database=database,
                fleet=Fleet(database, worker_id),
                rules=lambda: scene.rules,
                tasks=tasks,
                metrics=metrics,
                test_clock_ms=scene.now_ms,
            )
            await admission.start()
            stack.push_async_callback(admission.close)
            return Replica(accounts=accounts, admission=admission)

        scene.here, scene.elsewhere = await replica("gateway-0-1"), await replica("gateway-1-1")
        ledger.on_committed = scene.admission.posted
        stack.push_async_callback(ledger.close)
        scene.services = Services(
            identify=Identify(database, scene.here.accounts, settings.identity, tasks, metrics),
            accounts=scene.here.accounts,
            admission=scene.admission,
            database=database,
            rules=lambda: scene.rules,
            settings=lambda: scene.settings,
            render_metrics=lambda _: Exposition(
                body=b"spell_cast_total 1.0\n", content_type="text/plain; version=0.0.4"
            ),
            now_ms=scene.now_ms,
        )
        yield scene


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
