"""Replaces all workers again and again under load: ``python -m bench.rolling_restart`` fails where a request was lost.

Every cast that the load got an answer for must be in the ledger, too: a worker that ends settles and flushes first.
"""

import asyncio
import os
import signal
import tempfile
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import click
import uvloop

from bench.load import Endpoint, Load, LoadResult, run
from bench.processes import BenchError, split_cores
from bench.surroundings import Surroundings, started, surroundings
from bench.targets import CAST_BODY, CAST_PATH, CASTGATE, Command, Place, Target

POLL_S = 0.05
# A worker starts within a second or two, and drains for as long as the configuration says; both on a busy machine.
ROUND_TIMEOUT_S = 60.0
LEDGER_TIMEOUT_S = 10.0
_REPLACED = 'castgate_worker_restarts_total{reason="replace"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """What the load saw while ``workers`` processes were replaced."""

    workers: int
    load: LoadResult

    @property
    def failed(self) -> int:
        """Requests without a whole answer of 200."""
        return self.load.errors.total() + self.load.answered - self.load.statuses[200]

    def __str__(self) -> str:
        errors = dict(self.load.errors) or "none"
        return (
            f"{self.workers} workers replaced, {self.load.answered} requests, {self.failed} failed "
            f"(statuses {dict(self.load.statuses)}, errors {errors}), p99 {self.load.latency_ms(0.99):.1f} ms"
        )


async def roll(
    endpoint: Endpoint, *, admin_url: str, supervisor: int, workers: int, rounds: int, connections: int
) -> Rolled:
    """Replace all ``workers`` of the gateway ``rounds`` times (SIGUSR2), under load from before to after."""
    enough = asyncio.Event()
    load = Load(connections=connections, seconds=ROUND_TIMEOUT_S * rounds)
    before = await asyncio.to_thread(_replaced, admin_url)
    loading = asyncio.get_running_loop().create_task(run([endpoint], load, enough=enough), name="load")
    try:
        for number in range(1, rounds + 1):
            await _replace_all(admin_url, supervisor, before + number * workers)
    finally:
        enough.set()
        result = await loading
    return Rolled(workers=rounds * workers, load=result)


async def _replace_all(admin_url: str, supervisor: int, wanted: int) -> None:
    """Ask until it is done: a signal that comes while the last round still ends is not heard."""
    async with asyncio.timeout(ROUND_TIMEOUT_S):
        while (count := await asyncio.to_thread(_replaced, admin_url)) < wanted:
            os.kill(supervisor, signal.SIGUSR2)
            await asyncio.sleep(POLL_S)
    if count > wanted:
        raise BenchError(f"{count} workers were replaced where {wanted} were to be")


def _replaced(admin_url: str) -> int:
    with urllib.request.urlopen(f"{admin_url}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(_REPLACED):
                return int(float(line.rpartition(" ")[2]))
    return 0


async def _casts_in_ledger(database_url: str, wanted: int) -> int:
    connection = await asyncpg.connect(database_url)
    count = 0
    try:
        async with asyncio.timeout(LEDGER_TIMEOUT_S):
            while True:
                count = int(await connection.fetchval("SELECT count(*) FROM usage_events"))
                if count >= wanted:
                    return count
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return count
    finally:
        await connection.close()


def _with_workers(count: int, places: list[Place]) -> Target:
    def command(place: Place) -> Command:
        places.append(place)
        plain = CASTGATE.command(place)
        return Command(words=plain.words, environment={**plain.environment, "WORKERS": str(count)})

    return replace(CASTGATE, command=command)


async def _measure(around: Surroundings, port: int, place: Place, pid: int, rounds: int, connections: int) -> Rolled:
    headers = {"Authorization": f"Bearer {around.api_key}", "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{port}{CAST_PATH}"
    rolled = await roll(
        Endpoint.of(url, method="POST", headers=headers, body=CAST_BODY.encode()),
        admin_url=f"http://127.0.0.1:{place.admin_port}",
        supervisor=pid,
        workers=2,
        rounds=rounds,
        connections=connections,
    )
    casts = rolled.load.statuses[200]
    written = await _casts_in_ledger(around.database_url, casts)
    if written != casts:
        raise BenchError(f"{rolled}; yet {written} casts are in the ledger")
    return rolled


@click.command()
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1), help="How often all workers go.")
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1, 10_000))
def main(rounds: int, connections: int) -> None:
    """Replace both workers of a gateway ROUNDS times under load; exit code 1 where a request failed."""
    places: list[Place] = []

    def say(text: str) -> None:
        click.echo(f"{text} …", err=True)

    try:
        with (
            tempfile.TemporaryDirectory(prefix="castgate-rolling-") as folder,
            surroundings(Path(folder), split_cores(), stores=True, say=say) as around,
            started(_with_workers(2, places), around) as child,
        ):
            measured = _measure(around, child.port, places[0], child.process.pid, rounds, connections)
            rolled = uvloop.run(measured)
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{rolled}; every cast is in the ledger")
    if rolled.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
