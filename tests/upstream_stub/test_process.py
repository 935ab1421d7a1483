import asyncio
import os
import signal
import subprocess
import sys

import asyncpg
import pytest
from aiohttp import ClientSession

from tests.upstream_stub.running import ROOT, base_url_when_ready, start_stub, stop_stub, stub_process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stub_cleanly(database_url: str, redis_url: str, number: signal.Signals) -> None:
    process = start_stub(database_url, redis_url)
    base_url_when_ready(process)
    process.send_signal(number)
    assert stop_stub(process) == 0


async def test_an_open_websocket_does_not_hold_up_the_end(database_url: str, redis_url: str) -> None:
    process = start_stub(database_url, redis_url)
    base_url = await asyncio.to_thread(base_url_when_ready, process)
    async with ClientSession(base_url) as session, session.ws_connect("/v1/live") as socket:
        process.terminate()
        await socket.receive()
        assert socket.close_code == 1001
    assert await asyncio.to_thread(stop_stub, process) == 0


async def test_stubs_that_start_at_once_make_the_schema_once(database_url: str, redis_url: str) -> None:
    processes = [start_stub(database_url, redis_url) for _ in range(3)]
    for process in processes:
        await asyncio.to_thread(base_url_when_ready, process)
    connection = await asyncpg.connect(database_url)
    applied = [row["name"] for row in await connection.fetch("SELECT name FROM phase1_migrations ORDER BY name")]
    await connection.close()
    assert applied == ["0001_users.sql", "0002_api_keys.sql", "0003_casts.sql"]
    assert [await asyncio.to_thread(stop_stub, process) for process in processes] == [0, 0, 0]


async def test_a_schema_made_by_hand_is_taken_as_it_is(database_url: str, redis_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    for file in sorted((ROOT / "upstream_stub/migrations").glob("*.sql")):
        await connection.execute(file.read_text())  # as psql -f would, in one go
    await connection.close()
    with stub_process(database_url, redis_url) as stub:
        async with ClientSession(stub.base_url) as session, session.get("/v1/casts") as answer:
            assert answer.status == 401


def test_stores_and_limit_come_from_the_environment(database_url: str, redis_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "STUB_RATE_LIMIT_PER_MINUTE": "many"}
    refused = run_stub(environment)
    assert refused.returncode == 2
    assert "'many' is not a whole number from 0 on" in refused.stderr


def test_a_missing_store_is_named() -> None:
    refused = run_stub({"REDIS_URL": "redis://127.0.0.1:1"})
    assert "--database-url or DATABASE_URL is needed" in refused.stderr


def test_an_unreachable_database_is_one_clear_line(free_port: int) -> None:
    url = f"postgresql://somebody@127.0.0.1:{free_port}/nothing"
    refused = run_stub({"DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1"})
    assert refused.returncode == 1
    assert refused.stderr.startswith("upstream_stub: cannot start: ")
    assert len(refused.stderr.splitlines()) == 1


def test_a_busy_port_is_one_clear_line(database_url: str, redis_url: str) -> None:
    with stub_process(database_url, redis_url) as stub:
        port = stub.base_url.rsplit(":", 1)[1]
        refused = run_stub({"DATABASE_URL": database_url, "REDIS_URL": redis_url}, "--port", port)
    assert refused.returncode == 1
    assert "address already in use" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def run_stub(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    command = [sys.executable, "-m", "upstream_stub", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, timeout=20, check=False
    )
