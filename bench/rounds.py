"""Interleaved rounds: every row is measured once in each, so that what disturbs a machine disturbs all of them.

What is compared is the ratio within a round, and of these the median; figures of different rounds are never divided.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bench.generators import Generator, Request, Sample
from bench.processes import Child, busy_s, cpu_s, largest_bytes, memory_bytes
from bench.surroundings import Surroundings
from bench.targets import Row

# When in a run memory is looked at: all connections are open and busy.
_LOOK_AT = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row in one round."""

    sample: Sample
    cpu_us: float  # of all the server's processes, user and system, for each request
    behind_cpu_us: Mapping[str, float]  # of what is behind it (Redis, Postgres, upstream), for each request
    memory_bytes: int  # of all the server's processes, proportional set size
    largest_bytes: int  # of the largest of them, resident
    proxy_core_busy: float  # share of the time, by whomever
    rest_cores_busy: float
    other_cpu: float  # share of the server's core that other programs took
    waited_in_vain: bool = False  # before it, for a quiet machine

    def as_json(self) -> dict[str, object]:
        """The figures as JSON holds them."""
        return {
            **self.sample.as_json(),
            "cpu_us_per_request": self.cpu_us,
            "behind_cpu_us_per_request": dict(self.behind_cpu_us),
            "memory_bytes": self.memory_bytes,
            "largest_process_bytes": self.largest_bytes,
            "proxy_core_busy": self.proxy_core_busy,
            "rest_cores_busy": self.rest_cores_busy,
            "other_cpu": self.other_cpu,
            "waited_in_vain": self.waited_in_vain,
        }


class _Memory:
    """A server's memory while it was busy, or at the end of a run that was shorter than expected."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.all_bytes = 0
        self.largest_bytes = 0

    def look(self) -> None:
        self.all_bytes, self.largest_bytes = memory_bytes(self._pid), largest_bytes(self._pid)

    @contextmanager
    def looked_at(self, after_s: float) -> Iterator[None]:
        timer = threading.Timer(after_s, self.look)
        timer.daemon = True  # who is interrupted right here must not wait for it
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
        if not self.all_bytes:
            self.look()


Load = Callable[[str, Request], Sample]  # told the base URL and the request


def with_generator(generator: Generator, connections: int, seconds: float) -> Load:
    """Calls, one after the other on each connection."""
    return lambda base_url, request: generator(base_url, request, connections, seconds)


def measure(request: Request, child: Child, around: Surroundings, load: Load, seconds: float) -> Measured:
    """Put load on a server once; ``seconds`` is how long it takes, about."""
    cores = around.cores
    behind_before = {name: cpu_s(pid) for name, pid in around.pids.items()}
    memory = _Memory(child.process.pid)
    cpu_before, proxy_before, rest_before = cpu_s(child.process.pid), busy_s((cores.proxy,)), busy_s(cores.rest)
    began = time.monotonic()
    with memory.looked_at(seconds * _LOOK_AT):
        sample = load(f"http://127.0.0.1:{child.port}", request)
    took_s = time.monotonic() - began
    cpu, proxy = cpu_s(child.process.pid) - cpu_before, busy_s((cores.proxy,)) - proxy_before
    rest = busy_s(cores.rest) - rest_before
    child.check()
    behind = {name: cpu_s(pid) - behind_before[name] for name, pid in around.pids.items()}
    return Measured(
        behind_cpu_us={name: spent / max(1, sample.requests) * 1e6 for name, spent in behind.items()},
        sample=sample,
        cpu_us=cpu / max(1, sample.requests) * 1e6,
        memory_bytes=memory.all_bytes,
        largest_bytes=memory.largest_bytes,
        proxy_core_busy=proxy / took_s,
        rest_cores_busy=rest / took_s / len(cores.rest),
        other_cpu=max(0.0, proxy - cpu) / took_s,
    )


def run_rounds(
    rows: Sequence[Row],
    rounds: int,
    wait: Callable[[Row], bool],
    measure_row: Callable[[Row], Measured],
    say: Callable[[str], None],
    title: str,
) -> dict[str, list[Measured]]:
    """Measure all rows in each round, each once ``wait`` says that the machine is quiet, or that it waited in vain.

    Row name -> one entry a round.
    """
    measured: dict[str, list[Measured]] = {row.name: [] for row in rows}
    for number in range(1, rounds + 1):
        for row in rows:
            quiet = wait(row)
            say(f"{title}, round {number} of {rounds}: {row.title}")
            measured[row.name].append(replace(measure_row(row), waited_in_vain=not quiet))
    return measured
