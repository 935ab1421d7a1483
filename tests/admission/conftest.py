from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.admission.script import Script
from tests.admission.world import Tables, Worker, rules_of

StartWorker = Callable[..., Coroutine[Any, Any, Worker]]


@pytest.fixture
def script(redis_url: str) -> Iterator[Script]:
    script = Script(redis_url)
    yield script
    script.close()


@pytest.fixture
def tables() -> Tables:
    tables = Tables()
    tables.put("a")
    return tables


@pytest.fixture
async def start_worker(redis_url: str, tables: Tables) -> AsyncIterator[StartWorker]:
    """Starts workers that share one Redis and one ledger; they stop after the test."""
    workers: list[Worker] = []

    async def start(worker_id: str = "", *, url: str = redis_url, **options: Any) -> Worker:
        rules = options.pop("rules", None) or rules_of()
        worker = Worker(tables, url, worker_id or f"w{len(workers) + 1}", rules, **options)
        workers.append(worker)
        await worker.admission.start()
        return worker

    yield start
    for worker in workers:
        await worker.stop()


@pytest.fixture
async def worker(start_worker: StartWorker) -> Worker:
    return await start_worker()
