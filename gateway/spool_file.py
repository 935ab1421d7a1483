"""One file of the spool on disk: made, appended to, read and removed by whoever holds its lock, and by nobody else.

The lock (flock) is the kernel's: it ends with the process, however that ends, so a file without one is a file whose
worker is gone, and anybody may take it up. A file appears under its name only once it is locked and has its header.
All calls here block on the disk: they belong in a thread.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from gateway.spool_records import Contents, Header, packed_events, packed_header, read_contents
from gateway.usage_events import UsageEvent

SUFFIX = ".spool"
_UNFINISHED_SUFFIX = ".new"
_DAMAGED_SUFFIX = ".damaged"
# A file that nobody finished within this time never will be.
_UNFINISHED_AFTER_S = 60.0

_log = structlog.get_logger()


class SpoolFile:
    """An open, locked file. ``events`` counts its whole records; what is ``damaged`` in part is not deleted, ever."""

    def __init__(self, path: Path, fd: int, header: Header, *, size_bytes: int, events: int, damaged: bool) -> None:
        self.path = path
        self.header = header
        self.size_bytes = size_bytes
        self.events = events
        self.damaged = damaged
        self._fd = fd

    @classmethod
    def create(cls, folder: Path, header: Header, number: int) -> "SpoolFile":
        """A new, empty one. Raises OSError, and then leaves nothing behind."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The names sort by age; whose a file is, is in its header, and in its name for people.
        path = folder / f"{header.created_ms}-{header.worker_id}-{number}{SUFFIX}"
        unfinished = path.with_suffix(_UNFINISHED_SUFFIX)
        fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            record = packed_header(header)
            _write_all(fd, record, 0)
            os.fsync(fd)
            unfinished.rename(path)
            _sync_folder(folder)
        except BaseException:
            for name in (unfinished, path):
                name.unlink(missing_ok=True)
            os.close(fd)
            raise
        return cls(path, fd, header, size_bytes=len(record), events=0, damaged=False)

    @classmethod
    def take_up(cls, path: Path) -> "SpoolFile | None":
        """The file at ``path`` with its torn tail cut off; None where somebody has it, or it is gone or empty.

        Raises OSError.
        """
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.fstat(fd).st_nlink > 0
            contents = _contents(fd)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        if not is_there:
            os.close(fd)
            return None
        return cls._taken_up(path, fd, contents)

    @classmethod
    def _taken_up(cls, path: Path, fd: int, contents: Contents) -> "SpoolFile | None":
        if contents.torn_bytes:
            _log.warning(
                "spool_file_torn", file=path.name, cut_bytes=contents.torn_bytes, kept_events=len(contents.payloads)
            )
        if contents.damaged_bytes:
            _log.error("spool_file_damaged", file=path.name, bytes=contents.damaged_bytes, kept=_DAMAGED_SUFFIX)
        # Without its header the holds of its events are not found from here; a sweeper finds them.
        header = contents.header or Header(worker_id="", created_ms=_age_mark(fd))
        file = cls(
            path,
            fd,
            header,
            size_bytes=contents.whole_bytes,
            events=len(contents.payloads),
            damaged=contents.damaged_bytes > 0,
        )
        if not contents.payloads:
            file.remove()
            return None
        if contents.torn_bytes:
            with contextlib.suppress(OSError):  # it is only cut so that nobody reads it again
                os.ftruncate(fd, contents.whole_bytes)
        return file

    @property
    def age_s(self) -> float:
        """How long its oldest event has been waiting."""
        return max(0.0, time.time() - self.header.created_ms / 1000)

    def append(self, events: Sequence[UsageEvent]) -> None:
        """Write ``events`` through to the disk. Raises OSError: then they are not in the file, and it takes no more."""
        data = packed_events(events)
        try:
            _write_all(self._fd, data, self.size_bytes)
            os.fdatasync(self._fd)
        except OSError:
            # A tail that cannot even be cut is torn, and every reader leaves it out.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size_bytes)
            raise
        self.size_bytes += len(data)
        self.events += len(events)

    def payloads(self) -> tuple[bytes, ...]:
        """Its events, as they were written. Raises OSError."""
        return _contents(self._fd).payloads

    def remove(self) -> None:
        """Done with: delete it, or put it aside where part of it could not be read. Raises OSError."""
        if self.damaged:
            self.path.rename(self.path.with_suffix(_DAMAGED_SUFFIX))
        else:
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Give the lock up; what is in the file is for whoever takes it up next."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def paths_in(folder: Path) -> list[Path]:
    """The files of the spool, oldest first; none where there is no such folder. Raises OSError."""
    if not folder.is_dir():
        return []
    paths = []
    for path in sorted(folder.iterdir()):
        if path.suffix == SUFFIX:
            paths.append(path)
        elif path.suffix == _UNFINISHED_SUFFIX:
            _remove_left_over(path)
    return paths


def bytes_in(folder: Path) -> int:
    """What all of them take on the disk. Raises OSError."""
    total = 0
    for path in paths_in(folder):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def is_in_use(path: Path) -> bool:
    """Whether a worker, or a replay, has it. Raises OSError."""
    with _opened(path) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def look_into(path: Path) -> Contents:
    """What is in it now, whoever has it. Raises OSError."""
    return read_contents(path.read_bytes())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _contents(fd: int) -> Contents:
    size = os.fstat(fd).st_size
    pieces = []
    at = 0
    while at < size and (piece := os.pread(fd, size - at, at)):
        pieces.append(piece)
        at += len(piece)
    return read_contents(b"".join(pieces))


def _write_all(fd: int, data: bytes, at: int) -> None:
    """A disk that fills up takes part of a write, and refuses the next: only all of it counts."""
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, at)
        left = left[written:]
        at += written


def _sync_folder(folder: Path) -> None:
    with _opened(folder) as fd:
        os.fsync(fd)


def _age_mark(fd: int) -> int:
    return int(os.fstat(fd).st_mtime * 1000)


def _remove_left_over(path: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > _UNFINISHED_AFTER_S:
            path.unlink()
