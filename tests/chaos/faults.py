"""What is injected. Each fault lasts as long as its coroutine, and is over when that returns: then recovery begins."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import redis

from tests.chaos.stores import stop, wake
from tests.chaos.world import World

REDIS, POSTGRES, PROCESS = "redis", "postgres", "process"
# Some workers reach Redis while others do not: each side admits without knowing what the other one holds.
SPLIT = "redis for some"
# Which connections may be lost: none, those on which no call had come to the service, any.
NONE, IDLE, ANY = "none", "idle", "any"

Act = Callable[[World, random.Random], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is injected, and what follows.

    ``cuts``: which connections of clients may be lost. ``lone``: no dead worker may hold anything when it begins.
    ``forgets``: Redis has lost what was used, and is told again.
    ``seldom``: it takes long, and is drawn half as often as the others.
    """

    name: str
    part: str
    act: Act
    cuts: str = NONE
    lone: bool = False
    forgets: bool = False
    needs_small_disks: bool = False
    seldom: bool = False


async def _pause(chance: random.Random, shortest_s: float, longest_s: float) -> str:
    pause_s = chance.uniform(shortest_s, longest_s)
    await asyncio.sleep(pause_s)
    return f"{pause_s:.2f} s"


# --- the network to a store


def _link(store: str, mode: str, delay_ms: tuple[float, float] | None = None, *, longest_s: float = 1.5) -> Act:
    async def act(world: World, chance: random.Random) -> str:
        delay = None if delay_ms is None else round(chance.uniform(*delay_ms), 1)
        links = world.links(store)
        await asyncio.to_thread(world.proxy.make, links, mode, delay)
        try:
            lasted = await _pause(chance, 0.1, longest_s)
        finally:
            await asyncio.to_thread(world.proxy.make, links, "open")
        return lasted if delay is None else f"{delay} ms, {lasted}"

    return act


def _one_link(mode: str) -> Act:
    """Of one gateway to Redis."""

    async def act(world: World, chance: random.Random) -> str:
        link = chance.choice(world.links(REDIS))
        await asyncio.to_thread(world.proxy.make, [link], mode)
        try:
            return f"{link}, {await _pause(chance, 0.1, 1.5)}"
        finally:
            await asyncio.to_thread(world.proxy.make, [link], "open")

    return act


def _reset(store: str) -> Act:
    async def act(world: World, chance: random.Random) -> str:
        times = chance.randrange(1, 4)
        for _ in range(times):
            await asyncio.to_thread(world.proxy.make, world.links(store), "reset")
            await asyncio.sleep(chance.uniform(0, 0.2))
        return f"{times} times"

    return act


# --- Redis


async def _redis_hang(world: World, chance: random.Random) -> str:
    stop(world.redis.pids)
    try:
        return await _pause(chance, 0.1, 2.0)
    finally:
        wake(world.redis.pids)


async def _redis_kill(world: World, chance: random.Random) -> str:
    async with world.redis_kills:
        await asyncio.to_thread(world.redis.kill)
        lasted = await _pause(chance, 0.0, 1.5)
        await asyncio.to_thread(world.redis.start)
    return f"{lasted}, back with its data"


async def _redis_kill_empty(world: World, chance: random.Random) -> str:
    async with world.redis_kills:
        await asyncio.to_thread(world.redis.kill)
        lasted = await _pause(chance, 0.0, 1.5)
        await asyncio.to_thread(world.redis.start_empty)
    return f"{lasted}, back empty"


async def _redis_kill_old(world: World, chance: random.Random) -> str:
    async with world.redis_kills:
        await asyncio.to_thread(world.redis.save)
        older = await _pause(chance, 0.2, 1.5)
        await asyncio.to_thread(world.redis.kill)
        lasted = await _pause(chance, 0.0, 1.0)
        await asyncio.to_thread(world.redis.start_old)
    return f"{lasted}, back as it was {older} before"


async def _redis_flush(world: World, chance: random.Random) -> str:
    def flush() -> None:
        # It may be down, where another fault is on.
        with contextlib.suppress(redis.RedisError), world.redis.client() as client:
            client.flushall()

    times = chance.choice((1, 1, 2))
    for _ in range(times):
        await asyncio.to_thread(flush)
        await asyncio.sleep(chance.uniform(0, 0.3))
    return f"{times} times"


async def _redis_forgets_scripts(world: World, _: random.Random) -> str:
    def flush() -> None:
        with contextlib.suppress(redis.RedisError), world.redis.client() as client:
            client.script_flush()

    await asyncio.to_thread(flush)
    return ""


# --- Postgres


async def _postgres_hang(world: World, chance: random.Random) -> str:
    pids = world.postgres.pids
    stop(pids)
    try:
        return await _pause(chance, 0.1, 3.0)
    finally:
        wake(pids)


async def _postgres_kill(world: World, chance: random.Random) -> str:
    async with world.postgres_kills:
        await asyncio.to_thread(world.postgres.kill)
        lasted = await _pause(chance, 0.0, 1.0)
        await world.start_postgres()
    return lasted


async def _postgres_terminate(world: World, _: random.Random) -> str:
    async with world.postgres_kills:
        connection = await world.postgres.connect()
        count = await connection.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'castgate' AND pid <> pg_backend_pid()"
        )
        await connection.close()
    return f"{count} connections"


