"""One worker process as the supervisor sees it: started with its sockets, told things, heard from, waited for.

Both talk in JSON lines over a socket pair. The worker says ``{"event": "ready"}`` (with ``version``), ``stopping``,
``prepared`` and ``reloaded`` (with ``version``), ``reload_failed`` (with ``error``) and ``failed`` (with ``error``: why
it cannot start); it is told ``{"op": "drain"}``, ``{"op": "prepare"}`` and ``{"op": "take"}``. The end of the file is a
message as well: at the worker, that its supervisor is gone, so that it drains by itself; here, that the worker is about
to end.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A line holds one event; the longest is the text of a refused configuration.
CONTROL_LINE_BYTES_MAX = 256 * 1024
ENVIRONMENT_VARIABLE = "CASTGATE_WORKER"

STARTING = "starting"
READY = "ready"
DRAINING = "draining"
ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStart:
    """What a worker is told at its start. ``start`` counts the processes of one index."""

    index: int
    start: int
    config: Path
    runtime_dir: Path
    gateway_id: str


class WorkerProcess:
    """A process from its start to its end. State: starting → ready → draining → ended; any may go to ended at once."""

    def __init__(
        self,
        told: WorkerStart,
        process: asyncio.subprocess.Process,
        control: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        on_event: "Callable[[WorkerProcess, str, str], None]",
    ) -> None:
        self.index = told.index
        self.start = told.start
        self.pid = process.pid
        self.state = STARTING
        self.was_ready = False
        self.ready_since_s = 0.0
        self.error = ""  # what the worker said before it ended
        self.settled = asyncio.Event()  # it is ready, or it never will be
        self.ended = asyncio.Event()
        self._process = process
        self._reader, self._writer = control
        self._on_event = on_event

    @property
    def return_code(self) -> int | None:
        """As in subprocess: negative is the signal that ended it; None while it runs."""
        return self._process.returncode

    @property
    def ending(self) -> str:
        """How it ended, for people."""
        code = self.return_code or 0
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"signal {-code}"

    @property
    def ending_kind(self) -> str:
        """``signal`` or ``exit``."""
        return "signal" if (self.return_code or 0) < 0 else "exit"

    async def attend(self) -> None:
        """Hear what the worker says until it has ended."""
        with suppress(OSError, ValueError):  # ValueError: a line beyond the limit; what follows is of no use either
            while line := await self._reader.readline():
                self._heard(line)
        await self._process.wait()
        self.state = ENDED
        self.settled.set()
        self.ended.set()
        self._writer.close()

    def tell(self, op: str) -> None:
        """Send one order; a worker that is gone does not miss it."""
        if op == "drain" and self.state != ENDED:
            self.state = DRAINING
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"op": op}).encode() + b"\n")

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process, if it is still there."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _heard(self, line: bytes) -> None:
        try:
            message: Any = json.loads(line)
            event = str(message["event"])
        except (ValueError, KeyError, TypeError):
            event, message = "garbled", {}
        text = str(message.get("error") or message.get("version") or "")
        if event == "ready" and self.state == STARTING:
            self.state = READY
            self.was_ready = True
            self.ready_since_s = time.monotonic()
            self.settled.set()
        elif event == "stopping" and self.state != ENDED:
            self.state = DRAINING
        elif event == "failed":
            self.error = text
        self._on_event(self, event, text)


async def start_worker(
    told: WorkerStart,
    listener: socket.socket,
    module: str,
    on_event: Callable[[WorkerProcess, str, str], None],
) -> WorkerProcess:
    """Run ``python -m module`` on ``listener``; ``attend`` must be awaited from then on. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        message = {
            "index": told.index,
            "start": told.start,
            "listen_fd": listener.fileno(),
            "control_fd": theirs.fileno(),
            "config": str(told.config),
            "runtime_dir": str(told.runtime_dir),
            "gateway_id": told.gateway_id,
        }
        control = await asyncio.open_connection(sock=ours, limit=CONTROL_LINE_BYTES_MAX)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(listener.fileno(), theirs.fileno()),
                env={**os.environ, ENVIRONMENT_VARIABLE: json.dumps(message)},
                # A Ctrl-C at the terminal reaches the supervisor alone, which then drains the workers.
                process_group=0,
            )
        except BaseException:
            control[1].close()
            raise
    return WorkerProcess(told, process, control, on_event)
