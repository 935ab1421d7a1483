"""Hot reload, as the supervisor does it: on SIGHUP and on a change of the files, in all workers together.

The configuration is read here first, and workers hear of it only if nothing is wrong with it. Then in two steps:
``prepare`` (each worker reads it and builds what it needs, beside what it serves with) and, when every ready worker has
said that it could, ``take`` (each swaps at once, between two events of its loop). What one of them cannot prepare none
of them takes. A request keeps the rules that it began with; a worker that starts meanwhile is told again.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import structlog

from gateway import accepted
from gateway.config import ConfigError, Loaded, Settings
from gateway.metrics import Metrics
from gateway.versions import FAILED, REJECTED, Versions
from gateway.worker_process import ENDED, READY, WorkerProcess

WATCH_INTERVAL_S = 1.0
# For a worker to prepare: 5,000 policies take it some 100 ms; one that is silent for longer is stuck.
PREPARE_TIMEOUT_S = 10.0

_log = structlog.get_logger()


class Reloading:
    """The configuration in force, and how it is replaced."""

    def __init__(
        self,
        *,
        loaded: Loaded,
        load: Callable[[], Loaded],
        runtime_dir: Path,
        metrics: Metrics,
        workers: Collection[WorkerProcess],
    ) -> None:
        """``workers`` are those of the moment, whatever they are doing; ``load`` reads the files anew."""
        self.loaded = loaded
        self.versions = Versions(loaded.rules)
        self._load = load
        self._runtime_dir = runtime_dir
        self._metrics = metrics
        self._workers = workers
        self._one_at_a_time = asyncio.Lock()
        self._known = _fingerprint(loaded)  # of the files when they were last read
        self._answers: dict[WorkerProcess, str] = {}  # to ``prepare``: blank where it could, else why not
        self._answered = asyncio.Event()
        accepted.keep(runtime_dir, loaded)

    async def reload(self, by: str) -> None:
        """Read the configuration; have it taken if it is right, and say all that is wrong if it is not."""
        async with self._one_at_a_time:
            self._known = before = _fingerprint(self.loaded)
            try:
                loaded = await asyncio.to_thread(self._load)
            except ConfigError as error:
                problems = [str(problem) for problem in error.problems]
                self._refused(by, REJECTED, problems)
                return
            try:
                problems = await self._prepare(loaded)
            except OSError as error:
                problems = [f"cannot be kept for the workers: {error.strerror or error}"]
            if problems:
                accepted.withdraw(self._runtime_dir)
                self._refused(by, FAILED, problems)
                return
            accepted.accept(self._runtime_dir)
            waiting = changed_sections(self.loaded.settings, loaded.settings)
            if _fingerprint(self.loaded) == before:  # else somebody writes on: the watch reads it again
                self._known = _fingerprint(loaded)  # perhaps of other files than before
            self.loaded = loaded
            for worker in self._workers:
                worker.tell("take")
            changed = self.versions.accepted(loaded.rules, by)
        self._metrics.counter("castgate_config_reloads_total", result="ok").add()
        differences = [str(change) for change in changed]
        _log.info("reload_accepted", reason=by, version=loaded.rules.version, changes=differences)
        for warning in loaded.warnings:
            _log.warning("configuration", warning=warning)
        if waiting:
            _log.warning("restart_needed", sections=waiting)

    async def watch(self) -> None:
        """Reload after a change of the files, once they have stayed the same for one interval: editors write twice."""
        seen = self._known
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            last, seen = seen, _fingerprint(self.loaded)
            if seen == last and seen != self._known:
                await self.reload("files changed")

    def heard(self, worker: WorkerProcess, event: str, text: str) -> None:
        """What a worker says: ``ready`` with its version, ``prepared``, ``reload_failed`` with why."""
        if event == "ready" and text and text != self.loaded.rules.version:
            # It read what was in force when it started, and was told nothing since.
            worker.tell("prepare")
            worker.tell("take")
        elif event in ("prepared", "reload_failed"):
            self._answers[worker] = text if event == "reload_failed" else ""
            self._answered.set()

    def ended(self) -> None:
        """A worker has ended: nobody waits for it."""
        self._answered.set()

    async def _prepare(self, loaded: Loaded) -> list[str]:
        """Why a worker cannot take it; none where all can."""
        accepted.offer(self._runtime_dir, loaded)
        asked = [worker for worker in self._workers if worker.state == READY]
        self._answers.clear()
        for worker in self._workers:
            worker.tell("prepare")
        with suppress(TimeoutError):
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                while any(worker not in self._answers and worker.state != ENDED for worker in asked):
                    self._answered.clear()
                    await self._answered.wait()
        silent = f"did not answer within {PREPARE_TIMEOUT_S:g} s"
        answers = {worker: self._answers.get(worker, silent) for worker in asked if worker.state != ENDED}
        return [f"worker {worker.index}: {why}" for worker, why in answers.items() if why]

    def _refused(self, by: str, result: str, problems: list[str]) -> None:
        self._metrics.counter("castgate_config_reloads_total", result=result).add()
        self.versions.refused(by, result, problems)
        event = "reload_rejected" if result == REJECTED else "reload_failed"
        _log.error(event, reason=by, kept=self.loaded.rules.version, problems=problems)


def changed_sections(old: Settings, new: Settings) -> list[str]:
    """What of config.yaml differs and is read at a worker's start only; the drain time-out is the supervisor's."""
    names = [name for name in Settings.model_fields if name != "drain_timeout_s"]
    return [name.removesuffix("_s") for name in names if getattr(old, name) != getattr(new, name)]


def _fingerprint(loaded: Loaded) -> tuple[tuple[str, int, int, int], ...]:
    """Changes with any file of the configuration, and with the policies' folder: a new file is a change too."""
    marks: list[tuple[str, int, int, int]] = []
    config, *policies = loaded.files
    for path in sorted({config, *policies, *(path.parent for path in policies), *loaded.other_files}):
        with suppress(OSError):
            about = path.stat()
            marks.append((str(path), about.st_mtime_ns, about.st_size, about.st_ino))
    return tuple(marks)
