"""How much slow clients slow others: ``python -m bench.slowloris``.

So many connections send one header line every five seconds each, never finish, and come again when they are thrown out.
Beside them a load is put on the gateway; rounds without and with them take turns, so that whatever else the machine
does falls on both. The attackers are a process of their own: what they cost themselves is not the gateway's to pay.
"""

import asyncio
import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import click
import uvloop

from bench.load import Endpoint, Load, run
from bench.plain_gateway import PlainGateway, allow_many_files, fast_upstream, plain_gateway
from bench.processes import BenchError
from gateway import tether
from gateway.embedded import stop_process

SLOWER_MAX = 0.10
LOAD_CONNECTIONS = 16
LINE_INTERVAL_S = 5.0  # slowhttptest's own is 10 s
STEP_S = 0.05
ATTACK_TIMEOUT_S = 20.0  # until all of them are connected
STOP_TIMEOUT_S = 5.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowed:
    """Medians over the rounds, without and with the slow clients."""

    attackers: int
    requests_per_s: tuple[float, float]
    cpu_us: tuple[float, float]  # of the worker, for each request of the load
    slower: float  # by which part the throughput of others fell from one round to the next; below zero where it rose

    def __str__(self) -> str:
        return (
            f"{self.attackers} slow clients: {self.requests_per_s[0]:.0f} requests/s without them, "
            f"{self.requests_per_s[1]:.0f} with them ({self.slower:+.1%} slower); "
            f"CPU for each request {self.cpu_us[0]:.0f} µs and {self.cpu_us[1]:.0f} µs"
        )


async def measure(gateway: PlainGateway, *, attackers: int, rounds: int, requests: int) -> Slowed:
    """Rounds of so many requests without and with the attackers, in turns."""
    endpoint = Endpoint.of(f"http://127.0.0.1:{gateway.port}/plain")
    figures: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    await _round(endpoint, gateway, requests // 2)  # to warm up
    for _ in range(rounds):
        figures[0].append(await _round(endpoint, gateway, requests))
        with attack(gateway, attackers):
            figures[1].append(await _round(endpoint, gateway, requests))
    rates, costs = (tuple(statistics.median(one[place] for one in side) for side in figures) for place in (0, 1))
    falls = [1 - after[0] / before[0] for before, after in zip(*figures, strict=True)]
    return Slowed(
        attackers=attackers,
        requests_per_s=(rates[0], rates[1]),
        cpu_us=(costs[0], costs[1]),
        slower=statistics.median(falls),
    )


async def _round(endpoint: Endpoint, gateway: PlainGateway, requests: int) -> tuple[float, float]:
    before_ns = gateway.cpu_ns()
    result = await run([endpoint], Load(connections=LOAD_CONNECTIONS, total=requests))
    if result.errors or set(result.statuses) != {200}:
        raise BenchError(f"the load failed: statuses {dict(result.statuses)}, errors {dict(result.errors)}")
    return result.requests_per_s, (gateway.cpu_ns() - before_ns) / result.answered / 1000


@contextlib.contextmanager
def attack(gateway: PlainGateway, attackers: int) -> Iterator[None]:
    """The attackers, all of them connected."""
    before = gateway.open_files()
    words = [sys.executable, "-m", "bench.slowloris", "--only-attack", str(gateway.port), "--attackers", str(attackers)]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(tether.command(words, dies_by=signal.SIGTERM), stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + ATTACK_TIMEOUT_S
            while gateway.open_files() < before + attackers * 0.95:  # some may just be coming again
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError("the attackers did not get connected")
                time.sleep(POLL_S)
            yield
        finally:
            stop_process(process, signal.SIGTERM, STOP_TIMEOUT_S)
    deadline = time.monotonic() + ATTACK_TIMEOUT_S
    while gateway.open_files() > before + LOAD_CONNECTIONS and time.monotonic() < deadline:
        time.sleep(POLL_S)


class _Attacker(asyncio.Protocol):
    """One that never finishes its head, and comes again when it is thrown out. It costs next to nothing itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        with contextlib.suppress(OSError):
            await self._loop.create_connection(lambda: self, "127.0.0.1", self._port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"GET / HTTP/1.1\r\nHost: castgate.test\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def send_line(self) -> bool:
        """False where it has been thrown out."""
        if self._transport is None:
            return False
        self._transport.write(b"X-Slow: yes\r\n")
        return True


async def _attack(port: int, attackers: int) -> None:
    """Each has its turn once in an interval."""
    everybody = [_Attacker(port) for _ in range(attackers)]
    await asyncio.gather(*(attacker.connect() for attacker in everybody))
    steps = int(LINE_INTERVAL_S / STEP_S)
    while True:
        for step in range(steps):
            for attacker in everybody[step::steps]:
                if not attacker.send_line():
                    await attacker.connect()
            await asyncio.sleep(STEP_S)


@click.command()
@click.option("--attackers", default=1_000, show_default=True, type=click.IntRange(1, 20_000))
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--requests", default=20_000, show_default=True, type=click.IntRange(100), help="Of one round.")
@click.option("--only-attack", type=click.IntRange(1, 65535), hidden=True, metavar="PORT")
def main(attackers: int, rounds: int, requests: int, only_attack: int | None) -> None:
    """Measure how much slow clients slow others; exit code 1 where it is more than a tenth."""
    allow_many_files()
    if only_attack is not None:
        uvloop.run(_attack(only_attack, attackers))
        return
    try:
        with fast_upstream() as upstream_url, plain_gateway(upstream_url) as gateway:
            slowed = uvloop.run(measure(gateway, attackers=attackers, rounds=rounds, requests=requests))
    except (BenchError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(str(slowed))
    if slowed.slower > SLOWER_MAX:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
