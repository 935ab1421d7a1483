"""What a worker has in memory: what it was promised to have at most, and nothing that others need and it does not."""

import asyncio
import os
from pathlib import Path

from bench.fast_upstream import FastUpstream
from bench.plain_gateway import allow_many_files
from bench.processes import process_tree
from tests.gateways import migrated, running_gateway
from tests.load import cast_many
from upstream_stub.seed import seed

CONNECTIONS = 1_000
CASTS = 4_000
# docs/performance.md. It is some 65 where this was written; other versions of Python and of libraries differ by a few.
RESIDENT_MIB_MAX = 80
# What reads configuration, what supervises, what only commands need, and libraries of what is off here (billing, spans,
# webhooks). Whatever is imported at the top of a module that a worker has comes along: see docs/decisions/0062.
FOREIGN = (
    *("pydantic", "pydantic_core", "yaml", "click", "stripe", "requests", "httpx", "redis", "multiprocessing"),
    *("gateway.config.loading", "gateway.config.settings", "gateway.config.policies", "gateway.config.yaml_nodes"),
    *("gateway.config.settings_accounts", "gateway.config.settings_connections", "gateway.config.settings_stores"),
    *("gateway.supervisor", "gateway.console", "gateway.cli", "gateway.explain", "gateway.embedded", "gateway.migrate"),
    *("gateway.outbox", "gateway.reloading", "gateway.admin"),
)
# Python imports it at its start (docs: module site): the program under test needs no hook of its own.
_HOOK = """
import atexit, os, sys
if "CASTGATE_WORKER" in os.environ:
    atexit.register(lambda: open({file!r}, "w").write("\\n".join(sys.modules)))
"""


def most_resident_mib(pid: int) -> float:
    """The most that the process ever had (proc(5), VmHWM), shared pages included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


async def test_a_worker_under_a_thousand_connections_has_what_it_needs_and_no_more(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    allow_many_files()
    modules = tmp_path / "modules"
    (tmp_path / "sitecustomize.py").write_text(_HOOK.format(file=str(modules)))
    account = await seed(database_url)
    await asyncio.to_thread(migrated, database_url)
    upstream = await asyncio.get_running_loop().create_server(FastUpstream, "127.0.0.1", 0)
    upstream_url = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    hooked = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    environ = {"PYTHONPATH": hooked, "BILLING_PLAN_DEFAULT": "unlimited"}
    async with upstream:
        with running_gateway(
            database_url=database_url, redis_url=redis_url, upstream_url=upstream_url, environ=environ
        ) as gateway:
            [worker] = [pid for pid in process_tree(gateway.process.pid) if pid != gateway.process.pid]
            statuses = await cast_many([gateway.base_url], account.api_key, CASTS, CONNECTIONS)
            assert statuses == {200: CASTS}
            assert most_resident_mib(worker) <= RESIDENT_MIB_MAX
    loaded = set(modules.read_text().split())
    assert "gateway.relay.relay" in loaded
    assert not loaded.intersection(FOREIGN)
