"""``python -m bench.hot_path_cost``: what a call costs a worker, counted and not timed, so the same on any machine.

A whole worker runs in this process, on real Redis and Postgres and a service of its own; only the clients' sockets are
not there: requests are given to the connections' protocols, 64 at a time, and the next 64 follow when all is settled.
Batches are then the same in every run: one of a single call, one of the rest, one ledger write, one settlement.
Counted is every instruction of Python's interpreter and every call of a C function below the worker's callbacks, by the
part of the program it is in; what happens by the clock (heartbeats, ticks) is left out. So are the calls and bytes that
go to Redis, and the statements that go to Postgres.

What was recorded is in ``hot_path_cost.json``, for each minor version of Python, since each compiles differently.
``--record`` writes this version's figures there and prints what has changed; tests/bench/test_hot_path_cost.py fails
where they differ by more than a tenth.
"""

import asyncio
import contextlib
import json
import os
import random
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import click
import uvloop

from bench.many_accounts import add_accounts, key_of
from bench.plain_gateway import fast_upstream
from bench.processes import BenchError
from bench.targets import CAST_BODY, CAST_PATH, PLAIN_PATH, REPOSITORY, Place, castgate_environment
from gateway import admission_lane, log
from gateway.config import load
from gateway.embedded import embedded_postgres, embedded_redis, free_port
from gateway.migrate import default_folder, migrate, read_migrations
from gateway.relay.client import ClientConnection
from gateway.worker import Worker
from gateway.worker_parameters import Parameters
from upstream_stub.seed import seed

RECORD = Path(__file__).with_name("hot_path_cost.json")
VERSION = ".".join(map(str, sys.version_info[:2]))
BOUND = 0.1
WAVE = 64  # calls at once, and rows of one ledger write
WARM_UP_WAVES = 3
WAVES = 5
WAVE_TIMEOUT_S = 30.0
FUNCTIONS_SHOWN = 70
NO_POLICY, EVERYTHING = "no policy", "everything on"
MANY_ACCOUNTS, NEW_HEADS = "everything on, another account each time", "everything on, a new head each time"
KINDS = (NO_POLICY, EVERYTHING, MANY_ACCOUNTS, NEW_HEADS)
ACCOUNTS = 2 * WAVE  # all of them have called when the warm-up is over, and no wave has one of them twice
# What config.yaml says, and what it says here: a ledger write is due when a wave is complete, and never before; and
# nothing that is remembered is read again, however slow the machine.
_CHANGES = {
    "flush_interval: 20ms": "flush_interval: 10s",
    "  batch_max: 2000 ": f"  batch_max: {WAVE} ",
    "    ttl: 30s": "    ttl: 1h",
    "  facts_ttl: 30s": "  facts_ttl: 1h",
}
# What runs by the clock, with all that it calls; and so does every task that the worker has before its first call.
_BY_THE_CLOCK = frozenset({"Lane._tick", "Lane._keep", "Lane._watch"})
_PARTS = {
    "relay/": "relay", "policy/": "relay", "observer": "relay", "identify": "relay", "credentials": "relay",
    "admission": "admission",
    "redis_store": "admission", "ledger": "ledger", "usage_": "ledger", "database": "ledger",
    "metrics": "metrics",
}  # fmt: skip
_OWN, _CLOCK = "", "clock"


def part_of(code: CodeType) -> str:
    """The part of the program that a function is in; blank for what is here only to count."""
    path = code.co_filename
    if path.startswith(str(REPOSITORY / "bench")):
        return _OWN
    if code.co_qualname in _BY_THE_CLOCK:
        return _CLOCK
    inside = path.removeprefix(str(REPOSITORY / "gateway") + "/")
    if inside == path:
        return "ledger" if "/asyncpg/" in path else "other"
    return next((part for begin, part in _PARTS.items() if inside.startswith(begin)), "other")


