"""A whole gateway whose admin listener others can reach: no path without the token, and none on the public port."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest

from tests.console.world import TOKEN
from tests.gateways import RunningGateway, migrated, running_gateway
from tests.upstream_stub.running import stub_process

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


@dataclass(frozen=True, kw_only=True)
class World:
    gateway: RunningGateway
    service_url: str
    session: aiohttp.ClientSession

    async def admin_paths(self) -> list[str]:
        """Every path of the listener, as it says itself to who may ask; with something in the place of names."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self.session.get(f"{self.gateway.admin_url}/nothing", headers=headers) as answer:
            assert answer.status == 404
            message: str = (await answer.json())["message"]
        return [re.sub(r"\{\w+\}", "x", path) for path in re.findall(r"/[\w/.{}-]+\w\}?", message)]

    async def ask(self, method: str, url: str) -> tuple[int, bytes]:
        headers = {"X-Castgate-Console": "1", "Sec-Fetch-Site": "same-origin"}
        async with self.session.request(method, url, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.read()


@pytest.fixture
async def world(database_url: str, redis_url: str) -> AsyncIterator[World]:
    stores = {"database_url": database_url, "redis_url": redis_url}
    with stub_process(**stores, rate_limit_per_minute=0) as stub:
        await asyncio.to_thread(migrated, database_url)
        environ = {"ADMIN_HOST": "0.0.0.0", "ADMIN_TOKEN": TOKEN, "METRICS_PUBLIC": "false"}
        with running_gateway(**stores, upstream_url=stub.base_url, environ=environ) as gateway:
            async with aiohttp.ClientSession() as session:
                yield World(gateway=gateway, service_url=stub.base_url, session=session)


@pytest.mark.timeout(90)
async def test_no_path_answers_without_the_token_and_none_is_on_the_public_port(world: World) -> None:
    paths = await world.admin_paths()
    assert {
        "/metrics",
        "/healthz",
        "/readyz",
        "/console",
        "/audit",
        "/policies",
        "/policies/history",
        "/explain",
    } <= set(paths)
    assert len(paths) > 15
    for path in (*paths, "/console/nothing", "/nothing"):
        for method in METHODS:
            status, told = await world.ask(method, f"{world.gateway.admin_url}{path}")
            assert status == 401, f"{method} {path}: {status}"
            # Nothing but the way to sign in; who signs in there with nothing is told that this is not the token.
            assert b"unauthorized" in told or b'name="token"' in told, f"{method} {path}"
            # The service behind answers there, as it does to everything else that it has not.
            assert await world.ask(method, f"{world.gateway.base_url}{path}") == await world.ask(
                method, f"{world.service_url}{path}"
            ), f"{method} {path}"
