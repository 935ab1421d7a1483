"""``castgate serve``: one supervisor, N workers, one port.

The supervisor owns what must outlive a worker: the listening sockets, the metrics' folder, the admin listener. Each
worker slot has a socket of its own on the shared port; a worker started anew gets its slot's socket, with the
connections that wait in it. A slot is kept filled: a worker that ends is replaced after a pause that doubles while
replacements fail. Only until all workers were ready once is a worker's early end the end of the whole: then the fault
is likely in what we were started with, and the person who did so is still looking.

Stopping (SIGTERM, SIGINT): workers drain; what is left after the drain time-out gets SIGTERM, then SIGKILL. A second
signal skips to SIGKILL. SIGHUP, or a change of the files, reloads (``gateway.reloading``). SIGUSR2 replaces the workers
one by one: the successor is ready on the same socket before its predecessor drains.
"""

import asyncio
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from gateway.admin import Status, serve_admin
from gateway.admin_policies import policy_routes
from gateway.build import build_version
from gateway.config import Loaded
from gateway.console.app import Console, opened
from gateway.listening import listen, refuse_new, url_of
from gateway.metrics import Metrics
from gateway.reloading import Reloading
from gateway.runtime_folder import runtime_folder
from gateway.tasks import Tasks
from gateway.worker_process import ENDED, READY, WorkerProcess, WorkerStart, start_worker

START_TIMEOUT_S = 30.0  # a worker waits for no store, so it is ready within a second or two even on a busy machine
# Beyond the drain time-out, which the workers keep by themselves: they flush what they hold, and end.
DRAIN_MARGIN_S = 3.0
TERMINATE_WAIT_S = 1.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
# Ready for this long, a worker's end is news, and the pause before the next begins at its first value again.
BACKOFF_FORGET_S = 10.0
ADMIN_BACKLOG = 64

EXIT_STOPPED = 0
EXIT_AT_ONCE = 130  # as a shell says of a program that SIGINT ended

_log = structlog.get_logger()


class NotStartedError(Exception):
    """A worker could not start; one line for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line says in place of the configuration."""

    port: int | None = None
    admin_port: int | None = None
    workers: int | None = None


@dataclass(slots=True, kw_only=True)
class _Slot:
    index: int
    listener: socket.socket
    worker: WorkerProcess | None = None
    starts: int = 0
    backoff_s: float = BACKOFF_FIRST_S


