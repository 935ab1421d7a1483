"""Server-sent events to many clients at once: the service that sends them, and the clients that read them.

Each stream has an event every 100 ms, with the time at which it was sent (the clock of the machine, which both ends
share), and ends after a number of events. All streams together are written to in ten turns, so that the load is even.
"""

import asyncio
import contextlib
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from time import monotonic
from typing import cast

import click
import uvloop

from bench.generators import Request, Sample
from bench.processes import BenchError, pinned, run_program, running
from gateway.embedded import free_port

EVENT_INTERVAL_S = 0.1
TURNS = 10
REPLY_TIMEOUT_S = 30.0
CONNECTING_MAX = 50  # at once; the proxy is to be measured at relaying, not at accepting
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_MARK = b"data: "
_EVENT_BYTES = 64


def _event() -> bytes:
    text = b"%b%.6f" % (_MARK, monotonic())
    event = text.ljust(_EVENT_BYTES - 2) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


class _Stream(asyncio.Protocol):
    """One request at a time, answered with a stream. The ticker writes to it."""

    def __init__(self, ticker: "_Ticker") -> None:
        self._ticker = ticker
        self._seen = b""
        self.left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by inheritance

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, end, body = self._seen.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._seen = b""
        self.left = self._ticker.events
        self.transport.write(_HEAD)
        self._ticker.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.left = 0


class _Ticker:
    """Writes an event to a tenth of the streams, ten times an interval."""

    def __init__(self, events: int) -> None:
        self.events = events
        self._turns: list[list[_Stream]] = [[] for _ in range(TURNS)]
        self._turn = 0

    def add(self, stream: _Stream) -> None:
        min(self._turns, key=len).append(stream)

    async def run(self) -> None:
        due = monotonic()
        while True:
            due += EVENT_INTERVAL_S / TURNS
            await asyncio.sleep(max(0.0, due - monotonic()))
            self._turn = (self._turn + 1) % TURNS
            streams = self._turns[self._turn]
            for stream in streams:
                if stream.left:
                    stream.left -= 1
                    stream.transport.write(_event() if stream.left else _event() + b"0\r\n\r\n")
            self._turns[self._turn] = [stream for stream in streams if stream.left]


async def _serve(port: int, events: int) -> None:
    ticker = _Ticker(events)
    server = await asyncio.get_running_loop().create_server(lambda: _Stream(ticker), "127.0.0.1", port, backlog=4096)
    async with server:
        await ticker.run()


@dataclass(slots=True)
class _Seen:
    late_s: "array[float]" = field(default_factory=lambda: array("d"))
    ended: int = 0
    first_s: float = 0.0
    last_s: float = 0.0


class _Reader(asyncio.Protocol):
    """One client: asks, reads until the stream has ended."""

    def __init__(self, request: bytes, seen: _Seen) -> None:
        self._request = request
        self._seen = seen
        self._tail = b""
        self._is_answered = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = monotonic()
        seen = self._seen
        if not self._is_answered:
            self._is_answered = True
            if not data.startswith(b"HTTP/1.1 200 "):
                self._transport.close()
                return
        data = self._tail + data
        place = data.find(_MARK)
        while place >= 0 and place + _EVENT_BYTES <= len(data):
            seen.late_s.append(now - float(data[place + len(_MARK) : place + _EVENT_BYTES - 2]))
            place = data.find(_MARK, place + _EVENT_BYTES)
        self._tail = data[place:] if place >= 0 else data[-8:]
        seen.first_s = seen.first_s or now
        seen.last_s = now
        if self._tail.endswith(b"0\r\n\r\n"):
            seen.ended += 1
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def _read(port: int, request: bytes, streams: int) -> _Seen:
    loop = asyncio.get_running_loop()
    seen = _Seen()
    readers: list[_Reader] = []
    for begin in range(0, streams, CONNECTING_MAX):
        count = min(CONNECTING_MAX, streams - begin)
        made = await asyncio.gather(
            *(loop.create_connection(lambda: _Reader(request, seen), "127.0.0.1", port) for _ in range(count))
        )
        readers += [reader for _, reader in made]
    await asyncio.wait_for(asyncio.gather(*(reader.done for reader in readers)), REPLY_TIMEOUT_S)
    return seen


def _share(sorted_s: Sequence[float], share: float) -> float:
    return sorted_s[max(0, ceil(share * len(sorted_s)) - 1)] * 1000 if sorted_s else 0.0


@contextlib.contextmanager
def stream_upstream(folder: Path, cores: Sequence[int], events: int) -> Iterator[str]:
    """The service as a process; its URL."""
    port = free_port()
    words = [sys.executable, "-m", "bench.streams", "serve", "--port", str(port), "--events", str(events)]
    with running("event-streams", words, port=port, cores=cores, folder=folder, environment={}):
        yield f"http://127.0.0.1:{port}"


def read_streams(port: int, request: Request, cores: Sequence[int], streams: int, events: int) -> Sample:
    """Reads that many streams to their ends; an event is what is counted, how late it comes is the latency."""
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    text = (
        f"{request.method} {request.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{head}"
        f"Content-Length: {len(request.body)}\r\n\r\n{request.body}"
    )
    words = [sys.executable, "-m", "bench.streams", "read", "--port", str(port), "--streams", str(streams)]
    with pinned(cores):
        ended = run_program(words, input_text=text, timeout_s=REPLY_TIMEOUT_S + 30)
    try:
        figures = json.loads(ended.stdout)
    except ValueError:
        raise BenchError(f"the streams' readers failed: {ended.stderr.strip()[-500:]}") from None
    wanted = streams * events
    return Sample(
        generator="python",
        requests=figures["events"],
        refused=0,
        errors=(wanted - figures["events"]) + (streams - figures["ended"]),
        abandoned_max=0,
        elapsed_s=figures["elapsed_s"],
        p50_ms=figures["p50_ms"],
        p99_ms=figures["p99_ms"],
        p99_9_ms=figures["p99_9_ms"],
    )


@click.group()
def main() -> None:
    """The two ends of many event streams; ``./dev bench`` starts them."""


@main.command()
@click.option("--port", required=True, type=click.IntRange(1, 65535))
@click.option("--events", required=True, type=click.IntRange(1), help="Of each stream.")
def serve(port: int, events: int) -> None:
    """Answer every request with a stream."""
    uvloop.run(_serve(port, events))


@main.command()
@click.option("--port", required=True, type=click.IntRange(1, 65535))
@click.option("--streams", required=True, type=click.IntRange(1))
def read(port: int, streams: int) -> None:
    """Send the request on standard input on each of so many connections, and print what came."""
    seen = uvloop.run(_read(port, sys.stdin.buffer.read(), streams))
    late_s = sorted(seen.late_s)
    figures = {
        "events": len(late_s),
        "ended": seen.ended,
        "elapsed_s": max(seen.last_s - seen.first_s, 0.001),
        "p50_ms": _share(late_s, 0.5),
        "p99_ms": _share(late_s, 0.99),
        "p99_9_ms": _share(late_s, 0.999),
    }
    click.echo(json.dumps(figures))


if __name__ == "__main__":
    main()
