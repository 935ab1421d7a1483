"""Drift is what will not go away by itself: it is found wherever it is, and mended, while casts run."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import redis
from click.testing import CliRunner, Result

from bench.load import Endpoint, Load, run
from gateway import reconcile
from gateway.cli import main
from gateway.embedded import RunningServer
from gateway.usage_events import event_id
from tests.acceptance.conftest import CAST_BODY, _new_database
from tests.gateways import ROOT, RunningGateway, migrated, running_gateway
from tests.redis_accounts import fields_at, held_at, spoil
from tests.upstream_stub.running import Account, create_account, stub_process

CENT = 1_000_000


class World:
    """A gateway, and what to spoil."""

    def __init__(self, gateway: RunningGateway, config: Path, environ: dict[str, str]) -> None:
        self.gateway = gateway
        self.config = config
        self.environ = environ
        self.redis: redis.Redis[str] = redis.Redis.from_url(environ["REDIS_URL"], decode_responses=True)

    async def sql(self, statement: str, *values: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.environ["DATABASE_URL"])
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    async def account(self) -> Account:
        account = await create_account(self.environ["DATABASE_URL"])
        await self.sql("INSERT INTO billing_accounts (account_id, plan) VALUES ($1, 'unlimited')", account.user_id)
        await self.sql(
            "INSERT INTO budgets (account_id, period, hard_limit_microcents) VALUES ($1, 'monthly', 1000000000000)",
            account.user_id,
        )
        return account

    def endpoint(self, account: Account) -> Endpoint:
        headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
        return Endpoint.of(f"{self.gateway.base_url}/v1/cast", method="POST", headers=headers, body=CAST_BODY)

    async def cast(self, account: Account, count: int) -> None:
        result = await run([self.endpoint(account)], Load(connections=min(4, count), total=count))
        assert result.statuses == {200: count}
        for _ in range(200):
            rows = await self.sql("SELECT count(*) FROM usage_events WHERE account_id = $1", account.user_id)
            if rows[0][0] >= count and held_at(self.redis, self.key(account)) == 0:
                return
            await asyncio.sleep(0.05)
        pytest.fail("the casts never settled")

    def key(self, account: Account) -> str:
        return f"cg:{{0}}:a:{account.user_id}"

    def monthly(self, account: Account) -> str:
        (name,) = (name for name in fields_at(self.redis, self.key(account)) if name.startswith("u:monthly/"))
        return name

    async def castgate(self, *arguments: str) -> Result:
        """The command, in a thread as it has an event loop of its own."""
        runner = CliRunner(env=self.environ)
        return await asyncio.to_thread(
            runner.invoke, main, ["reconcile", "--config", str(self.config), *arguments], catch_exceptions=False
        )


@pytest.fixture(scope="module")
def _world(postgres_url: str, redis_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    database_url = asyncio.run(_new_database(postgres_url, "reconcile"))
    redis_url = redis_server.url.rsplit("/", 1)[0] + "/61"
    text = (ROOT / "config.yaml").read_text().replace("drift_interval: 1m", "drift_interval: 200ms")
    text = text.replace("policies: policies", f"policies: {ROOT}/policies")
    config = tmp_path_factory.mktemp("reconcile") / "config.yaml"
    config.write_text(text)
    with ExitStack() as stack:
        stub = stack.enter_context(stub_process(database_url, redis_url, rate_limit_per_minute=0))
        migrated(database_url)
        stores = {"database_url": database_url, "redis_url": redis_url, "upstream_url": stub.base_url}
        gateway = stack.enter_context(running_gateway(**stores, config=config))
        environ = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "UPSTREAM_URL": stub.base_url,
            "COST_PER_CAST_CENTS": "1",
        }
        world = World(gateway, config, environ)
        stack.callback(world.redis.close)
        yield world


@pytest.fixture
async def world(_world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # Nothing is in flight in most of these tests.
    monkeypatch.setattr(reconcile, "SETTLE_S", 0.2)
    # Casts of the last seconds are not compared: these are older.
    yield _world
    assert (await _world.castgate("--repair")).exit_code == 0, "what a test has spoiled can always be mended"


async def found(world: World, account: Account) -> dict[str, object]:
    result = await world.castgate("--json", "--all", account.user_id)
    (told,) = json.loads(result.stdout)["accounts"]
    assert result.exit_code == (1 if told["has_drift"] else 0)
    return told


async def test_without_drift_it_says_so_and_shows_nothing(world: World) -> None:
    account = await world.account()
    await world.cast(account, 3)
    result = await world.castgate(account.user_id)
    assert result.exit_code == 0
    assert result.stdout == (
        "1 accounts compared, 0 with drift: counters 0, redis 0, held 0, holds that are over 0, casts 0 cents in all\n"
    )
    shown = (await world.castgate("--all", account.user_id)).stdout.splitlines()
    assert shown[0].split() == [
        *("ACCOUNT", "WINDOW", "FROM", "LEDGER", "COUNTER", "REDIS", "HELD", "HOLDS", "OVER", "CASTS", "DRIFT"),
    ]
    assert re.fullmatch(rf"{account.user_id}  monthly/UTC/1 +\S+Z +3 +3 +3 +0 +0 +0 +(-|3) +none", shown[1]), shown


async def test_a_counter_that_is_wrong_is_found_and_mended_and_redis_with_it(world: World) -> None:
    account = await world.account()
    await world.cast(account, 3)
    await world.sql("UPDATE usage_counters SET used_microcents = 0, calls = 9 WHERE account_id = $1", account.user_id)
    result = await world.castgate(account.user_id)
    assert result.exit_code == 1
    assert "counter -3 cents, +6 calls, redis +3" in result.stdout
    mended = await world.castgate("--repair", account.user_id)
    assert mended.exit_code == 0
    assert "repaired: 2 counters" in mended.stdout
    rows = await world.sql("SELECT used_microcents, calls FROM usage_counters WHERE account_id = $1", account.user_id)
    assert [tuple(row) for row in rows] == [(3 * CENT, 3)] * 2
    assert not (await found(world, account))["has_drift"]


async def test_a_counter_that_is_gone_is_made_again(world: World) -> None:
    account = await world.account()
    await world.cast(account, 3)
    await world.sql("DELETE FROM usage_counters WHERE account_id = $1", account.user_id)
    result = await world.castgate(account.user_id)
    assert result.exit_code == 1
    assert result.stdout.count("counter is missing") == 2  # the month's, of which Redis knows, and the total
    assert (await world.castgate("--repair", account.user_id)).exit_code == 0
    rows = await world.sql("SELECT used_microcents FROM usage_counters WHERE account_id = $1", account.user_id)
    assert [row["used_microcents"] for row in rows] == [3 * CENT] * 2


@pytest.mark.parametrize(("spoilt", "drift"), [(1, -2 * CENT), (50, 47 * CENT)])
async def test_redis_is_set_right_in_both_directions(world: World, spoilt: int, drift: int) -> None:
    account = await world.account()
    await world.cast(account, 3)
    name = world.monthly(account)
    version = fields_at(world.redis, world.key(account))["v"]
    spoil(world.redis, world.key(account), name, spoilt * CENT)
    windows = (await found(world, account))["windows"]
    drifts = {window["kind"]: window["redis_drift"] for window in windows}  # type: ignore[attr-defined]
    assert drifts == {"monthly/UTC/1": drift, "total/UTC/1": 0}
    assert (await world.castgate("--repair", account.user_id)).exit_code == 0
    assert fields_at(world.redis, world.key(account))[name] == str(3 * CENT)
    assert fields_at(world.redis, world.key(account))["v"] == version


async def test_a_sum_of_holds_that_no_hold_is_behind_is_mended(world: World) -> None:
    account = await world.account()
    await world.cast(account, 3)
    spoil(world.redis, world.key(account), "h", 7 * CENT)
    told = await found(world, account)
    assert (told["held"], told["holds"], told["held_drift"]) == (7 * CENT, 0, 7 * CENT)
    assert (await world.castgate("--repair", account.user_id)).exit_code == 0
    assert fields_at(world.redis, world.key(account))["h"] == "0"


async def test_a_hold_whose_call_was_charged_long_ago_is_removed_and_a_living_one_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "OLD_HOLD_MS", 100)
    account = await world.account()
    await world.cast(account, 2)
    (charged, _) = await world.sql("SELECT id FROM usage_events WHERE account_id = $1", account.user_id)
    await world.sql("UPDATE usage_events SET recorded_at = now() - interval '1 minute' WHERE id = $1", charged["id"])
    worker = next(worker for worker in world.redis.zrange("cg:{0}:workers", 0, -1) if worker != "command")
    under_way = event_id()
    pack = "return struct.pack('<BddIc0Ic0', 0, ARGV[2], 1, #ARGV[1], ARGV[1], 4, 'cast')"
    with redis.Redis.from_url(world.environ["REDIS_URL"]) as raw:
        record = raw.eval(pack, 0, account.user_id, CENT)
        raw.hset(f"cg:{{0}}:h:{worker}", mapping={charged["id"].hex: record, under_way: record})
        spoil(raw, world.key(account), "h", 2 * CENT)
        told = await found(world, account)
        assert (told["held"], told["holds"], told["over_microcents"]) == (2 * CENT, 2 * CENT, CENT)
        assert (await world.castgate("--repair", account.user_id)).exit_code == 0
        assert fields_at(world.redis, world.key(account))["h"] == str(CENT)
        assert raw.hexists(f"cg:{{0}}:h:{worker}", under_way)
        raw.hdel(f"cg:{{0}}:h:{worker}", under_way)
        spoil(raw, world.key(account), "h", 0)


async def test_casts_that_were_never_told_their_cost_are(world: World) -> None:
    account = await world.account()
    await world.cast(account, 3)
    await world.sql("UPDATE usage_events SET recorded_at = now() - interval '1 minute'")
    await world.sql("INSERT INTO usage_events SELECT gen_random_uuid(), account_id, policy, occurred_at, 0, 200, "
                    "'posted', 'no id of theirs', NULL, recorded_at FROM usage_events WHERE account_id = $1 LIMIT 1",
                    account.user_id)  # fmt: skip
    await world.castgate("--repair", account.user_id)
    await world.sql(
        "UPDATE casts SET cost_cents = CASE WHEN id = (SELECT max(id::text)::uuid FROM casts WHERE user_id = $1::uuid) "
        "THEN NULL ELSE 5 END WHERE user_id = $1::uuid",
        account.user_id,
    )
    told = await found(world, account)
    assert (told["casts_ledger"], told["casts"]) == (3 * CENT, 10 * CENT)
    assert len(told["wrong_casts"]) == 3  # type: ignore[arg-type]
    assert (await world.castgate("--repair", account.user_id)).exit_code == 0
    rows = await world.sql("SELECT cost_cents FROM casts WHERE user_id = $1::uuid", account.user_id)
    assert [row["cost_cents"] for row in rows] == [1, 1, 1]


async def test_nothing_in_flight_is_drift_and_a_repair_under_load_ends_exact(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "SETTLE_S", 2.0)
    accounts = [await world.account() for _ in range(5)]
    for account in accounts:
        await world.cast(account, 1)
    endpoints = [world.endpoint(account) for account in accounts]
    loading = asyncio.ensure_future(run(endpoints, Load(connections=8, seconds=4)))
    await asyncio.sleep(0.5)
    quiet = await world.castgate()
    assert quiet.exit_code == 0, quiet.stdout
    spoilt = accounts[0].user_id
    await world.sql("UPDATE usage_counters SET used_microcents = used_microcents + 1000 WHERE account_id = $1", spoilt)
    spoil(world.redis, world.key(accounts[1]), "h", 5 * CENT)
    mended = await world.castgate("--repair")
    assert mended.exit_code == 0, mended.stdout
    assert "2 with drift" in mended.stdout
    result = await loading
    assert set(result.statuses) == {200}
    for account in accounts:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {account.api_key}"}) as session:
            for _ in range(100):
                async with session.get(f"{world.gateway.base_url}/v1/budgets") as answer:
                    (budget,) = (await answer.json())["budgets"]
                if budget["held_cents"] == 0:
                    break
                await asyncio.sleep(0.05)
        rows = await world.sql("SELECT count(*) FROM usage_events WHERE account_id = $1", account.user_id)
        assert (budget["used_cents"], budget["held_cents"]) == (rows[0][0], 0)
    assert (await world.castgate()).exit_code == 0


async def test_what_redis_hears_a_second_later_is_no_drift(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "SETTLE_S", 2.0)
    account = await world.account()
    await world.cast(account, 3)
    name = world.monthly(account)
    spoil(world.redis, world.key(account), name, CENT)
    comparing = asyncio.ensure_future(world.castgate(account.user_id))
    await asyncio.sleep(0.8)
    spoil(world.redis, world.key(account), name, 3 * CENT)
    result = await comparing
    assert result.exit_code == 0, result.stdout


async def test_what_was_committed_while_redis_was_set_right_is_not_lost_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await world.account()
    await world.cast(account, 3)
    name = world.monthly(account)
    spoil(world.redis, world.key(account), name, 50 * CENT)
    real, calls = reconcile.Reconciler.compare_now, 0

    async def compare_now(self: reconcile.Reconciler, account_ids: list[str]) -> list[reconcile.AccountLine]:
        nonlocal calls
        calls += 1
        lines = await real(self, account_ids)
        if calls == 1:  # a cast is committed, and Redis hears of it in vain: it believes to know of more
            await world.sql(
                "SELECT recorded FROM castgate_record_usage(ARRAY[gen_random_uuid()], ARRAY[$1], '{cast}', "
                "ARRAY[$2::bigint], "
                "'{1000000}', '{200}', '{posted}', '{NULL}', '{NULL}', NULL, '{}', '{}')",
                account.user_id,
                int(time.time() * 1000),
            )
        return lines

    monkeypatch.setattr(reconcile.Reconciler, "compare_now", compare_now)
    assert (await world.castgate("--repair", account.user_id)).exit_code == 0
    assert fields_at(world.redis, world.key(account))[name] == str(4 * CENT)


async def test_drift_is_a_metric(world: World) -> None:
    account = await world.account()
    await world.cast(account, 3)

    async def until(drifted: int) -> None:
        for _ in range(200):
            if await asyncio.to_thread(world.gateway.metric, "castgate_drift_accounts") == drifted:
                return
            await asyncio.sleep(0.05)
        pytest.fail("".join(world.gateway.log))

    await until(0)  # what tests before this one spoilt
    spoil(world.redis, world.key(account), "h", 7 * CENT)
    await until(1)
    assert world.gateway.metric("castgate_drift_microcents", between="held") == 7 * CENT
    assert world.gateway.metric("castgate_drift_microcents", between="counters") == 0
    await world.castgate("--repair")
    await until(0)
    told = [json.loads(line) for line in world.gateway.log]
    assert [line["accounts"] for line in told if line["event"] == "drift_found"][-1] == [account.user_id]


async def test_without_redis_the_rest_is_compared(world: World) -> None:
    account = await world.account()
    await world.cast(account, 1)
    world_without = World(world.gateway, world.config, {**world.environ, "REDIS_URL": "redis://127.0.0.1:1/0"})
    result = await world_without.castgate(account.user_id)
    world_without.redis.close()
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: Redis was not compared: 127.0.0.1:1: ")


async def test_where_casts_cannot_be_read_the_rest_is_compared(world: World) -> None:
    account = await world.account()
    await world.cast(account, 1)
    await world.sql("UPDATE usage_events SET recorded_at = now() - interval '1 minute'")
    config = world.config.with_name("unreadable.yaml")
    text = world.config.read_text()
    assert "casts.cost_cents FROM casts WHERE" in text
    config.write_text(
        text.replace("casts.cost_cents FROM casts WHERE", "casts.cost_cents FROM elsewhere AS casts WHERE")
    )
    elsewhere = World(world.gateway, config, world.environ)
    result = await elsewhere.castgate(account.user_id)
    elsewhere.redis.close()
    assert result.exit_code == 0
    assert result.stderr == 'warning: casts were not compared: relation "elsewhere" does not exist\n'


async def test_without_postgres_it_fails_with_one_line(world: World) -> None:
    environ = {**world.environ, "DATABASE_URL": "postgresql://castgate:secret@127.0.0.1:1/castgate"}
    without = World(world.gateway, world.config, environ)
    result = await without.castgate()
    without.redis.close()
    assert result.exit_code == 1
    assert result.stderr == (
        "castgate: Postgres at 127.0.0.1:1/castgate is away: Connect call failed ('127.0.0.1', 1)\n"
    )
