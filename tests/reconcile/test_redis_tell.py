"""A command tells Redis what a worker would have told it, on the partition where a worker would have."""

import pytest
import redis

from gateway.config.settings_stores import Redis as RedisSettings
from gateway.redis_store import RedisLostError
from gateway.redis_tell import teller_to
from tests.admission.conftest import StartWorker, tables
from tests.admission.conftest import start_worker as start_worker  # noqa: PLC0414  a fixture of these tests too
from tests.admission.world import CENT, Tables, monthly
from tests.redis_accounts import held_at

__all__ = ["start_worker", "tables"]

PARTITIONS = 4


async def test_the_holds_of_a_worker_that_is_gone_are_removed_where_they_are(
    start_worker: StartWorker, tables: Tables, redis_url: str
) -> None:
    worker = await start_worker("gone", partitions=PARTITIONS)
    names = [f"account-{number}" for number in range(20)]
    holds = {}
    for name in names:
        tables.put(name, monthly(5))
        holds[name] = await worker.ask(name)
    async with teller_to(RedisSettings.model_validate({"url": redis_url, "partitions": PARTITIONS})) as teller:
        assert {teller.partition_of(name) for name in names} == set(range(PARTITIONS))
        for name in names:
            assert teller.partition_of(name) == worker.admission._lane_of(name)._partition
            teller.settled_of(name).use(name, "monthly/UTC/1", 1_793_491_200_000, 7 * CENT)
            teller.settled_of(name).remove("gone", [holds[name].hold_id], posted=True)  # type: ignore[union-attr]
        await teller.tell()
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        for name in names:
            partition = teller.partition_of(name)
            assert held_at(client, f"cg:{{{partition}}}:a:{name}") == 0
            assert set(client.hkeys(f"cg:{{{partition}}}:h:gone")) == {"epoch", "seq"}
            assert not client.exists(f"cg:{{{partition}}}:h:command")
        assert client.zrange("cg:{0}:workers", 0, -1) == ["gone"]


async def test_a_redis_that_is_away_is_said_to_be() -> None:
    with pytest.raises(RedisLostError, match=r"127\.0\.0\.1:1"):
        async with teller_to(RedisSettings.model_validate({"url": "redis://127.0.0.1:1/0"})):
            pass