class Meter:
    """Counts instructions and C calls of this thread by part, while it is on."""

    def __init__(self) -> None:
        self.instructions: Counter[str] = Counter()
        self.c_calls: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()  # instructions of each
        self._parts: dict[CodeType, str] = {}
        self._counting: dict[CodeType, Callable[[FrameType, str, Any], Any]] = {}
        self._skipped: FrameType | None = None  # runs by the clock: neither it nor what it calls counts
        self._standing: frozenset[asyncio.Task[Any]] = frozenset()

    def leave_out(self, tasks: Iterable["asyncio.Task[Any]"]) -> None:
        """Count nothing that runs in these tasks."""
        self._standing = frozenset(tasks)

    @property
    def is_skipping(self) -> bool:
        """Whether what runs now runs by the clock."""
        return self._skipped is not None or asyncio.current_task() in self._standing

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        # From 3.12 on settrace looks whether any frame wants opcodes, and forgets them where none does yet.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._called)
        sys.setprofile(self._profiled)
        try:
            yield
        finally:
            sys.setprofile(None)
            sys.settrace(None)

    def _part(self, code: CodeType) -> str:
        part = self._parts.get(code)
        if part is None:
            part = self._parts[code] = part_of(code)
        return part

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        if self.is_skipping:
            return None
        part = self._part(frame.f_code)
        if part == _OWN:
            return None
        frame.f_trace_lines = False
        if part == _CLOCK:
            self._skipped = frame
            return self._skip
        frame.f_trace_opcodes = True
        counting = self._counting.get(frame.f_code)
        if counting is None:
            counting = self._counting[frame.f_code] = self._counting_of(part, frame.f_code)
        return counting

    def _counting_of(self, part: str, code: CodeType) -> Callable[[FrameType, str, Any], Any]:
        instructions, functions = self.instructions, self.functions
        function = f"{code.co_qualname} ({Path(code.co_filename).name})"

        def count(_frame: FrameType, event: str, _arg: Any) -> Any:
            if event == "opcode":
                instructions[part] += 1
                functions[function] += 1
            return count

        return count

    def _skip(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "return" and frame is self._skipped:
            self._skipped = None
        return self._skip

    def _profiled(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call" and not self.is_skipping and (part := self._part(frame.f_code)):
            self.c_calls[part] += 1


class Transport:
    """A client's socket as far as the relay can tell: what is written is an answer, counted when it is whole."""

    def __init__(self, answered: Callable[[bytes], None]) -> None:
        self._answered = answered

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 1) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        self._answered(data)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass

    close = pause_reading = resume_reading = abort


class Reader:
    """hiredis' reader, and how many bytes came."""

    def __init__(self, reader: Any, told: Callable[[int], None]) -> None:
        self._reader = reader
        self._told = told
        self.gets = reader.gets

    def feed(self, data: bytes) -> None:
        self._told(len(data))
        self._reader.feed(data)


@dataclass(slots=True)
class Cost:
    """Of one call of a kind; stores by 1,000 calls."""

    instructions: dict[str, float] = field(default_factory=dict)
    c_calls: dict[str, float] = field(default_factory=dict)
    redis: dict[str, float] = field(default_factory=dict)
    postgres_statements: float = 0.0
    functions: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return {
            "instructions": {"all": round(sum(self.instructions.values()), 1), **_rounded(self.instructions)},
            "c_calls": {"all": round(sum(self.c_calls.values()), 1), **_rounded(self.c_calls)},
            "per_1000_calls": {**_rounded(self.redis), "postgres_statements": round(self.postgres_statements, 1)},
        }


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(figure, 1) for name, figure in sorted(figures.items())}


