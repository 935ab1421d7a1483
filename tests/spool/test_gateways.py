"""Gateways are killed or stopped while Postgres is away: every cast is in the ledger once, and no hold is left."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import redis

from bench.load import Endpoint, Load, run
from tests.acceptance.conftest import CAST_BODY
from tests.gateways import ROOT, RunningGateway, migrated, running_gateway
from tests.ledger.link import Link
from tests.redis_accounts import held_at, holds_in
from tests.upstream_stub.running import Account, create_account, stub_process

pytestmark = pytest.mark.timeout(90)


@dataclass(kw_only=True)
class World:
    """One stub beside Postgres; gateways that reach Postgres by a link that can be closed."""

    database_url: str
    redis_url: str
    upstream_url: str
    link: Link
    config: Path
    folder: Path
    stack: ExitStack
    cast_ids: list[str] = field(default_factory=list)

    def gateway(self, *, folder: Path | None = None, changed: Mapping[str, str] | None = None) -> RunningGateway:
        """``changed``: lines of the configuration, and what they are to be."""
        config = self.config
        if changed:
            text = config.read_text()
            for line, instead in changed.items():
                assert line in text
                text = text.replace(line, instead)
            config = config.with_name("changed.yaml")
            config.write_text(text)
        return self.stack.enter_context(
            running_gateway(
                database_url=self.link.url,
                redis_url=self.redis_url,
                upstream_url=self.upstream_url,
                config=config,
                environ={"SPOOL_DIR": str(folder or self.folder)},
            )
        )

    async def start(self, folder: Path | None = None, changed: Mapping[str, str] | None = None) -> RunningGateway:
        """In a thread, so that the link goes on."""
        return await asyncio.to_thread(lambda: self.gateway(folder=folder, changed=changed))

    async def cast(self, gateway: RunningGateway, account: Account, count: int) -> None:
        headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
        url = f"{gateway.base_url}/v1/cast"
        async with aiohttp.ClientSession() as session:

            async def one() -> None:
                async with session.post(url, data=CAST_BODY, headers=headers) as answer:
                    assert answer.status == 200
                    self.cast_ids.append((await answer.json())["id"])

            await one()  # who it is, and what may be spent, is known from here on
            await asyncio.gather(*(one() for _ in range(count - 1)))

    async def sql(self, statement: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    async def until(self, condition: Callable[[], bool], what: str, gateway: RunningGateway | None = None) -> None:
        for _ in range(400):
            if await asyncio.to_thread(condition):
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"{what} never came" + ("" if gateway is None else ":\n" + "".join(gateway.log)))

    def holds(self) -> Mapping[str, int]:
        """Of every worker that holds anything, how many."""
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            books = {key: len(holds_in(client, key)) for key in client.scan_iter("cg:{0}:h:*")}
        return {key: count for key, count in books.items() if count}

    def held(self, account: Account) -> int:
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            return held_at(client, f"cg:{{0}}:a:{account.user_id}")

    def rows(self) -> int:
        return int(asyncio.run(self.sql("SELECT count(*) FROM usage_events"))[0][0])

    async def check(self, account: Account) -> None:
        """Every cast is in the ledger exactly once, with what it cost; nothing is held, in no book and in no sum."""
        await self.until(lambda: self.rows() >= len(self.cast_ids), "the last event")
        await self.until(lambda: not self.holds() and not self.held(account), "the end of the last hold")
        events = await self.sql("SELECT cast_id, outcome, cost_microcents FROM usage_events")
        assert sorted(event["cast_id"] or "" for event in events) == sorted(self.cast_ids)
        assert {(event["outcome"], event["cost_microcents"]) for event in events} == {("posted", 1_000_000)}
        casts = await self.sql("SELECT id::text, cost_cents FROM casts")
        assert sorted(cast["id"] for cast in casts) == sorted(self.cast_ids)
        assert {cast["cost_cents"] for cast in casts} == {1}
        assert not list(self.folder.glob("*"))


@pytest.fixture
async def world(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    text = (ROOT / "config.yaml").read_text()
    assert "hold_ttl: 60s" in text
    text = text.replace("hold_ttl: 60s", "hold_ttl: 1s").replace("policies: policies", f"policies: {ROOT}/policies")
    # A budget that none of this reaches.
    config = tmp_path / "config.yaml"
    config.write_text(text)
    link = Link(database_url)
    await link.open()
    with ExitStack() as stack:
        stub = await asyncio.to_thread(
            stack.enter_context, stub_process(database_url, redis_url, rate_limit_per_minute=0)
        )
        await asyncio.to_thread(migrated, database_url)
        yield World(
            database_url=database_url,
            redis_url=redis_url,
            upstream_url=stub.base_url,
            link=link,
            config=config,
            folder=tmp_path / "spool",
            stack=stack,
        )
        await asyncio.to_thread(stack.close)
    await link.close()


def kill(gateway: RunningGateway) -> None:
    """SIGKILL to every process of it, with no time for one to see another's end."""
    supervisor = gateway.process.pid
    os.kill(supervisor, signal.SIGSTOP)
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    gateway.process.wait(10)


