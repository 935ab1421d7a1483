"""``python -m bench.flat_cost``: what a call costs as accounts, policies, windows and the ledger grow.

Each part is measured by the CPU time that the processes used, and read as the ratio to its smallest size in the same
run. docs/performance.md shows the figures that were kept with ``--json docs/figures/flat.json``; ``--documents`` writes
them there. The largest sizes take some ten minutes and some 2 GiB of disk; ``--scale 0.01`` a hundredth of both.
"""

import asyncio
import contextlib
import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import click
import redis
import uvloop

from bench.admission_cost import measure as admission_costs
from bench.documents import filled
from bench.many_accounts import add_accounts, key_of
from bench.processes import cpu_s
from bench.report import Table, as_markdown, as_text
from bench.targets import REPOSITORY
from gateway.database import QUERIES
from gateway.embedded import RunningServer, embedded_postgres, embedded_redis
from gateway.ledger import UsageEvent, columns_of, event_id
from gateway.migrate import default_folder, migrate, read_migrations
from gateway.policy.budgets import BudgetLimit
from gateway.policy.money import MICROCENTS_MAX
from gateway.policy.periods import window_at
from gateway.policy.routes import RouteTable
from gateway.policy.rules import Cost, Policy
from upstream_stub.database import migrate as migrate_phase_1
from upstream_stub.hashing import sha256_hex

KNOWN_ACCOUNTS = (100, 10_000, 1_000_000)
ACTIVE_ACCOUNTS = (1, 100, 10_000, 100_000)
POLICIES = (1, 100, 5_000)
WINDOWS = (1, 2, 4, 8)
LEDGER_ROWS = (0, 300_000, 3_000_000)
LOOKED_UP = 100  # different accounts by one statement
LOOKUPS = 300  # statements for each figure
BATCH = 64
WRITES = 150  # batches for each figure
ASKS = 12_800
MATCHES = 200_000
STATEMENT_TIMEOUT_S = 300.0
FORMAT = 1
# Periods in other zones are windows of their own (docs/decisions/0001-own-and-plan-budgets-keep-their-own-windows.md).
_LIMITS = tuple(
    BudgetLimit(period=period, hard_limit_microcents=MICROCENTS_MAX, time_zone=zone)
    for zone in ("UTC", "Asia/Tokyo", "America/New_York")
    for period in ("monthly", "daily", "weekly")
)
_IDENTIFY = "SELECT key_sha256 AS hash, user_id::text AS account_id FROM api_keys WHERE key_sha256 = ANY($1::text[])"
# All in this month, so that they are in the partition that is written to.
_FILL = """
INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome, cast_id,
                          request_id)
SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0')
        || '7' || substr(md5(number::text), 1, 19))::uuid,
       md5('filler-' || number % 20000)::uuid::text, 'cast', moment, 1000000, 200, 'posted',
       md5(number::text)::uuid::text, md5(number::text)
FROM (SELECT number, month + (now() - month) * (number::float8 / $3) AS moment
      FROM generate_series($1::bigint, $2::bigint) AS number, date_trunc('month', now(), 'UTC') AS month) AS filler
"""
_FILL_AT_ONCE = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that grows: what is measured at each size."""

    name: str
    title: str
    figures: tuple[str, ...]
    rows: Sequence[tuple[int, tuple[float, ...]]]

    def table(self) -> Table:
        """Figures by size, each with its ratio to the smallest size's."""
        table: Table = [(self.title, *self.figures)]
        first = self.rows[0][1]
        for size, found in self.rows:
            cells = (
                f"{figure:.1f}" + (f" (× {figure / base:.2f})" if size != self.rows[0][0] and base > 0 else "")
                for figure, base in zip(found, first, strict=True)
            )
            table.append((f"{size:,}", *cells))
        return table


class _Postgres:
    """A connection, and the CPU time of the whole server around a piece of work."""

    def __init__(self, server: RunningServer, connection: asyncpg.Connection) -> None:
        self._server = server
        self.connection = connection

    async def cpu_us(self, count: int, work: Callable[[], Any]) -> float:
        """µs of CPU by each of ``count``, all of which ``work`` does."""
        before = cpu_s(self._server.process.pid)
        await work()
        return (cpu_s(self._server.process.pid) - before) / count * 1e6


