"""Once a gateway knows that a store hangs, no cast waits for it. ``python -m bench.store_hung`` is the long form.

Time-outs are long enough here that waiting for a hung store would be seen however busy the machine is. Each round has
its own usual time beside it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from bench.load import Endpoint, Load, run
from bench.store_hung import RATIO_MAX
from tests.admission.killable import KillableRedis, killable_redis
from tests.gateways import RunningGateway, migrated, running_gateway
from tests.ledger.link import Link
from tests.load import CAST_BODY, CAST_PATH
from tests.upstream_stub.running import create_account, stub_process

ROUNDS = 2
MEASURED_S = 0.5
NOTICED_S = 0.5
REDIS_TIMEOUT_MS, ADMISSION_TIMEOUT_MS = 150, 500


async def well_again(gateway: RunningGateway) -> None:
    async with asyncio.timeout(20):
        while await asyncio.to_thread(gateway.metric, "castgate_breakers_open"):
            await asyncio.sleep(0.05)
        while not await asyncio.to_thread(gateway.metric, "castgate_admission_rung", rung="redis"):
            await asyncio.sleep(0.05)


async def p99_ms(gateway: RunningGateway, keys: Sequence[str], seconds: float) -> float:
    fields = [{"Authorization": f"Bearer {key}", "Content-Type": "application/json"} for key in keys]
    endpoint = Endpoint.of(gateway.base_url + CAST_PATH, method="POST", headers=fields, body=CAST_BODY)
    result = await run([endpoint], Load(connections=4, seconds=seconds))
    assert not result.errors
    assert set(result.statuses) == {200}
    return result.latency_ms(0.99)


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Link]:
    link = Link(database_url)
    await link.open()
    yield link
    link.clear()
    await link.close()


@asynccontextmanager
async def started(link: Link, redis: KillableRedis, upstream_url: str) -> AsyncIterator[RunningGateway]:
    """A gateway, started and stopped in a thread, so that the link goes on."""
    context = running_gateway(
        database_url=link.url,
        redis_url=redis.url,
        upstream_url=upstream_url,
        environ={
            "REDIS_TIMEOUT": f"{REDIS_TIMEOUT_MS}ms",
            "ADMISSION_TIMEOUT": f"{ADMISSION_TIMEOUT_MS}ms",
            "BILLING_PLAN_DEFAULT": "unlimited",
        },
    )
    gateway = await asyncio.to_thread(context.__enter__)
    try:
        yield gateway
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.mark.timeout(120)
async def test_casts_wait_for_no_store_that_hangs(database_url: str, redis_url: str, link: Link) -> None:
    usual: dict[str, list[float]] = {"Redis": [], "Postgres": []}
    hung: dict[str, list[float]] = {"Redis": [], "Postgres": []}
    with stub_process(database_url, redis_url, rate_limit_per_minute=0) as stub, killable_redis() as redis:
        await asyncio.to_thread(migrated, database_url)
        keys = [(await create_account(database_url)).api_key for _ in range(8)]
        async with started(link, redis, stub.base_url) as gateway:
            stores = {"Redis": (redis.hang, redis.wake), "Postgres": (link.jam, link.clear)}
            await p99_ms(gateway, keys, NOTICED_S)
            for _ in range(ROUNDS):
                for store, (hang, wake) in stores.items():
                    usual[store].append(await p99_ms(gateway, keys, MEASURED_S))
                    hang()
                    try:
                        await p99_ms(gateway, keys, NOTICED_S)
                        hung[store].append(await p99_ms(gateway, keys, MEASURED_S))
                    finally:
                        wake()
                    await well_again(gateway)
    for store, times in hung.items():
        # A busy machine makes one round or another slow. Casts that wait for a store would do so in every round.
        ratio = min(one / other for one, other in zip(times, usual[store], strict=True))
        # Very quick ones may well be three times as quick: none of them waited for a store.
        assert ratio <= RATIO_MAX or min(times) < REDIS_TIMEOUT_MS / 3, (
            f"{store} hangs: {ratio:.1f} × the usual p99; {times} ms, usual {usual[store]} ms"
        )
