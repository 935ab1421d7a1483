"""Whole gateways, one of them killed, Redis flushed, a receiver that fails: each threshold is announced once."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import redis

from tests.acceptance.conftest import CAST_BODY
from tests.gateways import ROOT, RunningGateway, migrated, running_gateway
from tests.soft_limits.conftest import SECRET, Receiver
from tests.spool.test_gateways import kill
from tests.upstream_stub.running import Account, create_account, stub_process

pytestmark = pytest.mark.timeout(120)

POLICIES = """\
policies:
  - {name: cast, match: {methods: [POST], path: /v1/cast}, cost: {fixed: {cents: 1}}}
plans:
  free: {hard_limit_cents: {monthly: 10}}
"""


@dataclass(kw_only=True)
class World:
    database_url: str
    redis_url: str
    upstream_url: str
    config: Path
    environ: dict[str, str]
    stack: ExitStack

    async def start(self) -> RunningGateway:
        """In a thread, so that the receiver goes on."""
        return await asyncio.to_thread(
            lambda: self.stack.enter_context(
                running_gateway(
                    database_url=self.database_url,
                    redis_url=self.redis_url,
                    upstream_url=self.upstream_url,
                    config=self.config,
                    environ=self.environ,
                )
            )
        )

    async def cast(self, account: Account, *gateways: RunningGateway) -> Counter[int]:
        """A cast by each of the gateways, all at once."""
        headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
        async with aiohttp.ClientSession() as session:

            async def one(gateway: RunningGateway) -> int:
                async with session.post(f"{gateway.base_url}/v1/cast", data=CAST_BODY, headers=headers) as answer:
                    return answer.status

            return Counter(await asyncio.gather(*map(one, gateways)))

    async def sql(self, statement: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    async def until(self, statement: str, value: object) -> None:
        async with asyncio.timeout(30):
            while (await self.sql(statement))[0][0] != value:
                await asyncio.sleep(0.05)

    def outbox(self, *arguments: str) -> str:
        environ = {
            **os.environ,
            **self.environ,
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "UPSTREAM_URL": self.upstream_url,
        }
        command = [sys.executable, "-m", "gateway", "outbox", *arguments, "--config", str(self.config)]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
async def world(database_url: str, redis_url: str, tmp_path: Path, receiver: Receiver) -> AsyncIterator[World]:
    text = (ROOT / "config.yaml").read_text()
    assert "sweep_interval: 1m" in text
    (tmp_path / "config.yaml").write_text(text.replace("sweep_interval: 1m", "sweep_interval: 200ms"))
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "all.yaml").write_text(POLICIES)
    with ExitStack() as stack:
        stub = await asyncio.to_thread(
            stack.enter_context, stub_process(database_url, redis_url, rate_limit_per_minute=0)
        )
        await asyncio.to_thread(migrated, database_url)
        yield World(
            database_url=database_url,
            redis_url=redis_url,
            upstream_url=stub.base_url,
            config=tmp_path / "config.yaml",
            environ={"BUDGET_WEBHOOK_URL": receiver.url, "BUDGET_WEBHOOK_SECRET": SECRET},
            stack=stack,
        )
        await asyncio.to_thread(stack.close)


def announcements(*gateways: RunningGateway) -> list[str]:
    events = [json.loads(line) for gateway in gateways for line in gateway.log if line.startswith("{")]
    return sorted(event["threshold"] for event in events if event["event"] == "soft_limit_reached")


COUNT = "SELECT count(*) FROM soft_limit_announcements"
DELIVERED = "SELECT count(*) FROM webhook_outbox WHERE state = 'delivered'"


async def test_gateways_announce_once_and_deliver_when_the_receiver_is_back(world: World, receiver: Receiver) -> None:
    account = await create_account(world.database_url)
    receiver.plays = [500] * 1000
    one, two = await asyncio.gather(world.start(), world.start())
    # The receiver fails all the time, and no cast suffers from that.
    assert await world.cast(account, *[one, two] * 4) == {200: 8}
    await world.until(COUNT, 2)
    await asyncio.to_thread(kill, one)
    with redis.Redis.from_url(world.redis_url) as client:
        client.flushdb()
    assert await world.cast(account, two, two) == {200: 2}
    assert await world.cast(account, two) == {402: 1}
    await world.until(COUNT, 3)
    await world.until("SELECT bool_or(last_error = 'the receiver answers 500') FROM webhook_outbox", True)
    assert "the receiver answers 500" in await asyncio.to_thread(world.outbox, "ls")
    assert await asyncio.to_thread(two.stop) == 0
    assert announcements(one, two) == ["100", "50", "80"]

    receiver.plays.clear()
    await world.sql("UPDATE webhook_outbox SET state = 'dead'")
    assert await asyncio.to_thread(world.outbox, "retry") == "3 messages are due\n"
    three = await world.start()
    await world.until(DELIVERED, 3)
    assert await world.cast(account, three) == {402: 1}
    told = {message.headers["webhook-id"]: json.loads(message.body)["data"] for message in receiver.received}
    assert sorted(data["threshold"] for data in told.values()) == ["100", "50", "80"]
    assert {data["account_id"] for data in told.values()} == {account.user_id}
    assert three.metric("castgate_webhook_attempts_total", result="delivered") == 3
    assert three.metric("castgate_soft_limit_total") == 0
    assert not any(SECRET[6:] in line for gateway in (one, two, three) for line in gateway.log)


async def test_what_a_killed_gateway_did_not_announce_another_finds_without_a_call(
    world: World, receiver: Receiver
) -> None:
    account = await create_account(world.database_url)
    policies = world.config.parent / "policies" / "all.yaml"
    policies.write_text(POLICIES.replace("monthly: 10}}", "monthly: 10}, soft_limit_percents: []}"))
    killed = await world.start()
    assert await world.cast(account, *[killed] * 10) == {200: 10}
    await world.until("SELECT count(*) FROM usage_events", 10)
    await asyncio.to_thread(kill, killed)
    assert announcements(killed) == []
    policies.write_text(POLICIES)
    other = await world.start()
    await world.until(DELIVERED, 3)
    assert other.metric("castgate_soft_limit_total") == 3
    assert announcements(other) == ["100", "50", "80"]
    assert len(receiver.received) == 3
