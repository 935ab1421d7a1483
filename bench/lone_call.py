"""``python -m bench.lone_call``: how much sooner a lone call is decided where its reply is waited for awake.

One ask at a time on a real Redis that has a core of its own, with ``gateway.vigil`` and without it in turn, some
hundred asks each: the median time until the verdict, and the CPU time of this process for each ask.
"""

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import uvloop

from bench.admission_cost import CENT, POLICY, admission_at, never_awake
from bench.processes import pinned, split_cores
from gateway.accounts import Account
from gateway.admission import Admission, Ask
from gateway.embedded import embedded_redis
from gateway.policy.verdicts import Hold, Verdict

ASKS_IN_A_ROW = 400
PAUSE_S = 0.00003  # what a call does between two verdicts, more or less


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one ask, medians of all turns."""

    asleep_us: float
    awake_us: float
    asleep_cpu_us: float
    awake_cpu_us: float


async def _asks(admission: Admission, account: Account, count: int) -> tuple[float, float]:
    """Median µs until the verdict, and µs of CPU for each ask."""
    loop = asyncio.get_running_loop()
    took_s = []
    cpu_s = time.process_time()
    for _ in range(count):
        future: asyncio.Future[Verdict] = loop.create_future()
        began_s = time.perf_counter()
        ended_s = 0.0

        def done(verdict: Verdict, future: asyncio.Future[Verdict] = future) -> None:
            nonlocal ended_s
            ended_s = time.perf_counter()
            future.set_result(verdict)

        admission.ask(Ask(account, CENT, POLICY, (account.account_id,), done))
        verdict = await future
        took_s.append(ended_s - began_s)
        assert isinstance(verdict, Hold), verdict
        admission.void(verdict)
        while time.perf_counter() - ended_s < PAUSE_S:
            pass
    return statistics.median(took_s) * 1e6, (time.process_time() - cpu_s) / count * 1e6


async def measure(redis_url: str, turns: int) -> Figures:
    """With and without, in turn; Redis at ``redis_url`` is empty."""
    awake, asleep = [], []
    async with admission_at(redis_url) as admission:
        account = Account("account")
        await _asks(admission, account, ASKS_IN_A_ROW)
        for _ in range(turns):
            with never_awake():
                asleep.append(await _asks(admission, account, ASKS_IN_A_ROW))
            awake.append(await _asks(admission, account, ASKS_IN_A_ROW))
    figures = [statistics.median(column) for rows in (asleep, awake) for column in zip(*rows, strict=True)]
    return Figures(asleep_us=figures[0], asleep_cpu_us=figures[1], awake_us=figures[2], awake_cpu_us=figures[3])


@click.command()
@click.option("--turns", default=20, show_default=True, type=click.IntRange(1, 10_000))
def main(turns: int) -> None:
    """Print µs until the verdict, and of CPU, for each ask."""
    cores = split_cores()
    with tempfile.TemporaryDirectory() as folder:
        with pinned(cores.rest):
            server = embedded_redis(Path(folder), ephemeral=True)
            redis = server.__enter__()
        try:
            with pinned((cores.proxy,)):
                figures = uvloop.run(measure(redis.url, turns))
        finally:
            server.__exit__(None, None, None)
    click.echo(f"asleep  {figures.asleep_us:6.1f} µs until the verdict, {figures.asleep_cpu_us:6.1f} µs of CPU")
    click.echo(f"awake   {figures.awake_us:6.1f} µs until the verdict, {figures.awake_cpu_us:6.1f} µs of CPU")


if __name__ == "__main__":
    main()
