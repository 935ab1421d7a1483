"""Gateways under chaos: ``castgate serve`` with its workers, killed and started again at the same address."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import yaml

from bench.processes import is_running, process_tree
from gateway.embedded import free_port
from tests.chaos.stores import child
from tests.gateways import ROOT

READY_S = 30.0
# So long after a worker's end its holds are charged; long enough for a worker that a busy machine leaves waiting.
HOLD_TTL_S = 5.0
_POLICY = {
    "policies": [
        {
            "name": "cast",
            "match": {"methods": ["POST"], "path": "/v1/cast"},
            "mode": "enforce",
            "cost": {"fixed": {"cents": "1"}, "charge_when": "success"},
            "rate_limits": [{"name": "per-account", "key": "account", "limit": 1_000_000, "window": "1m"}],
            "record": {"cast_id": {"json": "/id"}},
            "on_store_failure": "allow",
            "on_client_abort": "finish",
            "on_orphan": "charge",
        }
    ]
}
# Calls a minute of the few accounts on the plan "hurried".
RATE_LIMIT = 60
_PLANS = {"plans": {"unlimited": {}, "hurried": {"rate_limits": {"per-account": {"limit": RATE_LIMIT}}}}}


def write_configuration(folder: Path) -> Path:
    """The shipped configuration with short times, in ``folder``."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["hold_ttl"] = f"{HOLD_TTL_S:g}s"
    config["drain_timeout"] = "5s"
    config["ledger"]["cast_cost_sql"] = config["ledger"]["cast_read_sql"] = ""  # the casts are not in this database
    (folder / "policies").mkdir(parents=True)
    (folder / "policies" / "cast.yaml").write_text(yaml.safe_dump(_POLICY))
    (folder / "policies" / "plans.yaml").write_text(yaml.safe_dump(_PLANS))
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Gateway:
    """One supervisor. Its spool is a folder of its own."""

    def __init__(
        self, number: int, *, config: Path, folder: Path, workers: int, environment: Mapping[str, str], log: IO[bytes]
    ) -> None:
        self.number = number
        self.workers = workers
        self.port, self.admin_port = free_port(), free_port()
        self.spool = folder / f"spool-{number}"
        self.spool.mkdir(parents=True)
        self._config = config
        self._log = log
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("STRIPE_", "COST_", "RATE_"))},
            "PORT": str(self.port),
            "ADMIN_PORT": str(self.admin_port),
            "SPOOL_DIR": str(self.spool),
            "LOG_FORMAT": "json",
            "BILLING_PLAN_DEFAULT": "unlimited",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "gateway", "serve", "--config", str(self._config)]
        self.process = child([*words, "--workers", str(self.workers)], environment=self._environment, log=self._log)

    @property
    def worker_pids(self) -> list[int]:
        if self.process is None:
            return []
        return [pid for pid in process_tree(self.process.pid)[1:] if is_running(pid)]

    def kill_supervisor(self) -> list[int]:
        """SIGKILL; the workers, which are given back, notice by themselves."""
        assert self.process is not None
        workers = self.worker_pids
        self.process.kill()
        self.process.wait()
        return workers

    def replace_workers(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR2)

    def end(self) -> None:
        if self.process is None:
            return
        for pid in process_tree(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    async def metrics(self) -> str:
        def read() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=3) as response:
                text: str = response.read().decode()
            return text

        return await asyncio.to_thread(read)

    async def trouble(self) -> str:
        """Why it is not as it should be; blank where all its workers are ready, with both stores and an empty spool."""
        try:
            text = await self.metrics()
        except OSError as error:
            return f"no metrics: {error}"
        for name, labels, wanted in (
            ("castgate_workers_ready", "", self.workers),
            ("castgate_admission_rung", 'rung="redis"', self.workers),
            ("castgate_breakers_open", "", 0),
            ("castgate_spool_waiting_events", "", 0),
            ("castgate_ledger_queue_length", "", 0),
        ):
            found = sample(text, name, labels)
            if found != wanted and not (name == "castgate_ledger_queue_length" and found < 200):
                return f"{name}{{{labels}}} is {found:g}"
        return ""


def sample(text: str, name: str, labels: str = "") -> float:
    """The sum of the samples of ``name`` whose labels include ``labels``."""
    total = 0.0
    for series, value in re.findall(rf"^{name}(\{{[^}}]*\}}|) (\S+)$", text, re.MULTILINE):
        if labels in series:
            total += float(value)
    return total
