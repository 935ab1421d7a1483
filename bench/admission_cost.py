"""``python -m bench.admission_cost``: microseconds of CPU that admission costs per call, in this process and in Redis.

Batches of 1, 8 and 64 calls, of one account and of 10,000, each call with a monthly budget and a sliding limit, and
settled afterwards (posted, in groups of 64, as the ledger's flushes are). ``redis-py`` is the same script call made by
redis.asyncio instead of the gateway's own connection; docs/decisions/0002-admission-batching.md draws on both.
"""

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import astuple, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import click
import redis
import redis.asyncio
import uvloop

from gateway import admission_lane
from gateway.accounts import Account
from gateway.admission import Admission, Ask
from gateway.admission_batch import batch_text
from gateway.config.settings import Settings
from gateway.embedded import embedded_redis
from gateway.ledger import UsageEvent, WindowUsage
from gateway.metrics import Metrics
from gateway.policy.budgets import BudgetLimit
from gateway.policy.money import MICROCENTS_MAX
from gateway.policy.periods import Window, window_at
from gateway.policy.rules import Cost, Plan, Policy, RateLimit, Rules
from gateway.policy.verdicts import Hold, Verdict
from gateway.redis_store import ADMIT
from gateway.tasks import Tasks

CENT = 1_000_000
BATCHES = (1, 8, 64)
ACCOUNTS = (1, 10_000)
POSTED_TOGETHER = 64
LIMIT = BudgetLimit(period="monthly", hard_limit_microcents=MICROCENTS_MAX)
RATE = RateLimit(name="minute", key="account", limit=10**9, window_ms=60_000, algorithm="sliding_window")
POLICY = Policy(
    name="cast", methods=frozenset(), path="/", cost=Cost(fixed_microcents=CENT), rate_limits=(RATE,),
    on_store_failure="deny",
)  # fmt: skip
RULES = Rules(version="1", policies=(POLICY,), plans={"free": Plan(name="free")}, default_plan="free")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuCost:
    """µs of CPU per call, in this process and in Redis."""

    ask_python: float
    ask_redis: float
    settle_python: float
    settle_redis: float
    redis_py_python: float
    redis_py_redis: float


class _Facts:
    """Postgres costs nothing here."""

    def __init__(self, limits: tuple[BudgetLimit, ...]) -> None:
        self._limits = limits

    async def load(self, accounts: Sequence[Account]) -> None:
        for account in accounts:
            account.version, account.plan, account.limits = 1, "free", self._limits

    async def seed(self, wanted: Sequence[tuple[Account, Mapping[str, Window]]]) -> Mapping[str, Mapping[str, int]]:
        return {account.account_id: dict.fromkeys(windows, 0) for account, windows in wanted}

    def recent(self) -> Sequence[Account]:
        return []


class _Alone:
    """Nobody else is there."""

    async def living(self) -> Sequence[str]:
        return ["bench"]


class _NoLedger:
    """Only orphans would be written there, and nobody dies."""

    def append(self, _: UsageEvent) -> None:
        raise AssertionError


class _Meter:
    """CPU seconds of this process and of Redis."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)

    def now(self) -> tuple[float, float]:
        info = cast("dict[str, float]", self._redis.info("cpu"))
        return time.process_time(), info["used_cpu_user"] + info["used_cpu_sys"]

    @contextmanager
    def measured(self, calls: int, told: Callable[[float, float], None]) -> Iterator[None]:
        own, redis_own = self.now()
        yield
        own_after, redis_after = self.now()
        told((own_after - own) / calls * 1e6, (redis_after - redis_own) / calls * 1e6)


async def _ask(admission: Admission, accounts: Iterator[Account], batch: int, calls: int) -> list[Hold]:
    """``calls`` asks, ``batch`` at a time."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    holds: list[Hold] = []
    lane = admission._lanes[0]

    def done(verdict: Verdict) -> None:
        assert isinstance(verdict, Hold), verdict
        holds.append(verdict)
        if len(holds) >= calls:
            over.set_result(None)
        elif len(holds) % batch == 0:
            loop.call_soon(go)

    def go() -> None:
        waits = lane._flying  # for a heartbeat
        lane._flying = True  # the whole batch goes as one call, as it does when it gathered behind another one
        for _ in range(batch):
            account = next(accounts)
            admission.ask(Ask(account, CENT, POLICY, (account.account_id,), done))
        if not waits:
            lane._flying = False
            lane._send()

    go()
    await over
    return holds


async def _post(admission: Admission, holds: list[Hold], windows: Mapping[str, Window]) -> None:
    for begin in range(0, len(holds), POSTED_TOGETHER):
        group = holds[begin : begin + POSTED_TOGETHER]
        events = [
            UsageEvent(hold.hold_id, hold.account_id, "cast", hold.admitted_ms, CENT, 200, "posted") for hold in group
        ]
        usages = [
            WindowUsage(account_id, kind, window.start_ms, window.end_ms, begin + 1)
            for account_id in {hold.account_id for hold in group}
            for kind, window in windows.items()
        ]
        for hold in group:
            admission.finished(hold, CENT)
        admission.posted(events, usages)
        lane = admission._lanes[0]
        if not lane._flying:
            lane._send()
        await lane.call("PING")


