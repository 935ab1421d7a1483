"""The two addresses that must answer alike.

On the side ``stub`` both are the stub itself: what the suite then finds different is the suite's fault (run only these
with ``-k stub``). On the side ``gateway`` one is a gateway with the shipped configuration in front of that stub.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from gateway.embedded import RunningServer
from tests.gateways import migrated, running_gateway
from tests.upstream_stub.running import RunningStub, stub_process

DATABASE = "transparency"
REDIS_DATABASE = 62


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    direct_url: str
    through_url: str
    upstream: RunningStub


@pytest.fixture(scope="session")
def direct(postgres_url: str, redis_server: RunningServer) -> Iterator[RunningStub]:
    """One stub for the whole suite; every case has accounts of its own."""
    asyncio.run(_create_database(postgres_url))
    database_url = _with_path(postgres_url, DATABASE)
    redis_url = _with_path(redis_server.url, str(REDIS_DATABASE))
    with stub_process(database_url, redis_url) as running:
        yield running


@pytest.fixture(scope="session")
def gateway_url(direct: RunningStub) -> Iterator[str]:
    migrated(direct.database_url)
    with running_gateway(
        database_url=direct.database_url, redis_url=direct.redis_url, upstream_url=direct.base_url
    ) as gateway:
        yield gateway.base_url


@pytest.fixture(params=["stub", "gateway"])
def sides(request: pytest.FixtureRequest, direct: RunningStub) -> Sides:
    through_url = direct.base_url if request.param == "stub" else request.getfixturevalue("gateway_url")
    return Sides(direct_url=direct.base_url, through_url=through_url, upstream=direct)


async def _create_database(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"CREATE DATABASE {DATABASE}")
    await connection.close()


def _with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))
