"""``./dev up`` as a process, as a person at a terminal would run it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

READY_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 30.0
# What the environment of whoever runs the tests must not decide.
VARIABLES = (
    *("DATABASE_URL", "REDIS_URL", "UPSTREAM_URL", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_API_BASE"),
    *("COST_PER_CAST_CENTS", "RATE_LIMIT_PER_MINUTE", "BILLING_PLAN_DEFAULT", "PORT", "ADMIN_PORT", "HOST", "WORKERS"),
    *("STRIPE_PRICE_PRO", "BILLING_SUCCESS_URL", "BILLING_CANCEL_URL"),
    *("ADMIN_HOST", "ADMIN_TOKEN", "ADMIN_OPEN_PATHS"),
    *("STUB_RATE_LIMIT_PER_MINUTE", "METRICS_PUBLIC", "CASTGATE_CONFIG", "LOG_FORMAT", "LOG_LEVEL"),
)


class Up:
    """One ``./dev up`` on free ports; its lines are collected as they come."""

    def __init__(self, data_dir: Path, *arguments: str, **environ: str) -> None:
        self.data_dir = data_dir
        inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        ports = [] if "--port" in arguments else ["--port", "0", "--admin-port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.up", "--data-dir", str(data_dir), "--workers", "1", *ports, *arguments],
            env={**inherited, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._news: queue.Queue[None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.out)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.err)),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def demo(self) -> dict[str, str]:
        shown: dict[str, str] = json.loads((self.data_dir / "demo.json").read_text())
        return shown

    def wait_for(self, beginning: str) -> str:
        """The first line of standard output that begins so, leading spaces aside."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            for line in self.out:
                if line.strip().startswith(beginning):
                    return line
            over = self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers)
            assert not over, f"it ended before {beginning!r}: {self.out} {self.err}"
            assert time.monotonic() < deadline_s, f"no {beginning!r}: {self.out} {self.err}"
            try:
                self._news.get(timeout=0.1)
            except queue.Empty:
                continue

    def family(self) -> list[psutil.Process]:
        """Every process that it started, and they in turn."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self) -> int:
        """Its exit code, once it ended and all its lines are here."""
        code = self.process.wait(STOP_TIMEOUT_S)
        for reader in self._readers:
            reader.join(STOP_TIMEOUT_S)
        return code

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _read(self, stream: object, lines: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            lines.append(line.rstrip("\n"))
            self._news.put(None)


@contextmanager
def up(data_dir: Path, *arguments: str, **environ: str) -> Iterator[Up]:
    """A running one, ready or not; stopped at the end, if it still runs."""
    one = Up(data_dir, *arguments, **environ)
    try:
        yield one
    finally:
        one.close()


def all_gone(processes: list[psutil.Process], timeout_s: float = 15.0) -> bool:
    """Whether all of them end within the time; zombies, which wait for their parent to look, have ended."""
    deadline_s = time.monotonic() + timeout_s
    while any(_runs(process) for process in processes):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