def spilled(gateway: RunningGateway) -> float:
    return gateway.metric("castgate_spool_events_total", result="spilled")


def castgate(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "DATABASE_URL": world.link.url,
        "REDIS_URL": world.redis_url,
        "UPSTREAM_URL": world.upstream_url,
        "SPOOL_DIR": str(world.folder),
        "COST_PER_CAST_CENTS": "1",
    }
    command = [sys.executable, "-m", "gateway", *arguments, "--config", str(world.config)]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False)


async def test_gateways_killed_while_postgres_is_away_lose_nothing(world: World) -> None:
    account = await create_account(world.database_url)
    one, two = await asyncio.gather(world.start(), world.start())
    await world.cast(one, account, 10)
    await world.cast(two, account, 10)
    await world.until(lambda: world.rows() == 20, "the first rows")
    # A first time without a death: casts go on, and the spool is emptied without a restart.
    await world.link.close()
    await world.cast(one, account, 30)
    await world.until(lambda: spilled(one) == 30, "the spool", one)
    await world.link.open()
    await world.until(lambda: one.metric("castgate_spool_waiting_events") == 0, "the replay", one)
    await world.until(lambda: world.rows() == 50 and not world.held(account), "the replayed rows", one)

    await world.link.close()
    await world.cast(one, account, 60)
    await world.cast(two, account, 40)
    await world.until(lambda: spilled(one) == 90 and spilled(two) == 40, "the last spilled event", one)
    assert one.metric("castgate_spool_waiting_events") == 60
    kill(one)
    kill(two)
    assert sum(world.holds().values()) == 100
    listed = await asyncio.to_thread(castgate, world, "spool", "ls")
    head, *files = listed.stdout.splitlines()
    assert head.split()[:4] == ["FILE", "STATE", "EVENTS", "CENTS"]
    assert sorted(line.split()[1:4] for line in files) == [["waiting", "40", "40"], ["waiting", "60", "60"]]

    await world.link.open()
    three = await world.start()
    await world.cast(three, account, 5)
    await world.check(account)
    assert three.metric("castgate_spool_events_total", result="replayed") == 100
    assert three.metric("castgate_spool_waiting_events") == 0


async def test_killed_at_any_moment_under_load_each_cast_is_charged_once_and_at_most_those_under_way_besides(
    world: World,
) -> None:
    connections = 16
    account = await create_account(world.database_url)
    await world.sql("INSERT INTO billing_accounts (account_id, plan) SELECT id::text, 'unlimited' FROM users")
    gateways = await asyncio.gather(world.start(), world.start())
    for gateway in gateways:
        await world.cast(gateway, account, 2)
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    endpoints = [
        Endpoint.of(f"{gateway.base_url}/v1/cast", method="POST", headers=headers, body=CAST_BODY)
        for gateway in gateways
    ]
    loading = asyncio.ensure_future(run(endpoints, Load(connections=connections, seconds=3)))
    await asyncio.sleep(0.5)
    await world.link.close()
    await world.until(lambda: all(spilled(gateway) > 50 for gateway in gateways), "the spool")
    for gateway in gateways:
        kill(gateway)
    await loading
    await world.link.open()
    await world.start()
    await world.until(lambda: not world.holds() and not world.held(account), "the end of the last hold")
    casts = {row["id"] for row in await world.sql("SELECT id::text FROM casts")}
    rows = await world.sql("SELECT cast_id, outcome FROM usage_events")
    posted = [row["cast_id"] for row in rows if row["outcome"] == "posted"]
    assert len(posted) == len(set(posted)) > 100
    assert set(posted) <= casts
    # What the disk did not have yet was charged as the hold that it was; so was what had not been answered.
    assert len(casts) <= len(rows) <= len(casts) + connections
    (sums,) = await world.sql(
        "SELECT (SELECT sum(cost_microcents) FROM usage_events), "
        "(SELECT used_microcents FROM usage_counters WHERE period = 'total')"
    )
    assert sums[0] == sums[1] == len(rows) * 1_000_000


