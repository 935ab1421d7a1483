"""One gateway for this folder, whose policies each test replaces as an operator would: a file, and SIGHUP."""

import asyncio
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from gateway.embedded import RunningServer
from tests.gateways import ROOT, RunningGateway, migrated, running_gateway
from tests.policies.upstream import PLAY, Upstream, running_upstream
from tests.redis_accounts import held_at
from tests.upstream_stub.running import Account, create_account
from upstream_stub.database import migrate

WAIT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(kw_only=True)
class Desk:
    """An operator's desk: the files, the gateway that runs on them, the service behind, and the database."""

    folder: Path
    environ: Mapping[str, str]
    gateway: RunningGateway
    upstream: Upstream
    database_url: str
    redis_url: str
    _text: str = field(default="", init=False)

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def use(self, text: str) -> str:
        """Replaces the policies and waits until they are in force; returns their version."""
        known = self.admin("/policies/history")["history"][0]
        (self.folder / "policies" / "rules.yaml").write_text(text)
        self.gateway.process.send_signal(signal.SIGHUP)
        for _ in range(int(WAIT_S * 50)):
            newest = self.admin("/policies/history")["history"][0]
            if newest != known:
                assert newest["result"] == "accepted", newest
                version: str = newest["version"]
                self._wait_for_workers(version)
                return version
            time.sleep(0.02)
        raise AssertionError("not reloaded:\n" + "".join(self.gateway.log))

    def _wait_for_workers(self, version: str) -> None:
        """A worker takes new rules between two events of its loop, a moment after it is told."""
        for _ in range(int(WAIT_S * 50)):
            if self.gateway.metric("castgate_config_info", version=version) == 2:
                return
            time.sleep(0.02)
        raise AssertionError("not taken by all workers:\n" + "".join(self.gateway.log))

    def account(self, *, plan: str | None = None) -> Account:
        account = asyncio.run(create_account(self.database_url))
        if plan is not None:
            self.sql("INSERT INTO billing_accounts (account_id, plan) VALUES ($1, $2)", account.user_id, plan)
        return account

    def sql(self, statement: str, *values: object) -> list[asyncpg.Record]:
        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.database_url)
            try:
                return await connection.fetch(statement, *values)
            finally:
                await connection.close()

        return asyncio.run(run())

    def charged(self, account: Account, count: int) -> list[int]:
        """The costs of the account's ledger events in microcents, in order, once there are ``count`` of them."""
        statement = "SELECT cost_microcents FROM usage_events WHERE account_id = $1 ORDER BY id"
        for _ in range(int(WAIT_S * 20)):
            rows = self.sql(statement, account.user_id)
            if len(rows) >= count:
                break
            time.sleep(0.05)
        return [row["cost_microcents"] for row in rows]

    def settled(self, account: Account, count: int) -> list[int]:
        """As ``charged``, once Redis knows it too: from then on every worker's verdicts do."""
        costs = self.charged(account, count)
        with redis.Redis.from_url(self.redis_url) as client:
            for _ in range(int(WAIT_S * 50)):
                if held_at(client, f"cg:{{0}}:a:{account.user_id}") == 0:
                    return costs
                time.sleep(0.02)
        raise AssertionError("the account still holds something")

    def call(
        self,
        account: Account | None = None,
        path: str = "/v1/cast",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"{}",
        method: str = "POST",
        **play: Any,
    ) -> Answer:
        """One call, which the service behind answers as ``play`` says."""
        sent = {"Content-Type": "application/json", PLAY: json.dumps(play), **(headers or {})}
        if account is not None:
            sent["Authorization"] = f"Bearer {account.api_key}"
        request = urllib.request.Request(f"{self.gateway.base_url}{path}", data=body, headers=sent, method=method)
        return _answer(request)

    @contextmanager
    def calls_under_way(self, account: Account, count: int, path: str = "/v1/cast", **play: Any) -> Iterator[None]:
        """So many calls are with the service behind, and answered at the end."""
        self.upstream.go.clear()
        with ThreadPoolExecutor(count) as pool:
            calls = [pool.submit(self.call, account, path, waits=True, **play) for _ in range(count)]
            try:
                for _ in calls:
                    assert self.upstream.waiting.acquire(timeout=WAIT_S)
                yield
            finally:
                self.upstream.go.set()
            assert [call.result().status for call in calls] == [200] * count

    def admin(self, path: str, body: object | None = None) -> Any:
        """The JSON that the admin listener answers."""
        data = None if body is None else json.dumps(body).encode()
        return _answer(urllib.request.Request(f"{self.gateway.admin_url}{path}", data=data)).json


def _answer(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return Answer(status=answer.status, body=answer.read(), headers=dict(answer.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(status=error.code, body=error.read(), headers=dict(error.headers))


@pytest.fixture(scope="package")
def desk(postgres_url: str, redis_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    database_url = asyncio.run(_new_database(postgres_url))
    migrated(database_url)
    redis_url = redis_server.url.rsplit("/", 1)[0] + "/61"
    folder = tmp_path_factory.mktemp("desk")
    (folder / "config.yaml").write_text(_patient((ROOT / "config.yaml").read_text()))
    (folder / "policies").mkdir()
    (folder / "policies" / "rules.yaml").write_text("plans: {free: {}}\n")
    with running_upstream() as upstream:
        environ = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "UPSTREAM_URL": upstream.url}
        with running_gateway(
            database_url=database_url,
            redis_url=redis_url,
            upstream_url=upstream.url,
            workers=2,
            environ={"REDIS_TIMEOUT": "10s"},
            config=folder / "config.yaml",
        ) as gateway:
            yield Desk(
                folder=folder,
                environ={**environ, "COST_PER_CAST_CENTS": "1", "REDIS_TIMEOUT": "10s"},
                gateway=gateway,
                upstream=upstream,
                database_url=database_url,
                redis_url=redis_url,
            )


def _patient(config: str) -> str:
    """The shipped configuration with time-outs for a busy machine: what a store says late is no other verdict."""
    for old, new in (
        ("  connect_timeout: 1s\n", "  connect_timeout: ${TEST_CONNECT_TIMEOUT:-10s}\n"),
        ("statement_timeout: 2s ", "statement_timeout: 10s "),
        ("acquire_timeout: 1s ", "acquire_timeout: 10s "),
    ):
        assert old in config
        config = config.replace(old, new)
    return config


async def _new_database(postgres_url: str) -> str:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("DROP DATABASE IF EXISTS policies WITH (FORCE)")
        await connection.execute("CREATE DATABASE policies")
    finally:
        await connection.close()
    url = postgres_url.rsplit("/", 1)[0] + "/policies"
    await migrate(url)
    return url
