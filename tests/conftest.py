"""Real servers for every test: one embedded Postgres and one Redis a session, a clean part of each for each test."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import redis

from gateway import embedded
from gateway.embedded import REDIS_DATABASES, RunningServer, embedded_postgres, embedded_redis

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with embedded_postgres(tmp_path_factory.mktemp("postgres"), ephemeral=True) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with embedded_redis(tmp_path_factory.mktemp("redis"), ephemeral=True) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: RunningServer) -> str:
    """The session's Postgres, at a database that all tests share; for tests that make their own databases."""
    return postgres.url


@pytest.fixture(scope="session")
def _administrator(postgres_url: str) -> Iterator["_Administrator"]:
    administrator = _Administrator(postgres_url)
    yield administrator
    administrator.close()


@pytest.fixture
def database_url(postgres_url: str, _administrator: "_Administrator") -> Iterator[str]:
    """A fresh, empty database, dropped after the test even where connections to it are still open."""
    name = f"test_{next(_numbers)}"
    _administrator.execute(f"CREATE DATABASE {name}")
    yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    _administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(redis_server: RunningServer) -> str:
    """An empty database (a number of its own) of the session's Redis. Scripts and settings are shared with others."""
    number = next(_numbers) % REDIS_DATABASES
    url = urlunsplit(urlsplit(redis_server.url)._replace(path=f"/{number}"))
    with closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
    return url


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on; call ``gateway.embedded.free_port()`` for more."""
    return embedded.free_port()


class _Administrator:
    """One connection that makes and drops databases, on an event loop of its own, outside those of the tests."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._connection = self._loop.run_until_complete(asyncpg.connect(url))

    def execute(self, sql: str) -> None:
        self._loop.run_until_complete(self._connection.execute(sql))

    def close(self) -> None:
        self._loop.run_until_complete(self._connection.close())
        self._loop.close()
