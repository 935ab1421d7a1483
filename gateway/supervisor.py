"""``castgate serve``: one supervisor, N workers, one port.

The supervisor owns what must outlive a worker: the listening sockets, the metrics' folder, the admin listener. Each worker
slot has a socket of its own on the shared port; a worker started anew gets its slot's socket, with the connections that
wait in it. A slot is kept filled: a worker that ends is replaced after a pause that doubles while replacements fail.
Only before the first worker of all was ready is a worker's end the end of the whole: then the fault is likely ours, and the
person who started us is still looking.

Stopping (SIGTERM, SIGINT): workers drain; what is left after the drain time-out gets SIGTERM, then SIGKILL. A second
signal skips to SIGKILL. SIGHUP, or a change of the files, reloads: the configuration is read here first, and workers
hear of it only if it is accepted. SIGUSR2 replaces the workers one by one: the successor is ready on the same socket before
its predecessor drains.
"""

import asyncio
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from aiohttp import web

from gateway.admin import Status, serve_admin
from gateway.config import ConfigError, Loaded
from gateway.listening import listen, url_of
from gateway.metrics import Metrics
from gateway.metrics_file import is_abandoned
from gateway.tasks import Tasks
from gateway.worker_process import READY, WorkerProcess, WorkerStart, start_worker

START_TIMEOUT_S = 30.0  # a worker waits for no store, so it is ready within a second even on a busy machine
# Beyond the drain time-out, which the workers keep by themselves: they flush what they hold, and end.
DRAIN_MARGIN_S = 3.0
TERMINATE_WAIT_S = 1.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
# Ready for this long, a worker's end is news, and the pause before the next begins at its first value again.
BACKOFF_FORGET_S = 10.0
WATCH_INTERVAL_S = 1.0
# A folder of another gateway that has no living process, and is not just being made, is left over from a SIGKILL.
LEFT_OVER_AFTER_S = 60.0
ADMIN_BACKLOG = 64

