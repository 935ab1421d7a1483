"""One process' numbers in one memory-mapped file: written with plain stores, read by any other process.

The file has three parts. The header says what it is and which configuration its process runs. The slots are 8-byte
words, integers ('q') or doubles ('d'). The index says which slots belong to which series; it only ever grows.

Crash safety. ``kill -9`` may stop the writer between any two stores, but loses none of those made: the pages are the
kernel's. An entry of the index counts once its length word is there, which is stored last, and its checksum holds;
a torn entry ends the index and is overwritten by the next owner. A series' slots are handed out only after that.

Ownership. The writer holds an exclusive ``flock``, which the kernel gives back however the process ends. A successor
under the same name takes the same file and counts on, so a dead worker takes nothing back and files do not pile up.
While predecessor and successor overlap (rolling replacement), the successor takes the next file of ``FILES_MAX``.
"""

import fcntl
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".v1.metrics"  # another layout gets another number, so that two versions never read each other's files
FILES_MAX = 8  # living processes under one name at a time; two in practice, while one replaces the other
SLOTS_MAX = 16_384  # 128 KiB: about 800 histograms or 16,000 counters
SERIES_MAX = 2_048  # a scrape stays below a megabyte, and a label that runs wild stops growing here
INDEX_BYTES = 512 * 1024
ENTRY_BYTES_MAX = 2_048

_MAGIC = b"castgate"
_NOTE_OFFSET = 64
_NOTE_BYTES_MAX = 128
_SLOTS_OFFSET = 4_096
_INDEX_OFFSET = _SLOTS_OFFSET + SLOTS_MAX * 8
_FILE_BYTES = _INDEX_OFFSET + INDEX_BYTES
_ENTRY_HEAD = struct.Struct("<II")  # length of the text (stored last), its CRC-32
# A reader takes a shared lock for microseconds to see whether the owner lives; an owner tries again that often.
_CLAIM_ATTEMPTS = 5
_CLAIM_PAUSE_S = 0.001


class NoSpaceError(Exception):
    """The index or the slots are full: the series cannot be added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of the index: ``width`` slots from ``slot`` on belong to this metric with these labels."""

    kind: str
    name: str
    labels: tuple[tuple[str, str], ...]
    slot: int
    width: int


