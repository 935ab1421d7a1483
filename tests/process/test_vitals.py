"""What a worker measures of itself from aside."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway.config.settings import Settings
from gateway.database import Database
from gateway.embedded import free_port
from gateway.ledger import Ledger, UsageEvent, event_id
from gateway.metrics import Metrics
from gateway.metrics_scrape import render
from gateway.tasks import Tasks
from gateway.vitals import INTERVAL_S, Vitals

EVENT = UsageEvent(event_id(), "account", "cast", 1_700_000_000_000, 1_000_000, 200, "posted")


def settings(database_url: str) -> Settings:
    urls = {"upstream": {"url": "http://127.0.0.1:1"}, "redis": {"url": "redis://127.0.0.1:1"}}
    return Settings.model_validate({**urls, "database": {"url": database_url}})


def relay(busy: int = 0, waiting: int = 0) -> Any:
    return SimpleNamespace(upstream_pool=SimpleNamespace(busy=busy, waiting=waiting))


async def test_the_lag_grows_while_events_wait_and_none_is_written() -> None:
    metrics, tasks = Metrics(), Tasks()
    chosen = settings(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    database = Database.from_settings(chosen.database, metrics)
    ledger = Ledger(database, chosen.ledger, tasks, metrics)
    vitals = Vitals(settings=chosen, metrics=metrics, relay=relay(busy=3, waiting=2), ledger=ledger)
    lag = metrics.gauge("castgate_ledger_lag_seconds")
    vitals.look(100.0)
    vitals.look(160.0)
    assert lag.value == 0  # nothing waits
    ledger.append(EVENT)
    vitals.look(165.0)
    assert lag.value == 5.0
    metrics.counter("castgate_ledger_flushes_total", result="ok").add()
    vitals.look(170.0)
    assert lag.value == 0
    vitals.look(171.5)
    assert lag.value == 1.5
    assert metrics.gauge("castgate_upstream_connections_busy").value == 3
    assert metrics.gauge("castgate_upstream_waiting").value == 2
    await ledger.close(timeout_s=0.1)
    await tasks.drain(0)
    await database.close()
    metrics.close()


async def test_a_loop_that_was_blocked_is_seen_to_be_late(tmp_path: Path) -> None:
    metrics, tasks = Metrics(tmp_path, "worker-0"), Tasks()
    chosen = settings("postgresql://nobody@127.0.0.1:1/none")
    database = Database.from_settings(chosen.database, metrics)
    ledger = Ledger(database, chosen.ledger, tasks, metrics)
    vitals = Vitals(settings=chosen, metrics=metrics, relay=relay(), ledger=ledger)
    delay = metrics.histogram("castgate_event_loop_delay_seconds")
    tasks.start("vitals", vitals.watch_forever())
    await asyncio.sleep(0)
    time.sleep(INTERVAL_S + 0.3)  # noqa: ASYNC251  nobody else gets a turn
    async with asyncio.timeout(5):
        while delay.count == 0:
            await asyncio.sleep(0)
    (late,) = [line for line in render(tmp_path).decode().splitlines() if "loop_delay_seconds_sum" in line]
    assert float(late.split()[-1]) > 0.25
    await tasks.drain(0)
    metrics.close()
