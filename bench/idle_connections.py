"""What an idle keep-alive connection costs one worker: ``python -m bench.idle_connections``.

Each connection has asked once, and then waits for as long as it may. The kernel's own memory for sockets is not
counted: it is the same for every proxy.
"""

import asyncio
from dataclasses import dataclass
from typing import cast

import click
import uvloop

from bench.plain_gateway import PlainGateway, allow_many_files, fast_upstream, plain_gateway
from bench.processes import BenchError

KIB_EACH_MAX = 12.0
WARM_UP = 200  # so that what is made once does not count
AT_ONCE = 200
_REQUEST = b"GET /plain HTTP/1.1\r\nHost: castgate.test\r\nUser-Agent: idle\r\nAccept: */*\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """What was measured."""

    connections: int
    before_bytes: int
    after_bytes: int

    @property
    def kib_each(self) -> float:
        """Memory of the worker's own for each connection."""
        return (self.after_bytes - self.before_bytes) / self.connections / 1024

    def __str__(self) -> str:
        return (
            f"{self.connections} idle connections on one worker: {self.kib_each:.1f} KiB each "
            f"({self.before_bytes / 2**20:.1f} MiB before, {self.after_bytes / 2**20:.1f} MiB after)"
        )


class _Client(asyncio.Protocol):
    """Asks once, and keeps the connection."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(_REQUEST)  # uvloop's is one, but not by inheritance

    def data_received(self, data: bytes) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(BenchError("a connection ended before its answer"))


async def measure(gateway: PlainGateway, connections: int) -> Idle:
    """Opens them, asks once on each, and looks at the worker's memory before and after."""
    loop = asyncio.get_running_loop()
    open_now: list[asyncio.BaseTransport] = []

    async def open_one() -> None:
        transport, client = await loop.create_connection(_Client, "127.0.0.1", gateway.port)
        open_now.append(transport)
        await client.answered

    async def open_many(count: int) -> None:
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(open_one() for _ in range(min(AT_ONCE, count - start))))

    try:
        await open_many(WARM_UP)
        before_bytes = gateway.memory_bytes()
        await open_many(connections)
        after_bytes = gateway.memory_bytes()
        if any(transport.is_closing() for transport in open_now) or gateway.open_files() < WARM_UP + connections:
            raise BenchError("a connection was closed meanwhile: the figure would be too small")
    finally:
        for transport in open_now:
            transport.close()
    return Idle(connections=connections, before_bytes=before_bytes, after_bytes=after_bytes)


@click.command()
@click.option("--connections", default=10_000, show_default=True, type=click.IntRange(1, 100_000))
def main(connections: int) -> None:
    """Measure what an idle connection costs; exit code 1 where it is more than 12 KiB."""
    allow_many_files()
    try:
        with fast_upstream() as upstream_url, plain_gateway(upstream_url) as gateway:
            idle = uvloop.run(measure(gateway, connections))
    except (BenchError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(str(idle))
    if idle.kib_each > KIB_EACH_MAX:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