async def _disk_full(world: World, chance: random.Random) -> str:
    await asyncio.to_thread(world.fill_disks)
    links = world.links(POSTGRES)
    await asyncio.to_thread(world.proxy.make, links, "refuse")
    try:
        return await _pause(chance, 0.3, 2.0)
    finally:
        await asyncio.to_thread(world.proxy.make, links, "open")
        await asyncio.to_thread(world.empty_disks)


# --- our own processes


def _a_worker(world: World, chance: random.Random) -> int | None:
    pids = [pid for gateway in world.gateways for pid in gateway.worker_pids]
    return chance.choice(pids) if pids else None


async def _worker_kill(world: World, chance: random.Random) -> str:
    pid = _a_worker(world, chance)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    world.lost_workers = True
    await asyncio.sleep(0.2)
    return f"pid {pid}"


async def _worker_stop(world: World, chance: random.Random) -> str:
    pid = _a_worker(world, chance)
    pids = [] if pid is None else [pid]
    stop(pids)
    try:
        return await _pause(chance, 0.1, 1.5)
    finally:
        wake(pids)


async def _supervisor_kill(world: World, chance: random.Random) -> str:
    gateway = chance.choice(world.gateways)
    world.lost_workers = True
    workers = gateway.kill_supervisor()
    if chance.random() < 0.5:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        how = "its workers too"
    else:
        how = "its workers drain"
    lasted = await _pause(chance, 0.0, 0.5)
    await asyncio.to_thread(gateway.start)
    await world.serving(gateway)
    return f"gateway {gateway.number}, {how}, {lasted}"


async def _workers_replaced(world: World, chance: random.Random) -> str:
    gateway = chance.choice(world.gateways)
    before = set(gateway.worker_pids)
    world.lost_workers = True
    gateway.replace_workers()
    async with asyncio.timeout(60):
        while before & set(gateway.worker_pids):
            await asyncio.sleep(0.1)
    return f"gateway {gateway.number}"


KINDS = (
    Kind(name="redis hangs", part=REDIS, act=_redis_hang, lone=True),
    Kind(name="redis killed, data kept", part=REDIS, act=_redis_kill, lone=True),
    Kind(name="redis killed, back empty", part=REDIS, act=_redis_kill_empty, lone=True, forgets=True),
    Kind(name="redis killed, back old", part=REDIS, act=_redis_kill_old, lone=True, forgets=True),
    Kind(name="redis flushed", part=REDIS, act=_redis_flush, lone=True, forgets=True),
    Kind(name="redis forgets scripts", part=REDIS, act=_redis_forgets_scripts),
    Kind(name="redis refuses", part=REDIS, act=_link(REDIS, "refuse"), lone=True),
    Kind(name="redis resets", part=REDIS, act=_reset(REDIS), lone=True),
    Kind(name="redis stalls", part=REDIS, act=_link(REDIS, "stall"), lone=True),
    Kind(name="redis slow", part=REDIS, act=_link(REDIS, "slow", (1, 300)), lone=True),
    Kind(name="redis resets on and on", part=SPLIT, act=_link(REDIS, "flaky", (20, 300)), lone=True),
    Kind(name="redis refuses one gateway", part=SPLIT, act=_one_link("refuse"), lone=True),
    Kind(name="redis stalls for one gateway", part=SPLIT, act=_one_link("stall"), lone=True),
    Kind(name="postgres hangs", part=POSTGRES, act=_postgres_hang),
    Kind(name="postgres killed", part=POSTGRES, act=_postgres_kill),
    Kind(name="postgres ends connections", part=POSTGRES, act=_postgres_terminate),
    Kind(name="postgres refuses", part=POSTGRES, act=_link(POSTGRES, "refuse", longest_s=2.5)),
    Kind(name="postgres resets", part=POSTGRES, act=_reset(POSTGRES)),
    Kind(name="postgres resets on and on", part=POSTGRES, act=_link(POSTGRES, "flaky", (20, 300))),
    Kind(name="postgres stalls", part=POSTGRES, act=_link(POSTGRES, "stall", longest_s=3.0)),
    Kind(name="postgres slow", part=POSTGRES, act=_link(POSTGRES, "slow", (1, 400))),
    Kind(name="postgres away, disk full", part=POSTGRES, act=_disk_full, needs_small_disks=True),
    Kind(name="worker killed", part=PROCESS, act=_worker_kill, cuts=ANY),
    Kind(name="worker stopped", part=PROCESS, act=_worker_stop),
    Kind(name="supervisor killed", part=PROCESS, act=_supervisor_kill, cuts=ANY, seldom=True),
    Kind(name="workers replaced", part=PROCESS, act=_workers_replaced, cuts=IDLE, seldom=True),
)


def both(one: Kind, other: Kind) -> Kind:
    """The two at about the same time."""

    async def act(world: World, chance: random.Random) -> str:
        later_s = chance.uniform(0, 0.5)

        async def later() -> str:
            await asyncio.sleep(later_s)
            return await other.act(world, random.Random(chance.random()))

        first, second = await asyncio.gather(one.act(world, random.Random(chance.random())), later())
        return f"{first}; {later_s:.2f} s later {second}"

    return Kind(
        name=f"{one.name} + {other.name}",
        part="double",
        act=act,
        cuts=max(one.cuts, other.cuts, key=(NONE, IDLE, ANY).index),
    )
