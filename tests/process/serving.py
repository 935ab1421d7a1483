"""Runs ``castgate serve`` with toy workers and lets tests wait for what it says."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil

ROOT = Path(__file__).parents[2]
WAIT_S = 20.0
CONFIG = """
listen: {port: 0}
admin: {port: 0}
workers: 2
drain_timeout: 5s
upstream: {url: "http://127.0.0.1:9"}
database: {url: "postgresql://localhost/none"}
redis: {url: "redis://localhost/0"}
"""
POLICIES = """
policies:
  - {name: cast, match: {methods: [POST], path: /v1/cast}, cost: {fixed: {cents: 1}}}
plans:
  free: {}
"""


def write_config(folder: Path, config: str = CONFIG, policies: str = POLICIES) -> Path:
    """A configuration in ``folder``; the path of its config.yaml."""
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "all.yaml").write_text(policies)
    (folder / "config.yaml").write_text(config)
    return folder / "config.yaml"


class Serving:
    """A supervisor under test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.base_url = ""
        self.admin_url = ""
        self._news = asyncio.Condition()
        self._readers = asyncio.gather(self._read(process.stdout), self._read(process.stderr))

    async def said(self, *texts: str, times: int = 1) -> str:
        """Waits until ``times`` lines contain all ``texts``; returns the last of them."""

        def found() -> list[str]:
            return [line for line in self.lines if all(text in line for text in texts)]

        try:
            async with asyncio.timeout(WAIT_S), self._news:
                await self._news.wait_for(lambda: len(found()) >= times)
        except TimeoutError:
            raise AssertionError(f"never said {texts}:\n" + "\n".join(self.lines)) from None
        return found()[times - 1]

    async def event(self, name: str, *, times: int = 1) -> dict[str, object]:
        """Waits for the event of that name in the log."""
        made: dict[str, object] = json.loads(await self.said(f'"event": "{name}"', times=times))
        return made

    async def ready(self) -> None:
        line = await self.said("castgate ready on ")
        match = re.fullmatch(r"castgate ready on (http://\S+) \(admin (http://\S+)\), \d+ workers?", line)
        assert match is not None, line
        self.base_url, self.admin_url = match.groups()

    async def get(self, url: str) -> tuple[int, str]:
        """One request on a connection of its own."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
            session.get(url, timeout=aiohttp.ClientTimeout(total=WAIT_S)) as response,
        ):
            return response.status, await response.text()

    async def call(self) -> int:
        """One call to a worker; returns the pid of the one that answered."""
        status, body = await self.get(self.base_url)
        assert status == 200
        return int(body)

    async def metric(self, series: str) -> float:
        """The value of a series as ``/metrics`` writes it; 0 where it is not there."""
        _, text = await self.get(f"{self.admin_url}/metrics")
        for line in text.splitlines():
            if line.rpartition(" ")[0] == series:
                return float(line.rpartition(" ")[2])
        return 0.0

    async def readiness(self) -> tuple[int, dict[str, object]]:
        status, text = await self.get(f"{self.admin_url}/readyz")
        return status, json.loads(text)

    def pids(self) -> list[int]:
        """The workers' processes that run."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sorted(int(child) for child in children if _runs(child))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Waits for the end of the supervisor; returns its exit code."""
        async with asyncio.timeout(WAIT_S):
            code = await self.process.wait()
            await self._readers
        return code

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        async for line in stream:
            async with self._news:
                self.lines.append(line.decode().rstrip())
                self._news.notify_all()


def _runs(pid: str) -> bool:
    """Whether the process is there, and more than an exit code that waits to be read."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@asynccontextmanager
async def serving(
    config: Path, *arguments: str, toy: str = "", temporary: Path | None = None
) -> AsyncIterator[Serving]:
    """A supervisor that was started and is stopped at the end; whether it gets ready is the test's to see."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.process.serve_toys", "serve", "--config", str(config), *arguments),
        cwd=ROOT,
        env={**os.environ, "TOY": toy, "TMPDIR": str(temporary or config.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    served = Serving(process)
    try:
        yield served
        if process.returncode is None:
            with suppress(ProcessLookupError):
                served.signal(signal.SIGTERM)
            await served.ended()
    finally:
        if process.returncode is None:
            # Its workers as well: they hold its pipes open, and waiting for these would hide what has failed.
            family = psutil.Process(process.pid)
            for member in (*family.children(recursive=True), family):
                with suppress(psutil.NoSuchProcess):
                    member.kill()
        await served.ended()