async def test_a_gateway_stopped_while_postgres_is_away_leaves_its_events_to_the_next(world: World) -> None:
    account = await create_account(world.database_url)
    # Nothing reaches the disk before its end.
    one = await world.start(changed={"fsync_interval: 20ms": "fsync_interval: 10s"})
    await world.cast(one, account, 5)
    await world.until(lambda: world.rows() == 5, "the first rows")
    await world.link.close()
    await world.cast(one, account, 20)
    assert await asyncio.to_thread(one.stop) == 0
    # The next one starts while Postgres is away still.
    two = await world.start()
    await world.until(lambda: two.metric("castgate_spool_waiting_events") == 20, "what was left behind", two)
    await world.link.open()
    await world.until(lambda: two.metric("castgate_spool_waiting_events") == 0, "the replay", two)
    await world.cast(two, account, 5)
    await world.check(account)


async def test_where_there_is_no_room_left_calls_that_cost_are_refused_if_that_is_wanted(world: World) -> None:
    account = await create_account(world.database_url)
    changed = {
        "bytes_max: 256MiB": "bytes_max: 64KiB",
        "queue_max: 100000": "queue_max: 20",
        "at_bound: hold": "at_bound: refuse",
    }
    one = await world.start(changed=changed)
    await world.cast(one, account, 2)
    await world.until(lambda: world.rows() == 2, "the first rows")
    await world.link.close()
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for _ in range(1000):
            async with session.post(f"{one.base_url}/v1/cast", data=CAST_BODY) as answer:
                if answer.status != 200:
                    assert (answer.status, (await answer.json())["error"]) == (503, "overloaded")
                    assert answer.headers["Retry-After"] == "1"
                    break
                world.cast_ids.append((await answer.json())["id"])
        assert answer.status == 503
        assert 100 < len(world.cast_ids) < 1000
        assert one.metric("castgate_spool_full") == 1
        # The one for which there was no room is a hold still; it is charged when its worker has ended.
        assert one.metric("castgate_ledger_failures_total", reason="held") == 1
        await world.link.open()
        await world.until(lambda: one.metric("castgate_spool_waiting_events") == 0, "the replay", one)
    await world.cast(one, account, 1)
    await world.until(lambda: world.rows() == len(world.cast_ids) - 1, "the last row", one)
    assert sum(world.holds().values()) == 1


async def test_holds_charged_as_expired_meanwhile_are_replayed_to_one_row_that_tells_all(world: World) -> None:
    account = await create_account(world.database_url)
    one = await world.start()
    await world.cast(one, account, 2)
    await world.until(lambda: world.rows() == 2, "the first rows")
    await world.link.close()
    await world.cast(one, account, 10)
    await world.until(lambda: spilled(one) == 10, "the spool", one)
    kill(one)
    await world.link.open()
    # Another machine's gateway, without that disk, finds the holds of the dead one.
    other = await world.start(folder=world.folder.with_name("elsewhere"))
    await world.until(lambda: world.rows() == 12, "the sweep", other)
    expired = await world.sql("SELECT 1 FROM usage_events WHERE outcome = 'expired' AND cast_id IS NULL")
    assert len(expired) == 10
    replayed = await asyncio.to_thread(castgate, world, "spool", "replay")
    assert replayed.stdout.splitlines()[-1] == "10 events of 1 files replayed", replayed
    assert replayed.returncode == 0
    await world.check(account)
    again = await asyncio.to_thread(castgate, world, "spool", "replay")
    assert again.stdout.splitlines() == ["0 events of 0 files replayed"]
    assert "is empty" in (await asyncio.to_thread(castgate, world, "spool", "ls")).stdout


async def test_a_replay_by_hand_removes_the_holds_and_leaves_alone_what_a_gateway_has(world: World) -> None:
    account = await create_account(world.database_url)
    one, two = await asyncio.gather(world.start(), world.start())
    for gateway in (one, two):
        await world.cast(gateway, account, 2)
    await world.until(lambda: world.rows() == 4, "the first rows")
    await world.link.close()
    for gateway in (one, two):
        await world.cast(gateway, account, 10)
        await world.until(lambda gateway=gateway: spilled(gateway) == 10, "the spool", gateway)  # type: ignore[misc]
    # `two` is stopped for a while: what it has is still its own.
    children = Path(f"/proc/{two.process.pid}/task/{two.process.pid}/children").read_text().split()
    stopped = [two.process.pid, *map(int, children)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    kill(one)
    await world.link.open()
    replayed = await asyncio.to_thread(castgate, world, "spool", "replay")
    held = sum(world.holds().values())
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert replayed.stdout.splitlines()[-1] == "10 events of 1 files replayed; 1 files left, which workers have"
    assert held == 10, "those of `two`; whose hold was replayed is over"
    await world.cast(two, account, 3)
    await world.check(account)
