"""Phase 1's credentials in a real Postgres, a link to it that can be cut, and a clock that tests turn."""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from uuid import UUID

import asyncpg
import pytest

from gateway.accounts import Account, Accounts
from gateway.config.settings_accounts import Identity
from gateway.credentials import Credentials
from gateway.database import Database
from gateway.identify import Identify
from gateway.metrics import Metrics
from gateway.policy.rules import Plan, Rules
from gateway.tasks import Tasks
from tests.ledger.link import Link
from tests.ledger.making import lenient_breaker, migrate

PHASE_1 = """
    CREATE TABLE api_keys (key_sha256 text PRIMARY KEY, user_id uuid NOT NULL);
    CREATE TABLE sessions (token_sha256 text PRIMARY KEY, user_id uuid NOT NULL, expires_at timestamptz NOT NULL);
"""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class CountingDatabase(Database):
    """Counts the statements sent."""

    statements = 0

    async def fetch(self, sql: str, *values: object, timeout_s: float | None = None) -> list[asyncpg.Record]:
        self.statements += 1
        return await super().fetch(sql, *values, timeout_s=timeout_s)


class Setting:
    """An Identify and everything around it."""

    def __init__(self, url: str, metrics: Metrics, identity: Identity) -> None:
        self.link = Link(url)
        self.metrics = metrics
        self.clock = Clock()
        self.tasks = Tasks()
        self._identity = identity
        self._url = url

    async def start(self) -> None:
        await self.link.open()
        rules = Rules(version="1", policies=(), plans={"free": Plan(name="free")}, default_plan="free")
        self.database = CountingDatabase(
            self.link.url, breaker=lenient_breaker(), metrics=self.metrics, statement_timeout_s=0.5
        )
        self.accounts = Accounts(self.database, lambda: rules, self.tasks, clock=self.clock)
        self.identify = Identify(
            self.database, self.accounts, self._identity, self.tasks, self.metrics, clock=self.clock
        )
        self.phase1 = await asyncpg.connect(self._url)

    async def stop(self) -> None:
        await self.tasks.drain(2.0)
        await self.database.close()
        await self.phase1.close()
        await self.link.close()

    async def add_key(self, key: bytes, user: int) -> None:
        await self.phase1.execute(
            "INSERT INTO api_keys VALUES ($1, $2)", hashlib.sha256(key).hexdigest(), UUID(int=user)
        )

    async def add_session(self, token: bytes, user: int, life: str = "1 hour") -> None:
        await self.phase1.execute(
            f"INSERT INTO sessions VALUES ($1, $2, now() + interval '{life}')",
            hashlib.sha256(token).hexdigest(),
            UUID(int=user),
        )

    async def resolve(self, *credentials: Credentials) -> list[Account | None]:
        """What ``resolve`` says of each, all asked at once."""
        answers: dict[int, Account | None] = {}
        for number, one in enumerate(credentials):
            self.identify.resolve(one, lambda account, number=number: answers.__setitem__(number, account))  # type: ignore[misc]
        await self.tasks.drain(5.0)
        return [answers[number] for number in range(len(credentials))]

    def counted(self, result: str) -> int:
        return self.metrics.counter("castgate_identify_total", result=result).value


MakeSetting = Callable[..., "Setting"]


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.close()


@pytest.fixture
async def identity() -> Identity:
    return Identity()


@pytest.fixture
async def setting(database_url: str, metrics: Metrics, identity: Identity) -> AsyncIterator[Setting]:
    await migrate(database_url, PHASE_1)
    setting = Setting(database_url, metrics, identity)
    await setting.start()
    yield setting
    await setting.stop()
