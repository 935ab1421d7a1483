"""Stubs to test against: inside the test's event loop, or as a process of their own; and accounts at them."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import asyncpg
from aiohttp import web

from upstream_stub.app import Settings, build_app
from upstream_stub.hashing import hash_password, new_api_key, sha256_hex

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 10.0
PASSWORD = "a password for tests"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningStub:
    base_url: str
    database_url: str
    redis_url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    user_id: str
    email: str
    password: str
    api_key: str


@asynccontextmanager
async def stub_here(
    database_url: str, redis_url: str, *, rate_limit_per_minute: int = 60
) -> AsyncIterator[RunningStub]:
    """A stub on the running event loop: quick to start, its coverage and exceptions are the test's."""
    settings = Settings(database_url=database_url, redis_url=redis_url, rate_limit_per_minute=rate_limit_per_minute)
    runner = web.AppRunner(await build_app(settings), access_log=None, shutdown_timeout=1, handler_cancellation=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield RunningStub(
            base_url=f"http://127.0.0.1:{runner.addresses[0][1]}", database_url=database_url, redis_url=redis_url
        )
    finally:
        await runner.cleanup()


@contextmanager
def stub_process(database_url: str, redis_url: str, *, rate_limit_per_minute: int = 60) -> Iterator[RunningStub]:
    """``python -m upstream_stub`` on a free port: for fixtures that live longer than one event loop."""
    process = start_stub(database_url, redis_url, "--rate-limit-per-minute", str(rate_limit_per_minute))
    try:
        yield RunningStub(base_url=base_url_when_ready(process), database_url=database_url, redis_url=redis_url)
    finally:
        stop_stub(process)


def start_stub(database_url: str, redis_url: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "upstream_stub", "--port", "0"]
    stores = ["--database-url", database_url, "--redis-url", redis_url]
    return subprocess.Popen([*command, *stores, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def base_url_when_ready(process: subprocess.Popen[str]) -> str:
    """Blocks until the stub says that it is ready, or has ended (it says why on standard error)."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("upstream_stub ready on "), f"the stub did not start: {line!r}"
    return line.split()[-1]


def stop_stub(process: subprocess.Popen[str]) -> int:
    process.terminate()
    try:
        return process.wait(STOP_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def create_account(database_url: str) -> Account:
    """A new user with one key. All have one password, hashed once: scrypt is slow on purpose."""
    user_id, key = uuid.uuid4(), new_api_key()
    email = f"{user_id.hex}@example.com"
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "INSERT INTO users (id, email, password_hash) VALUES ($1, $2, $3)",
            user_id,
            email,
            await asyncio.to_thread(_password_hash),
        )
        await connection.execute(
            "INSERT INTO api_keys (id, user_id, name, prefix, key_sha256) VALUES ($1, $2, 'tests', $3, $4)",
            uuid.uuid4(),
            user_id,
            key[:9],
            sha256_hex(key),
        )
    finally:
        await connection.close()
    return Account(user_id=str(user_id), email=email, password=PASSWORD, api_key=key)


@cache
def _password_hash() -> str:
    return hash_password(PASSWORD)