async def known_accounts(postgres: _Postgres, url: str, scale: float) -> Part:
    """Look-ups of credentials and of facts, by how many accounts there are."""
    rows: list[tuple[int, tuple[float, ...]]] = []
    there = 0
    for wanted in _scaled(KNOWN_ACCOUNTS, scale):
        click.echo(f"{wanted:,} accounts known …", err=True)
        await asyncio.to_thread(add_accounts, url, there + 1, wanted - there)
        there = wanted
        picked = random.Random(1)
        numbers = [picked.sample(range(1, wanted + 1), LOOKED_UP) for _ in range(LOOKUPS)]
        hashes = [[sha256_hex(key_of(number)) for number in some] for some in numbers]
        found = [
            [row["account_id"] for row in await postgres.connection.fetch(_IDENTIFY, some)] for some in hashes
        ]  # warm

        async def identify(hashes: Sequence[Sequence[str]] = hashes) -> None:
            for some in hashes:
                await postgres.connection.fetch(_IDENTIFY, some)

        async def facts(found: Sequence[Sequence[str]] = found) -> None:
            for some in found:
                await postgres.connection.fetch(QUERIES["load_facts"], some)

        await facts()
        count = LOOKUPS * LOOKED_UP
        rows.append((wanted, (await postgres.cpu_us(count, identify), await postgres.cpu_us(count, facts))))
    title = "accounts known: Postgres, µs of CPU for each account looked up"
    return Part(name="known-accounts", title=title, figures=("credential", "plan and budgets"), rows=rows)


async def active_accounts(postgres: _Postgres, redis_url: str, scale: float) -> Part:
    """Admission, settlement and ledger in batches of 64, by how many accounts take turns."""
    rows = []
    for wanted in _scaled(ACTIVE_ACCOUNTS, scale):
        click.echo(f"{wanted:,} accounts active …", err=True)
        admission = await _admission(redis_url, wanted, _LIMITS[:1])
        accounts = [f"active-{number:06d}" for number in range(wanted)]
        ledger = await _write(postgres, accounts, _LIMITS[:1])
        rows.append((wanted, (*admission, ledger)))
    title = "accounts active: µs of CPU a call, batches of 64"
    figures = ("worker, ask and settle", "Redis", "Postgres, ledger")
    return Part(name="active-accounts", title=title, figures=figures, rows=rows)


async def windows(postgres: _Postgres, redis_url: str, _scale: float) -> Part:
    """The same, by how many budgets with windows of their own an account has."""
    rows = []
    for wanted in WINDOWS:
        click.echo(f"{wanted} windows …", err=True)
        admission = await _admission(redis_url, 100, _LIMITS[:wanted])
        accounts = [f"windows-{wanted}-{number:03d}" for number in range(100)]
        rows.append((wanted, (*admission, await _write(postgres, accounts, _LIMITS[:wanted]))))
    title = "windows of an account: µs of CPU a call, batches of 64 of 100 accounts"
    figures = ("worker, ask and settle", "Redis", "Postgres, ledger")
    return Part(name="windows", title=title, figures=figures, rows=rows)


def policies() -> Part:
    """Matching a head that was not met before, by how many policies there are."""
    rows = []
    for wanted in POLICIES:
        table = RouteTable(
            Policy(name=f"p{number}", methods=frozenset({"POST"}), path=f"/v1/route-{number}", cost=Cost())
            for number in range(wanted)
        )
        picked = random.Random(1)
        policed = [b"/v1/route-%d" % picked.randrange(wanted) for _ in range(1000)]
        free = [b"/v1/other/%d" % picked.randrange(10**6) for _ in range(1000)]
        rows.append((wanted, tuple(_match_us(table, targets) for targets in (policed, free))))
    title = "policies: µs of CPU to match a head that is new"
    return Part(name="policies", title=title, figures=("a path with a policy", "a path without"), rows=rows)


async def ledger_rows(postgres: _Postgres, _redis_url: str, scale: float) -> tuple[Part, float]:
    """A write of 64 events, and a sum over a month of one account, by how many rows the ledger has; and bytes a row."""
    rows = []
    there = 0
    accounts = [f"ledger-{number:03d}" for number in range(100)]
    for wanted in _scaled(LEDGER_ROWS, scale):
        click.echo(f"{wanted:,} rows in the ledger …", err=True)
        for begin in range(there + 1, wanted + 1, _FILL_AT_ONCE):
            await postgres.connection.execute(_FILL, begin, min(begin + _FILL_AT_ONCE - 1, wanted), LEDGER_ROWS[-1])
        there = wanted
        await postgres.connection.execute("VACUUM (ANALYZE) usage_events")
        await postgres.connection.execute("CHECKPOINT")
        rows.append((wanted, (await _write(postgres, accounts, _LIMITS[:1]),)))
    size = await postgres.connection.fetchrow(
        "SELECT (SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('usage_events'))::float8 AS bytes,"
        " count(*) AS rows FROM usage_events"
    )
    assert size is not None
    title = "rows in the ledger: µs of CPU a call, batches of 64 of 100 accounts"
    part = Part(name="ledger-rows", title=title, figures=("Postgres, ledger",), rows=rows)
    return part, size["bytes"] / max(1, size["rows"])


def _scaled(sizes: Sequence[int], scale: float) -> list[int]:
    """The sizes with their largest made smaller; what would be no larger than the one before is left out."""
    found: list[int] = []
    for size in sizes:
        scaled = size if size <= sizes[1] else int(size * scale)
        if not found or scaled > found[-1]:
            found.append(scaled)
    return found


async def _admission(redis_url: str, accounts: int, limits: tuple[BudgetLimit, ...]) -> tuple[float, float]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    cost = (await admission_costs(redis_url, ASKS, accounts, limits=limits, batches=(BATCH,)))[BATCH]
    return cost.ask_python + cost.settle_python, cost.ask_redis + cost.settle_redis


