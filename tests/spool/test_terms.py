"""Gateways are killed while Postgres is away, with free tiers and idempotency keys in their spools and holds."""

import asyncio

import aiohttp
import pytest

from tests.acceptance.conftest import CAST_BODY
from tests.gateways import RunningGateway
from tests.spool.test_gateways import ROOT, World, castgate, kill, spilled, world
from tests.upstream_stub.running import Account, create_account

__all__ = ["world"]

pytestmark = pytest.mark.timeout(90)

RULES = """
policies:
  - name: cast
    match: {methods: [POST], path: /v1/cast}
    cost: {fixed: {cents: 1}, free: {units: 30, per: total}}
    idempotency: {life: 1h}
    record: {cast_id: {json: /id}}
plans:
  free: {hard_limit_cents: {monthly: 500}}
"""


async def cast(gateway: RunningGateway, account: Account, keys: list[str], fault: str = "") -> list[str]:
    """Casts with these idempotency keys, blank for none, at once; their ids."""

    async def one(session: aiohttp.ClientSession, key: str) -> str:
        headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {}
        headers |= {"X-Stub-Fault": fault} if fault else {}
        async with session.post(f"{gateway.base_url}/v1/cast", data=CAST_BODY, headers=headers) as answer:
            assert answer.status == 200
            cast_id: str = (await answer.json())["id"]
            return cast_id

    async with aiohttp.ClientSession() as session:
        return await asyncio.gather(*(one(session, key) for key in keys))


async def test_killed_gateways_give_the_free_units_away_once_and_bill_each_key_once(world: World) -> None:
    rules = world.config.with_name("rules")
    rules.mkdir()
    (rules / "rules.yaml").write_text(RULES)
    changed = {f"policies: {ROOT}/policies": f"policies: {rules}"}
    account = await create_account(world.database_url)
    one = await world.start(changed=changed)
    two = await world.start(changed=changed)
    await cast(one, account, ["k0"])
    await cast(two, account, [""])
    await world.until(lambda: world.rows() == 2, "the first rows")
    # Two units of thirty are used. Now 20 more of each gateway, of which five have a key that the other one has as
    # well, and one a key that is billed already; and then of each two that are under way when it dies.
    await world.link.close()
    keys = ["k0", *[f"k{number}" for number in range(1, 6)], *[""] * 14]
    for gateway in (one, two):
        world.cast_ids += await cast(gateway, account, keys)
    await world.until(lambda: spilled(one) == 20 and spilled(two) == 20, "the spool")
    under_way = [
        asyncio.ensure_future(cast(gateway, account, ["under-way", ""], "delay=10s")) for gateway in (one, two)
    ]
    await world.until(lambda: sum(world.holds().values()) == 44, "the last holds")
    kill(one)
    kill(two)
    await asyncio.wait(under_way)
    assert all(isinstance(task.exception(), aiohttp.ClientError) for task in under_way)

    await world.link.open()
    three = await world.start(changed=changed)
    await world.until(lambda: world.rows() == 46, "the last event", three)
    await world.until(lambda: not world.holds() and not world.held(account), "the end of the last hold", three)
    rows = await world.sql("SELECT units, free_units, cost_microcents, repeat_of, outcome, cast_id FROM usage_events")
    repeats = [row for row in rows if row["repeat_of"] is not None]
    # k0 twice, five keys once more, and one of those under way.
    assert len(repeats) == 2 + 5 + 1
    assert {(row["units"], row["cost_microcents"]) for row in repeats} == {(0, 0)}
    assert sum(row["units"] for row in rows) == 46 - 8
    assert sum(row["free_units"] for row in rows) == 30
    assert sum(row["cost_microcents"] for row in rows) == 8_000_000
    assert sum(row["outcome"] == "expired" for row in rows) == 4
    assert {row["cast_id"] for row in rows} >= set(world.cast_ids)
    sums = await world.sql(
        "SELECT (SELECT used_microcents FROM usage_counters WHERE period = 'total'), "
        "(SELECT used_units FROM usage_units), (SELECT count(*) FROM billed_keys)"
    )
    assert [tuple(row) for row in sums] == [(8_000_000, 38, 7)]
    # A file goes a moment after its last event is in the ledger.
    await world.until(lambda: three.metric("castgate_spool_waiting_events") == 0, "an empty spool", three)
    world.config = world.config.with_name("changed.yaml")
    reconciled = await asyncio.to_thread(castgate, world, "reconcile")
    assert reconciled.returncode == 0, reconciled
