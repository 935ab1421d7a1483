"""A worker that ends by a fault in machine code (Python itself, a library) leaves behind where it was."""

import asyncio
import os
import signal
import time

from bench.processes import is_running, process_tree
from tests.gateways import migrated, running_gateway
from upstream_stub.seed import seed


async def test_a_worker_that_faults_says_where_and_is_replaced(database_url: str, redis_url: str) -> None:
    await seed(database_url)
    await asyncio.to_thread(migrated, database_url)
    with running_gateway(database_url=database_url, redis_url=redis_url, upstream_url="http://127.0.0.1:9") as gateway:
        [worker] = process_tree(gateway.process.pid)[1:]
        os.kill(worker, signal.SIGSEGV)
        deadline_s = time.monotonic() + 20
        while is_running(worker) or not any("signal SIGSEGV" in line for line in gateway.log):
            assert time.monotonic() < deadline_s, "\n".join(gateway.log)
            await asyncio.sleep(0.05)
        log = "\n".join(gateway.log)
        assert "Fatal Python error: Segmentation fault" in log
        assert "worker_main.py" in log.partition("Fatal Python error")[2]
