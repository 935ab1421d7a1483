"""What ``./dev up`` shows: a line for each step with its time, and the gateway's log, passed on.

Showing never stops the work. A terminal that was closed is no error here, and a log that nobody reads (a full pipe, a
terminal held by Ctrl-S) is dropped rather than waited for, since a gateway that waits to write its log serves nobody.
"""

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Iterator

NAME_COLUMNS = 14
DETAIL_COLUMNS = 44
WRITE_WAIT_S = 0.2  # for a reader that is merely slow
# What a pipe that select(2) calls writable takes without blocking (POSIX: PIPE_BUF is never less).
PIECE_BYTES = 512
READ_BYTES = 65_536

_BOLD, _DIM, _GREEN, _RED, _PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m"


class Progress:
    """Lines on standard output; colours, and lines that say what is under way, on a terminal only."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colours = self._terminal and not os.environ.get("NO_COLOR")
        self.started_s = time.monotonic()

    def say(self, text: str = "") -> None:
        with contextlib.suppress(OSError, ValueError):
            print(text, flush=True)

    def fail(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(self._in(_RED, "castgate: ") + text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator["Step"]:
        """One line, once the step is over: what it made (set ``detail``) and how long that took."""
        step = Step()
        started_s = time.monotonic()
        if self._terminal:
            self._write(f"  {self._in(_DIM, name + ' …')}\r")
        try:
            yield step
        except BaseException:
            if self._terminal:
                self._write("\033[K")
            raise
        took = self._in(_DIM, f"{time.monotonic() - started_s:4.1f} s")
        self._write("\033[K" if self._terminal else "")
        self.say(f"  {self._in(_GREEN, name.ljust(NAME_COLUMNS))} {step.detail.ljust(DETAIL_COLUMNS)} {took}")

    def bold(self, text: str) -> str:
        return self._in(_BOLD, text)

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colours else text

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text)
            sys.stdout.flush()


class Step:
    """What a step made, for its line."""

    detail = ""


class LogPump:
    """Copies what a child writes into a pipe to our standard error, and drops what nobody takes."""

    def __init__(self, to_fd: int = 2) -> None:
        self._to_fd = to_fd
        self._read_fd, self.write_fd = os.pipe()
        self._thread = threading.Thread(target=self._pump, name="log pump", daemon=True)

    def start(self) -> None:
        """Begins to read; call it when the child has the other end, which is closed here."""
        os.close(self.write_fd)
        self._thread.start()

    def finish(self, timeout_s: float = 1.0) -> None:
        """Waits until all that the child wrote before it ended is shown."""
        self._thread.join(timeout_s)

    def _pump(self) -> None:
        dropped_bytes = 0
        while data := os.read(self._read_fd, READ_BYTES):
            if dropped_bytes and self._show(f"castgate: {dropped_bytes} bytes of log dropped, unread\n".encode()):
                dropped_bytes = 0
            if not self._show(data):
                dropped_bytes += len(data)
        os.close(self._read_fd)

    def _show(self, data: bytes) -> bool:
        try:
            for start in range(0, len(data), PIECE_BYTES):
                if not select.select((), (self._to_fd,), (), WRITE_WAIT_S)[1]:
                    return False
                os.write(self._to_fd, data[start : start + PIECE_BYTES])
        except OSError:
            return False
        return True
