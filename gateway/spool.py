"""Where charged calls wait on the disk while Postgres is away, so that no end of this process can lose them.

The ledger gives events away (``spill``) and forgets them. They gather in memory for ``fsync_interval_s``, and are then
written and fsynced as one group, in a thread: no cast ever waits for the disk, and at most one group is lost with the
process (its calls are still holds in Redis, which a sweeper charges). While one group is on its way to the disk the
next one gathers.

The file being written to is sealed when Postgres is back, or when it is large; sealed files, and those that workers
before us left behind, wait for ``spool_replay``. All of them are locked as long as this process lives.

    state     spill          leaves when
    ready     takes          a group cannot be written -> failing; the bound is reached -> full
    failing   refuses        the pause is over (it doubles, up to a bound) -> ready, for one try
    full      refuses        files are replayed, or removed by hand -> ready

What a refusal leads to is the ledger's to decide (``at_bound``). A group that could not be written goes back to it
(``on_refused``): a disk that is full, gone or read-only costs nothing but the safety that it would have given.
"""

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from gateway.spool_file import SpoolFile, bytes_in, paths_in
from gateway.spool_records import Header
from gateway.usage_events import UsageEvent

if TYPE_CHECKING:
    from gateway.config.settings_stores import Spool as SpoolSettings
    from gateway.metrics import Metrics
    from gateway.tasks import Tasks

# Read whole when it is replayed: some 40,000 events, a quarter of a second of one core.
FILE_BYTES_MAX = 8 * 1024 * 1024
# Waiting for a disk that hangs; some 20 MiB. Beyond it events are better off in the ledger's own queue.
BUFFER_MAX = 50_000
# What an event takes on the disk, about: for those that are not written yet.
EVENT_BYTES = 250
_PAUSE_MIN_S = 0.5
_PAUSE_MAX_S = 30.0
_CLOSE_TIMEOUT_S = 5.0

_log = structlog.get_logger()


def _ignore_refused(_events: Sequence[UsageEvent]) -> None:
    pass


