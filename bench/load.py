"""A load client in Python: raw HTTP/1.1 over asyncio, request bytes made beforehand, no task or object per request.

As a library: ``await run([Endpoint.of(url, …)], Load(connections=64, total=5000))`` in any running loop. It issues
exactly ``total`` requests, or requests for ``seconds``, and always waits for the answers under way, so that what it
counted is what happened. A request is never sent twice: a lost one is an error of one of the kinds in ERROR_KINDS.

As a process, with uvloop and pinned: ``python -m bench.load URL --seconds 4 --core 1 --json``.
"""

import asyncio
import json
import math
import os
import random
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Self, cast
from urllib.parse import urlsplit

import click
import uvloop

from bench.response import ResponseError, ResponseReader

CONNECT_PAUSE_S = 0.02  # after a refused connection: a gateway that is down must not eat the whole load at once
SWEEP_INTERVAL_S = 0.25  # how late a time-out may be noticed
# connect: no connection. closed: it ended before a byte of the answer. cut: it ended within the answer.
# malformed: not HTTP/1.1. timeout: no whole answer in time. body: the answer came, but ``check`` refused it.
ERROR_KINDS = ("connect", "closed", "cut", "malformed", "timeout", "body")

# Told the status and the decoded body of each answer; False counts an error of kind ``body``.
Check = Callable[[int, bytes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where requests go, and the bytes of those to choose from."""

    host: str
    port: int
    requests: tuple[bytes, ...]

    @classmethod
    def of(
        cls,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | Sequence[Mapping[str, str]] = (),
        body: bytes = b"",
    ) -> Self:
        """The endpoint of an ``http://`` URL; several ``headers`` make several requests (one for each account, say)."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"expected an http:// URL, found {url!r}")
        if method in ("HEAD", "CONNECT"):
            raise ValueError(f"the load client cannot read answers to {method}")
        port = parts.port or 80
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        variants = [headers] if isinstance(headers, Mapping) else list(headers) or [{}]
        requests = []
        for variant in variants:
            fields = {"Host": parts.netloc, **variant}
            if body or method in ("POST", "PUT", "PATCH"):
                fields["Content-Length"] = str(len(body))
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            requests.append(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        return cls(host=parts.hostname, port=port, requests=tuple(requests))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much to ask: a number of requests (``total``) or a time (``seconds``), over ``connections`` at once."""

    connections: int = 64
    total: int | None = None
    seconds: float | None = None
    seed: int = 0  # which endpoint and which request comes when
    first: int | None = None  # an endpoint's requests in turn, from this one on; None: at random
    reply_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if (self.total is None) == (self.seconds is None):
            raise ValueError("a load needs either total or seconds")
        if self.connections < 1:
            raise ValueError("a load needs at least one connection")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What came back. ``latencies_s`` is sorted and has one entry for each answer."""

    elapsed_s: float
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latencies_s: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def answered(self) -> int:
        """How many requests got a whole answer, whatever its status."""
        return self.statuses.total()

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return self.answered / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def latency_ms(self, share: float) -> float:
        """The latency that ``share`` (0 to 1) of the answers did not exceed, in ms; NaN when there were none."""
        if not self.latencies_s:
            return math.nan
        return self.latencies_s[max(0, math.ceil(share * len(self.latencies_s)) - 1)] * 1000

    def summary(self) -> dict[str, object]:
        """The figures as JSON holds them."""
        return {
            "requests": self.answered,
            "elapsed_s": self.elapsed_s,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "errors": dict(self.errors),
            **{f"p{name}_ms": self.latency_ms(share) for name, share in (("50", 0.5), ("99", 0.99), ("99_9", 0.999))},
        }


class _Connection(asyncio.Protocol):
    """One connection: send, wait for the whole answer, send again, until the run has nothing more to ask."""

    __slots__ = ("_endpoint", "_failure", "_reader", "_run", "closed", "started", "transport")

    def __init__(self, run: "_Run", endpoint: Endpoint) -> None:
        self._run = run
        self._endpoint = endpoint
        self._reader = ResponseReader(keep_body=run.check is not None)
        self._failure = "closed"
        self.started = 0.0  # 0: nothing is under way
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by inheritance
        self._run.open.add(self)
        self._send()

    def _send(self) -> None:
        assert self.transport is not None
        if not self._run.take():
            self.transport.close()
            return
        request = self._run.one_of(self._endpoint.requests)
        self.started = perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self.started:
            return  # closing; whatever still comes belongs to no request
        try:
            if self._reader.feed(data):
                self._answered()
        except ResponseError:
            self.fail("malformed")

    def _answered(self) -> None:
        assert self.transport is not None
        reader, run = self._reader, self._run
        run.latencies_s.append(perf_counter() - self.started)
        self.started = 0.0
        run.statuses[reader.status] += 1
        if run.check is not None and not run.check(reader.status, reader.body):
            run.errors["body"] += 1
        if reader.close:
            self.transport.close()
            return
        reader.reset()
        self._send()

    def fail(self, kind: str) -> None:
        """Give the request under way up as an error of this kind."""
        assert self.transport is not None
        self._failure = kind
        self.transport.abort()

    def eof_received(self) -> bool:
        if self.started:
            try:
                if self._reader.end_of_stream():
                    self._answered()
            except ResponseError:
                self._failure = "cut"
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.open.discard(self)
        if self.started:
            cut = self._failure == "closed" and self._reader.began
            self._run.errors["cut" if cut else self._failure] += 1
            self.started = 0.0
        if not self.closed.done():
            self.closed.set_result(None)


class _Run:
    """One load under way: what is still to ask, and what came back."""

    def __init__(self, endpoints: Sequence[Endpoint], load: Load, check: Check | None) -> None:
        self.endpoints = endpoints
        self.load = load
        self.check = check
        self.random = random.Random(load.seed)
        self.turn = load.first
        self.left = math.inf if load.total is None else load.total
        self.open: set[_Connection] = set()
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies_s = array("d")

    def take(self) -> bool:
        """Claim one request; False when there is nothing more to ask."""
        if self.left <= 0:
            return False
        self.left -= 1
        return True

    def one_of(self, requests: Sequence[bytes]) -> bytes:
        """The request to send next."""
        if len(requests) == 1:
            return requests[0]
        if self.turn is None:
            return self.random.choice(requests)
        self.turn += 1
        return requests[(self.turn - 1) % len(requests)]

    def stop(self) -> None:
        self.left = 0

    async def client(self) -> None:
        """Keep one connection open for as long as there is something to ask."""
        loop = asyncio.get_running_loop()
        while self.left > 0:
            endpoint = self.random.choice(self.endpoints)
            try:
                _, connection = await asyncio.wait_for(
                    loop.create_connection(partial(_Connection, self, endpoint), endpoint.host, endpoint.port),
                    self.load.reply_timeout_s,
                )
            except OSError:  # TimeoutError is one
                if self.take():
                    self.errors["connect"] += 1
                await asyncio.sleep(CONNECT_PAUSE_S)
                continue
            try:
                await connection.closed
            finally:
                if connection.transport is not None:
                    connection.transport.abort()

    async def stop_when(self, enough: asyncio.Event) -> None:
        """Ask no more once somebody has seen enough."""
        await enough.wait()
        self.stop()

    async def sweep(self) -> None:
        """Give up requests that wait for longer than the load allows."""
        while True:
            await asyncio.sleep(min(SWEEP_INTERVAL_S, self.load.reply_timeout_s))
            before = perf_counter() - self.load.reply_timeout_s
            for connection in [one for one in self.open if one.started and one.started < before]:
                connection.fail("timeout")


async def run(
    endpoints: Sequence[Endpoint], load: Load, *, check: Check | None = None, enough: asyncio.Event | None = None
) -> LoadResult:
    """Put the load on the endpoints (each connection goes to one of them at random) and wait for every answer.

    It ends early where ``enough`` is set.
    """
    state = _Run(endpoints, load, check)
    started = perf_counter()
    async with asyncio.TaskGroup() as background:
        helpers = [background.create_task(state.sweep())]
        if enough is not None:
            helpers.append(background.create_task(state.stop_when(enough)))
        if load.seconds is not None:
            asyncio.get_running_loop().call_later(load.seconds, state.stop)
        async with asyncio.TaskGroup() as clients:
            # More connections than requests would only open and close.
            for _ in range(min(load.connections, load.total or load.connections)):
                clients.create_task(state.client())
        for helper in helpers:
            helper.cancel()
    elapsed_s = perf_counter() - started
    return LoadResult(
        elapsed_s=elapsed_s,
        statuses=state.statuses,
        errors=state.errors,
        latencies_s=array("d", sorted(state.latencies_s)),
    )


def _text(result: LoadResult) -> str:
    counts = ", ".join(f"{count} × {status}" for status, count in sorted(result.statuses.items())) or "no answer"
    errors = "".join(f", {count} × error {kind}" for kind, count in sorted(result.errors.items()))
    return (
        f"{result.requests_per_s:.0f} requests/s, p50 {result.latency_ms(0.5):.2f} ms, "
        f"p99 {result.latency_ms(0.99):.2f} ms, {counts}{errors}"
    )


@click.command()
@click.argument("url")
@click.option("--method", default="GET", show_default=True)
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header to send; repeatable.")
@click.option("--body", default="", help="The request's body.")
@click.option(
    "--keys", type=click.Path(exists=True, path_type=Path), help="API keys, one a line: each request has the next."
)
@click.option("--first-key", default=0, show_default=True, type=click.IntRange(0), help="The place of the first one.")
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1, 20_000))
@click.option("--total", type=click.IntRange(1), help="Send exactly this many requests.")
@click.option("--seconds", type=click.FloatRange(0.1), help="Send for this long.")
@click.option("--core", type=click.IntRange(0), help="Pin this process to one core.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    url: str,
    method: str,
    headers: tuple[str, ...],
    body: str,
    keys: Path | None,
    first_key: int,
    connections: int,
    total: int | None,
    seconds: float | None,
    core: int | None,
    as_json: bool,
) -> None:
    """Put load on URL and print what came back."""
    if (total is None) == (seconds is None):
        raise click.UsageError("give either --total or --seconds")
    for header in headers:
        if ":" not in header:
            raise click.UsageError(f"--header expects 'NAME: VALUE', found {header!r}")
    if core is not None:
        try:
            os.sched_setaffinity(0, {core})
        except OSError as error:
            raise click.UsageError(f"cannot pin to core {core}: {error.strerror}") from None
    fields = {name.strip(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
    variants = [{**fields, "Authorization": f"Bearer {key}"} for key in keys.read_text().split()] if keys else [fields]
    try:
        endpoint = Endpoint.of(url, method=method, headers=variants, body=body.encode())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    load = Load(connections=connections, total=total, seconds=seconds, first=first_key)
    result = uvloop.run(run([endpoint], load))
    click.echo(json.dumps(result.summary()) if as_json else _text(result))


if __name__ == "__main__":
    main()
