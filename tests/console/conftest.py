"""An admin listener with the console, in this process, on a Postgres and a Redis of its own."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway.admin import Status, make_app
from gateway.admin_policies import policy_routes
from gateway.config import Loaded
from gateway.config.settings import Settings
from gateway.console.app import Console, opened
from gateway.metrics import Metrics
from tests.console.world import RULES, TOKEN
from tests.hosted.world import add_account, migrate


@pytest.fixture
async def account_id(database_url: str) -> str:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    await migrate(connection)
    made = await add_account(connection, "ck_of_nobody_else", "session-of-nobody-else")
    await connection.close()
    return made


@pytest.fixture
async def serve(
    database_url: str, redis_url: str, tmp_path: Path, aiohttp_client: Callable[..., Any], account_id: str
) -> AsyncIterator[Callable[..., Any]]:
    """Makes a client of an admin listener with the console, with a token or without; and sections of the settings."""
    metrics = Metrics(tmp_path, "supervisor")
    cleanups = []

    async def made(token: str | None, **sections: dict[str, Any]) -> TestClient[Any, Any]:
        settings = Settings.model_validate(
            {
                "upstream": {"url": "http://127.0.0.1:1"},
                "database": {"url": database_url},
                "redis": {"url": redis_url, "connect_timeout": "5s"},
                "admin": {"token": token},
                **sections,
            }
        )
        billing = "billing" in sections
        loaded = Loaded(settings=settings, rules=RULES, billing_enabled=billing, warnings=(), files=())
        context = opened(loaded=lambda: loaded, metrics=metrics, runtime_dir=tmp_path, about=lambda: {"workers": {}})
        console: Console = await context.__aenter__()
        cleanups.append(context)

        def status() -> Status:
            return Status(draining=False, workers_wanted=1, workers_alive=1, workers_ready=1)

        reloading: Any = SimpleNamespace(loaded=loaded)  # all that /explain asks of it
        routes = (*console.routes(), *policy_routes(lambda: reloading, console.explained, console.guarded))
        app = make_app(status, tmp_path, routes, token=token, lets_in=console.lets_in)
        client: TestClient[Any, Any] = await aiohttp_client(TestServer(app), cookie_jar=aiohttp.CookieJar(unsafe=True))
        return client

    yield made
    for context in cleanups:
        await context.__aexit__(None, None, None)
    metrics.close()


@pytest.fixture
async def client(serve: Callable[..., Any]) -> TestClient[Any, Any]:
    made: TestClient[Any, Any] = await serve(TOKEN)
    return made