class _Bench:
    """A worker, 64 clients, and the counting around it."""

    def __init__(self, worker: Worker, api_key: str) -> None:
        self._worker = worker
        self._api_key = api_key
        self._sequence = 0
        self._answers = 0
        self._all_answered = asyncio.Event()
        self._refused = b""
        self._redis: Counter[str] = Counter()
        self._statements = 0
        self._meter = Meter()
        self._meter.leave_out(asyncio.all_tasks() - {asyncio.current_task()})
        self._clients = [self._client() for _ in range(WAVE)]
        self._count_stores()

    def _client(self) -> ClientConnection:
        client = ClientConnection(self._worker._relay)
        client.connection_made(Transport(self._answered))  # type: ignore[arg-type]
        return client

    def _answered(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200 "):
            self._refused = data
        self._answers += 1
        if self._answers == WAVE:
            self._all_answered.set()

    def leave(self) -> None:
        """The clients hang up."""
        for client in self._clients:
            client.connection_lost(None)

    def _count_stores(self) -> None:
        link: Any = self._worker._admission._lanes[0]._link
        send, database = link.send, self._worker._database
        link._reader = Reader(link._reader, lambda size: self._redis.update(redis_bytes_received=size))

        def counted_send(command: bytes, done: Any) -> None:
            self._redis.update(redis_calls=1, redis_bytes_sent=len(command))
            send(command, done)

        link.send = counted_send
        for name in ("fetch", "fetchrow", "execute"):
            self._count_statements(database, name, getattr(database, name))

    def _count_statements(self, database: Any, name: str, ask: Callable[..., Any]) -> None:
        def counted(*words: Any, **named: Any) -> Any:
            self._statements += not self._meter.is_skipping
            return ask(*words, **named)

        setattr(database, name, counted)

    def _request(self, kind: str) -> bytes:
        path = PLAIN_PATH if kind == NO_POLICY else CAST_PATH
        number = self._sequence = self._sequence + 1
        key = key_of(number % ACCOUNTS + 1) if kind == MANY_ACCOUNTS else self._api_key
        more = ["User-Agent: bench\r\n"]
        if kind == NEW_HEADS:
            # Lines that stand in another order than in the last head of the same connection.
            more.insert(number // WAVE % 2, f"X-Trace: {number:08d}\r\n")
        return (
            f"POST {path} HTTP/1.1\r\nHost: castgate.test\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\n{''.join(more)}"
            f"Content-Length: {len(CAST_BODY)}\r\n\r\n{CAST_BODY}"
        ).encode()

    async def _wave(self, kind: str) -> None:
        self._answers = 0
        self._all_answered.clear()
        for client in self._clients:
            client.data_received(self._request(kind))
        async with asyncio.timeout(WAVE_TIMEOUT_S):
            await self._all_answered.wait()
            while not self._is_settled():  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.001)
        if self._refused:
            raise BenchError(f"a call was answered with {self._refused[:300]!r}")

    def _is_settled(self) -> bool:
        lane, admission = self._worker._admission._lanes[0], self._worker._admission
        return not (
            len(self._worker._ledger) or admission._open or lane.settled.count or lane._flying or lane._settling
        )

    async def measure(self, kind: str) -> Cost:
        """The cost of one call of a kind, over some waves, after others that warm up."""
        for _ in range(WARM_UP_WAVES):
            await self._wave(kind)
        random.seed(1)  # of which requests the stages are timed
        self._meter.instructions.clear()
        self._meter.c_calls.clear()
        self._meter.functions.clear()
        self._redis.clear()
        self._statements = 0
        with self._meter.on():
            for _ in range(WAVES):
                await self._wave(kind)
        calls = WAVE * WAVES
        return Cost(
            instructions={part: count / calls for part, count in self._meter.instructions.items()},
            c_calls={part: count / calls for part, count in self._meter.c_calls.items()},
            redis={name: count / calls * 1000 for name, count in self._redis.items()},
            postgres_statements=self._statements / calls * 1000,
            functions={name: count / calls for name, count in self._meter.functions.most_common(FUNCTIONS_SHOWN)},
        )


async def _measured(place: Place, config: Path, api_key: str) -> dict[str, Cost]:
    environ = {**os.environ, **castgate_environment(place), "REDIS_TIMEOUT": "10s", "LOG_LEVEL": "error"}
    loaded = load(config, environ)
    log.configure("error", "json")
    # What keeps time is left out of the count, and so must be what it sends to Redis.
    admission_lane.KEEP_S = admission_lane.HEARTBEAT_S = 3600.0
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    runtime_dir = place.folder / "run"
    runtime_dir.mkdir()
    worker = Worker(
        Parameters(
            index=0, listen_fd=listener.detach(), control_fd=-1, config=str(config), runtime_dir=str(runtime_dir),
            gateway_id="bench", start=1,
        ),
        loaded,
    )  # fmt: skip
    await worker.start()
    try:
        bench = _Bench(worker, api_key)
        costs = {kind: await bench.measure(kind) for kind in KINDS}
        bench.leave()
        return costs
    finally:
        await worker.stop()


def measured(database_url: str, redis_url: str) -> dict[str, Cost]:
    """The figures of this version of Python by kind; the stores are empty ones."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="castgate-cost-")))
        upstream_url = stack.enter_context(fast_upstream())
        account = asyncio.run(seed(database_url))
        asyncio.run(migrate(database_url, read_migrations(default_folder()), report=lambda _: None))
        add_accounts(database_url, 1, ACCOUNTS)
        place = Place(
            folder=folder, port=free_port(), admin_port=free_port(), upstream_url=upstream_url,
            database_url=database_url, redis_url=redis_url,
        )  # fmt: skip
        text = (REPOSITORY / "config.yaml").read_text()
        for old, new in _CHANGES.items():
            assert old in text, f"config.yaml no longer says {old}"
            text = text.replace(old, new)
        config = folder / "config.yaml"
        config.write_text(text)
        (folder / "policies").symlink_to(REPOSITORY / "policies")
        return uvloop.run(_measured(place, config, account.api_key))


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """What is guarded: (name, recorded, found) of each figure."""
    for kind, groups in recorded.items():
        for group, figures in groups.items():
            for name, before in figures.items():
                after = found.get(kind, {}).get(group, {}).get(name, 0.0)
                yield f"{kind}: {group}, {name}", before, after


def too_far(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for each figure that is more than a tenth away from what was recorded; small parts may move by more."""
    lines = []
    for name, before, after in differences(recorded, found):
        kind, _, rest = name.partition(": ")
        group = rest.partition(",")[0]
        whole = recorded[kind][group].get("all", before)
        if abs(after - before) > BOUND * before and abs(after - before) > 0.02 * whole:
            lines.append(f"{name}: {after:.1f}, recorded {before:.1f} ({_change(before, after)})")
    return lines


def _change(before: float, after: float) -> str:
    return f"{(after - before) / before:+.1%}" if before else "new"


def recorded_figures() -> dict[str, Any]:
    """What was recorded for each version of Python."""
    return dict(json.loads(RECORD.read_text())) if RECORD.exists() else {}


@click.command()
@click.option("--database-url", help="An empty database; default: an embedded Postgres.")
@click.option("--redis-url", help="An empty database; default: an embedded Redis.")
@click.option("--record", is_flag=True, help="Keep the figures as this Python's, and print what has changed.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--functions", is_flag=True, help="Print the functions that most instructions are in.")
def main(database_url: str | None, redis_url: str | None, record: bool, as_json: bool, functions: bool) -> None:
    """Count what a call costs a worker; exit code 1 where it is a tenth off what was recorded."""
    with contextlib.ExitStack() as stack:
        if database_url is None or redis_url is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="castgate-stores-")))
            database_url = database_url or stack.enter_context(embedded_postgres(folder / "postgres")).url
            redis_url = redis_url or stack.enter_context(embedded_redis(folder / "redis", ephemeral=True)).url
        try:
            costs = measured(database_url, redis_url)
        except BenchError as error:
            raise click.ClickException(str(error)) from None
    found = {kind: cost.as_json() for kind, cost in costs.items()}
    if functions:
        for kind, cost in costs.items():
            click.echo(f"{kind}: instructions by function")
            for name, figure in cost.functions.items():
                click.echo(f"{figure:>8.1f}  {name}")
        return
    if as_json:
        click.echo(json.dumps(found))
        return
    every = recorded_figures()
    before = every.get(VERSION, {})
    click.echo(f"Python {VERSION}: of one call")
    for kind, groups in found.items():
        for group, figures in groups.items():
            for name, figure in figures.items():
                old = before.get(kind, {}).get(group, {}).get(name)
                change = "" if old is None else f"   recorded {old:,.1f} ({_change(old, figure)})"
                click.echo(f"{kind:<38} {group:<15} {name:<22} {figure:>10,.1f}{change}")
    if record:
        every[VERSION] = found
        RECORD.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n")
    elif lines := too_far(before, found):
        raise click.ClickException("\n".join(lines))


if __name__ == "__main__":
    main()