async def _redis_py(url: str, admission: Admission, accounts: Iterator[Account], batch: int, calls: int) -> None:
    client = redis.asyncio.Redis.from_url(url)
    lane = admission._lanes[0]
    keys = (lane.workers_key, "cg:{0}:h:redis-py")
    await cast("Any", client.hset(keys[1], "epoch", "1"))
    for number in range(calls // batch):
        asks = []
        for _ in range(batch):
            account = next(accounts)
            ask = Ask(account, CENT, POLICY, (account.account_id,), lambda _: None)
            ask.known, ask.shape = cast("Any", account.admission), next(iter(admission._shapes.values()))
            ask.hold_id = f"{number:032x}"
            asks.append(ask)
        text = batch_text((1 << 40) + number, 1, "", 0, asks, "")
        await cast("Any", client.evalsha(ADMIT.sha, 2, *keys, text))
    await client.aclose()


async def measure(
    url: str,
    calls: int,
    accounts_count: int,
    *,
    limits: tuple[BudgetLimit, ...] = (LIMIT,),
    batches: Sequence[int] = BATCHES,
) -> dict[int, CpuCost]:
    """The cost by size of batch; Redis at ``url`` is empty."""
    meter = _Meter(url)
    async with admission_at(url, limits) as admission:
        with never_awake():  # of CPU time that nobody else wanted nothing should be seen here
            return await _costs(admission, url, meter, calls, accounts_count, limits, batches)


@contextmanager
def never_awake() -> Iterator[None]:
    """No reply is waited for awake (``gateway.vigil``)."""
    before, admission_lane.ALONE_MIN = admission_lane.ALONE_MIN, 1 << 62
    try:
        yield
    finally:
        admission_lane.ALONE_MIN = before


@asynccontextmanager
async def admission_at(url: str, limits: tuple[BudgetLimit, ...] = (LIMIT,)) -> AsyncIterator[Admission]:
    """A worker's admission alone, on the Redis at ``url``; Postgres and the ledger cost it nothing."""
    settings = Settings.model_validate(
        {
            "upstream": {"url": "http://127.0.0.1:1"},
            "database": {"url": "postgresql://nobody@127.0.0.1/none"},
            "redis": {"url": url, "timeout": "10s"},
        }
    )
    tasks, metrics = Tasks(), Metrics()
    admission = Admission(
        worker_id="bench", settings=settings, accounts=_Facts(limits), ledger=cast("Any", _NoLedger()),
        rules=lambda: RULES, tasks=tasks, metrics=metrics, fleet=_Alone(),
    )  # fmt: skip
    await admission.start()
    try:
        yield admission
    finally:
        await admission.close()
        await tasks.drain(1)
        metrics.close()


async def _costs(
    admission: Admission,
    url: str,
    meter: _Meter,
    calls: int,
    accounts_count: int,
    limits: tuple[BudgetLimit, ...],
    batches: Sequence[int],
) -> dict[int, CpuCost]:
    known = [Account(f"account-{number:06d}") for number in range(accounts_count)]
    order = cycle(known)
    now_ms = int(time.time() * 1000)
    windows = {one.kind: window_at(one.period, one.time_zone, one.week_start, now_ms) for one in limits}
    await _post(admission, await _warm(admission, known), windows)

    costs = {}
    for batch in batches:
        figures: list[float] = []

        def told(own: float, redis_own: float, figures: list[float] = figures) -> None:
            figures.extend((own, redis_own))

        count = calls // batch * batch
        with meter.measured(count, told):
            holds = await _ask(admission, order, batch, count)
        with meter.measured(count, told):
            await _post(admission, holds, windows)
        with meter.measured(count, told):
            await _redis_py(url, admission, order, batch, count)
        costs[batch] = CpuCost(**dict(zip(CpuCost.__dataclass_fields__, figures, strict=True)))
    return costs


async def _warm(admission: Admission, accounts: list[Account]) -> list[Hold]:
    loop = asyncio.get_running_loop()
    futures = []
    for account in accounts:
        future: asyncio.Future[Verdict] = loop.create_future()
        admission.ask(Ask(account, CENT, POLICY, (account.account_id,), future.set_result))
        futures.append(future)
    return [hold for hold in await asyncio.gather(*futures) if isinstance(hold, Hold)]


@click.command()
@click.option("--calls", default=20_000, help="Calls for each figure.")
def main(calls: int) -> None:
    """Print µs of CPU per call."""
    gc.set_threshold(20_000, 20, 50)  # as a worker does (gateway/worker.py)
    click.echo("                       ask              settle            redis-py ask")
    click.echo("accounts  batch    python     redis    python     redis    python     redis   µs of CPU per call")
    with tempfile.TemporaryDirectory() as folder, embedded_redis(Path(folder), ephemeral=True) as server:
        for accounts_count in ACCOUNTS:
            redis.Redis.from_url(server.url).flushall()
            for batch, cost in uvloop.run(measure(server.url, calls, accounts_count)).items():
                figures = "   ".join(f"{figure:>7.1f}" for figure in astuple(cost))
                click.echo(f"{accounts_count:>8} {batch:>6}   {figures}")


if __name__ == "__main__":
    main()