async def _write(postgres: _Postgres, accounts: Sequence[str], limits: Sequence[BudgetLimit]) -> float:
    """µs of Postgres' CPU for each event of batches whose calls are the accounts' in turn."""
    now_ms = int(time.time() * 1000)
    shape = [(limit, window_at(limit.period, limit.time_zone, limit.week_start, now_ms)) for limit in limits]
    for begin in range(0, len(accounts), LOOKED_UP):
        rows = [(account, limit, window) for account in accounts[begin : begin + LOOKED_UP] for limit, window in shape]
        await postgres.connection.execute(
            QUERIES["seed_usage"],
            [account for account, _, _ in rows],
            [limit.period for _, limit, _ in rows],
            [limit.time_zone for _, limit, _ in rows],
            [limit.week_start for _, limit, _ in rows],
            [window.start_ms for _, _, window in rows],
            [window.end_ms for _, _, window in rows],
        )
    place = 0

    async def write(batches: int) -> None:
        nonlocal place
        for _ in range(batches):
            events = []
            for _ in range(BATCH):
                account = accounts[place % len(accounts)]
                place += 1
                at_ms = int(time.time() * 1000)
                hold_id = event_id()
                events.append(UsageEvent(hold_id, account, "cast", at_ms, 1_000_000, 200, "posted", None, hold_id))
            await postgres.connection.fetchrow(QUERIES["record_usage"], *columns_of(events), None, (), (), None)

    await write(WRITES // 5)
    return await postgres.cpu_us(WRITES * BATCH, lambda: write(WRITES))


def _match_us(table: RouteTable, targets: Sequence[bytes]) -> float:
    match = table.match
    for target in targets:
        match(b"POST", target)
    before = time.process_time()
    for _ in range(MATCHES // len(targets)):
        for target in targets:
            match(b"POST", target)
    return (time.process_time() - before) / MATCHES * 1e6


async def _measured(server: RunningServer, redis_url: str, scale: float) -> dict[str, Any]:
    await migrate_phase_1(server.url)
    await migrate(server.url, read_migrations(default_folder()), report=lambda _: None)
    connection = await asyncpg.connect(server.url, command_timeout=STATEMENT_TIMEOUT_S)
    try:
        postgres = _Postgres(server, connection)
        parts = [
            await known_accounts(postgres, server.url, scale),
            await active_accounts(postgres, redis_url, scale),
            policies(),
            await windows(postgres, redis_url, scale),
        ]
        ledger, bytes_per_row = await ledger_rows(postgres, redis_url, scale)
    finally:
        await connection.close()
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": scale,
        "bytes_per_ledger_row": bytes_per_row,
        "parts": [
            {"name": part.name, "title": part.title, "figures": list(part.figures), "rows": part.rows}
            for part in (*parts, ledger)
        ],
    }


def parts_of(figures: Mapping[str, Any]) -> Iterator[Part]:
    """The parts as JSON holds them."""
    for part in figures["parts"]:
        yield Part(
            name=part["name"],
            title=part["title"],
            figures=tuple(part["figures"]),
            rows=[(size, tuple(found)) for size, found in part["rows"]],
        )


def blocks(figures: Mapping[str, Any]) -> dict[str, str]:
    """What stands between the marks of a document, by name."""
    tables = {f"flat-{part.name}": as_markdown(part.table()) for part in parts_of(figures)}
    return {**tables, "flat-bytes": f"{figures['bytes_per_ledger_row']:.0f} bytes a row, indexes included."}


@click.command()
@click.option(
    "--scale", default=1.0, show_default=True, type=click.FloatRange(0.001, 1.0), help="Of the largest sizes."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--documents", is_flag=True, help="Write the tables of docs/performance.md anew.")
@click.option(
    "--from", "from_path", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: show the figures of this file.",
)  # fmt: skip
def main(scale: float, json_path: Path | None, documents: bool, from_path: Path | None) -> None:
    """Measure what a call costs at several sizes of what it depends on."""
    if from_path is not None:
        figures: dict[str, Any] = json.loads(from_path.read_text())
    else:
        gc.set_threshold(20_000, 20, 50)  # as a worker does (gateway/worker.py)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="castgate-flat-")))
            postgres = stack.enter_context(embedded_postgres(folder / "postgres"))
            redis_url = stack.enter_context(embedded_redis(folder / "redis", ephemeral=True)).url
            figures = uvloop.run(_measured(postgres, redis_url, scale))
        if json_path is not None:
            json_path.write_text(json.dumps(figures, indent=1) + "\n")
    for part in parts_of(figures):
        click.echo(as_text(part.table()) + "\n")
    click.echo(blocks(figures)["flat-bytes"])
    if documents:
        path = REPOSITORY / "docs" / "performance.md"
        path.write_text(filled(path.read_text(), blocks(figures)))


if __name__ == "__main__":
    main()
