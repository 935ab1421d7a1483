"""What /metrics says after a run is what the client counted, with several workers and after one of them died."""

import os
import signal
from pathlib import Path

from tests.acceptance.conftest import Fleet
from tests.gateways import RunningGateway


def _counted(gateway: RunningGateway) -> dict[str, float]:
    return {
        "cast": gateway.metric("spell_cast_total", policy="cast", status="200"),
        "timed": gateway.metric("spell_cast_duration_seconds_count", policy="cast"),
        "blocked": gateway.metric("budget_block_total", policy="cast", period="monthly"),
        "limited": gateway.metric("rate_limited_total"),
        "requests": gateway.metric("castgate_requests_total", kind="policy"),
    }


def _sum(fleet: Fleet) -> dict[str, float]:
    counted = [_counted(gateway) for gateway in fleet.gateways]
    return {name: sum(one[name] for one in counted) for name in counted[0]}


async def test_the_counters_equal_what_the_client_counted(fleet: Fleet) -> None:
    before = _sum(fleet)
    account = await fleet.account(monthly_cents=300)
    result = await fleet.cast_many(account, total=1000, connections=50)
    after = _sum(fleet)
    assert result.statuses == {200: 300, 402: 700}
    assert {name: after[name] - before[name] for name in after} == {
        "cast": 300,
        "timed": 300,
        "blocked": 700,
        "limited": 0,
        "requests": 1000,
    }


async def test_a_worker_that_is_killed_takes_no_count_back(fleet: Fleet) -> None:
    gateway = fleet.gateways[0]
    account = await fleet.account(monthly_cents=100)
    await fleet.cast_many(account, total=200, connections=20)
    before = _counted(gateway)
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    victim = int(children.read_text().split()[0])
    os.kill(victim, signal.SIGKILL)
    assert _counted(gateway) == before
    await fleet.cast_many(await fleet.account(monthly_cents=100), total=200, connections=20)
    assert _counted(gateway)["cast"] > before["cast"]


async def test_the_public_listener_serves_the_same_sum(fleet: Fleet) -> None:
    gateway = fleet.gateways[0]
    public = RunningGateway(base_url=gateway.base_url, admin_url=gateway.base_url, process=gateway.process)
    assert _counted(public) == _counted(gateway)
