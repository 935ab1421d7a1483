"""The processes of ``./dev up``, and the signals that end them.

A signal never interrupts a step: its handler only notes it, and every wait looks there (``check``). So whatever was
started is known, and stopped, whenever the signal comes; if we are killed, the children end as well (``tether``).
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from gateway import tether

START_TIMEOUT_S = 30.0
POLL_S = 0.02
WATCH_POLL_S = 0.1
# timeout(1) and closing terminals send two signals at once and mean one; a person who means "at once" takes longer.
SAME_WISH_S = 0.5
AT_ONCE_TIMEOUT_S = 3.0
KILL_TIMEOUT_S = 5.0


class Stopped(Exception):  # noqa: N818 - not an error
    """Somebody asked us to stop; the text is the signal's name."""


class ChildError(RuntimeError):
    """A process that failed, ended too early, or was not ready in time; the text is for the person at the terminal."""


class Children:
    """Python programs run from ``folder`` with ``environment``, which may change between them."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self._folder = folder
        self._watched: dict[str, subprocess.Popen[bytes]] = {}
        self._first_signal: signal.Signals | None = None
        self._first_signal_s = 0.0
        self._at_once = False

    def handle_signals(self) -> None:
        """From now on SIGINT, SIGTERM and SIGHUP are noted for ``check``; under nohup SIGHUP stays ignored."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._noted)

    def check(self) -> None:
        """Raises Stopped once a signal came."""
        if self._first_signal is not None:
            raise Stopped(self._first_signal.name)

    def watch(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        """Counts a process that somebody else stops among those that must not end before they are told to."""
        self._watched[name] = process

    def finish(self, name: str, *words: str) -> str:
        """Runs Python with ``words`` to its end, and gives its standard output; ChildError says what went wrong."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = self._spawn(words, output, errors)
            try:
                self.wait_until(name, lambda: process.poll() is not None)
            finally:
                self._stop(process, AT_ONCE_TIMEOUT_S)
            output.seek(0)
            errors.seek(0)
            if process.returncode != 0:
                said = errors.read().decode(errors="replace").strip()
                raise ChildError(f"{name}: {said or _ending(process)}")
            return output.read().decode()

    @contextlib.contextmanager
    def running(
        self,
        name: str,
        *words: str,
        stop_timeout_s: float,
        stdout: IO[bytes] | int = subprocess.DEVNULL,
        stderr: IO[bytes] | int = subprocess.DEVNULL,
        started: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Python with ``words``, ready or not, to the end of the block.

        ``started`` is called once it has its files, or cannot have them, so that ours can be closed.
        """
        try:
            process = self._spawn(words, stdout, stderr)
        finally:
            started()
        self._watched[name] = process
        try:
            yield
        finally:
            del self._watched[name]
            self._stop(process, stop_timeout_s)

    def wait_until(self, name: str, done: Callable[[], bool]) -> None:
        """Until ``done``; raises what ``wait`` raises, and ChildError, which says ``name``, if it takes too long."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not done():
            self._check_all()
            if time.monotonic() > deadline_s:
                raise ChildError(f"{name} is not ready after {START_TIMEOUT_S:g} s")
            time.sleep(POLL_S)

    def wait(self) -> None:
        """Until a signal comes (Stopped) or a process ends by itself (ChildError)."""
        while True:
            self._check_all()
            time.sleep(WATCH_POLL_S)

    def _check_all(self) -> None:
        self.check()
        for name, process in self._watched.items():
            if process.poll() is not None:
                raise ChildError(f"{name} ended by itself: {_ending(process)}")

    def _spawn(
        self, words: tuple[str, ...], stdout: IO[bytes] | int, stderr: IO[bytes] | int
    ) -> "subprocess.Popen[bytes]":
        """In a session of its own: a Ctrl-C at the terminal reaches only us, who stop things in order."""
        return subprocess.Popen(
            tether.command([sys.executable, *words], dies_by=signal.SIGTERM),
            cwd=self._folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def _stop(self, process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
        """SIGTERM, once more where somebody is in a hurry, SIGKILL at the end of the time."""
        if process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + timeout_s
        hurried = False
        while process.poll() is None and time.monotonic() < deadline_s:
            if self._at_once and not hurried:
                hurried = True
                process.send_signal(signal.SIGTERM)
                deadline_s = min(deadline_s, time.monotonic() + AT_ONCE_TIMEOUT_S)
            time.sleep(POLL_S)
        if process.poll() is None:
            process.kill()
            process.wait(KILL_TIMEOUT_S)

    def _noted(self, number: int, _frame: FrameType | None) -> None:
        if self._first_signal is None:
            self._first_signal = signal.Signals(number)
            self._first_signal_s = time.monotonic()
        elif time.monotonic() - self._first_signal_s > SAME_WISH_S:
            self._at_once = True


def _ending(process: "subprocess.Popen[bytes]") -> str:
    code = process.returncode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
