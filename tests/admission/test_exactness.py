"""Never one call over and never one less, however many ask at once."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from gateway.policy.verdicts import BudgetExceeded, Hold, RateLimited
from tests.admission.conftest import StartWorker
from tests.admission.script import Script
from tests.admission.world import CENT, Tables, monthly, per_minute, policy
from tests.ledger.making import migrate

ROOT = Path(__file__).parents[2]


async def test_several_workers_racing_for_one_account_admit_exactly_its_budget(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(100))
    workers = [await start_worker(batch_max=16) for _ in range(4)]
    rounds = await asyncio.gather(*(worker.ask_many("a", 90) for worker in workers))
    assert Counter(type(verdict) for verdicts in rounds for verdict in verdicts) == {Hold: 100, BudgetExceeded: 260}
    for worker, verdicts in zip(workers, rounds, strict=True):
        holds = [verdict for verdict in verdicts if isinstance(verdict, Hold)]
        for hold in holds[::2]:
            worker.admission.void(hold)
        worker.post(*holds[1::2])
        await worker.settled()
    left = 100 - tables.used("a") // CENT
    rounds = await asyncio.gather(*(worker.ask_many("a", 90) for worker in workers))
    assert sum(isinstance(verdict, Hold) for verdicts in rounds for verdict in verdicts) == left


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "token_bucket", "concurrency"])
async def test_several_workers_racing_for_one_rate_admit_exactly_its_limit(
    start_worker: StartWorker, algorithm: str
) -> None:
    noon_ms = 1_795_348_800_000
    workers = [await start_worker(batch_max=16, test_clock_ms=lambda: noon_ms) for _ in range(4)]
    limited = policy(per_minute(30, algorithm))
    rounds = await asyncio.gather(*(worker.ask_many("a", 40, limited) for worker in workers))
    assert Counter(type(verdict) for verdicts in rounds for verdict in verdicts) == {Hold: 30, RateLimited: 130}


async def test_many_workers_that_seed_one_account_at_once_do_not_multiply_its_usage(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(50))
    workers = [await start_worker() for _ in range(6)]
    workers[0].post(*await workers[0].ask_many("a", 20))
    await workers[0].settled()
    for _ in range(3):
        script.redis.flushdb()
        await asyncio.gather(*(worker.serving() for worker in workers))
        rounds = await asyncio.gather(*(worker.ask_many("a", 20) for worker in workers))
        holds = [[verdict for verdict in verdicts if isinstance(verdict, Hold)] for verdicts in rounds]
        assert sum(map(len, holds)) == 30
        for worker, taken in zip(workers, holds, strict=True):
            for hold in taken:
                worker.admission.void(hold)
            await worker.settled()
        assert script.account("a")["u:monthly/UTC/1"] == str(20 * CENT)


async def test_processes_racing_for_one_account_charge_exactly_its_budget(
    database_url: str, redis_url: str, script: Script
) -> None:
    await migrate(database_url)
    seen = await _race(database_url, redis_url, seed=1, processes=3, calls=500, limit_cents=400)
    # Voided calls give their cent back, so the budget is spent to the last one if enough is asked for.
    assert seen["Hold"] - seen["voided"] == seen["charged"] <= 400
    assert seen["BudgetExceeded"] > 0
    assert set(seen) <= {"Hold", "BudgetExceeded", "voided", "charged"}
    assert await _ledger_says(database_url) == (seen["charged"], seen["charged"] * CENT, seen["charged"] * CENT)
    assert script.account("racer")["h"] == "0"

    # Everybody starts with an empty Redis: what is left, and not a cent more.
    script.redis.flushdb()
    again = await _race(database_url, redis_url, seed=2, processes=3, calls=500, limit_cents=400)
    total = seen["charged"] + again["charged"]
    assert total == 400
    assert await _ledger_says(database_url) == (400, 400 * CENT, 400 * CENT)


async def _race(database_url: str, redis_url: str, *, processes: int, **order: int) -> Counter[str]:
    racers = []
    for number in range(processes):
        told = {"database_url": database_url, "redis_url": redis_url, "worker_id": f"racer-{number}", **order}
        racers.append(
            subprocess.Popen(  # noqa: ASYNC220 - three, before anything is measured
                [sys.executable, "-m", "tests.admission.racer"],
                env={**os.environ, "RACE": json.dumps(told)},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    seen: Counter[str] = Counter()
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert await asyncio.to_thread(racer.stdout.readline) == "ready\n"
        outputs = await asyncio.gather(*(asyncio.to_thread(racer.communicate, "go\n", 45) for racer in racers))
        for output, _ in outputs:
            seen.update(json.loads(output.splitlines()[-1]))
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    return seen


async def _ledger_says(database_url: str) -> tuple[int, int, int]:
    """Events, the sum of their costs, and what the month's counter holds."""
    connection = await asyncpg.connect(database_url)
    try:
        row = await connection.fetchrow(
            "SELECT count(*), sum(cost_microcents)::bigint, "
            "(SELECT used_microcents FROM usage_counters WHERE period = 'monthly') FROM usage_events"
        )
    finally:
        await connection.close()
    assert row is not None
    return row[0], row[1], row[2]