class Spool:
    """The spool as one worker uses it. ``on_refused`` gets back what was taken and could not be written."""

    def __init__(
        self, folder: Path, settings: "SpoolSettings", *, worker_id: str, tasks: "Tasks", metrics: "Metrics"
    ) -> None:
        self.on_refused: Callable[[Sequence[UsageEvent]], None] = _ignore_refused
        self._folder = folder
        self._worker_id = worker_id
        self._tasks = tasks
        self._interval_s = settings.fsync_interval_s
        self._bytes_max = settings.bytes_max
        self._age_max_s = settings.age_max_s
        self._buffer: list[UsageEvent] = []
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()  # closing
        self._file: SpoolFile | None = None  # being written to
        self._waiting: deque[SpoolFile] = deque()  # to be replayed, oldest first
        self._numbers = 0
        self._folder_bytes = 0  # of everybody's files, as last seen
        self._closing = False
        self._is_full = False
        self._failing = ""
        self._pause_s = _PAUSE_MIN_S
        self._retry_at_s = 0.0
        self._bytes = metrics.gauge("castgate_spool_bytes")
        self._events = metrics.gauge("castgate_spool_waiting_events")
        self._oldest = metrics.gauge("castgate_spool_oldest_age_seconds")
        self._full = metrics.gauge("castgate_spool_full")
        self._oldest.set(0)
        self._full.set(0)
        self._results = {
            result: metrics.counter("castgate_spool_events_total", result=result)
            for result in ("spilled", "replayed", "refused")
        }
        self._errors = metrics.counter("castgate_spool_errors_total")

    def __len__(self) -> int:
        """Events that are here, or on their way to the disk."""
        return len(self._buffer) + sum(file.events for file in self._files())

    # --- taking

    def spill(self, events: Sequence[UsageEvent]) -> bool:
        """Take ``events`` on. False where they cannot stay here: then none was taken. Never waits, never raises."""
        if not events:
            return True
        if self._closing or self._cannot_now():
            self._results["refused"].add(len(events))
            return False
        self._buffer += events
        if self._task is None:
            self._task = self._tasks.start("spool.write", self._write())
        return True

    def _cannot_now(self) -> bool:
        if self._failing and time.monotonic() < self._retry_at_s:
            return True
        return self._look_at_bound() or len(self._buffer) >= BUFFER_MAX

    def _look_at_bound(self) -> bool:
        """Whether there is no room, or what is here has been here too long. One line in the log on each change."""
        waiting_bytes = self._folder_bytes + EVENT_BYTES * len(self._buffer)
        oldest_s = self._oldest_age_s()
        is_full = waiting_bytes >= self._bytes_max or oldest_s >= self._age_max_s
        if is_full != self._is_full:
            self._is_full = is_full
            self._full.set(int(is_full))
            if is_full:
                _log.error(
                    "spool_full",
                    bytes=waiting_bytes, bytes_max=self._bytes_max, oldest_s=round(oldest_s), age_max_s=self._age_max_s,
                )  # fmt: skip
            else:
                _log.info("spool_no_longer_full", bytes=waiting_bytes)
        return is_full

    async def _write(self) -> None:
        """Group after group, until nothing waits."""
        try:
            while self._buffer:
                if not self._closing:
                    try:
                        async with asyncio.timeout(self._interval_s):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
                group, self._buffer = self._buffer, []
                try:
                    await asyncio.to_thread(self._store, group)
                except OSError as error:
                    self._failed(error, group)
                else:
                    self._stored(group)
        finally:
            self._task = None

    def _store(self, group: Sequence[UsageEvent]) -> None:
        """In a thread; one at a time."""
        file = self._file
        if file is None:
            self._numbers += 1
            header = Header(worker_id=self._worker_id, created_ms=time.time_ns() // 1_000_000)
            file = self._file = SpoolFile.create(self._folder, header, self._numbers)
        try:
            file.append(group)
        except OSError:
            if not file.events:  # a disk that stays full is tried for days: no empty files are left of that
                self._file = None
                file.remove()
            raise
        self._folder_bytes = bytes_in(self._folder)

    def _stored(self, group: Sequence[UsageEvent]) -> None:
        self._results["spilled"].add(len(group))
        if self._failing:
            _log.info("spool_recovered", was=self._failing)
            self._failing = ""
        self._pause_s = _PAUSE_MIN_S
        file = self._file
        assert file is not None
        if sum(one.events for one in self._files()) == len(group):
            _log.warning("spool_begun", file=file.path.name, events=len(group))
        if file.size_bytes >= FILE_BYTES_MAX:
            self._seal()
        self._tell_size()

    def _failed(self, error: OSError, group: list[UsageEvent]) -> None:
        self._errors.add()
        self._tell_failing(error)
        self._retry_at_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        # What an error left of a file is not built on: the next group begins another one.
        self._seal()
        refused = group + self._buffer
        self._buffer = []
        self._results["refused"].add(len(refused))
        self.on_refused(refused)

    def _tell_failing(self, error: OSError) -> None:
        reason = f"{errno.errorcode.get(error.errno or 0, '')} {error.strerror or error}".strip()
        if reason != self._failing:
            _log.error("spool_failing", reason=reason, folder=str(self._folder), effect="events stay in memory")
            self._failing = reason

    # --- giving back

    def _files(self) -> list[SpoolFile]:
        return [*self._waiting, *([self._file] if self._file is not None else [])]

    def _seal(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._waiting.append(file)

    async def adopt(self) -> int:
        """Take up the files whose workers are gone. Returns how many."""
        try:
            await asyncio.to_thread(os.makedirs, self._folder, 0o700, exist_ok=True)
            found, self._folder_bytes = await asyncio.to_thread(self._take_up)
        except OSError as error:
            self._tell_failing(error)
            return 0
        for file in found:
            _log.warning("spool_taken_up", file=file.path.name, events=file.events, oldest_s=round(file.age_s))
        if found:
            self._waiting = deque(sorted((*self._waiting, *found), key=lambda file: file.header.created_ms))
        self._look_at_bound()
        self._tell_size()
        return len(found)

    def _take_up(self) -> tuple[list[SpoolFile], int]:
        mine = {file.path for file in self._files()}
        found = []
        for path in paths_in(self._folder):
            if path not in mine:
                try:
                    file = SpoolFile.take_up(path)
                except OSError as error:
                    _log.error("spool_file_unreadable", file=path.name, error=error.strerror or str(error))
                    continue
                if file is not None:
                    found.append(file)
        return found, bytes_in(self._folder)

    def next_file(self) -> SpoolFile | None:
        """The oldest file that nobody writes to any more, to be replayed; the one being written to is sealed for it."""
        if not self._waiting and self._task is None:
            self._seal()
        return self._waiting[0] if self._waiting else None

    def later(self, file: SpoolFile) -> None:
        """``file`` cannot be replayed now: the others first."""
        self._waiting.remove(file)
        self._waiting.append(file)

    async def done(self, file: SpoolFile) -> None:
        """``file`` is in Postgres, every event of it."""
        self._waiting.remove(file)
        self._results["replayed"].add(file.events)
        try:
            await asyncio.to_thread(file.remove)
            self._folder_bytes = await asyncio.to_thread(bytes_in, self._folder)
        except OSError as error:
            # It is replayed again by whoever finds it: nothing is counted twice.
            file.close()
            _log.error("spool_file_not_removed", file=file.path.name, error=error.strerror or str(error))
        self._look_at_bound()
        self._tell_size()
        if not len(self):
            _log.info("spool_empty")

    async def close(self) -> None:
        """Write what waits, and let go of all files; the next worker takes them up."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            _, pending = await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT_S)
            if pending:
                _log.error("spool_closed_early", events=len(self._buffer), effect="charged as expired holds")
                return  # the disk hangs; the file is the thread's still
        if len(self):
            _log.warning("spool_left", events=len(self), folder=str(self._folder))
        for file in self._files():
            file.close()
        self._file = None
        self._waiting.clear()

    def _oldest_age_s(self) -> float:
        return max((file.age_s for file in self._files()), default=0.0)

    def _tell_size(self) -> None:
        files = self._files()
        self._bytes.set(sum(file.size_bytes for file in files))
        self._events.set(sum(file.events for file in files))
        self._oldest.set(self._oldest_age_s())