EXIT_STOPPED = 0
EXIT_NOT_STARTED = 1
EXIT_AT_ONCE = 130  # as a shell says of a program that SIGINT ended

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line says in place of the configuration."""

    port: int | None = None
    admin_port: int | None = None
    workers: int | None = None


@dataclass(slots=True)
class _Slot:
    index: int
    listener: socket.socket
    worker: WorkerProcess | None = None
    starts: int = 0
    backoff_s: float = BACKOFF_FIRST_S


@dataclass(slots=True)
class _Outcome:
    """What ends a run: a signal, or a fault at the start."""

    decided: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: asyncio.Event = field(default_factory=asyncio.Event)
    fault: str = ""


class Supervisor:
    """One run of ``castgate serve``. ``load`` reads the configuration anew and raises ConfigError, as at the start."""

    def __init__(
        self,
        *,
        config: Path,
        load: Callable[[], Loaded],
        overrides: Overrides,
        announce: Callable[[str], None],
        worker_module: str = "gateway.worker",
    ) -> None:
        self._config = config
        self._load = load
        self._loaded = load()
        settings = self._loaded.settings
        self._drain_timeout_s = settings.drain_timeout_s
        self._announce = announce
        self._module = worker_module
        self._gateway_id = secrets.token_hex(8)
        self._tasks = Tasks()
        self._outcome = _Outcome()
        self._draining = False
        self._announced = False
        self._replacing = False
        self._processes: set[WorkerProcess] = set()
        port = settings.listen.port if overrides.port is None else overrides.port
        admin_port = settings.admin.port if overrides.admin_port is None else overrides.admin_port
        count = overrides.workers or settings.workers
        self._admin_listener = listen(settings.admin.host, admin_port, count=1, backlog=ADMIN_BACKLOG)[0]
        try:
            listeners = listen(settings.listen.host, port, count=count, backlog=settings.listen.backlog)
        except BaseException:
            self._admin_listener.close()
            raise
        self._slots = [_Slot(index, listener) for index, listener in enumerate(listeners)]

    async def run(self) -> int:
        """Serve until a signal says otherwise; the answer is the exit code."""
        _remove_left_over_folders()
        runtime_dir = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))  # mode 0700
        admin: web.AppRunner | None = None
        try:
            self._runtime_dir = runtime_dir
            self._metrics = Metrics(runtime_dir, "supervisor")
            self._ready_gauge = self._metrics.gauge("castgate_workers_ready")
            admin = await serve_admin(self._admin_listener, self._status, runtime_dir)
            self._handle_signals()
            for slot in self._slots:
                self._tasks.start(f"keep worker {slot.index}", self._keep(slot))
            self._tasks.start("watch configuration", self._watch())
            await self._outcome.decided.wait()
            return await self._stop()
        finally:
            if admin is not None:
                await admin.cleanup()
            self._metrics.close()
            shutil.rmtree(runtime_dir, ignore_errors=True)

    # Signals

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)
        loop.add_signal_handler(signal.SIGUSR2, self._asked_to_replace)

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if self._outcome.decided.is_set():
            _log.warning("stopping_at_once", signal=number.name)
            self._outcome.at_once.set()
            return
        _log.info("stopping", signal=number.name, drain_timeout_s=self._drain_timeout_s)
        self._outcome.decided.set()

    def _asked_to_reload(self) -> None:
        if not self._draining:
            self._tasks.start("reload", self._reload("SIGHUP"))

    def _asked_to_replace(self) -> None:
        if not self._draining and not self._replacing:
            self._replacing = True
            self._tasks.start("replace workers", self._replace_all())

    # Workers

    async def _keep(self, slot: _Slot) -> None:
        """Keep one slot filled."""
        try:
            slot.worker = await self._start(slot)
            while not self._draining:
                worker = slot.worker
                await worker.ended.wait()
                if self._draining:
                    return
                if slot.worker is not worker:
                    continue  # replaced; its successor is the one to keep
                self._say_ended(worker)
                if not self._announced and not worker.was_ready:
                    self._outcome.fault = worker.error or f"worker {slot.index} ended with {worker.ending} at its start"
                    self._outcome.decided.set()
                    return
                if worker.was_ready and time.monotonic() - worker.ready_since_s >= BACKOFF_FORGET_S:
                    slot.backoff_s = BACKOFF_FIRST_S
                await asyncio.sleep(slot.backoff_s)
                slot.backoff_s = min(slot.backoff_s * 2, BACKOFF_MAX_S)
                if slot.worker is worker and not self._draining:
                    reason = "signal" if (worker.return_code or 0) < 0 else "exit"
                    self._metrics.counter("castgate_worker_restarts_total", reason=reason).add()
                    slot.worker = await self._start(slot)
        except OSError as error:
            self._outcome.fault = f"cannot start worker {slot.index}: {error.strerror or error}"
            self._outcome.decided.set()

    async def _start(self, slot: _Slot) -> WorkerProcess:
        slot.starts += 1
        told = WorkerStart(
            index=slot.index,
            start=slot.starts,
            config=self._config,
            runtime_dir=self._runtime_dir,
            gateway_id=self._gateway_id,
        )
        worker, control = await start_worker(told, slot.listener, self._module, self._heard)
        self._processes.add(worker)
        self._tasks.start(f"attend worker {worker.pid}", self._attend(worker, control))
        self._tasks.start(f"time worker {worker.pid}", self._limit_start(worker))
        return worker

    async def _attend(self, worker: WorkerProcess, control: socket.socket) -> None:
        await worker.attend(control)
        self._processes.discard(worker)
        self._count_ready()

    async def _limit_start(self, worker: WorkerProcess) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker.settled.wait()
        except TimeoutError:
            worker.error = f"worker {worker.index} was not ready within {START_TIMEOUT_S:g} s"
            worker.send_signal(signal.SIGKILL)

    def _heard(self, worker: WorkerProcess, event: str, text: str) -> None:
        self._count_ready()
        if event == "ready":
            _log.info("worker_ready", worker=worker.index, pid=worker.pid)
            self._announce_if_ready()
        elif event == "reloaded":
            _log.info("worker_reloaded", worker=worker.index, version=text)
        elif event == "reload_failed":
            self._metrics.counter("castgate_config_reloads_total", result="failed").add()
            _log.error("worker_reload_failed", worker=worker.index, error=text)

    def _count_ready(self) -> None:
        self._ready_gauge.set(sum(worker.state == READY for worker in self._processes))

    def _announce_if_ready(self) -> None:
        if self._announced or any(slot.worker is None or slot.worker.state != READY for slot in self._slots):
            return
        self._announced = True
        count = len(self._slots)
        self._announce(
            f"castgate ready on {url_of(self._slots[0].listener)} (admin {url_of(self._admin_listener)}), "
            f"{count} worker{'s' if count > 1 else ''}"
        )

    def _say_ended(self, worker: WorkerProcess) -> None:
        _log.error("worker_ended", worker=worker.index, pid=worker.pid, how=worker.ending, error=worker.error or None)

    async def _replace_all(self) -> None:
        """One worker after the other: the successor is ready before its predecessor drains."""
        try:
            for slot in self._slots:
                successor = await self._start(slot)
                await successor.settled.wait()
                if self._draining:
                    return
                if successor.state != READY:
                    _log.error("replacement_failed", worker=slot.index, how=successor.ending)
                    return
                predecessor, slot.worker = slot.worker, successor
                self._metrics.counter("castgate_worker_restarts_total", reason="replace").add()
                if predecessor is not None:
                    await self._end([predecessor])
        except OSError as error:
            _log.error("replacement_failed", error=error.strerror)
        finally:
            self._replacing = False

    # The end

    async def _stop(self) -> int:
        self._draining = True
        if self._outcome.fault:
            _log.error("not_started", error=self._outcome.fault)
        for slot in self._slots:
            # What connects from here on goes to no queue that nobody reads; workers still take what waits in theirs.
            slot.listener.close()
        await self._end(self._processes)
        for slot in self._slots:
            if slot.worker is not None:
                await slot.worker.ended.wait()
        await self._tasks.drain(0.0)
        if self._outcome.fault:
            self._announce_fault()
            return EXIT_NOT_STARTED
        _log.info("stopped")
        return EXIT_AT_ONCE if self._outcome.at_once.is_set() else EXIT_STOPPED

    async def _end(self, workers: Iterable[WorkerProcess]) -> None:
        """Drain, then SIGTERM, then SIGKILL; a second stop signal goes straight to the last."""
        left = set(workers)
        for worker in left:
            worker.tell("drain")
        for wait_s, harder in (
            (self._drain_timeout_s + DRAIN_MARGIN_S, signal.SIGTERM),
            (TERMINATE_WAIT_S, signal.SIGKILL),
        ):
            left = await self._wait_for_ends(left, wait_s)
            if not left:
                return
            number = signal.SIGKILL if self._outcome.at_once.is_set() else harder
            for worker in left:
                _log.warning("worker_forced", worker=worker.index, pid=worker.pid, signal=number.name)
                worker.send_signal(number)
        for worker in left:
            await worker.ended.wait()
