"""A relay inside the test's own loop, between raw sockets: the test plays both the client and the upstream."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.metrics import Metrics
from gateway.policy.rules import Plan, Rules
from gateway.relay import heads
from gateway.relay.client import ClientConnection
from gateway.relay.pool import Pool
from gateway.relay.relay import Limits, Relay
from gateway.tasks import Tasks

LIMITS = Limits(
    head_bytes_max=32 * 1024,
    headers_max=128,
    target_bytes_max=8 * 1024,
    header_timeout_s=10,
    body_stall_timeout_s=10,
    keepalive_timeout_s=10,
    connections_max=1000,
    connections_per_address_max=0,
    in_flight_max=1000,
    body_bytes_max=1024**4,
    body_bytes_per_s_min=1024,
    buffered_bytes_max=64 * 1024,
    captured_bytes_max=64 * 1024,
    connect_timeout_s=2,
    first_byte_timeout_s=10,
    idle_timeout_s=10,
    tunnel_idle_timeout_s=10,
)
NO_RULES = Rules(version="test", policies=(), plans={"free": Plan(name="free")}, default_plan="free")


class NoServices:
    """Stands where identity, admission and ledger would: a route without a policy must not touch them."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a request without a policy asked for {name}")


@dataclass
class Upstream:
    """What the test's upstream received, and how it answers: ``answer(head, reader, writer)`` for each request."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    answer: Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                self.asked.set()
                assert self.answer is not None
                await self.answer(head, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def answering(data: bytes) -> Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """An upstream's answer that is always these bytes, after the request's body (by Content-Length) was read."""

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                await reader.readexactly(int(line[15:]))
        writer.write(data)

    return answer


async def until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    """Returns once something is so; the loop's other work goes on meanwhile."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


@dataclass
class Client:
    """The test's client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)

    async def read(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), 5)

    async def read_until(self, mark: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), 5)

    async def read_all(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(-1), 5)


@dataclass
class Running:
    """A relay that listens."""

    relay: Relay
    upstream: Upstream
    port: int
    errors: list[dict[str, Any]]
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    def pass_time(self, seconds: float) -> None:
        """The relay's clock jumps, and it looks at its deadlines."""
        now = self.relay.now
        self.relay.now = lambda: now() + seconds
        self.relay.tick()

    def limit(self, **changes: Any) -> None:
        self.relay.limits = replace(self.relay.limits, **changes)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The relay runs on uvloop, whose transports are not asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: errors.append(context))
    tasks = Tasks()
    upstream = Upstream()
    upstream_server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = upstream_server.sockets[0].getsockname()[1]
    nothing: Any = NoServices()
    relay = Relay(
        limits=LIMITS,
        rules=NO_RULES,
        identify=nothing,
        admission=nothing,
        ledger=nothing,
        metrics=Metrics(tmp_path, "worker-0"),
        tasks=tasks,
        hosted_paths=frozenset(),
        request_fields=heads.request_fields("Authorization", "X-API-Key"),
        new_event_id=lambda: "0" * 32,
    )

    def pool(name: str) -> Pool:
        return Pool(
            relay,
            name,
            lambda factory: loop.create_connection(factory, "127.0.0.1", upstream.port),
            host_line=b"Host: upstream\r\n",
            connections_max=64,
            waiting_max=1000,
            keepalive_idle_s=4,
        )

    relay.upstream_pool, relay.hosted_pool = pool("upstream"), pool("hosted")
    tasks.start("tick", relay.tick_forever())
    server = await loop.create_server(lambda: ClientConnection(relay), "127.0.0.1", 0)
    running = Running(relay, upstream, server.sockets[0].getsockname()[1], errors)
    yield running
    for client in running.clients:
        client.writer.close()
    server.close()
    relay.upstream_pool.close()
    relay.hosted_pool.close()
    upstream_server.close()
    await tasks.drain(0)
    await asyncio.sleep(0)
    assert errors == [], "an exception reached the loop's handler"
