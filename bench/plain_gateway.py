"""A gateway of one worker in front of a given upstream, without stores: what is measured of it needs no policy."""

import contextlib
import os
import resource
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import START_TIMEOUT_S, BenchError, Child, process_tree, running
from bench.targets import REPOSITORY, Place, castgate_environment
from gateway.embedded import free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainGateway:
    """Where it listens, and the process that does the work."""

    port: int
    worker: int
    child: Child

    def open_files(self) -> int:
        """How many files and sockets the worker has open."""
        return sum(1 for _ in Path(f"/proc/{self.worker}/fd").iterdir())

    def cpu_ns(self) -> int:
        """Processor time of the worker's event loop, in ns where other sources have steps of 10 ms (proc(5))."""
        return int(Path(f"/proc/{self.worker}/schedstat").read_text().split()[0])

    def memory_bytes(self) -> int:
        """What the worker has for itself (proc(5), smaps_rollup): pages shared with nobody."""
        total = 0
        for line in Path(f"/proc/{self.worker}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
        return total


@contextlib.contextmanager
def plain_gateway(upstream_url: str, *, environment: Mapping[str, str] | None = None) -> Iterator[PlainGateway]:
    """Castgate as it is shipped, one worker, any free port; no Postgres and no Redis, which it gets along without."""
    allow_many_files()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="castgate-plain-") as folder:
        place = Place(
            folder=Path(folder),
            port=free_port(),
            admin_port=free_port(),
            upstream_url=upstream_url,
            database_url="postgresql://127.0.0.1:9/none",
            redis_url="redis://127.0.0.1:9/0",
        )
        words = [sys.executable, "-m", "gateway", "serve", "--config", str(REPOSITORY / "config.yaml")]
        variables = {**castgate_environment(place), "LOG_LEVEL": "error", **(environment or {})}
        with running(
            "castgate", words, port=place.port, cores=cores, folder=Path(folder), environment=variables
        ) as child:
            # The supervisor listens before its worker serves: once an answer is there, so is the worker.
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(f"http://127.0.0.1:{place.port}/", timeout=START_TIMEOUT_S).close()
            yield PlainGateway(port=place.port, worker=_worker_of(child), child=child)


@contextlib.contextmanager
def fast_upstream(cores: Sequence[int] | None = None) -> Iterator[str]:
    """``bench.fast_upstream`` as a process; its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="castgate-upstream-") as folder:
        words = [sys.executable, "-m", "bench.fast_upstream", "--port", str(port)]
        every = cores or sorted(os.sched_getaffinity(0))
        with running("upstream", words, port=port, cores=every, folder=Path(folder), environment={}):
            yield f"http://127.0.0.1:{port}"


def allow_many_files() -> None:
    """As many open files as the system lets us have, for this process and those it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _worker_of(child: Child) -> int:
    for member in process_tree(child.process.pid):
        with contextlib.suppress(OSError):
            if b"gateway.worker_main" in Path(f"/proc/{member}/cmdline").read_bytes().split(b"\0"):
                return member
    raise BenchError(f"there is no worker process below {child.name}")
