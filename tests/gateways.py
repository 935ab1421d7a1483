"""Whole gateways for tests: ``castgate serve`` as its own processes, with the shipped configuration."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway.embedded import free_port
from gateway.migrate import default_folder, migrate, read_migrations

ROOT = Path(__file__).parents[1]
STOP_TIMEOUT_S = 20.0
READY_TIMEOUT_S = 20.0


@dataclass(kw_only=True)
class RunningGateway:
    """A supervisor and its workers. ``log`` is the end of what they wrote to standard error."""

    base_url: str
    admin_url: str
    process: "subprocess.Popen[str]"
    log: deque[str] = field(default_factory=lambda: deque(maxlen=5000))

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=5) as response:
            text: str = response.read().decode()
        return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` whose labels include ``labels``; 0 where there is none."""
        total = 0.0
        for line in self.metrics().splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and all(f'{label}="{text}"' in rest for label, text in labels.items()):
                total += float(value)
        return total

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


def migrated(database_url: str) -> None:
    """Castgate's tables beside Phase 1's, which must be there already."""
    asyncio.run(migrate(database_url, read_migrations(default_folder()), report=lambda _: None))


@contextmanager
def running_gateway(
    *,
    database_url: str,
    redis_url: str,
    upstream_url: str,
    workers: int = 1,
    environ: Mapping[str, str] | None = None,
    config: Path = ROOT / "config.yaml",
) -> Iterator[RunningGateway]:
    """A gateway that is ready; stopped at the end, where it still runs, and its exit code must then be 0."""
    port, admin_port = free_port(), free_port()
    kept = tempfile.TemporaryDirectory(prefix="castgate-spool-")
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("STRIPE_", "COST_", "RATE_"))},
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "UPSTREAM_URL": upstream_url,
        "PORT": str(port),
        "ADMIN_PORT": str(admin_port),
        "COST_PER_CAST_CENTS": "1",
        "RATE_LIMIT_PER_MINUTE": "1000000",
        "METRICS_PUBLIC": "true",
        "LOG_FORMAT": "json",
        # On a busy machine Redis may be kept waiting for longer than a gateway would wait for it.
        "REDIS_TIMEOUT": "5s",
        # What one gateway leaves behind is for no other test's.
        "SPOOL_DIR": kept.name,
        "ADMISSION_TIMEOUT": "5s",
        **(environ or {}),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--workers", str(workers)],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    gateway = RunningGateway(
        base_url=f"http://127.0.0.1:{port}", admin_url=f"http://127.0.0.1:{admin_port}", process=process
    )
    ready = threading.Event()

    def read_output() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("castgate ready on "):
                ready.set()

    def read_log() -> None:
        assert process.stderr is not None
        gateway.log.extend(process.stderr)

    readers = [threading.Thread(target=read_output), threading.Thread(target=read_log)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(int(READY_TIMEOUT_S * 20)):
            if ready.wait(0.05):
                break
            assert process.poll() is None, "the gateway did not start:\n" + "".join(gateway.log)
        assert ready.is_set(), "the gateway is not ready:\n" + "".join(gateway.log)
        yield gateway
        if process.poll() is None:
            assert gateway.stop() == 0, "".join(gateway.log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        kept.cleanup()