class Supervisor:
    """One run of ``castgate serve``."""

    def __init__(
        self,
        *,
        config: Path,
        loaded: Loaded,
        load: Callable[[], Loaded],
        overrides: Overrides,
        announce: Callable[[str], None],
        worker_module: str = "gateway.worker_main",
    ) -> None:
        """Take the ports. Raises ListenError.

        ``loaded`` is what ``load`` reads anew from ``config`` at each reload; ``announce`` gets the line that says
        where we serve.
        """
        self._config = config
        self._load = load
        self._first = loaded
        self._announce = announce
        self._module = worker_module
        self._gateway_id = secrets.token_hex(8)
        settings = loaded.settings
        port = settings.listen.port if overrides.port is None else overrides.port
        admin_port = settings.admin.port if overrides.admin_port is None else overrides.admin_port
        count = overrides.workers or settings.workers
        with ExitStack() as cleanup:
            listeners = listen(settings.listen.host, port, count=count, backlog=settings.listen.backlog)
            for listener in listeners:
                cleanup.callback(listener.close)
            [self._admin_listener] = listen(settings.admin.host, admin_port, count=1, backlog=ADMIN_BACKLOG)
            cleanup.callback(self._admin_listener.close)
            self._sockets = cleanup.pop_all()
        self._slots = [_Slot(index=index, listener=listener) for index, listener in enumerate(listeners)]
        self._processes: set[WorkerProcess] = set()
        self._attending = Tasks()  # one for each process, until it has ended
        self._deciding = Tasks()  # those that start processes: they end first
        self._announced = False
        self._replacing = False
        self._draining = False
        self._fault = ""
        self._stop_wanted = asyncio.Event()
        self._at_once = False
        self._something_ended = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal ends it; returns the exit code. Raises NotStartedError."""
        async with AsyncExitStack() as cleanup:
            cleanup.enter_context(self._sockets)
            self._runtime_dir = cleanup.enter_context(runtime_folder())
            self._metrics = Metrics(self._runtime_dir, "supervisor")
            cleanup.callback(self._metrics.close)
            self._reloading = Reloading(
                loaded=self._first,
                load=self._load,
                runtime_dir=self._runtime_dir,
                metrics=self._metrics,
                workers=self._processes,
            )
            self._ready_gauge = self._metrics.gauge("castgate_workers_ready")
            self._metrics.gauge("castgate_workers_wanted").set(len(self._slots))
            console = await cleanup.enter_async_context(self._console())
            admin = await serve_admin(
                self._admin_listener,
                self._status,
                self._runtime_dir,
                (*console.routes(), *policy_routes(lambda: self._reloading, console.explained, console.guarded)),
                settings=self._first.settings.admin,
                lets_in=console.lets_in,
            )
            cleanup.push_async_callback(admin.cleanup)
            self._handle_signals()
            for slot in self._slots:
                self._deciding.start(f"keep worker {slot.index}", self._keep(slot))
            self._deciding.start("watch configuration", self._reloading.watch())
            await self._stop_wanted.wait()
            await self._stop()
        if self._fault:
            raise NotStartedError(self._fault)
        return EXIT_AT_ONCE if self._at_once else EXIT_STOPPED

    def _console(self) -> AbstractAsyncContextManager[Console]:
        def about() -> dict[str, object]:
            status = self._status()
            workers = {"ready": status.workers_ready, "alive": status.workers_alive, "wanted": status.workers_wanted}
            return {"version": build_version(), "draining": status.draining, "workers": workers}

        return opened(
            loaded=lambda: self._reloading.loaded,
            metrics=self._metrics,
            runtime_dir=self._runtime_dir,
            about=about,
        )

    def _status(self) -> Status:
        return Status(
            draining=self._draining,
            workers_wanted=len(self._slots),
            workers_alive=len(self._processes),
            workers_ready=sum(worker.state == READY for worker in self._processes),
        )

    # What it is asked to do

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload, "SIGHUP")
        loop.add_signal_handler(signal.SIGUSR2, self._asked_to_replace)

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if self._stop_wanted.is_set():
            _log.warning("stopping_at_once", signal=number.name)
            self._at_once = True
            self._something_ended.set()  # whoever waits for workers looks again
            return
        _log.info("stopping", signal=number.name, drain_timeout_s=self._reloading.loaded.settings.drain_timeout_s)
        self._stop_wanted.set()

    def _asked_to_reload(self, reason: str) -> None:
        self._deciding.start("reload", self._reloading.reload(reason))

    def _asked_to_replace(self) -> None:
        if not self._replacing and not self._draining:
            self._replacing = True
            self._deciding.start("replace workers", self._replace_all())

    # Workers

    async def _keep(self, slot: _Slot) -> None:
        """Keep one slot filled, from the first worker on."""
        try:
            slot.worker = await self._start(slot)
            while True:
                worker = slot.worker
                await worker.ended.wait()
                if slot.worker is not worker:
                    continue  # it was replaced; its successor is the one to keep
                error = worker.error or None
                _log.error("worker_ended", worker=slot.index, pid=worker.pid, how=worker.ending, error=error)
                if not self._announced and not worker.was_ready:
                    self._give_up(f"worker {slot.index} could not start: {error or worker.ending}")
                    return
                if worker.was_ready and time.monotonic() - worker.ready_since_s >= BACKOFF_FORGET_S:
                    slot.backoff_s = BACKOFF_FIRST_S
                await asyncio.sleep(slot.backoff_s)
                slot.backoff_s = min(slot.backoff_s * 2, BACKOFF_MAX_S)
                if slot.worker is worker:
                    self._metrics.counter("castgate_worker_restarts_total", reason=worker.ending_kind).add()
                    slot.worker = await self._start(slot)
        except OSError as error:
            self._give_up(f"worker {slot.index} could not start: {error.strerror or error}")

    def _give_up(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._stop_wanted.set()

    async def _start(self, slot: _Slot) -> WorkerProcess:
        slot.starts += 1
        told = WorkerStart(
            index=slot.index,
            start=slot.starts,
            config=self._config,
            runtime_dir=self._runtime_dir,
            gateway_id=self._gateway_id,
        )
        worker = await start_worker(told, slot.listener, self._module, self._heard)
        self._processes.add(worker)
        self._attending.start(f"attend worker {worker.pid}", self._attend(worker))
        self._attending.start(f"time worker {worker.pid}", self._limit_start(worker))
        return worker

    async def _attend(self, worker: WorkerProcess) -> None:
        await worker.attend()
        self._processes.discard(worker)
        self._count_ready()
        self._reloading.ended()
        self._something_ended.set()

    async def _limit_start(self, worker: WorkerProcess) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker.settled.wait()
        except TimeoutError:
            worker.error = f"not ready within {START_TIMEOUT_S:g} s"
            worker.send_signal(signal.SIGKILL)

    def _heard(self, worker: WorkerProcess, event: str, text: str) -> None:
        self._count_ready()
        self._reloading.heard(worker, event, text)
        if event == "ready":
            _log.info("worker_ready", worker=worker.index, pid=worker.pid)
            self._announce_if_ready()
        elif event == "reloaded":
            _log.info("worker_reloaded", worker=worker.index, version=text)

    def _count_ready(self) -> None:
        self._ready_gauge.set(self._status().workers_ready)

    def _announce_if_ready(self) -> None:
        if self._announced or any(slot.worker is None or slot.worker.state != READY for slot in self._slots):
            return
        self._announced = True
        scheme = "https" if self._first.settings.listen.tls.files else "http"
        count = len(self._slots)
        self._announce(
            f"castgate ready on {url_of(self._slots[0].listener, scheme)} (admin {url_of(self._admin_listener)}), "
            f"{count} worker{'s' if count > 1 else ''}"
        )

    async def _replace_all(self) -> None:
        """One worker after the other; the first successor that fails ends it, and its predecessor stays."""
        try:
            for slot in self._slots:
                successor = await self._start(slot)
                await successor.settled.wait()
                if successor.state != READY:
                    _log.error("replacement_failed", worker=slot.index, error=successor.error or successor.ending)
                    return
                predecessor, slot.worker = slot.worker, successor
                self._metrics.counter("castgate_worker_restarts_total", reason="replace").add()
                _log.info("worker_replaced", worker=slot.index, pid=successor.pid)
                if predecessor is not None:
                    await self._end([predecessor])
        except OSError as error:
            _log.error("replacement_failed", error=error.strerror or str(error))
        finally:
            self._replacing = False

    # The end

    async def _stop(self) -> None:
        self._draining = True
        await self._deciding.drain(0.0)
        for slot in self._slots:
            # What connects from here on goes to no queue that nobody reads; workers still take what waits in theirs.
            refuse_new(slot.listener)
            slot.listener.close()
        await self._end(self._processes)
        await self._attending.drain(TERMINATE_WAIT_S)
        _log.info("stopped")

    async def _end(self, workers: Iterable[WorkerProcess]) -> None:
        """Drain, then SIGTERM, then SIGKILL; a second stop signal goes straight to the last."""
        left = set(workers)
        for worker in left:
            worker.tell("drain")
        drain_s = self._reloading.loaded.settings.drain_timeout_s + DRAIN_MARGIN_S
        for wait_s, number in ((drain_s, signal.SIGTERM), (TERMINATE_WAIT_S, signal.SIGKILL)):
            left = await self._wait_for_ends(left, wait_s)
            harder = signal.SIGKILL if self._at_once else number
            for worker in left:
                _log.warning("worker_forced", worker=worker.index, pid=worker.pid, signal=harder.name)
                worker.send_signal(harder)
        for worker in left:
            await worker.ended.wait()

    async def _wait_for_ends(self, workers: set[WorkerProcess], timeout_s: float) -> set[WorkerProcess]:
        """Wait until all have ended, for ``timeout_s``, or for a second signal; returns those that are still there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._at_once and any(worker.state != ENDED for worker in workers):
                    self._something_ended.clear()
                    await self._something_ended.wait()
        return {worker for worker in workers if worker.state != ENDED}
