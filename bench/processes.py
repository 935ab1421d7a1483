"""Child processes of the bench: pinned to cores, tied to our life, their log kept, their CPU time and memory read.

Linux only: cores are set with sched_setaffinity(2), figures are read from /proc (proc(5)).
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway import tether
from gateway.embedded import stop_process

START_TIMEOUT_S = 20.0  # a gateway that fills its caches on a busy machine
STOP_TIMEOUT_S = 15.0  # longer than a gateway drains
KILL_TIMEOUT_S = 5.0
POLL_S = 0.02
LOG_TAIL_LINES = 15
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The bench cannot go on, or its result must not be believed; the text is for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which core the server under test has for itself, and which all else shares."""

    proxy: int
    rest: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Every core there is."""
        return tuple(sorted({self.proxy, *self.rest}))

    @property
    def shared(self) -> bool:
        """Whether there is only one core, so that figures say little."""
        return self.proxy in self.rest


def split_cores() -> Cores:
    """The first core we may run on for the server under test, all others for the rest."""
    first, *others = sorted(os.sched_getaffinity(0))
    return Cores(proxy=first, rest=tuple(others) or (first,))


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """What is started inside runs on these cores: a child inherits the affinity of the thread that starts it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One running server."""

    name: str
    port: int
    log: Path
    process: "subprocess.Popen[bytes]"

    def check(self) -> None:
        """Raises BenchError, with the end of its log, if it is no longer there."""
        if self.process.poll() is not None:
            raise BenchError(f"{self.name} ended with status {self.process.returncode}; {self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return f"the end of {self.log}:\n" + "\n".join(f"    {line}" for line in lines)


@contextlib.contextmanager
def running(
    name: str, words: Sequence[str], *, port: int, cores: Sequence[int], folder: Path, environment: Mapping[str, str]
) -> Iterator[Child]:
    """A server that accepts connections at ``port``; ended on the way out, with all its children."""
    log = folder / f"{name}.log"
    # dies_by: should we be killed, the kernel stops it; a session of its own: a Ctrl-C at the terminal reaches only us.
    with log.open("wb") as output, pinned(cores):
        process = subprocess.Popen(
            tether.command(list(words), dies_by=signal.SIGTERM),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    child = Child(name=name, port=port, log=log, process=process)
    try:
        _wait_until_it_accepts(child)
        yield child
    finally:
        members = process_tree(process.pid)
        stop_process(process, signal.SIGTERM, STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):  # what it may have left of its session
            os.killpg(process.pid, signal.SIGKILL)
        _wait_for_the_end_of(members)


def _wait_until_it_accepts(child: Child) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        child.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", child.port), timeout=1.0):
            return
        if time.monotonic() > deadline:
            raise BenchError(f"{child.name} does not listen after {START_TIMEOUT_S:.0f} s; {child.log_tail()}")
        time.sleep(POLL_S)


def process_tree(pid: int) -> list[int]:
    """``pid`` and all processes below it."""
    found = [pid]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(word) for word in listed.read_text().split())
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its zombie, which its parent may bury at any time or never."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end_children() -> None:
    """Kills what is below this process, and waits for its end.

    A child that was just being started when a signal came belongs to nobody, and `subprocess.run` does not wait for the
    one it kills when it was the signal of Ctrl-C.
    """
    members = process_tree(os.getpid())[1:]
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    _wait_for_the_end_of(members)


def _wait_for_the_end_of(members: Sequence[int]) -> None:
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while any(is_running(member) for member in members) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def cpu_s(pid: int) -> float:
    """User and system time of the process and all that were ever below it, in steps of a clock tick (mostly 10 ms)."""
    ticks = 0
    for member in process_tree(pid):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything: count fields from its end (proc(5): 14 utime, 15 stime, and
            # 16 cutime, 17 cstime of children that have ended and were waited for, such as Postgres' backends).
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_S


def run_program(words: Sequence[str], *, timeout_s: float, input_text: str = "") -> "subprocess.CompletedProcess[str]":
    """A program that ends by itself. Raises BenchError where it does not within ``timeout_s``."""
    try:
        return subprocess.run(
            list(words), input=input_text, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"the load generator did not end within {timeout_s:.0f} s") from None


def largest_bytes(pid: int) -> int:
    """Resident set size of the largest process among ``pid`` and those below it: of a gateway, its worker."""
    sizes = [0]
    for member in process_tree(pid):
        with contextlib.suppress(OSError):
            sizes.append(int(Path(f"/proc/{member}/statm").read_text().split()[1]) * _PAGE_BYTES)
    return max(sizes)


def memory_bytes(pid: int) -> int:
    """Proportional set size of the process and all below it: pages shared among n processes count 1/n in each."""
    total = 0
    for member in process_tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def user_and_system_s(pid: int) -> tuple[float, float]:
    """The same of one process alone, by whom."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / _TICKS_PER_S, int(fields[12]) / _TICKS_PER_S


def busy_s(cores: Sequence[int]) -> float:
    """Time that these cores were not idle since the machine started, summed (proc(5), /proc/stat)."""
    names = {f"cpu{core}" for core in cores}
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in names:
            ticks = [int(field) for field in fields[:8]]
            total += sum(ticks) - ticks[3] - ticks[4]  # idle and iowait
    return total / _TICKS_PER_S