class MetricsFile:
    """The owner's side. Made by ``claim`` (a file) or ``private`` (memory that nobody else reads)."""

    def __init__(self, memory: mmap.mmap, fd: int | None) -> None:
        self._memory = memory
        self._fd = fd
        self._view = memoryview(memory)
        self.integers = self._view[_SLOTS_OFFSET:_INDEX_OFFSET].cast("q")
        self.doubles = self._view[_SLOTS_OFFSET:_INDEX_OFFSET].cast("d")
        if memory[: len(_MAGIC)] != _MAGIC:
            self._view[: len(_MAGIC)] = _MAGIC
        self.series = list(_entries(self._view))
        self._end = _INDEX_OFFSET + sum(_entry_bytes(_text_of(one)) for one in self.series)
        self._next_slot = max((one.slot + one.width for one in self.series), default=0)
        # What a predecessor left half written must not look like the entry after the next one.
        torn_end = min(self._end + ENTRY_BYTES_MAX + _ENTRY_HEAD.size, _FILE_BYTES)
        self._view[self._end : torn_end] = bytes(torn_end - self._end)

    @classmethod
    def claim(cls, folder: Path, name: str) -> "MetricsFile":
        """The first file of ``name`` that no living process owns. Raises OSError where there is none, or no space."""
        for number in range(FILES_MAX):
            fd = os.open(folder / f"{name}.{number}{SUFFIX}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if not _lock(fd):
                    os.close(fd)
                    continue
                # Take the space now: a store into a hole of a full file system would be a SIGBUS later.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(fd, 0, _FILE_BYTES)
                else:
                    os.ftruncate(fd, _FILE_BYTES)
                return cls(mmap.mmap(fd, _FILE_BYTES), fd)
            except OSError:
                os.close(fd)
                raise
        raise OSError(f"{FILES_MAX} living processes already count as {name!r} in {folder}")

    @classmethod
    def private(cls) -> "MetricsFile":
        """Memory of this process alone."""
        return cls(mmap.mmap(-1, _FILE_BYTES), None)

    def append(self, kind: str, name: str, labels: tuple[tuple[str, str], ...], width: int) -> Series:
        """A new series with zeroed slots. Raises NoSpaceError."""
        series = Series(kind=kind, name=name, labels=labels, slot=self._next_slot, width=width)
        text = _text_of(series)
        size = _entry_bytes(text)
        if (
            len(self.series) >= SERIES_MAX
            or size > ENTRY_BYTES_MAX
            or self._next_slot + width > SLOTS_MAX
            or self._end + size + _ENTRY_HEAD.size > _FILE_BYTES
        ):
            raise NoSpaceError(name)
        start = self._end + _ENTRY_HEAD.size
        self._view[start : start + len(text)] = text
        _ENTRY_HEAD.pack_into(self._view, self._end, 0, zlib.crc32(text))
        self._view[self._end : self._end + 4] = len(text).to_bytes(4, "little")
        self._end += size
        self._next_slot += width
        self.series.append(series)
        return series

    def note(self, text: str) -> None:
        """Leave one short text (the configuration's version) for readers while this process lives; "" for none."""
        raw = text.encode()[:_NOTE_BYTES_MAX]
        head = _ENTRY_HEAD.pack(len(raw), zlib.crc32(raw))
        self._view[_NOTE_OFFSET : _NOTE_OFFSET + len(head) + len(raw)] = head + raw

    def close(self) -> None:
        """Give the file up; what was counted stays in it. Handles that still point here must not be used again."""
        for view in (self.integers, self.doubles, self._view):
            view.release()
        self._memory.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one file said at one moment. ``living``: its owner runs. ``values`` are raw words, see ``kind``."""

    living: bool
    note: str
    series: tuple[tuple[Series, tuple[int, ...], tuple[float, ...]], ...]


def read_all(folder: Path) -> Iterator[Reading]:
    """Every file in ``folder``; one that is just being made, or not ours, is left out."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if os.fstat(fd).st_size < _FILE_BYTES:
                continue
            with mmap.mmap(fd, _FILE_BYTES, access=mmap.ACCESS_READ) as memory:
                reading = _read(memory, living=_is_locked(fd))
        finally:
            os.close(fd)
        if reading is not None:
            yield reading


def is_abandoned(folder: Path) -> bool:
    """Whether ``folder`` holds files of ours and none has a living owner."""
    readings = list(read_all(folder))
    return bool(readings) and not any(reading.living for reading in readings)


def _read(memory: mmap.mmap, *, living: bool) -> Reading | None:
    if memory[: len(_MAGIC)] != _MAGIC:
        return None
    # Word by word through a cast view, as copying pages may see half of a word that is being stored.
    with memoryview(memory) as view, view[_SLOTS_OFFSET:_INDEX_OFFSET] as part:
        with part.cast("q") as integers, part.cast("d") as doubles:
            series = tuple(
                (
                    one,
                    tuple(integers[slot] for slot in range(one.slot, one.slot + one.width)),
                    tuple(doubles[slot] for slot in range(one.slot, one.slot + one.width)),
                )
                for one in _entries(view)
            )
        length, checksum = _ENTRY_HEAD.unpack_from(view, _NOTE_OFFSET)
        raw = bytes(view[_NOTE_OFFSET + _ENTRY_HEAD.size :][: min(length, _NOTE_BYTES_MAX)])
    note = raw.decode(errors="replace") if zlib.crc32(raw) == checksum else ""
    return Reading(living=living, note=note, series=series)


def _entries(view: memoryview) -> Iterator[Series]:
    """The index up to its end or the first entry that is not whole."""
    position = _INDEX_OFFSET
    for _ in range(SERIES_MAX):
        if position + _ENTRY_HEAD.size > _FILE_BYTES:
            return
        length, checksum = _ENTRY_HEAD.unpack_from(view, position)
        start = position + _ENTRY_HEAD.size
        if not 0 < length <= min(ENTRY_BYTES_MAX, _FILE_BYTES - start):
            return
        text = bytes(view[start : start + length])
        if zlib.crc32(text) != checksum:
            return
        kind, name, labels, slot, width = json.loads(text)
        pairs = tuple((str(key), str(value)) for key, value in labels)
        yield Series(kind=kind, name=name, labels=pairs, slot=slot, width=width)
        position += _entry_bytes(text)


def _text_of(series: Series) -> bytes:
    return json.dumps([series.kind, series.name, series.labels, series.slot, series.width]).encode()


def _entry_bytes(text: bytes) -> int:
    return _ENTRY_HEAD.size + (len(text) + 7) // 8 * 8


def _lock(fd: int) -> bool:
    for attempt in range(_CLAIM_ATTEMPTS):
        if attempt:
            time.sleep(_CLAIM_PAUSE_S)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return True
    return False


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
